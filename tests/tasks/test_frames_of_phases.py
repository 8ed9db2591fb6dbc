"""`--frames ed es`: a model that reads ED and ES, studies without them, and an evaluation of these frames alone."""

import dataclasses

import numpy as np
import pytest
import torch
import yaml
from described import with_phases
from labelled_discs import by_brightness, write_discs

from cinema_fast.data.store.store import CineStore
from cinema_fast.evaluation.evaluate import evaluate_run
from cinema_fast.evaluation.evaluate_config import EvaluateConfig
from cinema_fast.metrics.rows import read_rows
from cinema_fast.tasks.finetune import finetune
from cinema_fast.tasks.finetune_config import FinetuneConfig
from cinema_fast.tasks.finetuned_run import FinetunedRun, load_run
from cinema_fast.tasks.registry import task_from_dict

FEW = {"steps": 2, "validate_every": 2, "n_frames": 4}  # n_frames as by default
UNKNOWN = "s00", "s07"  # in training, and in validation or test


def phases_of(study: str, view: str):
    """ED in the last frame, ES in the first; unknown in two studies, and in a view of a third."""
    return None if study in UNKNOWN or (study, view) == ("s03", "lax_4c") else (3, 1)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return with_phases(write_discs(tmp_path_factory.mktemp("phases") / "store"), phases_of)


