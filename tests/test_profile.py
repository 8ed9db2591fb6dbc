"""`--profile N`: exactly N steps, after the first three, in a trace and a table; and nothing else changes."""

import json

import pytest
from training_fixtures import metrics, tiny_store  # noqa: F401

from cinema_fast.train.config import PretrainConfig
from cinema_fast.train.pretrain import pretrain


def test_two_steps_are_profiled(tiny_store, tmp_path, capfd):  # noqa: F811
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
