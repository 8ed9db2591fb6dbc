"""Volumes, ejection fraction and agreement against closed forms and numpy, scipy and scikit-learn."""

import math

import numpy as np
import pytest
from machine import ROOT
from scipy import stats
from sklearn import metrics

from cinema_fast.metrics.flags import CODES, LIMITS, cycle_flags, in_order, value_flags
from cinema_fast.metrics.function import (
    QUANTITIES,
    cardiac_function,
    cycle_function,
    ed_es,
    ef_class,
    ejection_fraction,
    volume_curves,
)
from cinema_fast.metrics.regression import Agreement, Repeatability

CLASSES = {1: "RV", 2: "MYO", 3: "LV"}


def test_function_of_boxes_is_known():
    labels = np.zeros((3, 20, 20, 5), np.uint8)
    for t, lv in enumerate((6, 10, 4)):  # LV voxels per slice and column
        labels[t, :4, :10] = 1
        labels[t, 10:18, :lv] = 3
        labels[t, 4:10, : 16 - lv] = 2
    curves = volume_curves(labels, (1.5, 2.0, 10.0), CLASSES)
    voxel = 0.03
    assert curves["LV"].tolist() == pytest.approx([8 * n * 5 * voxel for n in (6, 10, 4)])
    assert ed_es(curves["LV"]) == (1, 2)
    found = cardiac_function(curves, 1, 2)
    assert set(found) == set(QUANTITIES)
    assert found["lv_edv_ml"] == pytest.approx(12.0) and found["lv_esv_ml"] == pytest.approx(4.8)
    assert found["lv_sv_ml"] == pytest.approx(7.2) and found["lv_ef"] == pytest.approx(60.0)
    assert found["lv_mass_g"] == pytest.approx(6 * 6 * 5 * voxel * 1.05)
    assert found["rv_ef"] == 0 and found["rv_edv_ml"] == pytest.approx(40 * 5 * voxel)


def test_over_a_cycle_each_ventricle_has_its_own_ends():
    curves = {"LV": [100.0, 60, 40, 90], "RV": [100.0, 120, 70, 60], "MYO": [80.0, 90, 95, 85]}
    curves = {name: np.array(curve) for name, curve in curves.items()}
    found = cycle_function(curves)
    assert found.frames == {"LV": (0, 2), "RV": (1, 3)} and found.empty == {"LV": [], "RV": []}
    assert found.function["lv_ef"] == 60 and found.function["rv_ef"] == 50
    assert found.function["lv_mass_g"] == pytest.approx(84)
    assert cardiac_function(curves, 0, 2)["rv_ef"] == 30  # at the LV's frames
    missed = cycle_function(curves | {"LV": np.array([100.0, 0, 40, 90])})
    assert set(missed.function) == {"rv_edv_ml", "rv_esv_ml", "rv_sv_ml", "rv_ef"} and missed.empty["LV"] == [1]
    assert cycle_function({name: curve[:1] for name, curve in curves.items()}).function == {}


def test_what_is_doubtful_is_flagged():
    healthy = {"LV": [140.0, 90, 60, 110], "RV": [150.0, 100, 70, 120]}
    dilated = {"LV": [420.0, 390, 360, 400], "RV": [250.0, 230, 200, 240]}  # LV EF 14 %
    wrong = {"LV": [140.0, 100, 5, 110], "RV": [70.0, 100, 150, 120]}
    for curves, flags in ((healthy, []), (dilated, []),
                          (wrong, ["phases_disagree", "lv_esv_implausible", "lv_ef_implausible"])):  # fmt: skip
        cycle = cycle_function({name: np.array(curve) for name, curve in curves.items()})
        assert in_order(cycle_flags(cycle, 4)) == flags
    assert value_flags({"rv_ef": -80.8, "lv_ef": 10.0, "lv_mass_g": math.nan, "rv_sv_ml": -20.0}) == [
        "rv_ef_negative", "rv_sv_negative"]  # fmt: skip
    assert set(LIMITS) == set(QUANTITIES)
    late = cycle_function({"LV": np.r_[100.0, 50, [99] * 8], "RV": np.r_[99.0, 50, [98] * 7, 100]})
    assert late.frames["RV"] == (9, 1) and cycle_flags(late, 10) == []  # the last frame is next to the first


def test_a_ventricle_that_is_in_no_frame_is_flagged():
    for n in (1, 4):
        curves = {"RV": np.full(n, 100.0), "MYO": np.full(n, 90.0), "LV": np.zeros(n)}
        assert "lv_not_found" in cycle_flags(cycle_function(curves), n)
        assert "rv_not_found" in cycle_flags(cycle_function(curves | {"RV": np.zeros(n)}), n)
    some = cycle_function({"LV": np.array([0.0, 100, 50]), "MYO": np.full(3, 90.0)})
    assert [code for code in cycle_flags(some, 3) if "found" in code or "empty" in code] == ["lv_empty_frames"]