@pytest.fixture(scope="module")
def run(discs, store, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    finetune(discs.config(out, "regression", data=store, frames=("es", "ed"), **FEW))
    return out


def test_the_model_reads_es_and_ed_in_their_common_range(run, store):
    loaded, cines = load_run(run, device="cpu"), CineStore(store)
    assert (loaded.task.frames, loaded.task.n_frames) == (("es", "ed"), 2)
    images = {}
    for view in cines.views("s01"):
        frames = cines.read_frames("s01", view, (1, 3)).astype(np.float64)
        scaled = torch.zeros(1, 2, *loaded.model_config.image_size[view])
        inside = (0, slice(None), *(slice(n) for n in frames.shape[1:]))
        scaled[inside] = torch.from_numpy((frames - frames.min()) / (frames.max() - frames.min())).float()
        images[view] = scaled
    right = loaded.task.predict(loaded.model, images)["radius"]
    found = loaded.predict_study(cines, "s01", cines.views("s01"))["radius"]
    torch.testing.assert_close(found, right[0], rtol=1e-4, atol=1e-4)
    other = dataclasses.replace(loaded, task=dataclasses.replace(loaded.task, frames=("ed", "es")))
    assert other.predict_study(cines, "s01", cines.views("s01"))["radius"] != pytest.approx(float(found), abs=1e-6)


def test_studies_without_ed_and_es_are_left_out(run, store, discs, tmp_path):
    said = (run / "run.log").read_text()
    assert ("left out, since ED and ES are unknown: 3 of the 12 studies with a value (or the views in brackets): s00, "
            "s03 (lax_4c), s07; give the frames by `cinema-fast prepare SRC STORE --phases CSV`") in said  # fmt: skip
    split = yaml.safe_load((run / "config.yaml").read_text())["split"]
    assert {study for part in split.values() for study in part} == {f"s{n:02d}" for n in range(12)} - set(UNKNOWN)
    views = load_run(run, device="cpu")
    assert views.views_of(CineStore(store), "s03") == ("sax",)
    assert views.missing_views(views.views_of(CineStore(store), "s03")) == ("lax_4c",)
    with pytest.raises(ValueError, match=r"ED and ES of sax are unknown: give the frames by .*--phases CSV"):
        views.views_of(CineStore(store), "s00")
    with pytest.raises(ValueError, match=r"--frames ed es: .* has no training study \(of 6\) whose ED and ES are"):
        finetune(discs.config(tmp_path / "none", "regression", frames=("ed", "es"), **FEW))
    with pytest.raises(ValueError, match="--frames ed es is for models over frames, and heartmae-tiny reads clips"):
        finetune(discs.config(tmp_path / "none", "regression", data=store, frames=("ed", "es"), **FEW | {"val": 0.0},
                              preset="heartmae-tiny"))  # fmt: skip


@pytest.mark.parametrize(("changes", "told"), [
    ({"frames": ("ed",)}, "--frames ed: expected ed es, or es ed"),
    ({"frames": ("ed", "mid")}, "--frames ed mid: expected ed es"),
    ({"frames": ("ed", "es"), "n_frames": 3}, "--n-frames 3 is for frames over the cycle: leave it out"),
    ({"frames": ("ed", "es"), "task": "segmentation", "table": None, "targets": ()},
     "--frames ed es is for targets of a table: the model of --task segmentation reads labelled frames one by one"),
    ({"frames": ("ed", "es"), "task": "landmarks", "targets": ()}, "the model of --task landmarks reads"),
])  # fmt: skip
def test_refused(tmp_path, changes, told):
    options = {"task": "regression", "table": tmp_path / "t.csv", "targets": ("a",), "steps": 1}
    with pytest.raises(ValueError, match=told):
        FinetuneConfig(**{"data": tmp_path, "out": tmp_path / "run", **options, **changes})


def test_evaluate(run, store, tmp_path):
    """The run's own order is accepted; studies of another store without ED and ES are left out with the reason."""
    pytest.importorskip("jinja2")
    with pytest.raises(ValueError, match=r"--frames ed es: the run was trained on other frames \(es ed\)"):
        evaluate_run(EvaluateConfig(run, tmp_path / "no", device="cpu", frames=("ed", "es")))
    other = with_phases(write_discs(tmp_path / "other", 14), phases_of)
    results = evaluate_run(EvaluateConfig(run, tmp_path / "eval", data=other, device="cpu", resamples=10,
                                          frames=("es", "ed"), table=_table(tmp_path)))  # fmt: skip
    left = {row["study"]: row["why"] for row in results["left_out"]}
    assert all("ED and ES of sax are unknown" in left[study] for study in UNKNOWN)
    assert {row["study"] for row in read_rows(tmp_path / "eval" / "rows.csv")} >= {"s12", "s13"}


def _table(folder):
    path = folder / "table.csv"
    path.write_text("study,radius\n" + "".join(f"s{n:02d},{5 + n % 6}\n" for n in range(14)))
    return path


def test_segmentation_of_ed_and_es_alone(discs, store, tmp_path, monkeypatch):
    """The scores of the whole cycle at these frames, and function from these two; nothing of other labelled frames."""
    pytest.importorskip("jinja2")
    labelled = with_phases(write_discs(tmp_path / "store", labels=(0, 1, 2, 3)), phases_of)
    finetune(discs.config(tmp_path / "run", "segmentation", data=labelled, views=("sax",), steps=1, validate_every=1))
    asked = []

    def predict_frames(self, view, frames):
        asked.append(len(frames))
        return by_brightness(self, view, frames)

    monkeypatch.setattr(FinetunedRun, "predict_frames", predict_frames)
    rows, left = {}, {}
    for name, frames in (("all", ()), ("two", ("ed", "es"))):
        results = evaluate_run(EvaluateConfig(tmp_path / "run", tmp_path / name, part="train", device="cpu",
                                              resamples=10, frames=frames))  # fmt: skip
        rows[name], left[name] = read_rows(tmp_path / name / "rows.csv"), results["left_out"]
    assert set(asked) == {4, 2}
    maps = {name: {(row["study"], row["name"], int(row["frame"])): row for row in found
                   if row["kind"] == "segmentation"} for name, found in rows.items()}  # fmt: skip
    assert {frame for _, _, frame in maps["two"]} == {1, 3} and {frame for _, _, frame in maps["all"]} == {0, 1, 2, 3}
    known = {study for study, _, _ in maps["two"]}
    for key, row in maps["two"].items():
        assert row == maps["all"][key]
    assert {study for study, _, _ in maps["all"]} - known == {row["study"] for row in left["two"]} <= set(UNKNOWN)
    efs = {row["study"]: row["pred"] for row in rows["two"] if (row["kind"], row["name"]) == ("function", "lv_ef")}
    for study in known:
        ed, es = (maps["two"][study, "LV", t]["pred_ml"] for t in (3, 1))
        ed, es = max(ed, es), min(ed, es)
        assert efs[study] == pytest.approx(100 * (ed - es) / ed)


def test_older_runs_load_and_compare_equal(run, discs, tmp_path):
    """Their tasks have neither frames nor channels, and a task of today without them is saved as theirs."""
    finetune(discs.config(tmp_path / "run", "regression", steps=1, validate_every=1))
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert "frames" not in saved["task"] and "channels" not in saved["task"]
    del saved["run"]["frames"], saved["run"]["classes_unknown"]
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(saved))
    loaded = load_run(tmp_path / "run", device="cpu")
    assert (loaded.task.frames, loaded.task.channels, loaded.task.joint_range) == ((), {}, False)
    config = discs.config(tmp_path / "run", "regression", steps=1, validate_every=1, resume=True)
    assert finetune(config).exit_code == 0
    task = load_run(run, device="cpu").task
    assert task_from_dict(yaml.safe_load((run / "config.yaml").read_text())["task"]) == task
