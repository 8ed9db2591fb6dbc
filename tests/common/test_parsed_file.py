"""JSON and YAML with more opening brackets than any parser follows are refused by name, like other damage."""

import json

import pytest
from tiny_runs import write_store

from cinema_fast.common.parsed_file import parse_json, parse_yaml, read_json
from cinema_fast.data.formats.view_rules import read_rules
from cinema_fast.data.store.check import check_store
from cinema_fast.data.store.inspect_store import describe
from cinema_fast.data.store.store import CineStore, StoreError
from cinema_fast.evaluation.compare_evaluations import read_evaluation
from cinema_fast.evaluation.compare_runs import read_run
from cinema_fast.train.checkpoint import CheckpointError, newest_checkpoint, save_checkpoint
from cinema_fast.train.run_info import read_run_info

DEEP = "[" * 100_000
DEEP_YAML = "[" * 3000  # enough: the YAML parser stops after some hundreds; 100,000 would take it a second
RUN = "{run: {}, model: {}, store: {studies: 1, sha256: ab}}"


@pytest.fixture
def store(tmp_path):
    return write_store(tmp_path / "store", {"s0": ("sax",)})


def test_what_can_be_parsed_is(tmp_path):
    (tmp_path / "a").write_text('{"a": [1, null]}')
    assert read_json(tmp_path / "a") == parse_json(b'{"a": [1, null]}') == parse_yaml("a: [1, null]")
    assert parse_json("[" * 500 + "]" * 500)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("config.yaml", read_run_info),
        ("results.json", read_evaluation),
        ("rules.yaml", lambda folder: read_rules(folder / "rules.yaml")),
        ("index.json", CineStore),
    ],
    ids=["run", "evaluation", "rules", "store"],
)
def test_a_file_is_refused(tmp_path, name, read):
    (tmp_path / name).write_text(DEEP_YAML if name.endswith("yaml") else DEEP)
    with pytest.raises(ValueError, match=rf"{name}.*nested too deeply"):
        read(tmp_path)


def test_what_belongs_to_a_study(store):
    (store / "studies/s0/study.json").write_text(DEEP)
    (store / "failures.jsonl").write_text(DEEP)
    cines = CineStore(store)
    with pytest.raises(StoreError, match=r"s0/study\.json: no window .*nested too deeply"):
        _ = cines.info("s0", "sax").window
    assert "failures.jsonl cannot be read" in describe(cines)
    assert [fault.file for fault in check_store(store, progress=False).faults] == ["studies/s0/study.json"]


def test_what_belongs_to_a_run(tmp_path):
    (tmp_path / "report").mkdir()
    (tmp_path / "config.yaml").write_text(RUN)
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 2.0}) + f"\n{DEEP}\n")
    (tmp_path / "report/evaluation.json").write_text(DEEP)
    run = read_run(tmp_path, "a")
    assert run.step == 1 and "line 2" in run.unread[0] and "nested too deeply" in run.unread[1]
    save_checkpoint(tmp_path / "checkpoints", 1, {}, {}, keep=2)
    (tmp_path / "checkpoints/step-00000001.json").write_text(DEEP)
    said = []
    with pytest.raises(CheckpointError, match="damaged"):
        newest_checkpoint(tmp_path / "checkpoints", said.append)
    assert "nested too deeply" in said[0]
