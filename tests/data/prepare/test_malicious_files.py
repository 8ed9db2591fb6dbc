"""Files that would run code, or write elsewhere, if they were read by the wrong means; each is refused by name.

Weights: test_weights.py. Checkpoints: test_checkpoint.py, test_sharded_checkpoint_damage.py. DICOM names:
test_prepare_dicom.py.
"""

import json
import os
import pickle

import numpy as np
import pytest
import yaml
from tiny_runs import FOUR, write_store

from cinema_fast.data.formats.view_rules import read_rules
from cinema_fast.data.prepare.motion import MotionTask, map_study
from cinema_fast.data.store.check import check_store
from cinema_fast.data.store.store import CineStore, StoreError
from cinema_fast.methods.pretrain import pretrain
from cinema_fast.methods.pretrain_config import PretrainConfig

TRACE = "executed"
CALL = f"!!python/object/apply:os.mkdir [{TRACE}]"


class Payload:
    """What makes a folder where it is unpickled."""

    def __reduce__(self):
        return os.mkdir, (TRACE,)


@pytest.fixture(autouse=True)
def nothing_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert not os.path.exists(TRACE)


@pytest.fixture
def store(tmp_path):
    return write_store(tmp_path / "store", {"s0": FOUR, "s1": FOUR})


def config_of(store, **changes) -> PretrainConfig:
    options = {"data": store, "out": store.parent / "run", "steps": 1, "preset": "cinema-tiny", "batch_size": 2}
    return PretrainConfig(**options | {"device": "cpu", "precision": "fp32"} | changes)


def test_the_payloads_work(tmp_path):
    for load in (lambda: pickle.loads(pickle.dumps(Payload())), lambda: yaml.unsafe_load(CALL)):
        load()
        (tmp_path / TRACE).rmdir()


def test_options_of_a_run(store):
    (store.parent / "run").mkdir()
    (store.parent / "run" / "config.yaml").write_text(f"run: {CALL}\nmodel: {{}}\nstore: {{}}\n")
    with pytest.raises(ValueError, match=r"config\.yaml is damaged \(ConstructorError"):
        pretrain(config_of(store, resume=True))


def test_rules_of_views(tmp_path):
    (tmp_path / "rules.yaml").write_text(f"rules:\n  - match: {CALL}\n    view: sax\n")
    with pytest.raises(ValueError, match=r"rules\.yaml: the view rules cannot be read"):
        read_rules(tmp_path / "rules.yaml")


@pytest.mark.parametrize("content", ["an array of objects", "a pickle"])
def test_a_cine(store, content):
    file = store / "studies" / "s0" / "sax.npy"
    if content == "a pickle":
        file.write_bytes(pickle.dumps(Payload()))
    else:
        np.save(file, np.array([Payload()] * 4, dtype=object), allow_pickle=True)
    with pytest.raises(StoreError, match=r"s0/sax\.npy"):
        CineStore(store).read_frame("s0", "sax", 0)
    with pytest.raises(ValueError, match="allow_pickle"):
        map_study(MotionTask(store, "s0", ("sax",), "cpu", store / "new"))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_to_begin_with(store, tmp_path, suffix):
    weights = tmp_path / f"weights{suffix}"
    weights.write_bytes(pickle.dumps({"w": Payload()}, protocol=2))
    with pytest.raises(ValueError, match="cannot be read as weights"):
        pretrain(config_of(store, init_from=weights))


@pytest.mark.parametrize("name", ["../victim", "..", "/victim", "a/b", ""])
@pytest.mark.parametrize("of", ["study", "view"])
def test_names_in_an_index_cannot_leave_the_store(store, tmp_path, name, of):
    name = f"{tmp_path}/victim" if name == "/victim" else name
    (tmp_path / "victim").mkdir()
    index = json.loads((store / "index.json").read_text())
    if of == "study":
        index["studies"][name] = index["studies"].pop("s0")
    else:
        index["studies"]["s0"][name] = index["studies"]["s0"].pop("sax")
    (store / "index.json").write_text(json.dumps(index))
    with pytest.raises(StoreError, match=r"index\.json: study .* not names of a folder and a file"):
        CineStore(store)
    assert not list((tmp_path / "victim").iterdir())


@pytest.mark.parametrize("file", ["{outside}/sax.npy", "../victim/sax.npy", "studies/../../victim/sax.npy",
                                  "studies/s1/sax.npy", "studies/s0/./sax.npy"])  # fmt: skip
@pytest.mark.parametrize("of", ["cine", "motion", "labels"])
def test_files_in_an_index_cannot_lie_elsewhere(store, tmp_path, file, of):
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim/sax.npy").write_bytes((store / "studies/s0/sax.npy").read_bytes())
    index = json.loads((store / "index.json").read_text())
    record = index["studies"]["s0"]["sax"]
    named = file.format(outside=tmp_path / "victim")
    if of == "cine":
        record["file"] = named
    else:
        record[of] = {"file": named, "sha256": "0", "max_px": 1.0, "frames": [0]}
    (store / "index.json").write_text(json.dumps(index))
    for use in (CineStore, check_store):
        with pytest.raises(StoreError, match=r"index\.json: study 's0', view 'sax': its file is .*, expected studies"):
            use(store)


def test_vectors_with_a_type_of_their_own(tmp_path):
    """Parquet may name a Python type whose pickle lies beside it; readers before pyarrow 14.0.1 unpickled that."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    from cinema_fast.common.parquet import read_parquet

    hostile = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": pickle.dumps(Payload())}
    table = pa.table({"study": ["s0"]}, pa.schema([pa.field("study", pa.string(), metadata=hostile)]))
    pq.write_table(table, tmp_path / "vectors.parquet")
    assert read_parquet(tmp_path / "vectors.parquet")["study"].to_pylist() == ["s0"]
    assert pq.read_schema(tmp_path / "vectors.parquet").field(0).metadata[b"ARROW:extension:name"]  # it was there
