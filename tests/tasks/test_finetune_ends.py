"""How a run of fine-tuning ends: early, at a study that cannot be read; and into which folders it may go on."""

import dataclasses
import math
import shutil

import labelled_discs
import numpy as np
import pytest
import torch
from labelled_discs import QUICK, write_discs, write_table
from tiny_runs import metrics

from cinema_fast.cli import main
from cinema_fast.data.loading.loader import LabelError, LoaderError
from cinema_fast.data.store.store import CineStore
from cinema_fast.evaluation.compare_runs import compare_runs
from cinema_fast.methods.pretrain import pretrain
from cinema_fast.methods.pretrain_config import PretrainConfig
from cinema_fast.models.config import preset
from cinema_fast.tasks.finetune import finetune
from cinema_fast.tasks.finetune_config import FinetuneConfig
from cinema_fast.tasks.finetuned_run import load_run
from cinema_fast.tasks.segmentation import Segmentation
from cinema_fast.tasks.split import Split
from cinema_fast.tasks.supervised import Supervised
from cinema_fast.train import loop
from cinema_fast.train.best import Best
from cinema_fast.train.run_info import read_run_info

FEW = {"steps": 2, "validate_every": 2}
SCORES = [0.1, 0.5, 0.4, 0.5, 0.2, 0.9]


@pytest.fixture
def scored(monkeypatch):
    """Validations give SCORES in turn."""
    left = iter(SCORES)
    monkeypatch.setattr(Supervised, "validate", lambda *_: {"score": next(left)})


def test_early_stopping(discs, tmp_path, scored):
    """Three validations without a better one after the second (as good is not better): the end, at the fifth."""
    ended = finetune(discs.config(tmp_path / "run", "regression", steps=12, validate_every=2, patience=3))
    assert ended.step == 10 and ended.exit_code == 0
    assert [line["score"] for line in metrics(tmp_path / "run") if "score" in line] == SCORES[:5]
    assert load_run(tmp_path / "run", device="cpu").step == 4
    log = (tmp_path / "run" / "run.log").read_text()
    assert "stopped early: no better score in the last 3 validations" in log and "best weights: step 4" in log
    before = metrics(tmp_path / "run")  # resumed it is still over
    again = finetune(discs.config(tmp_path / "run", "regression", steps=12, validate_every=2, patience=3, resume=True))
    assert again.step == 10 and metrics(tmp_path / "run") == before


@pytest.mark.parametrize(("task", "score", "warns"), [
    ("segmentation", 0.004, True), ("segmentation", 0.2, False), ("regression", 0.0, False),
])  # fmt: skip
def test_a_segmentation_that_learnt_nothing_warns(discs, tmp_path, monkeypatch, task, score, warns):
    monkeypatch.setattr(Supervised, "validate", lambda *_: {"score": score})
    assert finetune(discs.config(tmp_path / "run", task, **FEW)).exit_code == 0
    log = (tmp_path / "run" / "run.log").read_text()
    assert ("warning: the best validation has a Dice near 0" in log and "--init-from" in log) == warns


def test_with_all_updates_skipped_it_fails(discs, tmp_path, monkeypatch):
    skipped = torch.tensor([math.nan, math.nan, 0.0])
    monkeypatch.setattr(loop, "make_train_step", lambda *_, **__: lambda *_: skipped)
    ended = finetune(discs.config(tmp_path / "run", "regression", **FEW))
    assert (ended.step, ended.exit_code) == (2, 1)
    log = (tmp_path / "run" / "run.log").read_text()
    assert "loss or gradient of its last 2 updates was not finite" in log and "weights are those of step 0" in log


