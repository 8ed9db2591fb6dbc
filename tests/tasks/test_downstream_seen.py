"""What a run says of the studies that its weights have learnt from."""

import json
import shutil

from finetune_cases import FEW
from labelled_discs import write_discs

from cinema_fast.data.loading.sampler import held_out
from cinema_fast.data.store.store import CineStore
from cinema_fast.tasks.finetune import finetune
from cinema_fast.tasks.seen import seen_by
from cinema_fast.train.run_info import read_run_info

ONE = {"steps": 1, "validate_every": 1}


def test_test_studies_that_pretraining_has_seen_are_reported(discs, pretrained, tmp_path):
    finetune(discs.config(tmp_path / "run", "regression", init_from=pretrained, **FEW | {"test": 0.5}))
    log = (tmp_path / "run" / "run.log").read_text()
    assert "has used 3 of the 6 test studies for training" in log and "pre-train with --holdout 0.5" in log
    assert f"the model is configured as in {pretrained} (cinema-demo)" in log


def test_what_a_chain_of_runs_has_seen(discs, pretrained, tmp_path):
    """Ids count, of whichever store: those that pre-training held out, and later runs trained or chose by."""
    pretraining = set(CineStore(discs.store).ids) - held_out(CineStore(discs.store).ids, 0.25)
    few = shutil.copytree(discs.store, tmp_path / "few")
    index = json.loads((few / "index.json").read_text())
    index["studies"] = {study: views for study, views in index["studies"].items() if study not in ("s00", "s01")}
    (few / "index.json").write_text(json.dumps(index))
    finetune(discs.config(tmp_path / "first", "segmentation", data=few, test=0.1, init_from=pretrained, **ONE))
    first = read_run_info(tmp_path / "first")
    own = {*first.labels.used, *first.labels.split["val"]}
    seen = first.labels.seen
    assert set(seen["studies"]) == pretraining | own > pretraining and seen["unknown"] == []
    assert first.store.sha256 != read_run_info(pretrained).store.sha256
    finetune(discs.config(tmp_path / "second", "segmentation", test=0.5, init_from=tmp_path / "first", **ONE))
    second = read_run_info(tmp_path / "second")
    both = len((pretraining | own) & set(second.labels.split["test"]))
    assert f"{tmp_path / 'first'}, or a run it started from, has used {both} of the 6 test studies" in (
        tmp_path / "second/run.log").read_text()
    weights = next((tmp_path / "first/best").glob("*.safetensors"))
    finetune(discs.config(tmp_path / "third", "segmentation", init_from=weights, **ONE))
    third = read_run_info(tmp_path / "third").labels.seen
    assert third["unknown"] == [f"{weights} does not say which studies it was trained on"]
    assert f"was trained on test studies: {weights} does not say" in (tmp_path / "third/run.log").read_text()


def test_a_store_of_pretraining_that_is_gone(discs, pretrained, tmp_path):
    run = shutil.copytree(pretrained, tmp_path / "run")
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace(str(discs.store), str(tmp_path / "gone")))
    other = CineStore(write_discs(tmp_path / "other", 3))
    (why,) = seen_by(run, other)[1]
    assert why == f"the store of {run}, {tmp_path / 'gone'}, is not here"
    (run / "config.yaml").write_text(text.replace(str(discs.store), str(tmp_path / "other")))
    assert seen_by(run, CineStore(write_discs(tmp_path / "another", 4)))[1] == [
        f"the store of {run}, {tmp_path / 'other'}, has changed since"
    ]
