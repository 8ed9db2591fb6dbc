"""TensorBoard and Weights & Biases beside metrics.jsonl: what they are given, once, and that they never end a run."""

import json
import os
import sys
import types

import pytest
import yaml
from training_fixtures import tiny_store  # noqa: F401

from cinema_fast.cli import main
from cinema_fast.train import sinks as module
from cinema_fast.train.sinks import Sinks, check_sinks

LINES = [{"step": n, "epoch": n / 2, "loss": 1 / n, "skipped": 0, "reader": "torch"} for n in (2, 4, 6, 8)]
SETTLED = {"run": {"lr": 1e-3, "views": ["sax"]}, "model": {"depth": 2}}


def numbers(line: dict) -> dict:
    return {key: value for key, value in line.items() if key != "step" and isinstance(value, int | float)}


@pytest.fixture
def said():
    return []


@pytest.fixture
def write(tmp_path, said):
    """Gives lines to sinks as one process does that had made `done` steps before."""

    def process(name: str, lines: list[dict], done: int = 0, failed: bool = False) -> None:
        sinks = Sinks([name], tmp_path, SETTLED, done=done, say=said.append)
        for line in lines:
            sinks.write(line)
        sinks.close(failed=failed)

    return process


def events(folder) -> dict[str, dict[int, float]]:
    """{name: {step: value}} as TensorBoard shows them, each step once, and the texts under 'config'."""
    loading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = loading.EventAccumulator(str(folder))
    found.Reload()
    shown = {name: [(e.step, e.value) for e in found.Scalars(name)] for name in found.Tags()["scalars"]}
    assert all(len(dict(points)) == len(points) for points in shown.values())
    texts = [e for name in found.Tags()["tensors"] for e in found.Tensors(name)]
    shown["config"] = [(e.step, e.tensor_proto.string_val[0].decode()) for e in texts]
    return {name: dict(points) for name, points in shown.items()}


def test_tensorboard_has_every_number_and_the_config_once(tmp_path, write, said):
    pytest.importorskip("tensorboard")
    write("tensorboard", [*LINES[:2], LINES[2] | {"loss": None}, LINES[3]])
    found = events(tmp_path / "tensorboard")
    config = found.pop("config")
    assert list(config) == [0] and yaml.safe_load(config[0]) == SETTLED
    assert found == {
        "epoch": {2: 1, 4: 2, 6: 3, 8: 4},
        "loss": {2: 0.5, 4: 0.25, 8: 0.125},  # one that is not finite is no point
        "skipped": {2: 0, 4: 0, 6: 0, 8: 0},
    }
    assert said == [f"TensorBoard: tensorboard --logdir {tmp_path / 'tensorboard'}"]


def test_tensorboard_of_a_resumed_run_shows_no_step_twice(tmp_path, write):
    pytest.importorskip("tensorboard")
    write("tensorboard", LINES[:3], failed=True)
    again = [line | {"loss": 7.0} for line in LINES[2:]]
    write("tensorboard", again, done=4)
    found = events(tmp_path / "tensorboard")
    assert found["loss"] == {2: 0.5, 4: 0.25, 6: 7.0, 8: 7.0}
    assert list(found["epoch"]) == [2, 4, 6, 8] and list(found["config"]) == [0]


class StandIn(types.ModuleType):
    """Records what is asked of wandb. server: what login finds; broken: the call that fails."""

    def __init__(self, *, key: bool = False, broken: str = ""):
        super().__init__("wandb")
        self.key, self.broken, self.calls, self.points = key, broken, [], []
        self.Settings = dict

    def _called(self, what, **named):
        if what == self.broken:
            raise RuntimeError(f"{what}\n  failed")
        self.calls.append((what, named))

    def login(self, **named):
        assert named == {"prompt": False, "verify": False}  # never a question in the middle of a night
        return self.key

    def setup(self):
        return types.SimpleNamespace(settings=types.SimpleNamespace(base_url="http://127.0.0.1:9"))

    def init(self, **named):
        self._called("init", **named)
        return types.SimpleNamespace(log=self._log, finish=lambda **how: self._called("finish", **how))

    def _log(self, values, step):
        self._called("log", step=step)
        self.points.append((step, values))


