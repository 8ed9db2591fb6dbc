"""An evaluation from cases to results.json: known numbers, what is left out, bounded memory, bad input."""

import dataclasses
import json
import math
import re

import numpy as np
import pytest
from evaluation_cases import HOSTILE, SHAPE, assessment, case, heart

from cinema_fast.evaluation.results import write_results
from cinema_fast.evaluation.summary import check_groups, subgroups
from cinema_fast.metrics import cases
from cinema_fast.metrics.assessment import Assessment
from cinema_fast.metrics.cases import Gallery, SegmentationCase, exhibit_of
from cinema_fast.metrics.characteristics import WORDS
from cinema_fast.metrics.map_scoring import MapScoring
from cinema_fast.metrics.rows import read_rows, write_rows


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(folder, results) of an evaluation with every kind in it, without its pictures."""
    folder = tmp_path_factory.mktemp("evaluation") / "new"
    made = assessment()
    made.leave_out("heart-9", "no readable frame")
    table = {"sex": {f"heart-{i}": "mf"[i % 2] for i in range(5)}, "bmi": {f"heart-{i}": "" for i in range(6)}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cinema_fast.evaluation.results.write_report", lambda *_: None)
        return folder, write_results(made, folder, about={"model": "runs/a"}, table=table)


def numbers(results: dict, kind: str, name: str, view: str = "", group: str = "") -> dict:
    (found,) = [t["numbers"] for t in results["tables"]
                if (t["kind"], t["view"], t["name"], t["group"]) == (kind, view, name, group)]  # fmt: skip
    return found


def test_the_numbers_of_known_hearts(written):
    folder, results = written
    assert results == json.loads((folder / "results.json").read_text())
    rv = numbers(results, "segmentation", "RV", "sax")
    # boxes 4 voxels wide, shifted by 0, 1, 2, 3, 3, 3
    assert rv["dice"]["value"] == pytest.approx(np.mean([1, 0.75, 0.5, 0.25, 0.25, 0.25]))
    assert (rv["dice"]["n"], rv["dice"]["studies"]) == (12, 6) and rv["dice"]["low"] < rv["dice"]["value"]
    whole = numbers(results, "segmentation", "all classes", "lax_4c")
    stability = whole["stability"]
    assert [stability[x] for x in ("value", "low", "high")] == pytest.approx([0.8] * 3)
    assert (stability["n"], stability["studies"], stability["note"]) == (6, 6, "6 without this structure left out")
    ef = numbers(results, "function", "lv_ef", "sax")
    assert ef["mae"]["value"] == 0 and ef["mae"]["n"] == 6  # a shift changes no volume
    # EF of ES widths 3, 4, 5 of 8
    efs = [100 * (8 - width) / 8 for width in (3, 4, 5)] * 2
    cycle = numbers(results, "cycle", "lv_ef", "sax")
    assert cycle["bias"]["value"] == pytest.approx(np.mean(efs) - 50) and cycle["r2"]["value"] is None
    assert "constant" in cycle["r2"]["note"]
    classes = numbers(results, "ef_class", "lv_ef", "sax")
    assert [classes[name]["value"] for name in ("accuracy", "f1", "mcc")] == pytest.approx([1, 1, 1])
    # 50 % is borderline: that of 62.5 % normal, 37.5 % reduced
    of_cycle = numbers(results, "ef_class", "lv_ef of the cycle", "sax")
    assert of_cycle["accuracy"]["value"] == pytest.approx(1 / 3)
    assert of_cycle["mcc"]["value"] is None and of_cycle["mcc"]["note"].startswith("undefined: all 6 are borderline")
    apex, base = (numbers(results, "landmarks", name, "lax_4c") for name in ("apex", "base"))
    assert apex["distance_mm"]["value"] == 5 and apex["within_5_mm"]["value"] == 1
    assert base["distance_mm"]["value"] is None and base["within_10_mm"]["value"] == 0
    ratio = [i**2 / 2 / (60 + i / 2) ** 2 for i in range(6)]
    retest = numbers(results, "retest", "lv_ef")
    assert retest["coefficient_of_variation"]["value"] == pytest.approx(math.sqrt(np.mean(ratio)))


def test_subgroups_and_what_was_left_out_are_in_the_results(written):
    _, results = written
    males, females = (numbers(results, "regression", "age", group=group) for group in "mf")
    assert (males["mae"]["n"], females["mae"]["n"]) == (2, 2)
    assert results["without_group"] == {"sex": 2, "bmi": 6} and results["studies"] == 6
    assert results["left_out"] == [{"study": "heart-9", "why": "no readable frame"}]


def test_rows_come_back_as_they_were(written, tmp_path):
    made = assessment()
    write_rows(tmp_path / "rows.csv", made.rows)
    back = read_rows(tmp_path / "rows.csv")
    assert any(row["study"] == HOSTILE for row in back)
    for row, again in zip(made.rows, back, strict=True):
        assert {k: str(v) for k, v in row.items()} == {k: str(v) for k, v in again.items()}
    assert (written[0] / "rows.csv").read_bytes() == (tmp_path / "rows.csv").read_bytes()


def test_numbers_are_cut_into_thirds_and_words_are_groups():
    thirds = subgroups({f"s{i}": str(9 - i) for i in range(9)})
    assert list(thirds.values()) == ["up to 3.667"] * 3 + ["3.667 to 6.333"] * 3 + ["above 6.333"] * 3
    assert thirds["s8"] == "up to 3.667" and thirds["s0"] == "above 6.333"
    assert subgroups({"a": "2", "b": "10", "c": "", "d": "2"}) == {"a": "2", "d": "2", "b": "10"}
    assert subgroups({"a": "siemens", "b": "GE", "c": "siemens"}) == {"b": "GE", "a": "siemens", "c": "siemens"}


def test_a_column_that_is_a_group_per_study_is_refused():
    studies = [f"s{i:02d}" for i in range(60)]
    ages = {study: str(20 + i) for i, study in enumerate(studies)}
    for odd in ("NA", "nan", "1_0"):
        told = (f"--subgroups age: study 's00' has '20', study 's07' has '{odd}'; expected numbers or words, not both "
                "(59 of 60 are numbers). Leave the cell empty")  # fmt: skip
        with pytest.raises(ValueError, match=re.escape(told)):
            check_groups({"sex": dict.fromkeys(studies, "m"), "age": ages | {"s07": odd}}, studies)
    words = {study: f"w{i % (WORDS + 1)}" for i, study in enumerate(studies)}
    with pytest.raises(ValueError, match=r"--subgroups site: 13 different words, .* at most 12 words"):
        check_groups({"site": words}, studies)
    # of the studies that are judged only, whatever else the table holds
    check_groups({"age": ages | {"s07": "", "s08": "NA"}, "site": words}, [*studies[:8], "not in the table"])
    check_groups({"site": {study: f"w{i % WORDS}" for i, study in enumerate(studies)}, "none": {}}, studies)


def test_function_is_measured_at_the_true_ed_and_es_and_its_absence_is_reported():
    made = Assessment()
    one = case("a")
    made.add_segmentation(dataclasses.replace(one, truth={0: one.truth[0]}))
    made.add_segmentation(dataclasses.replace(one, study="b", truth={}))
    assert not [row for row in made.rows if row["kind"] == "function"]
    assert [study for study, _ in made.left_out] == ["a", "b"] and "two labelled frames" in made.left_out[0][1]
    made.add_segmentation(dataclasses.replace(one, study="d", truth={}, known={"lv_ef": 40.0}))
    assert made.rows[-1]["kind"] == "cycle" and made.rows[-1]["pred"] == 50 and len(made.left_out) == 2
    some = SegmentationCase("c", "sax", one.spacing_mm, one.image[3:], one.pred[3:], {5: heart(7), 3: heart(4)},
                            frames=(3, 4, 5))  # fmt: skip
    made.add_segmentation(some)
    values = {row["name"]: row["truth"] for row in made.rows if row["kind"] == "function"}
    assert values["lv_ef"] == pytest.approx(300 / 7) and values["lv_edv_ml"] == pytest.approx(7 * 8 * 5 * 0.03)


def test_a_missed_frame_and_doubtful_values_are_flagged(tmp_path):
    """An LV that is missing in a frame of the cycle has no EF, where its smallest volume would make it 100 %."""
    made, one = Assessment(), case("a", known={"lv_ef": 50.0})
    missed, backwards = one.pred.copy(), one.pred.copy()
    missed[2][missed[2] == 3] = 0
    backwards[0][:, :9][backwards[0][:, :9] == 1] = 0  # the RV is small where the true LV is large
    made.add_segmentation(dataclasses.replace(one, pred=missed))
    assert made.rows[-1]["kind"] == "cycle" and made.rows[-1]["pred"] == math.inf  # a failure
    made.add_segmentation(dataclasses.replace(one, study="b", pred=backwards))
    made.add_segmentation(dataclasses.replace(one, study="c", pred=0 * one.pred, known={}))
    codes = {study: {code for of, _, code in made.flags if of == study} for study in "abc"}
    assert "lv_empty_frames" in codes["a"] and codes["c"] >= {"nothing_found", "lv_not_found", "rv_not_found"}
    (lost,) = [row for row in made.rows if (row["study"], row["kind"], row["name"]) == ("c", "function", "lv_ef")]
    assert lost["pred"] == math.inf  # there is no EF of nothing, where the truth has one
    (ef,) = [row for row in made.rows if (row["study"], row["kind"], row["name"]) == ("b", "function", "rv_ef")]
    assert ef["pred"] < 0 and ef["flags"] == "rv_ef_negative" and "rv_ef_negative" in codes["b"]
    write_rows(tmp_path / "rows.csv", made.rows)
    assert [row.get("flags") for row in read_rows(tmp_path / "rows.csv")] == [row.get("flags") for row in made.rows]


def test_the_gallery_keeps_the_worst_the_middle_and_the_best_and_no_whole_arrays():
    gallery = Gallery()
    template = exhibit_of(case("x"), [], MapScoring())
    assert max(template.cycle.shape) <= 32 and template.cycle.base is None
    for i in np.random.default_rng(0).permutation(200):
        gallery.offer(dataclasses.replace(template, study=f"s{i}", score=i / 200))
    gallery.offer(dataclasses.replace(template, study="unlabelled", score=math.nan))
    assert sum(map(len, gallery._kept.values())) == 11
    (worst, first), (_, second), (middle, half), (best, last) = gallery.chosen()
    assert (worst, middle, best) == ("worst", "middle", "best")
    assert (first.study, second.study, last.study) == ("s0", "s1", "s199") and 0.3 < half.score < 0.7


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image": np.zeros((6, *SHAPE), np.float32)}, "study a, view sax: expected an image of uint8"),
        ({"pred": np.zeros((6, 24, 20, 4), np.uint8)}, r"one shape \(T, X, Y\[, Z\]\)"),
        ({"pred": np.full((6, *SHAPE), 9, np.uint8)}, "study a, view sax: pred holds label 9"),
        ({"truth": {7: heart(4)}}, r"frames \[7\] are labelled"),
        ({"frames": (0, 1, 2)}, "expected 6 ascending frame numbers"),
        ({"known": {"ef": 50.0}}, "known holds ef"),
        ({"spacing_mm": (1.0, 1.0)}, "3 numbers above 0"),
    ],
)
def test_a_case_that_does_not_fit_is_named(change, words):
    with pytest.raises(ValueError, match=words):
        Assessment().add_segmentation(dataclasses.replace(case("a"), **change))


def test_structures_that_nothing_is_measured_from():
    """Without an LV there are no ED and ES at the labels; over the cycle the RV has its own."""
    made = Assessment(maps=MapScoring({1: "RV", 2: "MYO", 3: "pool"}))
    for name, absent in (("lv_ef", "LV"), ("lv_edv_ml", "LV")):
        told = f"study a, view sax: {name} is known, and the structures lack {absent}. Volumes and EF need"
        with pytest.raises(ValueError, match=told):
            made.add_segmentation(case("a", known={name: 50.0}))
    with pytest.raises(ValueError, match=r"rv_sv_ml is known, and the structures lack RV\."):
        other = MapScoring({1: "outlet", 2: "MYO", 3: "LV"})
        Assessment(maps=other).add_segmentation(case("a", known={"rv_sv_ml": 50.0}))
    with pytest.raises(ValueError, match=r"lv_mass_g is known, and the structures lack LV\."):
        other = MapScoring({1: "outlet", 2: "MYO", 3: "pool"})
        Assessment(maps=other).add_segmentation(case("a", known={"lv_mass_g": 50.0}))
    made.add_segmentation(case("a"))
    assert made.left_out == [] and {row["kind"] for row in made.rows} == {"segmentation"}
    one = case("b", known={"rv_ef": 50.0, "lv_mass_g": 80.0})
    made.add_segmentation(dataclasses.replace(one, pred=one.pred % 3))
    found = {row["name"]: row["pred"] for row in made.rows if row["kind"] == "cycle"}
    assert found == {"rv_ef": 0, "lv_mass_g": pytest.approx((one.pred[0] == 2).sum() * 0.03 * 1.05)}


def test_of_a_single_slice_there_are_no_volumes():
    made, one = Assessment(), case("a")
    truth = {t: labels[..., 2:3] for t, labels in one.truth.items()}
    alone = dataclasses.replace(one, image=one.image[..., 2:3], pred=one.pred[..., 2:3], truth=truth)
    made.add_segmentation(alone)
    assert {row["kind"] for row in made.rows} == {"segmentation"} and made.left_out == made.flags == []
    exhibit = exhibit_of(alone, made.rows, MapScoring())
    assert (exhibit.curves, exhibit.truth_ml, exhibit.cycle_ef) == ({}, {}, {})
    with pytest.raises(ValueError, match="known values are compared with volumes, which single slices"):
        made.add_segmentation(dataclasses.replace(alone, study="b", known={"lv_ef": 50.0}))


def test_the_volumes_of_a_case_are_counted_once(monkeypatch):
    counted = []
    plain = cases.volume_curves
    monkeypatch.setattr(cases, "volume_curves", lambda labels, *how: counted.append(labels) or plain(labels, *how))
    one = case("a", known={"lv_ef": 50.0})
    Assessment().add_segmentation(one)
    assert sum(labels is one.pred for labels in counted) == 1


def test_what_is_no_prediction_is_named(tmp_path):
    made = Assessment()
    with pytest.raises(ValueError, match="study a, age: the prediction is nan"):
        made.add_regression("a", "age", math.nan, 1.0)
    with pytest.raises(ValueError, match="study a, d: true class 'x'; expected one of p, q"):
        made.add_classification("a", "d", (0.5, 0.5), "x", ("p", "q"))
    with pytest.raises(ValueError, match="sum over the classes is 1"):
        made.add_classification("b", "d", (0.5, 0.6), "p", ("p", "q"))
    with pytest.raises(ValueError, match="study c, d: was Target"):
        made.add_classification("c", "d", (0.5, 0.5), "p", ("p", "q"), threshold=0.4)
    made.add_segmentation(case("a"))
    with pytest.raises(ValueError, match="study a, sax: segmentation was evaluated before"):
        made.add_segmentation(case("a"))
    empty = Assessment()
    empty.leave_out("a", "damaged")
    with pytest.raises(ValueError, match="nothing could be evaluated; 1 left out: a: damaged"):
        write_results(empty, tmp_path / "none", about={})
    assert not (tmp_path / "none").exists()