def test_the_documents_say_which_flags_and_limits_there_are():
    docs = ROOT / "docs"
    predicting = (docs / "how-to" / "predicting.md").read_text()
    for code in CODES:
        assert f"`{code}`" in predicting or code.endswith(("_negative", "_implausible")), code
    for name, (low, high) in LIMITS.items():
        assert f"{low:g} to {high:g}" in predicting, name


def test_a_sphere_has_its_volume():
    grid = np.stack(np.meshgrid(*[np.arange(60)] * 3, indexing="ij"), -1) * 0.9
    labels = (np.linalg.norm(grid - grid[30, 30, 30], axis=-1) <= 20).astype(np.uint8) * 3
    assert volume_curves(labels[None], (0.9,) * 3, CLASSES)["LV"][0] == pytest.approx(4 / 3 * np.pi * 8, rel=0.01)


def test_ejection_fraction_and_its_classes():
    assert ejection_fraction(120, 48) == 60 and math.isnan(ejection_fraction(0, 0))
    efs = {"reduced": (10, 40), "borderline": (40.001, 55), "normal": (55.001, 70)}
    assert {name: [ef_class(ef) for ef in values] for name, values in efs.items()} == {n: [n, n] for n in efs}


def test_bland_altman_of_known_differences():
    truth = np.array([50.0, 60, 70, 80, 90])
    point = Agreement(truth + np.array([1, 2, 3, 4, 5]), truth).point()
    spread = 1.96 * math.sqrt(2.5)
    assert point["bias"] == 3 and point["mae"] == 3 and point["rmse"] == pytest.approx(math.sqrt(11))
    assert (point["loa_low"], point["loa_high"]) == pytest.approx((3 - spread, 3 + spread))


def test_agreement_agrees_with_scikit_learn_and_scipy_where_values_are_far_from_zero():
    rng = np.random.default_rng(0)
    truth = 1e6 + rng.normal(0, 3, 40)
    pred = truth + rng.normal(0.5, 2, 40)
    weights = np.stack([np.ones(40), rng.integers(0, 4, 40)]).astype(float)
    found = Agreement(pred, truth)(weights)
    for i, w in enumerate(weights):
        rows = np.repeat(np.arange(40), w.astype(int))
        p, t = pred[rows], truth[rows]
        wanted = {
            "mae": metrics.mean_absolute_error(t, p), "rmse": metrics.root_mean_squared_error(t, p),
            "r2": metrics.r2_score(t, p), "correlation": stats.pearsonr(p, t)[0], "bias": (p - t).mean(),
            "loa_low": (p - t).mean() - 1.96 * (p - t).std(ddof=1),
            "loa_high": (p - t).mean() + 1.96 * (p - t).std(ddof=1),
        }  # fmt: skip
        assert {name: value[i] for name, value in found.items()} == pytest.approx(wanted, rel=1e-6)


def test_what_is_constant_or_undefined_is_reported():
    constant = Agreement([1.0, 2.0, math.nan], [5.0, 5.0, 5.0])
    point = constant.point()
    assert math.isnan(point["r2"]) and math.isnan(point["correlation"]) and point["bias"] == -3.5
    assert constant.notes["mae"] == "1 of 3 are undefined and left out" and constant.used["mae"].sum() == 2
    missed = Agreement([1.0, math.inf, math.nan], [1.0, 2.0, 3.0])
    failed = "1 of 2 failed (nothing was measured), left out of the mean"
    assert missed.notes["mae"] == f"{failed}; 1 of 3 are undefined and left out"
    flat = Agreement([5.0, 5.0], [1.0, 2.0])
    assert math.isnan(flat.point()["correlation"]) and "constant" in flat.notes["correlation"]
    assert "r2" not in flat.notes and flat.point()["r2"] == pytest.approx(1 - 12.5 / 0.25)
    assert all(math.isnan(value) for value in Agreement([math.nan], [1.0]).point().values())


def test_test_retest_variation_of_a_known_ratio():
    # a pair m (1 - c), m (1 + c) varies by c sqrt(2), whatever m
    mean, c = np.array([10.0, 50, 200]), 0.03
    point = Repeatability(mean * (1 - c), mean * (1 + c)).point()
    assert point["coefficient_of_variation"] == pytest.approx(c * math.sqrt(2), rel=1e-12)
    assert point["bias"] == pytest.approx((2 * c * mean).mean(), rel=1e-12)
    left = Repeatability([1.0, 0.0, math.nan], [1.0, 0.0, 2.0])
    assert left.point()["coefficient_of_variation"] == 0 and left.known.tolist() == [True, False, False]