@pytest.fixture
def stand_in(monkeypatch):
    for name in list(os.environ):
        if name.startswith("WANDB"):
            monkeypatch.delenv(name)

    def install(**how) -> StandIn:
        found = StandIn(**how)
        monkeypatch.setitem(sys.modules, "wandb", found)
        return found

    return install


def test_wandb_goes_on_in_its_run_and_gets_no_step_twice(tmp_path, write, stand_in, said):
    wandb = stand_in()
    write("wandb", LINES[:3], failed=True)
    write("wandb", LINES[2:], done=4)
    assert wandb.points == [(line["step"], numbers(line)) for line in LINES]
    first, second = (named for what, named in wandb.calls if what == "init")
    assert first["id"] == second["id"] and first["resume"] == "allow"
    assert first["config"] == SETTLED and first["dir"] == str(tmp_path) and first["mode"] == "offline"
    assert (first["project"], first["name"]) == ("cinema-fast", tmp_path.name)
    assert [named for what, named in wandb.calls if what == "finish"] == [{"exit_code": 1}, {"exit_code": 0}]
    assert len(said) == 2 and "offline: no key" in said[0]
    assert json.loads((tmp_path / "wandb.json").read_text()) == {"id": first["id"], "step": 8}


@pytest.mark.parametrize(
    ("environment", "mode", "project", "expected"),
    [
        ({}, "offline", "cinema-fast", "offline: no way to http://127.0.0.1:9 ("),
        ({"WANDB_MODE": "disabled", "WANDB_PROJECT": "hearts"}, None, "hearts", "(WANDB_MODE disabled)"),
    ],
)
def test_wandb_without_a_network_or_by_its_environment(
    write, stand_in, said, monkeypatch, environment, mode, project, expected
):
    wandb = stand_in(key=True)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    write("wandb", LINES[:1])
    asked = wandb.calls[0][1]
    assert (asked["mode"], asked["project"]) == (mode, project) and expected in said[0]


@pytest.mark.parametrize("refused", [False, True])
def test_wandb_is_online_where_its_server_answers(write, stand_in, monkeypatch, refused):
    def answer(url, timeout):
        assert timeout <= 10
        if refused:
            raise module.urllib.error.HTTPError(url, 403, "no", {}, None)
        return types.SimpleNamespace(close=lambda: None)

    wandb = stand_in(key=True)
    monkeypatch.setattr(module.urllib.request, "urlopen", answer)
    write("wandb", LINES[:1])
    assert wandb.calls[0][1]["mode"] == "online"


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
    sinks = Sinks(["tensorboard", "wandb", "wandb"], tmp_path, SETTLED, done=0, say=said.append)
    for line in LINES:
        sinks.write(line)
    assert [step for step, _ in wandb.points] == [2, 4, 6, 8] and "--sinks tensorboard: left out" in said[0]


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_library_is_named_before_anything_is_made(
    tiny_store, tmp_path, capfd, monkeypatch, name  # noqa: F811
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


def test_the_real_wandb_without_a_key(tmp_path, write, said, monkeypatch):
    """Both processes of a run that was stopped are on disk, under one id, without a question or a wait."""
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    for name in list(os.environ):
        if name.startswith("WANDB"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # whose .netrc may have a key
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / "netrc"))
    write("wandb", LINES[:3])
    write("wandb", LINES[2:], done=4)
    assert len(said) == 2 and all("offline: no key" in text for text in said)
    state = json.loads((tmp_path / "wandb.json").read_text())
    assert state["step"] == 8
    files = sorted((tmp_path / "wandb").glob(f"offline-run-*/run-{state['id']}.wandb"))
    assert files and all(file.stat().st_size for file in files)


def test_a_run_with_tensorboard_and_its_resumption(tiny_store, tmp_path, monkeypatch):  # noqa: F811
    pytest.importorskip("tensorboard")
    monkeypatch.setattr("cinema_fast.train.pretrain.write_report", lambda *_, **__: [])
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
