"""Public data sets from the published folder to a report and predictions, by the commands of docs/how-to/datasets.md,
on synthetic hearts in their layouts."""

import csv

import nibabel as nib
import numpy as np
import pytest
from command_line import called

from cinema_fast.data.store.store import CineStore

pytestmark = pytest.mark.slow
GRID = ("--sax-size", 48, 48, 16, "--lax-size", 48, 48, "--sax-spacing", 5, 5, 10, "--lax-spacing", 5, 5)
TINY = ("--preset", "cinema-demo", "--steps", 2, "--validate-every", 2, "--batch-size", 2)
SEG = ("--task", "segmentation", "--decoder-channels", 4, 8, 16)


@pytest.fixture
def command(capfd):
    """A command that has to end well; returns what it printed."""
    def run(*arguments) -> str:
        status, out, err = called(capfd, *arguments)
        assert status == 0, err
        return out + err
    return run


@pytest.fixture
def made(command, tmp_path):
    """(folder, store) of a layout."""
    def make(name: str) -> tuple:
        command("phantom", tmp_path / "src", "--layout", name, "--n", 12, "--n-frames", 6, "--n-slices", 6,
                "--in-plane-mm", 5)  # fmt: skip
        assert "0 failures" in command("prepare", "--dataset", name, tmp_path / "src", tmp_path / "store", *GRID)
        return tmp_path / "src", tmp_path / "store"
    return make


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_mnms_by_ed_and_es(made, command, tmp_path):
    """Table and split run at once; the run's two frames are those of the table, also of raw scans."""
    src, store = made("mnms")
    tables = ("--table", store / "table.csv", "--split", store / "split.csv")
    command("finetune", "--data", store, "--out", tmp_path / "class", "--task", "classification", "--targets",
            "pathology", "--frames", "ed", "es", "--classes-unknown", "drop", *tables, *TINY)  # fmt: skip
    command("evaluate", tmp_path / "class", tmp_path / "report")
    split = {row["study"]: row["split"] for row in rows(store / "split.csv")}
    test = {study for study, part in split.items() if part == "test"}
    judged = {row["study"] for row in rows(tmp_path / "report/rows.csv") if row["kind"] == "classification"}
    assert judged and judged <= test
    command("predict", "--dataset", "mnms", tmp_path / "class", src, tmp_path / "predictions")
    assert {row["study"] for row in rows(tmp_path / "predictions/studies.csv")} == set(split)


def test_emidec_scores_nested_regions_that_are_drawn(made, command, tmp_path):
    src, store = made("emidec")
    command("finetune", "--data", store, "--out", tmp_path / "seg", "--split", store / "split.csv", *SEG, *TINY)
    assert "has the label" not in (tmp_path / "seg/run.log").read_text()  # training has them all
    command("evaluate", tmp_path / "seg", tmp_path / "report", "--regions", "MYO=2+4+5", "scar=4+5", "--empty-dice",
            "one")  # fmt: skip
    scores = [row for row in rows(tmp_path / "report/rows.csv") if row["kind"] == "segmentation"]
    (study,) = {row["study"] for row in scores}
    labels = CineStore(store).read_labels(study, "sax", 0)
    regions = {"LV": (3,), "MYO": (2, 4, 5), "scar": (4, 5), "no-reflow": (5,)}
    found = {row["name"]: float(row["truth_ml"]) for row in scores}
    assert found == {name: np.isin(labels, values).sum() * 0.25 for name, values in regions.items()}
    heart = next(row for row in rows(src / "truth.csv") if row["study"] == study)
    assert found["scar"] == pytest.approx(float(heart["scar_ml"]), rel=0.2)  # as well as voxels of 0.25 ml show it
    assert found["no-reflow"] > 0


def test_emidec_names_the_labels_that_training_lacks(made, command, tmp_path):
    _, store = made("emidec")
    parts = ["study,split", "Case_N002,train", "Case_N005,train", "Case_P001,val", "Case_P003,test"]
    (tmp_path / "split.csv").write_text("\n".join(parts))
    command("finetune", "--data", store, "--out", tmp_path / "seg", "--split", tmp_path / "split.csv", *SEG, *TINY)
    log = (tmp_path / "seg/run.log").read_text()
    assert "no labelled training study in use (of 2) has the label 4 (scar)" in log and "label 5 (no-reflow)" in log


def test_myops_is_read_as_channels_and_written_on_the_scan(made, command, tmp_path):
    src, store = made("myops2020")
    assert CineStore(store).info("101", "sax").channels == ("C0", "DE", "T2")
    command("finetune", "--data", store, "--out", tmp_path / "seg", "--split", store / "split.csv", *SEG, *TINY)
    command("predict", "--dataset", "myops2020", tmp_path / "seg", src, tmp_path / "predictions")
    found = nib.load(tmp_path / "predictions/studies/201/sax_labels.nii.gz")
    scan = nib.load(src / "test20/myops_test_201_C0.nii.gz")
    assert found.shape == scan.shape and np.allclose(found.affine, scan.affine)
