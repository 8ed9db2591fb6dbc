"""`evaluate`: which of two classes is positive, from which probability, and what is measured of which structures."""

import json
import math

import pytest
from labelled_discs import LABELLED, by_brightness

from cinema_fast.data.store.store import CineStore
from cinema_fast.evaluation.evaluate import evaluate_run
from cinema_fast.evaluation.evaluate_config import EvaluateConfig
from cinema_fast.metrics.components import without_small_components
from cinema_fast.metrics.rows import read_rows
from cinema_fast.tasks.finetune import finetune
from cinema_fast.tasks.finetuned_run import FinetunedRun, load_run

pytest.importorskip("jinja2")
FEW = {"steps": 6, "validate_every": 6, "lr": 1e-2}
STRUCTURES = ("RV", "MYO", "pool")


@pytest.fixture(scope="module")
def runs(discs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    finetune(discs.config(folder / "two", "classification", **FEW, views=("sax",)))
    finetune(discs.config(folder / "three", "classification", **FEW, views=("sax",), targets=("size",)))
    finetune(discs.config(folder / "maps", "segmentation", **FEW, views=("sax",), structures=STRUCTURES))
    return folder


def judge(run, out, **options) -> tuple[dict, list[dict]]:
    results = evaluate_run(EvaluateConfig(run, out, resamples=10, device="cpu", **options))
    return results, read_rows(out / "rows.csv")


def test_the_positive_class(runs, tmp_path):
    """It is decided for from the threshold on, and its hits are the sensitivity."""
    _, rows = judge(runs / "two", tmp_path / "usual", part="train")
    assert load_run(runs / "two", device="cpu").task.targets[0].classes == ("no", "yes")
    share = {row["study"]: (row["p0"], row["p1"]) for row in rows}
    assert all(row["decided"] == ("yes" if row["p1"] >= 0.5 else "no") for row in rows)
    threshold = sorted(no for no, _ in share.values())[len(share) // 2]  # some are decided for, some are not
    results, rows = judge(runs / "two", tmp_path / "other", part="train", positive="no", threshold=threshold)
    decided = {study: "no" if no >= threshold else "yes" for study, (no, _) in share.items()}
    assert {row["study"]: row["decided"] for row in rows} == decided and len(set(decided.values())) == 2
    assert {row["study"]: (row["p1"], row["p0"]) for row in rows} == share
    assert results["targets"]["big"] == {"classes": ["yes", "no"], "threshold": threshold, "unit": ""}
    (numbers,) = [table["numbers"] for table in results["tables"]]
    for name, of in (("sensitivity", "no"), ("specificity", "yes")):
        hits = [row["decided"] == of for row in rows if row["truth"] == of]
        assert numbers[name]["value"] == pytest.approx(sum(hits) / len(hits))
    page = (tmp_path / "other" / "report" / "index.html").read_text()
    assert f"no from {threshold:g}" in page


@pytest.mark.parametrize(("name", "options", "told"), [
    ("three", {"threshold": 0.5}, r"--threshold 0\.5 is for targets of two classes, .* predicts size: large, middle,"),
    ("three", {"positive": "large"}, "--positive large is for targets of two classes"),
    ("maps", {"threshold": 0.3}, "and the run predicts segmentation"),
    ("two", {"regions": ("a=1", "b=2")}, "--regions a=1 b=2 is for label maps, and the run predicts classification"),
    ("two", {"min_component": ("1=9",)}, "--min-component 1=9 is for label maps, and the run predicts classification"),
    ("two", {"empty_dice": "one"}, "--empty-dice one is for label maps, and the run predicts classification"),
    ("maps", {"regions": ("LV=4",)}, r"--regions LV=4: the run predicts no 4; .* 1 \(RV\), 2 \(MYO\), 3 \(pool\)$"),
    ("two", {"positive": "ill"}, "--positive 'ill' is no class of a two-class target: expected one of no, yes"),
])  # fmt: skip
def test_options_that_do_not_fit_the_run(runs, tmp_path, name, options, told):
    with pytest.raises(ValueError, match=told):
        judge(runs / name, tmp_path / "eval", **options)
    assert not (tmp_path / "eval").exists()


def test_regions_empty_structures_and_small_components(runs, discs, tmp_path, monkeypatch):
    """A pool that is a region LV has the function of one; the small RVs of the predictions are removed."""
    monkeypatch.setattr(FinetunedRun, "predict_frames", by_brightness)
    options = {"part": "train", "table": discs.table, "known": ("lv_ef=radius",), "retest": "heart"}
    regions = ("LV=pool", "heart=MYO+3")
    results, rows = judge(runs / "maps", tmp_path / "eval", regions=regions, min_component=("1=1000",),
                          empty_dice="one", **options)  # fmt: skip
    assert results["about"]["--regions"] == list(regions) and results["about"]["--empty-dice"] == "one"
    dice = {(row["study"], row["frame"], row["name"]): row["dice"] for row in rows if row["kind"] == "segmentation"}
    store, train = CineStore(discs.store), load_run(runs / "maps", device="cpu").split.train
    for study in train:
        for t in LABELLED:
            truth = store.read_labels(study, "sax", t)
            pred = by_brightness(None, "sax", store.read_frames(study, "sax", [t])).argmax(1).byte().numpy()
            (left,) = without_small_components(pred, (1,), 1000)
            assert (pred == 1).any() and not (left == 1).any() and dice[study, str(t), "RV"] == 0
            both, either = (left > 1) & (truth > 1), (left > 1).sum() + (truth > 1).sum()
            assert dice[study, str(t), "heart"] == pytest.approx(2 * both.sum() / either)
    measured = {(row["kind"], row["study"]): row for row in rows if row["name"] == "lv_ef"}
    for study in train:
        pool = (by_brightness(None, "sax", store.read_frames(study, "sax", range(4))).argmax(1) == 3).sum((1, 2, 3))
        assert measured["cycle", study]["pred"] == pytest.approx(100 * (1 - pool.min() / pool.max()).item())
    assert {kind for kind, _ in measured} == {"function", "cycle", "retest"}
    assert {"study": train[0], "view": "sax", "flag": "rv_not_found"} in results["flags"]


@pytest.mark.slow
def test_structures_without_an_lv(runs, tmp_path, monkeypatch):
    """Their maps are judged; of the LV nothing is known, which is said before the work; the RV has its own cycle."""
    table = tmp_path / "known.csv"
    rows = [f"s{n:02d},50,50,{'ab'[n % 2]},{n if n % 3 else 'NA'}" for n in range(12)]
    table.write_text("\n".join(["study,my_ef,rv_ef,site,age", *rows]))
    with pytest.raises(ValueError, match=r"--subgroups age: study 's.*' has '.*'; expected numbers or words, not both"):
        judge(runs / "maps", tmp_path / "eval", table=table, part="train", subgroups=("age",))
    told = "--known lv_ef: the run segments RV, MYO, pool, not LV. Volumes and EF need a structure named LV or RV"
    with pytest.raises(ValueError, match=told):
        judge(runs / "maps", tmp_path / "eval", table=table, known=("lv_ef=my_ef",))
    assert not (tmp_path / "eval").exists()
    results, rows = judge(runs / "maps", tmp_path / "eval", table=table, subgroups=("site",))
    assert {row["kind"] for row in rows} == {"segmentation"} and {row["name"] for row in rows} == set(STRUCTURES)
    assert results["left_out"] == [] and json.loads((tmp_path / "eval" / "results.json").read_text()) == results
    monkeypatch.setattr(FinetunedRun, "predict_frames", by_brightness)
    _, rows = judge(runs / "maps", tmp_path / "rv", table=table, part="train", known=("rv_ef=rv_ef", "lv_mass_g=my_ef"),
                    retest="site")  # fmt: skip
    measured = {(row["study"], row["name"]): row["pred"] for row in rows if row["kind"] == "cycle"}
    assert {name for _, name in measured} == {"rv_ef", "lv_mass_g"} and all(map(math.isfinite, measured.values()))
    again = [row for row in rows if row["kind"] == "retest" and row["name"] == "rv_ef"]
    assert again and all(row["first"] == measured[row["study"], "rv_ef"] for row in again)
