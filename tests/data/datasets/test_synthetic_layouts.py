"""Synthetic hearts in the layouts of public data sets, prepared: every label arrives, in as many voxels as drawn."""

import csv

import numpy as np
import pytest

from cinema_fast.data.prepare.prepare import PrepareConfig, prepare
from cinema_fast.data.store.store import CineStore
from cinema_fast.phantom.layouts.write_layout import write_layout
from cinema_fast.phantom.study import make_study

SEED = 7
SMALL = {"n_frames": 4, "in_plane_mm": 4.0, "n_slices": 3}
RV, MYO, LV, SCAR, NO_REFLOW, OEDEMA = 1, 2, 3, 4, 5, 6


def prepared(name, n, folder):
    """Store, and rows of truth.csv by study, of a layout whose voxels are stored as they are."""
    write_layout(folder / "src", name, n, SEED, **SMALL)
    config = PrepareConfig(folder / "src", folder / "store", dataset=name, sax_size=(96, 96, 4), lax_size=(96, 96),
                           sax_spacing=(0, 0, 0), workers=1)  # fmt: skip
    report = prepare(config, progress=False)
    assert report.failures == []
    return CineStore(folder / "store"), {row["study"]: row for row in table(folder / "src/truth.csv")}


def table(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def study_of(row, **options):
    return make_study((SEED, int(row["number"])), disease=row["disease"], **options, **SMALL)


def counts(labels):
    """Voxels of each label from 1."""
    return {label.item(): count.item() for label, count in zip(*np.unique(labels, return_counts=True)) if label}


def stored(store, study, frame=0):
    return counts(store.read_labels(study, "sax", frame))


def test_emidec(tmp_path):
    store, truth = prepared("emidec", 4, tmp_path)
    for case in ("Case_P001", "Case_N002", "Case_P003"):
        drawn = counts(study_of(truth[case], sequences=("lge",), acute=True).labels["lge_sax"])
        drawn[MYO] += drawn.pop(OEDEMA, 0)
        assert stored(store, case) == {label: n for label, n in drawn.items() if MYO <= label <= NO_REFLOW}
        assert (drawn.keys() >= {SCAR, NO_REFLOW}) == (case[5] == "P")
    assert store.info("Case_101", "sax").labels is None


def test_myops2020(tmp_path):
    store, truth = prepared("myops2020", 3, tmp_path)
    for name in ("101", "102"):
        study = study_of(truth[name], acute=True)
        drawn = counts(study.scan_again("sax", 0, 0, sequence="t2w", gain=1, noise_sd=0)[1])
        drawn[SCAR] += drawn.pop(NO_REFLOW, 0)
        assert stored(store, name) == {label: drawn[label] for label in (RV, MYO, LV, SCAR, OEDEMA)}


def test_mnms_in_the_styles_of_its_vendors(tmp_path):
    store, truth = prepared("mnms", 5, tmp_path)
    rows = {row["study"]: row for row in table(tmp_path / "store/table.csv")}
    labelled = [name for name in truth if truth[name]["part"] != "Training/Unlabeled"]
    assert {rows[name]["vendor"] for name in labelled} == set("ABD")
    for name in labelled:
        study = study_of(truth[name], vendor={"A": "siemens", "B": "philips", "D": None}[rows[name]["vendor"]])
        for t in (0, study.es_frame):
            assert stored(store, name, t) == counts(study.labels["sax"][..., t])
        assert store.info(name, "sax").spacing_mm == pytest.approx(study.spacing_mm["sax"], rel=1e-5)
        edv = (study.labels["sax"][..., 0] == LV).sum() * np.prod(study.spacing_mm["sax"]) / 1e3
        assert float(rows[name]["lv_edv_ml"]) == pytest.approx(edv, rel=1e-5)
