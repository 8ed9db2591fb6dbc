"""What no study in use can teach is refused before training: a view, a landmark, a way to judge it; another start."""

from dataclasses import replace

import labelled_discs
import pytest
from labelled_discs import write_discs, write_points

from cinema_fast.evaluation.evaluate import evaluate_run
from cinema_fast.evaluation.evaluate_config import EvaluateConfig
from cinema_fast.metrics.rows import read_rows
from cinema_fast.tasks.finetune import finetune
from cinema_fast.tasks.finetune_config import FinetuneConfig
from cinema_fast.tasks.finetuned_run import load_run

FEW = {"steps": 2, "validate_every": 2}
SPLIT = {f"s{n:02d}": "train" if n < 6 else "val" if n < 9 else "test" for n in range(12)}


@pytest.fixture
def refused(discs, tmp_path):
    """Start a run whose first six studies are the training ones, and see its ValueError match."""
    split = tmp_path / "split.csv"
    split.write_text("study,split\n" + "".join(f"{study},{part}\n" for study, part in SPLIT.items()))

    def start(told: str, task: str, **options) -> None:
        with pytest.raises(ValueError, match=told):
            finetune(discs.config(tmp_path / "run", task, split=split, **FEW | options))
        assert not (tmp_path / "run").exists()

    return start


@pytest.mark.parametrize("task", ["segmentation", "regression"])
def test_a_view_that_only_others_have(discs, tmp_path, task):
    """Its stem and its decoder or head would stay random, and be asked about the test studies."""
    store, split = write_discs(tmp_path / "store", 12, last_view_of=4), tmp_path / "split.csv"
    parts = ["test", "test", "val", "val", *["train"] * 7, "val"]
    split.write_text("study,split\n" + "".join(f"s{n:02d},{part}\n" for n, part in enumerate(parts)))
    config = discs.config(tmp_path / "run", task, data=store, split=split, **FEW)
    with pytest.raises(ValueError, match=r"no labelled training study in use \(of 7\) has lax_4c with a label"
                       r": choose the others by --views \(sax\), or use other studies"):  # fmt: skip
        finetune(config)
    assert not config.out.exists() and finetune(replace(config, views=("sax",))).step == 2


def test_a_decoder_that_does_not_meet_the_stem_says_how_long_it_should_be(discs, tmp_path):
    config = discs.config(tmp_path / "run", "segmentation", preset="cinema-tiny", views=("sax",), **FEW)
    with pytest.raises(ValueError, match=r"--decoder-channels 8 16 32: .*; this model needs 4 channels or more"):
        finetune(config)
    assert not config.out.exists() and finetune(replace(config, decoder_channels=(8, 8, 8, 8))).step == 2


def test_views_and_tables_of_another_kind(refused, discs, tmp_path):
    refused(r"--views saxx: .*store has no such view; it has sax, lax_4c", "segmentation", views=("saxx",))
    refused(r"no column 'view' .*; expected the columns study, view, frame, landmark, x_mm, y_mm, z_mm",
            "landmarks", table=discs.table)  # fmt: skip


def moved(path, which) -> object:
    """A table of landmarks in which those that `which(study, landmark)` picks lie beside their images."""
    head, *lines = path.read_text().splitlines()
    kept = []
    for line in lines:
        cells = line.split(",")
        kept.append(",".join([*cells[:4], "90", *cells[5:]]) if which(cells[0], cells[3]) else line)
    path.write_text("\n".join([head, *kept]) + "\n")
    return path


def test_landmarks_that_no_study_in_use_shows(refused, tmp_path):
    file = moved(write_points(tmp_path / "tip.csv"), lambda study, name: name == "tip" and SPLIT[study] == "train")
    refused(r"tip\.csv: tip of lax_4c is on no image of the labelled training studies in use \(6\): choose other",
            "landmarks", table=file)  # fmt: skip
    file = moved(write_points(tmp_path / "val.csv"), lambda study, _: SPLIT[study] == "val")
    refused(r"val\.csv: no landmark is on an image of the validation studies \(3\): choose others by --val or --split",
            "landmarks", table=file)  # fmt: skip


def test_a_landmark_is_predicted_in_the_views_it_is_learnt_in(discs, tmp_path, monkeypatch):
    """Every view has an output for every landmark; those that no label has touched are left out."""
    for known, value in ((labelled_discs.SIZES, (32, 28)), (labelled_discs.SPACING, (1.5, 1.2))):
        monkeypatch.setitem(known, "lax_2c", value)
    views = ("lax_2c", "lax_4c")
    store = write_discs(tmp_path / "store", 12, views=views)
    file = write_points(tmp_path / "points.csv", views=views)
    lines = [line for line in file.read_text().splitlines() if not ("lax_2c" in line and "tip" in line)]
    file.write_text("\n".join(lines) + "\n")
    finetune(discs.config(tmp_path / "run", "landmarks", data=store, **FEW | {"table": file}))
    run = load_run(tmp_path / "run", device="cpu")
    assert run.task.names == ("middle", "tip")
    assert run.task.of_view == {"lax_2c": ("middle",), "lax_4c": ("middle", "tip")}
    every = write_points(tmp_path / "every.csv", views=views)
    results = evaluate_run(EvaluateConfig(run.folder, tmp_path / "eval", resamples=5, device="cpu", table=every))
    judged = {(row["view"], row["name"]) for row in read_rows(tmp_path / "eval" / "rows.csv")}
    assert judged == {("lax_2c", "middle"), ("lax_4c", "middle"), ("lax_4c", "tip")}
    assert {line["why"] for line in results["left_out"]} == {
        f"view lax_2c, frame {t}: tip, which the training data lack there" for t in (0, 2)
    }


@pytest.mark.slow
def test_another_start_is_not_taken_by_a_run_that_goes_on(discs, pretrained, tmp_path):
    """What it has learnt from is written down; other weights would have learnt from others."""
    config = discs.config(tmp_path / "run", "segmentation", init_from=pretrained, **FEW)
    finetune(config)
    with pytest.raises(ValueError, match=r"init_from"):
        finetune(replace(config, init_from=tmp_path / "other", resume=True))
    assert finetune(replace(config, resume=True)).step == 2


def test_a_column_that_evaluate_would_refuse(refused, discs, tmp_path):
    table = tmp_path / "table.csv"
    table.write_text(discs.table.read_text() + "x99,NA,small,no,,h9\n")
    refused(r"table\.csv, line 14: radius is 'NA', not a number", "multitask", table=table)


@pytest.mark.parametrize(("changes", "told"), [
    ({"network": "baseline", "batch_size": 1}, "--batch-size 1: --network baseline normalises over the studies"),
    ({"targets": ("views",)}, "--targets views: `predict` writes a column of that name: rename yours"),
])  # fmt: skip
def test_options(changes, told, tmp_path):
    options = {"data": tmp_path, "out": tmp_path / "run", "task": "regression", "steps": 1, "table": tmp_path / "t.csv",
               "targets": ("ef",)}  # fmt: skip
    with pytest.raises(ValueError, match=told):
        FinetuneConfig(**options | changes)
