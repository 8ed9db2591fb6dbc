"""`evaluate` of fine-tuned runs against scores computed by hand from the run's own predictions."""

import json
import math
import re
import shutil

import numpy as np
import pytest
import torch
from cine_files import write_cine
from labelled_discs import (
    LABELLED,
    SIZES,
    SPACING,
    affine_of,
    by_brightness,
    drawn,
    heart,
    write_discs,
    write_points,
    write_table,
)
from marks import slow

from cinema_fast.cli import main
from cinema_fast.common.output import OutputError
from cinema_fast.common.tables import read_table
from cinema_fast.data.store.clips import ClipStore, clip_frames
from cinema_fast.data.store.store import CineStore
from cinema_fast.evaluation.evaluate import evaluate_run
from cinema_fast.evaluation.evaluate_config import EvaluateConfig
from cinema_fast.metrics.assessment import Assessment
from cinema_fast.metrics.function import QUANTITIES
from cinema_fast.metrics.rows import read_rows
from cinema_fast.tasks.finetune import finetune
from cinema_fast.tasks.finetuned_run import FinetunedRun, load_run

pytest.importorskip("jinja2")
FEW = {"steps": 12, "validate_every": 6, "lr": 1e-2}


@pytest.fixture(scope="module")
def runs(discs, tmp_path_factory):
    """A run of every kind, by task."""
    folder = tmp_path_factory.mktemp("runs")
    for task in ("segmentation", "multitask", "landmarks"):
        finetune(discs.config(folder / task, task, **FEW))
    return folder


def evaluated(run, out, **options) -> tuple[dict, list[dict]]:
    """(results.json, rows.csv) of an evaluation."""
    results = evaluate_run(EvaluateConfig(run, out, resamples=20, device="cpu", **options))
    assert results == json.loads((out / "results.json").read_text())
    assert (out / "report" / "index.html").stat().st_size > 1000
    return results, read_rows(out / "rows.csv")


@pytest.mark.slow
def test_segmentation(discs, runs, tmp_path):
    results, rows = evaluated(runs / "segmentation", tmp_path / "eval")
    run, store = load_run(runs / "segmentation", device="cpu"), CineStore(discs.store)
    assert {row["study"] for row in rows} == set(run.split.test)
    assert results["about"]["studies"] == "test part of the run's data split"
    maps = [row for row in rows if row["kind"] == "segmentation"]
    found = {(row["study"], row["view"], row["frame"], row["name"]): row for row in maps}
    assert len(found) == 3 * 2 * len(LABELLED) * 3
    for study in run.split.test:
        for view in ("sax", "lax_4c"):
            frames = store.read_frames(study, view, LABELLED)
            predicted = run.predict({view: frames[:, None]})[view].argmax(1).numpy()
            for t, map_ in zip(LABELLED, predicted):
                truth = store.read_labels(study, view, t)
                for value, name in enumerate(("RV", "MYO", "LV"), start=1):
                    said, right = map_ == value, truth == value
                    row = found[study, view, str(t), name]
                    assert row["dice"] == pytest.approx(2 * (said & right).sum() / (said.sum() + right.sum()))
                    voxel_ml = np.prod(SPACING[view]) / 1000
                    if view == "sax":
                        assert row["truth_ml"] == pytest.approx((truth == value).sum() * voxel_ml)
    kinds = {row["kind"] for row in rows}
    assert kinds == {"segmentation", "function"}  # nothing is known of these hearts but their labels


