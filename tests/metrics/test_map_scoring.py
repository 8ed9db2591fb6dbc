"""Regions of labels and rules for empty structures, against MONAI, relabelled maps and hand-made hearts."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from evaluation_cases import case
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import compute_dice, compute_iou

from cinema_fast.evaluation.results import write_results
from cinema_fast.metrics.assessment import Assessment
from cinema_fast.metrics.map_scoring import MapScoring, map_scoring
from cinema_fast.metrics.segmentation import segmentation_scores

EMIDEC = {2: "MYO", 3: "LV", 4: "scar", 5: "no-reflow"}  # no label 1
NESTED = ("MYO=2+4+5", "scar=scar+no-reflow")
SPACING = (1.5, 1.5, 10.0)


def maps(seed: int, n: int = 2) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.choice([0, *EMIDEC], (8, 7, 3), p=[0.4, 0.2, 0.2, 0.15, 0.05]).astype(np.uint8) for _ in range(n)]


@given(st.integers(0, 2**32 - 1), st.sets(st.sampled_from(sorted(EMIDEC)), min_size=1))
@settings(max_examples=20, deadline=None)
def test_a_region_scores_as_a_label_of_its_own(seed, union):
    pred, truth = maps(seed)
    one = segmentation_scores(pred, truth, SPACING, EMIDEC, {"union": sorted(union)})
    as_one = [np.isin(labels, list(union)).astype(np.uint8) for labels in (pred, truth)]
    assert one["union"] == pytest.approx(segmentation_scores(*as_one, SPACING, {1: "union"})["union"], nan_ok=True)


@pytest.mark.parametrize("empty_dice", ["leave-out", "one"])
def test_dice_of_regions_and_of_nothing_agree_with_monai(empty_dice):
    scoring = map_scoring(EMIDEC, NESTED, empty_dice, ())
    assert scoring.masks == {"MYO": (2, 4, 5), "LV": (3,), "scar": (4, 5), "no-reflow": (5,)}
    pred, truth = maps(1)
    for labels in (pred, truth):
        labels[labels == 5] = 4  # nothing of it in either
    found = segmentation_scores(pred, truth, SPACING, scoring.classes, scoring.masks, scoring.empty_dice)
    for name, labels in scoring.masks.items():
        masks = [torch.from_numpy(np.isin(one, labels))[None, None] for one in (pred, truth)]
        how = {"ignore_empty": empty_dice == "leave-out"}
        assert found[name]["dice"] == pytest.approx(compute_dice(*masks, **how).item(), nan_ok=True)
        assert found[name]["iou"] == pytest.approx(compute_iou(*masks, **how).item(), nan_ok=True)
    assert math.isnan(found["no-reflow"]["hd95_mm"]) and math.isnan(found["no-reflow"]["msd_mm"])
    assert math.isnan(found["no-reflow"]["dice"]) == (empty_dice == "leave-out")


def scarred(**more):
    """The hearts of `case`, the upper half of whose myocardium is scar (4) in the truth alone; there is no RV."""
    made = case("a", **more)
    truth = {t: labels.copy() for t, labels in made.truth.items()}
    for labels in truth.values():
        labels[:, 10:][labels[:, 10:] == 2] = 4
    truth = {t: np.where(labels == 1, 0, labels) for t, labels in truth.items()}
    return dataclasses.replace(made, pred=np.where(made.pred == 1, 0, made.pred), truth=truth)


def test_a_region_in_place_of_the_myocardium_has_its_volume_and_mass():
    """All of the wall is myocardium, whatever part of it is called scar."""
    whole = MapScoring(EMIDEC, {"MYO": (2, 4, 5)})
    values, dice = {}, {}
    for name, scoring in (("class", MapScoring(EMIDEC)), ("region", whole)):
        made = Assessment(maps=scoring)
        made.add_segmentation(scarred(known={"lv_mass_g": 90.0}, stability={0: {"MYO": 0.5, "LV": 0.25}}))
        values[name] = {(row["kind"], row["name"]): (row["pred"], row["truth"]) for row in made.rows if "pred" in row}
        dice[name] = {row["name"]: row for row in made.rows if row["kind"] == "segmentation" and row["frame"] == "0"}
    wall_g = (12 * 12 - 8 * 8) * 5 * 0.03 * 1.05
    assert values["region"]["function", "lv_mass_g"] == pytest.approx((wall_g, wall_g))
    assert values["class"]["function", "lv_mass_g"] == pytest.approx((wall_g, wall_g / 2))
    assert values["region"]["cycle", "lv_mass_g"] == pytest.approx((wall_g, 90.0))
    assert dice["region"]["MYO"]["dice"] == 1 and dice["class"]["MYO"]["dice"] == pytest.approx(2 / 3)
    assert dice["region"]["scar"] == pytest.approx(dice["class"]["scar"], nan_ok=True)
    # the stability is that of a class
    assert "stability" not in dice["region"]["MYO"] and dice["region"]["LV"]["stability"] == 0.25
    assert values["region"]["function", "lv_ef"] == values["class"]["function", "lv_ef"]


def test_a_region_can_be_the_lv_of_a_run_that_segments_none():
    parts = MapScoring({2: "MYO", 3: "pool", 4: "scar", 5: "clot"}, {"LV": (3, 5)})
    made = Assessment(maps=parts)
    made.add_segmentation(scarred(known={"lv_ef": 50.0}))
    assert {row["name"]: row["pred"] for row in made.rows if row["kind"] == "cycle"} == {"lv_ef": 50.0}
    assert any(row["kind"] == "function" and row["name"] == "lv_edv_ml" for row in made.rows)
    # a single frame has no function, which is nothing to complain about
    one = scarred()
    made.add_segmentation(dataclasses.replace(one, study="b", image=one.image[:1], pred=one.pred[:1],
                                              truth={0: one.truth[0]}))  # fmt: skip
    assert made.left_out == []


def test_the_mean_is_over_what_is_listed_and_the_report_says_the_rules(tmp_path):
    scoring = map_scoring(EMIDEC, ("MYO=MYO+scar+no-reflow", "wall and pool=2+3+4+5"), "one", ("scar=3", "MYO=20"))
    made = Assessment(maps=scoring, resamples=10)
    made.add_segmentation(scarred())
    results = write_results(made, tmp_path, about={})
    dice = {table["name"]: table["numbers"]["dice"]["value"] for table in results["tables"]
            if table["kind"] == "segmentation"}  # fmt: skip
    assert dice == pytest.approx({"MYO": 1, "LV": 1, "scar": 0, "no-reflow": 1, "wall and pool": 1, "all classes": 0.8})
    page = (tmp_path / "report" / "index.html").read_text()
    for told in (
        "all classes: the mean over what is listed", "MYO: the region, not the class.",
        "MYO = MYO (2) + scar (4) + no-reflow (5); wall and pool = MYO (2) + LV (3) + scar (4) + no-reflow (5).",
        "Volumes and mass of MYO are those of the region.", "absent from both label maps has Dice and IoU 1",
        "in pixels of the stored grid: scar (4) below 3; MYO (2) + scar (4) + no-reflow (5) below 20.",
    ):  # fmt: skip
        assert told in page
    assert "What is absent from both label maps is left out." in MapScoring().in_words()


def test_components_are_removed_in_the_order_given():
    """MyoPS: small scars become the oedema around them, and the oedema stays, as it is large enough with them."""
    pred = np.full((1, 12, 12, 1), 2, np.uint8)
    pred[0, 2:5, 2:5] = 6
    pred[0, 3, 3] = 4
    classes = {2: "MYO", 4: "scar", 6: "oedema"}
    for sizes, left in ((("scar=2", "scar+oedema=9"), 9), (("scar=2", "injury=10"), 0), (("4=9",), 9), ((), 8)):
        cleaned = map_scoring(classes, ("injury=scar+oedema",), "leave-out", sizes).cleaned(pred)
        assert (cleaned == 6).sum() == left


@pytest.mark.parametrize(("regions", "sizes", "told"), [
    (("MYO=2+1",), (), r"--regions MYO=2\+1: the run predicts no 1; expected labels or names of 2 \(MYO\), 3 \(LV\), "
                       r"4 \(scar\), 5 \(no-reflow\)$"),
    (("MYO=MYO+oedema",), (), r"--regions MYO=MYO\+oedema: the run predicts no oedema; "),
    (("a=2", "b=a+3"), (), r"--regions b=a\+3: the run predicts no a; "),  # regions are made of classes
    ((), ("oedema=9",), r"--min-component oedema: the run predicts no oedema; "),
    (("a=2",), ("b=9",), r"--min-component b: the run predicts no b; .*, 5 \(no-reflow\), and the regions a$"),
])  # fmt: skip
def test_what_the_run_does_not_predict_is_named(regions, sizes, told):
    with pytest.raises(ValueError, match=told):
        map_scoring(EMIDEC, regions, "leave-out", sizes)