def test_patience_is_counted_over_a_stop(discs, tmp_path, scored, monkeypatch):
    options = {"steps": 12, "validate_every": 2, "patience": 3}
    save = Best.save

    def killed(best, *rest):
        save(best, *rest)
        if best.step == 4:
            raise KeyboardInterrupt  # between best/ and the checkpoint of the same step

    monkeypatch.setattr(Best, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        finetune(discs.config(tmp_path / "run", "regression", **options))
    monkeypatch.setattr(Best, "save", save)
    left = iter(SCORES[1:])
    monkeypatch.setattr(Supervised, "validate", lambda *_: {"score": next(left)})
    assert finetune(discs.config(tmp_path / "run", "regression", resume=True, **options)).step == 10
    assert load_run(tmp_path / "run", device="cpu").step == 4


def test_without_patience_all_steps_are_made(discs, tmp_path, scored):
    ended = finetune(discs.config(tmp_path / "run", "regression", steps=6, validate_every=1, patience=0))
    assert ended.step == 6 and load_run(tmp_path / "run", device="cpu").step == 6


def test_without_validation_the_last_weights_are_kept(discs, tmp_path):
    finetune(discs.config(tmp_path / "run", "regression", val=0.0, steps=4, validate_every=2, patience=1))
    assert load_run(tmp_path / "run", device="cpu").step == 4
    assert "no validation studies" in (tmp_path / "run" / "run.log").read_text()
    assert all("score" not in line for line in metrics(tmp_path / "run"))


def test_a_study_that_cannot_be_read_ends_the_run_with_its_name(discs, tmp_path, capsys):
    store = shutil.copytree(discs.store, tmp_path / "store")
    for path in (store / "studies").glob("*/lax_4c.npy"):
        path.write_bytes(bytes(path.stat().st_size))
    config = discs.config(tmp_path / "run", "regression", data=store, **FEW)
    for strict, told in ((True, r"study s\d\d: .*lax_4c\.npy"), (False, r"study s\d\d and \d drawn instead")):
        with pytest.raises(LoaderError, match=told):
            finetune(dataclasses.replace(config, strict=strict, out=tmp_path / ("run" if strict else "other")))
    assert "ended by LoaderError: study s" in (tmp_path / "run" / "run.log").read_text()


def test_a_label_that_has_no_name_in_a_map_not_looked_at(discs, tmp_path):
    """The index says which labels there are; where a map holds another all the same, that is found when it is drawn."""
    store = write_discs(tmp_path / "store", 12, views=("lax_4c",), labels=(0, 1, 2, 3))
    for path in (store / "studies").glob("*/lax_4c.labels.npy"):
        maps = np.load(path)
        maps[1] = 9
        np.save(path, maps)
    with pytest.raises(LoaderError, match=r"study s\d\d: its lax_4c label maps hold the label 9, and the struct"):
        finetune(discs.config(tmp_path / "run", "segmentation", data=store, steps=10))


def test_a_wrong_label_of_validation_ends_the_run_too(discs, tmp_path):
    """It is no study that cannot be read, without which validation would go on."""
    store = write_discs(tmp_path / "store", 12, views=("lax_4c",), labels=(0, 1, 2, 3))
    config = discs.config(tmp_path / "run", "segmentation", data=store, steps=2, validate_every=1)
    finetune(dataclasses.replace(config, out=tmp_path / "before", steps=1))
    for study in read_run_info(tmp_path / "before").labels.split["val"]:
        path = store / "studies" / study / "lax_4c.labels.npy"
        maps = np.load(path)
        maps[1] = 9
        np.save(path, maps)
    with pytest.raises(LabelError, match=r"study s\d\d: its lax_4c label maps hold the label 9"):
        finetune(config)


@pytest.fixture(scope="module")
def finished(discs, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "run"
    finetune(discs.config(out, "regression", **FEW))
    return out


def test_a_run_says_what_its_training_studies_had(tmp_path):
    """Views of the training studies, and the slices of their smallest stack, for what is predicted later."""
    store = write_discs(tmp_path / "store", last_view_of=6)
    write_table(tmp_path / "table.csv")
    config = FinetuneConfig(data=store, out=tmp_path / "run", task="regression", table=tmp_path / "table.csv",
                            targets=("radius",), **QUICK | FEW | {"val": 0.0, "test": 0.0})  # fmt: skip
    finetune(config)
    run = load_run(tmp_path / "run", device="cpu")
    every, fewer = run.model_config.views, run.model_config.views[:-1]
    assert run.info.labels.view_sets == [{"views": list(views), "studies": 6} for views in (every, fewer)]
    assert run.trained_views() == (
        f"training studies of the model: 6 with all of the views; 6 with {', '.join(fewer)} only")
    assert run.info.labels.fewest_slices == {"sax": CineStore(store).info("s00", "sax").shape[3]}

    def known(sets):
        info = dataclasses.replace(run.info, labels=dataclasses.replace(labels, view_sets=sets))
        return dataclasses.replace(run, info=info)

    labels = run.info.labels
    one = known(labels.view_sets[:1])
    assert one.trained_views().endswith("; the model was never trained on a study that lacks one")
    none = known(labels.view_sets[1:])
    assert none.trained_views() == f"training studies of the model: 6 with {', '.join(fewer)} only"
    apart = dataclasses.replace(run, task=Segmentation(("LV",), every, "0"))  # views are predicted one by one
    single = dataclasses.replace(run, model_config=dataclasses.replace(run.model_config, views=("sax",)))
    assert apart.trained_views() == single.trained_views() == "" and apart.missing_views(("sax",)) == ()
    assert run.missing_views(("sax",)) == ("lax_4c",)


def test_the_smallest_stack_is_that_of_all_labelled_studies(tmp_path, monkeypatch):
    """Also of such whose labels a smaller share leaves out, and of validation, which therefore is never continued."""
    plain = labelled_discs.drawn
    shallow = {7: 2, 8: 1}  # slices
    monkeypatch.setattr(labelled_discs, "drawn", lambda n, view: tuple(
        part[..., : shallow.get(n, 3)] if view == "sax" else part for part in plain(n, view)))  # fmt: skip
    store = CineStore(write_discs(tmp_path / "store"))
    few = QUICK | FEW | {"label_fraction": 0.1}
    config = FinetuneConfig(data=store.path, out=tmp_path / "run", task="segmentation", **few)
    names = {n: f"s{n:02d}" for n in range(12)}
    train = tuple(names[n] for n in range(7))
    for split, fewest in (
        (Split((*train, names[7]), (names[9],), (names[8],)), 2), (Split(train, (names[7],), (names[8],)), 2),
    ):  # fmt: skip
        setup = Segmentation.set_up(config, store, preset(config.preset), split, min_frames=3)
        assert names[7] not in setup.used and setup.fewest_slices == {"sax": fewest}


def test_folders_of_others(discs, finished, tmp_path):
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"already holds a run: .*--resume"):
        finetune(discs.config(finished, "regression", **FEW))
    with pytest.raises(ValueError, match=r"started with other options(.|\n)*lr: was 0.001, now 0.01"):
        finetune(discs.config(finished, "regression", lr=0.01, resume=True, **FEW))
    with pytest.raises(ValueError, match=r"started with other options(.|\n)*task: was regression, now classification"):
        finetune(discs.config(finished, "classification", resume=True, **FEW))
    with pytest.raises(ValueError, match="started with other options"):
        pretrain(PretrainConfig(data=discs.store, out=finished, steps=2, preset="cinema-demo", resume=True))
    assert before == {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    mae = tmp_path / "mae"
    pretrain(PretrainConfig(data=discs.store, out=mae, steps=1, preset="cinema-demo", batch_size=2, device="cpu"))
    with pytest.raises(ValueError, match="started with other options"):
        finetune(discs.config(mae, "regression", resume=True, **FEW))
    with pytest.raises(ValueError, match=r"is a run of pretrain: fine-tune it by"):
        load_run(mae)
    with pytest.raises(ValueError, match=r"compare: run is a run of finetune, mae one of pretrain"):
        compare_runs([finished, mae])


@pytest.mark.parametrize("task", ["regression", "landmarks", "segmentation"])
def test_changed_labels(discs, tmp_path, task):
    change = "data" if task == "segmentation" else "table"
    out = tmp_path / "run"
    finetune(discs.config(out, task, **FEW))
    if task == "regression":
        other = tmp_path / "other.csv"
        other.write_text(discs.table.read_text().replace("s00,5", "s00,6"))
    elif task == "landmarks":
        other = tmp_path / "other.csv"
        other.write_text(discs.points.read_text().replace("s00,lax_4c,0,tip", "s00,lax_4c,1,tip"))
    else:
        other = write_discs(tmp_path / "store", labels=(0, 1))  # the same images
    with pytest.raises(ValueError, match=r"labels have changed since .* was started \(task differs"):
        finetune(discs.config(out, task, resume=True, **{change: other}, **FEW))


def test_another_split(discs, finished, tmp_path):
    split = tmp_path / "split.csv"
    split.write_text("study,split\n" + "\n".join(f"s{n:02d},{'train' if n < 9 else 'val'}" for n in range(12)))
    with pytest.raises(ValueError, match=r"labels have changed since"):
        finetune(discs.config(finished, "regression", split=split, resume=True, **FEW))


def test_two_runs_side_by_side(discs, finished, tmp_path, capsys):
    other = tmp_path / "other"
    finetune(discs.config(other, "regression", **FEW | {"lr": 0.01}))
    assert main(["compare", str(finished), str(other), "--out", str(tmp_path / "both")]) == 0
    told = capsys.readouterr().out
    last = [metrics(out)[-1] for out in (finished, other)]
    for name in ("score", "val_radius_mae"):
        assert f"{last[0][name]:.4g}" in told and f"{last[1][name]:.4g}" in told
    assert "best validation" in told and "| lr" in told and (tmp_path / "both" / "comparison.png").exists()
    assert math.isfinite(last[0]["loss"]) and "tflops" not in (finished / "metrics.jsonl").read_text()
