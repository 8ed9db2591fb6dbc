"""`--profile N`: exactly N steps, after the first three, in a trace and a table; and nothing else changes."""

import json

import pytest
from tiny_runs import metrics

from cinema_fast.methods.pretrain import pretrain
from cinema_fast.methods.pretrain_config import PretrainConfig


@pytest.mark.slow
def test_two_steps_are_profiled(tiny_store, tmp_path, capfd):
    common = {"data": tiny_store, "steps": 7, "preset": "cinema-demo", "batch_size": 2, "device": "cpu", "log_every": 1}
    pretrain(PretrainConfig(out=tmp_path / "plain", **common))
    pretrain(PretrainConfig(out=tmp_path / "profiled", profile=2, **common))
    assert metrics(tmp_path / "profiled") == metrics(tmp_path / "plain")
    assert not (tmp_path / "plain" / "profile").exists()
    folder = tmp_path / "profiled" / "profile"
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    names = [event.get("name", "") for event in events]
    assert names.count("ProfilerStep#3") == names.count("ProfilerStep#4") == 1
    assert not {"ProfilerStep#2", "ProfilerStep#5"} & set(names)
    assert "aten::addmm" in (folder / "table.txt").read_text()
    assert str(folder / "trace.json") in capfd.readouterr().out + (tmp_path / "profiled" / "run.log").read_text()


def test_a_negative_number_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--profile must not be negative, got -1"):
        PretrainConfig(data=tmp_path, out=tmp_path, steps=1, profile=-1)


def test_too_few_steps_are_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match=r"--profile 2 needs --steps of at least 5 .*, got 4"):
        PretrainConfig(data=tmp_path, out=tmp_path, steps=4, profile=2)
    PretrainConfig(data=tmp_path, out=tmp_path, steps=5, profile=2)
    PretrainConfig(data=tmp_path, out=tmp_path, steps=1)


@pytest.mark.slow
def test_a_resumed_run_with_too_few_steps_left_says_so(tiny_store, tmp_path):
    """All steps from 3 on are left: one fewer than the first three and two to profile."""
    out = tmp_path / "run"
    common = {"data": tiny_store, "out": out, "steps": 7, "preset": "cinema-tiny", "batch_size": 2, "device": "cpu"}
    pretrain(PretrainConfig(checkpoint_every=3, keep_checkpoints=9, **common))
    for path in (out / "checkpoints").glob("step-*[67].json"):
        path.unlink()
    pretrain(PretrainConfig(profile=2, resume=True, **common))
    assert "nothing was profiled: 4 steps were made, --profile 2 needs 5" in (out / "run.log").read_text()
    assert not (out / "profile").exists()
