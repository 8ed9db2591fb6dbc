"""What a run of fine-tuning says of itself beside losses: sinks, profile, and the studies that it could not read."""

import dataclasses
import json
import shutil

import pytest
import torch
from sink_lines import events

from cinema_fast.data.loading.loader import LoaderError
from cinema_fast.tasks.finetune import finetune
from cinema_fast.tasks.supervised import Supervised
from cinema_fast.train.method import Place
from cinema_fast.train.run_info import read_run_info

FEW = {"steps": 6, "validate_every": 3, "log_every": 1, "batch_size": 2}


def lines(out) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_tensorboard_profile_and_what_a_line_has(discs, tmp_path):
    pytest.importorskip("tensorboard")
    out = tmp_path / "run"
    finetune(discs.config(out, "regression", sinks=("tensorboard",), profile=2, **FEW))
    found, told = events(out / "tensorboard"), lines(out)
    for line in told:
        assert line["studies_per_s"] > 0 and 0 <= line["data_wait"] <= 1 and line["peak_mib"] > 0
        assert line["replaced"] == line["skipped"] == 0
    for name in ("loss", "score", "val_radius_mae"):
        assert found[name] == pytest.approx({line["step"]: line[name] for line in told if name in line})
    assert list(found["score"]) == [3, 6]
    assert (out / "profile" / "trace.json").exists() and "aten::addmm" in (out / "profile" / "table.txt").read_text()


@pytest.fixture
def damaged(discs, tmp_path):
    """A function of "train" or "val": that study of the part, and a store in which it cannot be read."""
    split = Supervised(discs.config(tmp_path, "segmentation"), None, Place(torch.device("cpu"))).setup.split

    def damage(part: str):
        study, store = getattr(split, part)[0], shutil.copytree(discs.store, tmp_path / "store")
        path = store / "studies" / study / "lax_4c.npy"
        path.write_bytes(bytes(path.stat().st_size))
        return study, store

    return damage


def test_a_study_that_cannot_be_read_is_replaced_and_counted(discs, tmp_path, damaged):
    study, store = damaged("train")
    config = discs.config(tmp_path / "run", "segmentation", data=store, **FEW)
    assert finetune(config).exit_code == 0
    log, times = (config.out / "run.log").read_text(), lines(config.out)[-1]["replaced"]
    assert times > 0 and log.count(f"study {study} replaced: ") == times
    assert "unreadable studies were replaced" in log
    with pytest.raises(LoaderError, match=rf"study {study}: .*lax_4c\.npy"):
        finetune(dataclasses.replace(config, out=tmp_path / "strict", strict=True))
    assert f"ended by LoaderError: study {study}: " in (tmp_path / "strict" / "run.log").read_text()


@pytest.mark.slow
def test_validation_is_without_what_cannot_be_read(discs, tmp_path, damaged):
    """It is named once, and the score is that of the others; with --strict the run ends, and what it learnt is kept."""
    study, store = damaged("val")
    config = discs.config(tmp_path / "run", "segmentation", data=store, **FEW)
    assert finetune(config).exit_code == 0
    told = lines(config.out)
    assert (config.out / "run.log").read_text().count(f"validation is without {study}: ") == 1
    assert [line["step"] for line in told if "score" in line] == [3, 6] and told[-1]["replaced"] == 0
    strict = dataclasses.replace(config, out=tmp_path / "strict", strict=True)
    with pytest.raises(LoaderError, match=rf"study {study}: .*lax_4c\.npy"):
        finetune(strict)
    assert "LoaderError: saved after step 3; continue with --resume" in (strict.out / "run.log").read_text()
    assert finetune(dataclasses.replace(strict, strict=False, resume=True)).exit_code == 0
    for line, again in zip(told, lines(strict.out), strict=True):
        assert all(again[name] == line[name] for name in ("step", "loss", "grad_norm"))
    assert lines(strict.out)[-1]["score"] == told[-1]["score"]
    assert read_run_info(strict.out).labels.split["val"].count(study) == 1