def test_known_values_scans_and_subgroups(discs, runs, tmp_path, monkeypatch):
    """Of the first study the model misses the LV in a frame: a failure, and nothing to compare with a second scan."""
    train = load_run(runs / "segmentation", device="cpu").split.train
    hearts = {}
    for study in train:
        hearts.setdefault(int(study[1:]) // 4, []).append(study)
    scans = {several[0]: several[1] for several in hearts.values() if len(several) > 1}
    lost = next(iter(scans))
    missed = CineStore(discs.store).read_frames(lost, "sax", range(4))

    def predicted(self, view, frames):
        found = by_brightness(self, view, frames)
        if frames.shape == missed.shape and (frames == missed).all():
            found[1, 3] = 0.0
        return found

    monkeypatch.setattr(FinetunedRun, "predict_frames", predicted)
    table = tmp_path / "known.csv"
    lines = [f"s{n:02d},{50 + n},{n},h{n // 4},{'ab'[n % 2]}" for n in range(12)]
    table.write_text("\n".join(["study,my_ef,lv_mass_g,heart,site", *lines]))
    results, rows = evaluated(runs / "segmentation", tmp_path / "eval", data=discs.store, part="train", table=table,
                              known=("lv_ef=my_ef", "lv_mass_g=lv_mass_g"), retest="heart",
                              subgroups=("site",))  # fmt: skip
    cycle = {(row["study"], row["name"]): row["truth"] for row in rows if row["kind"] == "cycle"}
    for study in train:
        number = float(study[1:])
        assert (cycle[study, "lv_ef"], cycle[study, "lv_mass_g"]) == (50 + number, number)
    # the first two scans of each heart, over the whole cycle as the report has them
    measured = {(row["study"], row["name"]): row["pred"] for row in rows if row["kind"] == "cycle"}
    retest = {(row["study"], row["name"]): (row["first"], row["second"]) for row in rows if row["kind"] == "retest"}
    for pair in scans.items():
        for name in ("lv_ef", "lv_mass_g", "rv_ef"):
            if pair[0] == lost and name != "rv_ef":
                assert (lost, name) not in retest and measured[lost, name] == math.inf
                why = f"{name} could not be measured in it and in {pair[1]}, the same heart"
                assert {"study": lost, "why": why} in results["left_out"]
            elif name != "rv_ef":
                assert retest[pair[0], name] == tuple(measured[study, name] for study in pair)
            else:
                assert (pair[0], name) in retest
    assert results["without_group"] == {"site": 0} and results["studies"] == len(train)


@pytest.mark.slow
def test_what_is_missing_in_a_frame_is_not_measured(discs, runs, tmp_path, monkeypatch):
    """Nor compared with another scan of the heart, which is said."""

    def blind(self, view, frames):
        found = by_brightness(self, view, frames)
        found[1, 3] = 0.0  # no LV
        return found

    monkeypatch.setattr(FinetunedRun, "predict_frames", blind)
    results, rows = evaluated(runs / "segmentation", tmp_path / "eval", data=discs.store, part="train",
                              table=discs.table, known=("lv_ef=radius",), retest="heart")  # fmt: skip
    cycle = [row for row in rows if row["kind"] == "cycle"]
    assert cycle and all(row["pred"] == math.inf for row in cycle)  # each a failure
    (ef,) = [table for table in results["tables"] if (table["kind"], table["name"]) == ("cycle", "lv_ef")]
    assert ef["numbers"]["mae"]["note"].startswith(f"{len(cycle)} of {len(cycle)} failed")
    said = {one["why"] for one in results["left_out"]}
    assert any(why.startswith("lv_ef could not be measured in it and in") for why in said)
    assert {"lv_empty_frames"} <= {one["flag"] for one in results["flags"]}


def test_tables(discs, runs, tmp_path):
    _, rows = evaluated(runs / "multitask", tmp_path / "eval", retest=None, subgroups=("big",))
    run, store = load_run(runs / "multitask", device="cpu"), CineStore(discs.store)
    found = {(row["study"], row["name"]): row for row in rows}
    for study in run.split.test:
        number = int(study[1:])
        frames = {v: store.read_frames(study, v, clip_frames(0.0, 2, 4).tolist())[None] for v in ("sax", "lax_4c")}
        said = run.predict(frames)
        row = found[study, "radius"]
        assert row["truth"] == heart(number, "sax")[1] and row["pred"] == pytest.approx(said["radius"].item(), rel=1e-5)
        assert ((study, "some") in found) == (number % 2 == 1)  # of the others nothing is known
        row, classes = found[study, "size"], next(t.classes for t in run.task.targets if t.name == "size")
        assert row["truth"] == ("small", "middle", "large")[number % 6 // 2]
        assert row["decided"] == classes[int(said["size"].argmax())]
        assert [row[f"p{i}"] for i in range(3)] == pytest.approx(said["size"][0].tolist(), rel=1e-4)


def test_landmarks(discs, runs, tmp_path):
    _, rows = evaluated(runs / "landmarks", tmp_path / "eval")
    run, store = load_run(runs / "landmarks", device="cpu"), CineStore(discs.store)
    assert len(rows) == 3 * len(LABELLED) * 2
    for row in rows:
        (x, y), radius = heart(int(row["study"][1:]), "lax_4c")
        right = np.array([x, y] if row["name"] == "middle" else [x, y - 0.7 * radius])
        frames = store.read_frames(row["study"], "lax_4c", [int(row["frame"])])
        at = run.predict({"lax_4c": frames[:, None]})["lax_4c"][0, run.task.names.index(row["name"])].numpy()
        mm = np.linalg.norm((at - right) * SPACING["lax_4c"])
        assert row["distance_mm"] == pytest.approx(mm, abs=1e-4)


@pytest.mark.slow
def test_an_ordinary_stack_is_predicted_among_zeros(discs, runs, tmp_path, monkeypatch):
    """To the bit as the model was trained and validated."""
    judged, plain = [], Assessment.add_segmentation
    monkeypatch.setattr(Assessment, "add_segmentation", lambda self, case: judged.append(case) or plain(self, case))
    evaluated(runs / "segmentation", tmp_path / "eval")
    run, store = load_run(runs / "segmentation", device="cpu"), CineStore(discs.store)
    stacks = [case for case in judged if case.view == "sax"]
    for case in stacks:
        frames = store.read_frames(case.study, "sax", range(4))
        whole = run.predict({"sax": frames[:, None]})["sax"]  # fills up with zeros, as batches of training
        assert run.model_config.image_size["sax"][2] > frames.shape[3]
        np.testing.assert_array_equal(case.pred, whole.argmax(1).byte().numpy())
        assert torch.equal(run.predict_frames("sax", frames), whole)
    assert {case.study for case in stacks} == set(run.split.test)


def test_a_single_slice_has_no_volumes_in_either_command(runs, tmp_path, monkeypatch):
    monkeypatch.setitem(SIZES, "sax", (32, 32, 1))
    other, table = write_discs(tmp_path / "other", 14), write_table(tmp_path / "table.csv", 14)
    results, rows = evaluated(runs / "segmentation", tmp_path / "eval", data=other, table=table,
                              known=("lv_ef=radius",))  # fmt: skip
    assert {row["kind"] for row in rows} == {"segmentation"}
    left = {one["why"] for one in results["left_out"] if one["study"] == "s12"}
    assert left == {"view sax: a single slice has no lv_ef"}
    assert {"study": "s12", "view": "sax", "flag": "few_slices"} in results["flags"]
    of_table, _ = evaluated(runs / "multitask", tmp_path / "eval2", data=other, table=table)
    assert {"study": "s12", "view": "sax", "flag": "few_slices"} in of_table["flags"]
    cine, _ = drawn(12, "sax")
    write_cine(tmp_path / "src" / "s12_sax.nii.gz", np.moveaxis(cine, 0, -1).astype(np.int16), affine_of("sax"), 30.0)
    for name in ("segmentation", "multitask"):
        out = tmp_path / f"predicted-{name}"
        assert main(["predict", str(runs / name), str(tmp_path / "src"), str(out), "--workers", "1"]) == 0
        (line,) = read_table(out / "studies.csv").rows.values()
        assert "few_slices" in line["flags"].split()
        assert not any(line.get(quantity) for quantity in QUANTITIES)


@pytest.mark.parametrize("part", ["test", slow("val")])
def test_another_store(runs, tmp_path, part):
    """Of 14 studies the run knew 12 by their names, most of them from training."""
    other = write_discs(tmp_path / "other", 14, views=("sax",))
    results, rows = evaluated(runs / "segmentation", tmp_path / "eval", data=other, part=part)
    split = load_run(runs / "segmentation", device="cpu").split._asdict()
    mine = set(split.pop(part))
    assert {row["study"] for row in rows} == mine | {"s12", "s13"}
    assert results["about"]["studies"] == f"another store: 2 not in the run, 3 of its {part} part"
    why = {study: f"by its name one of the run's {name} studies, which --part {name} evaluates"
           for name, studies in split.items() for study in studies}  # fmt: skip
    assert {line["study"]: line["why"] for line in results["left_out"]} == why and len(why) == 9


@pytest.mark.slow
def test_labels_of_another_store(runs, tmp_path):
    other, table = write_discs(tmp_path / "other", 15, views=("sax",)), write_table(tmp_path / "few.csv", 14)
    table.write_text(table.read_text().replace("s12,5,small", "s12,5,huge"))
    results, rows = evaluated(runs / "multitask", tmp_path / "eval", data=other, table=table)
    test = set(load_run(runs / "multitask", device="cpu").split.test)
    assert {row["study"] for row in rows} == test | {"s12", "s13"}
    for line in (("s14", "no value of radius in few.csv"), ("s12", "size 'huge', which the training data lack")):
        assert dict(zip(("study", "why"), line)) in results["left_out"]


@pytest.mark.slow
def test_the_run_s_own_store_has_gained_a_study_or_only_kept_what_was_learnt(discs, tmp_path):
    store = write_discs(tmp_path / "store", 12, views=("sax",))
    finetune(discs.config(tmp_path / "run", "segmentation", data=store, **FEW))
    write_discs(store, 13, views=("sax",))
    with pytest.raises(ValueError, match=r"changed since the run: --data .*store evaluates its --part test studies"):
        evaluate_run(EvaluateConfig(tmp_path / "run", tmp_path / "eval", device="cpu"))
    results, rows = evaluated(tmp_path / "run", tmp_path / "eval", data=store)
    assert {row["study"] for row in rows} == {*load_run(tmp_path / "run", device="cpu").split.test, "s12"}
    assert len(results["left_out"]) == 9
    shutil.rmtree(store)
    with pytest.raises(ValueError, match=r"store, the store of .*run, was not found .*: give its path by --data"):
        evaluate_run(EvaluateConfig(tmp_path / "run", tmp_path / "eval2", device="cpu"))
    learnt = write_discs(tmp_path / "learnt", 1)  # s00, which is no test study
    with pytest.raises(ValueError, match=r"learnt: nothing to evaluate.*, all of its studies \(1\) are (train|val)"):
        evaluate_run(EvaluateConfig(tmp_path / "run", tmp_path / "eval2", device="cpu", data=learnt))


def test_tables_that_are_not_there(runs, discs, tmp_path):
    for name, options, told in (
        ("multitask", {"table": tmp_path / "no.csv"}, r"^--table .*no\.csv: No such file or directory$"),
        ("landmarks", {"table": tmp_path}, r"^--table .*: Is a directory$"),
        ("landmarks", {"study_table": tmp_path}, r"^--study-table .*: Is a directory$"),
    ):
        with pytest.raises(ValueError, match=told):
            evaluate_run(EvaluateConfig(runs / name, tmp_path / "eval", device="cpu", **options))
    moved = shutil.copytree(runs / "multitask", tmp_path / "moved")
    saved = (moved / "config.yaml").read_text()
    (moved / "config.yaml").write_text(saved.replace(str(discs.table), "elsewhere.csv"))
    with pytest.raises(ValueError, match=r"^elsewhere\.csv, the table of .*moved, was not found .* by --table$"):
        evaluate_run(EvaluateConfig(moved, tmp_path / "eval", device="cpu"))


def test_a_run_without_test_studies(discs, tmp_path):
    split = tmp_path / "split.csv"  # the test studies are none of the table's
    split.write_text("study,split\n" + "".join(f"s{n:02d},{'train' if n < 8 else 'test'}\n" for n in range(12)))
    points = write_points(tmp_path / "points.csv", 8)
    finetune(discs.config(tmp_path / "run", "landmarks", split=split, **FEW | {"table": points}))
    log = (tmp_path / "run" / "run.log").read_text()
    assert "no labelled test studies: give `evaluate` a store of others (--data), or another --part" in log
    with pytest.raises(ValueError, match=r"no labelled studies for --part test: evaluate another --part, or .*--data"):
        evaluate_run(EvaluateConfig(tmp_path / "run", tmp_path / "eval", device="cpu"))


def test_clips_are_judged_by_the_mean_of_their_planes(discs, tmp_path):
    finetune(discs.config(tmp_path / "run", "regression", preset="heartmae-tiny", **FEW))
    _, rows = evaluated(tmp_path / "run", tmp_path / "eval")
    run = load_run(tmp_path / "run", device="cpu")
    store = ClipStore(CineStore(discs.store))
    for row in rows:
        clips = [store.read_clip(row["study"], plane, 0.0, (8, 48, 48)) for plane in range(4)]
        each = [run.predict({"clip": clip[None, None]})["radius"].item() for clip in clips]
        assert row["pred"] == pytest.approx(np.mean(each), rel=1e-5) and len(set(each)) == 4


def test_two_evaluations_are_compared_in_pairs(runs, tmp_path, capsys):
    other = shutil.copytree(runs / "multitask", tmp_path / "again")
    first, second = tmp_path / "first", tmp_path / "second"
    words = ["--resamples", "20", "--device", "cpu"]
    for run, out in ((runs / "multitask", first), (other, second)):
        assert main(["evaluate", str(run), str(out), *words]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith("3 studies evaluated") and lines[-1].startswith("report: ")
        assert any(re.match(r"  regression, radius: MAE [\d.]+ \[[\d.]+, [\d.]+\]; ", line) for line in lines)
    assert main(["compare", str(first), str(second), "--out", str(tmp_path / "both")]) == 0
    assert "radius" in capsys.readouterr().out
    (found,) = json.loads((tmp_path / "both" / "comparison.json").read_text())
    named = {(one["name"], one["metric"]) for one in found["differences"]}
    assert {("radius", "mae"), ("size", "accuracy"), ("some", "mae")} <= named
    for one in found["differences"]:
        assert one["difference"] in (0, None) and one["p"] in (1, None), one
    (radius,) = [one for one in found["differences"] if (one["name"], one["metric"]) == ("radius", "mae")]
    assert (radius["difference"], radius["p"]) == (0, 1)


@pytest.mark.parametrize(("name", "options", "told"), [
    ("multitask", {"subgroups": ("bog",)}, "no column 'bog'; did you mean 'big'"),
    ("multitask", {"retest": "heart", "part": "val"}, "--retest heart: no two of the 3 studies have the same value"),
    ("segmentation", {"subgroups": ("site",)}, "--subgroups needs a table"),
    ("segmentation", {"known": ("lv_ef=ef",)}, "--known needs a table"),
    ("landmarks", {"retest": "heart"}, "--retest compares numbers"),
])  # fmt: skip
def test_what_does_not_fit_is_named_first(runs, tmp_path, name, options, told):
    with pytest.raises(ValueError, match=told):
        evaluate_run(EvaluateConfig(runs / name, tmp_path / "eval", device="cpu", **options))
    assert not (tmp_path / "eval").exists()


def test_folders(discs, runs, tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"^(?!--).*full is not empty: choose another folder"):
        evaluate_run(EvaluateConfig(runs / "landmarks", tmp_path / "full", device="cpu"))
    with pytest.raises(ValueError, match=r"holds no run \(no config.yaml\)"):
        evaluate_run(EvaluateConfig(tmp_path / "none", tmp_path / "eval", device="cpu"))
    new = shutil.copytree(runs / "landmarks", tmp_path / "new")
    shutil.rmtree(new / "best")
    with pytest.raises(ValueError, match="has no weights yet: its first validation is at step 6"):
        evaluate_run(EvaluateConfig(new, tmp_path / "eval", device="cpu"))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)  # with the last of its files
    with pytest.raises(OutputError, match="eval: the disk is full; no half-written files remain: free some space"):
        evaluate_run(EvaluateConfig(runs / "landmarks", tmp_path / "eval", device="cpu", resamples=20))
    assert not (tmp_path / "eval").exists()


@pytest.mark.parametrize(("options", "told"), [
    ({"threshold": 1.5}, "--threshold is a probability"), ({"resamples": 0}, "--resamples must be at least 1"),
    ({"known": ("ef",)}, "--known ef: expected QUANTITY=COLUMN"), ({"known": ("left=ef",)}, "one of lv_edv_ml"),
    ({"regions": ("MYO",)}, r"--regions MYO: expected NAME=PART\+PART, each part a label or .*, such as MYO=2\+4\+5$"),
    ({"regions": ("MYO=2++4",)}, r"--regions MYO=2\+\+4: expected NAME=PART"),
    ({"regions": ("=2",)}, r"--regions =2: expected NAME=PART"),
    ({"regions": ("a=2", "a=3")}, "--regions a=3: expected each name once, got a twice"),
    ({"min_component": ("scar",)}, r"--min-component scar: expected PART\+PART=PIXELS, 2 or more, such as scar"),
    ({"min_component": ("scar=1",)}, "--min-component scar=1: expected PART"),
    ({"min_component": ("4+=60",)}, r"--min-component 4\+=60: expected PART"),
    ({"min_component": ("4=6", "4=7")}, "--min-component 4=7: expected each structure once, got 4 twice"),
])  # fmt: skip
def test_options(tmp_path, options, told):
    with pytest.raises(ValueError, match=told):
        EvaluateConfig(tmp_path, tmp_path, **options)
