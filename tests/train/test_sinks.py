"""What TensorBoard is given; and no sink ends a run, or is missing without a word."""

import json
import sys

import pytest
import yaml
from sink_lines import INFO, LINES, events

from cinema_fast.cli import main
from cinema_fast.train.sinks import Sinks, check_sinks


def test_tensorboard_has_every_number_and_the_config_once(tmp_path, write, said):
    pytest.importorskip("tensorboard")
    write("tensorboard", [*LINES[:2], LINES[2] | {"loss": None}, LINES[3]])
    found = events(tmp_path / "tensorboard")
    config = found.pop("config")
    assert list(config) == [0] and yaml.safe_load(config[0]) == INFO.to_dict()
    assert found == {
        "epoch": {2: 1, 4: 2, 6: 3, 8: 4},
        "loss": {2: 0.5, 4: 0.25, 8: 0.125},  # one that is not finite is no point
        "skipped": {2: 0, 4: 0, 6: 0, 8: 0},
    }
    assert said == [f"TensorBoard: tensorboard --logdir {tmp_path / 'tensorboard'}"]


def test_tensorboard_of_a_resumed_run_shows_no_step_twice(tmp_path, write):
    pytest.importorskip("tensorboard")
    write("tensorboard", LINES[:3], end="killed")
    again = [line | {"loss": 7.0} for line in LINES[2:]]
    write("tensorboard", again, LINES[:2])
    found = events(tmp_path / "tensorboard")
    assert found["loss"] == {2: 0.5, 4: 0.25, 6: 7.0, 8: 7.0}
    assert list(found["epoch"]) == [2, 4, 6, 8] and list(found["config"]) == [0]


def test_tensorboard_asked_for_later_has_what_was_before(tmp_path, write):
    pytest.importorskip("tensorboard")
    write("tensorboard", LINES[2:], LINES[:2])
    assert events(tmp_path / "tensorboard")["loss"] == {2: 0.5, 4: 0.25, 6: pytest.approx(1 / 6), 8: 0.125}


@pytest.mark.parametrize(("broken", "lines"), [("init", 0), ("log", 0), ("finish", 4)])
def test_a_sink_that_fails_is_named_once_and_left_out(write, stand_in, said, broken, lines):
    wandb = stand_in(broken=broken)
    write("wandb", LINES)
    assert len(wandb.points) == lines
    (last,) = [text for text in said if "left out" in text]
    assert last == (
        f"--sinks wandb: left out from here on (RuntimeError: {broken} failed); metrics.jsonl has every line"
    )


def test_one_sink_that_fails_takes_no_other_with_it(tmp_path, stand_in, said, monkeypatch):
    wandb = stand_in()
    (tmp_path / "tensorboard").write_text("in the way")
    sinks = Sinks(["tensorboard", "wandb", "wandb"], tmp_path, INFO, lines=[], say=said.append)
    for line in LINES:
        sinks.write(line)
    assert [step for step, _ in wandb.points] == [2, 4, 6, 8] and "--sinks tensorboard: left out" in said[0]


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_library_is_named_before_anything_is_made(
    tiny_store, tmp_path, capfd, monkeypatch, name
):
    monkeypatch.setitem(sys.modules, {"tensorboard": "torch.utils.tensorboard"}.get(name, name), None)
    arguments = ["--data", tiny_store, "--out", tmp_path / "run", "--steps", 1, "--preset", "cinema-tiny"]
    assert main([str(a) for a in ["pretrain", *arguments, "--sinks", name]]) == 1
    err = capfd.readouterr().err
    assert err.startswith(f"cinema-fast: --sinks {name}: the extra {name} is not installed, or does not load (")
    assert err.endswith(f"pip install {name}\n") and err.count("\n") == 1 and not (tmp_path / "run").exists()


def test_a_folder_named_wandb_is_no_library(tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(ValueError, match=r"--sinks wandb: .*'init'"):
        check_sinks(["wandb"])
    sys.modules.pop("wandb")


def test_a_run_with_tensorboard_and_its_resumption(tiny_store, tmp_path, no_report):
    pytest.importorskip("tensorboard")
    out = tmp_path / "run"
    arguments = ["--data", tiny_store, "--out", out, "--steps", 4, "--preset", "cinema-tiny", "--batch-size", 2]
    arguments += ["--log-every", 2, "--sinks", "tensorboard"]
    assert main([str(a) for a in ["pretrain", *arguments]]) == 0
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    found = events(out / "tensorboard")
    assert yaml.safe_load(found.pop("config")[0]) == yaml.safe_load((out / "config.yaml").read_text())
    assert found.keys() == lines[0].keys() - {"step"}
    for name, points in found.items():
        assert points == pytest.approx({line["step"]: line[name] for line in lines})
    assert main([str(a) for a in ["pretrain", *arguments, "--resume"]]) == 0
    assert list(events(out / "tensorboard")["loss"]) == [2, 4]
    assert "TensorBoard: tensorboard --logdir" in (out / "run.log").read_text()
