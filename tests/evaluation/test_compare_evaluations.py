"""Two evaluations of the same studies, compared study by study, by the command line too."""

import json
import math
import re

import pytest
from evaluation_cases import HOSTILE, assessment

from cinema_fast.cli import main
from cinema_fast.evaluation.compare_evaluations import compare_evaluations, differences, is_evaluation
from cinema_fast.evaluation.results import write_results
from cinema_fast.metrics.rows import KEYS, new_row


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """{name: evaluation folder}: of the same studies with little and with much noise, and of three studies fewer."""
    root = tmp_path_factory.mktemp("evaluations")
    made = {
        "good": assessment(12, noise=0.2), "bad": assessment(12, noise=6.0, seed=1),
        "fewer": assessment(9, noise=0.2), "elsewhere": assessment(3),
    }  # fmt: skip
    for row in made["elsewhere"].rows:
        row["study"] += "x"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cinema_fast.evaluation.results.write_report", lambda *_: None)
        for name, one in made.items():
            write_results(one, root / name, about={})
    return {name: root / name for name in made}


def found(out) -> dict:
    (pair,) = json.loads((out / "comparison.json").read_text())
    return {(one["kind"], one["name"], one["metric"]): one for one in pair["differences"] if one["view"] != "lax_4c"}


def test_a_better_set_is_better_and_an_equal_one_equal(folders, tmp_path):
    text = compare_evaluations([folders["good"], folders["bad"]], tmp_path)
    assert text + "\n" == (tmp_path / "comparison.md").read_text() and "12 studies in both, paired" in text
    numbers = found(tmp_path)
    age = numbers["regression", "age", "mae"]
    good, bad = (json.loads((folders[name] / "results.json").read_text()) for name in ("good", "bad"))
    values = [next(t["numbers"]["mae"]["value"] for t in one["tables"] if t["name"] == "age") for one in (good, bad)]
    assert [age["first"], age["second"]] == pytest.approx(values)
    assert age["difference"] == pytest.approx(values[1] - values[0]) and age["low"] > 0 and age["p"] < 0.01
    heads = "metric first second difference its 95% interval p n (studies)"
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert " ".join(table[0].replace("|", " ").split()) == heads and max(map(len, table)) <= 120
    dice = numbers["segmentation", "RV", "dice"]
    assert (dice["difference"], dice["low"], dice["high"], dice["p"]) == (0, 0, 0, 1) and dice["n"] == 24
    assert numbers["classification", "disease", "auroc"]["difference"] < 0
    assert numbers["ef_class", "lv_ef", "accuracy"]["p"] == 1


def test_studies_of_one_alone_are_counted_and_named(folders, tmp_path):
    text = compare_evaluations([folders["good"], folders["fewer"]], tmp_path)
    assert "8 studies in both" not in text and "9 studies in both, paired" in text
    assert re.search(r"only in \S+good: 3 studies \(heart-10, heart-11, heart-9\)", text)
    assert found(tmp_path)["regression", "age", "mae"]["studies"] == 9


def test_a_score_that_one_lacks_is_compared_in_neither(folders, tmp_path):
    row = r"(segmentation,heart-1,sax,0,RV,[^,]*,[^,]*),[^,]*"
    compare_evaluations([folders["good"], altered(folders, tmp_path / "lost", "rows.csv", row, r"\1,inf")], tmp_path)
    hd95 = found(tmp_path)["segmentation", "RV", "hd95_mm"]
    assert hd95["n"] == 23 and hd95["difference"] == 0
    assert hd95["note"] == "failed in 0 (first) and 1 (second); 1 without this structure left out"


def test_what_failed_in_each_is_counted(folders, tmp_path):
    row = r"(segmentation,heart-{},sax,0,RV,[^,]*,[^,]*),[^,]*"
    first = altered(folders, tmp_path / "first", "rows.csv", row.format(1), r"\1,inf")
    second = altered(folders, tmp_path / "second", "rows.csv", row.format("[1-3]"), r"\1,inf", count=3)
    text = compare_evaluations([first, second], tmp_path / "out")
    numbers = found(tmp_path / "out")
    for name, left in (("RV", "; 3 without this structure left out"), ("all classes", "")):
        one = numbers["segmentation", name, "hd95_mm"]
        assert one["note"] == f"failed in 1 (first) and 3 (second){left}"
        assert re.search(rf"^segmentation, sax, {name}, .*: {re.escape(one['note'])}$", text, re.MULTILINE)
    assert numbers["segmentation", "LV", "hd95_mm"]["note"] == ""


def test_a_target_that_only_one_was_asked_for_is_no_difference(folders, tmp_path):
    """With --retest what segmentation measures is a target of numbers; without it, nothing is said of it."""
    other = altered(folders, tmp_path / "other", "results.json", r',\s*"lv_ef": \{\s*"classes"[^{}]*\}', "")
    assert "lv_ef" not in json.loads((other / "results.json").read_text())["targets"]
    compare_evaluations([folders["good"], other], tmp_path / "out")
    assert found(tmp_path / "out")["function", "lv_ef", "mae"]["difference"] == 0


def test_by_the_command_line(folders, tmp_path, capsys):
    assert main(["compare", str(folders["good"]), str(folders["bad"]), str(folders["fewer"])]) == 0
    assert capsys.readouterr().out.count("studies in both, paired") == 2
    (tmp_path / "config.yaml").write_text("run: {}\nmodel: {}\nstore: {studies: 1, sha256: ab}\n")
    assert main(["compare", str(folders["good"]), str(tmp_path)]) == 1
    assert re.search(r"good is an evaluation, \S+ is not: it lacks results.json or rows.csv", capsys.readouterr().err)
    assert main(["compare", str(folders["good"]), str(folders["good"])]) == 1
    assert "given twice" in capsys.readouterr().err
    assert not is_evaluation(tmp_path) and main(["compare", str(folders["good"])]) == 1


def altered(folders, to, file: str, pattern: str, by: str, count: int = 1):
    """A copy of an evaluation in which a pattern is replaced in a file, once or `count` times."""
    to.mkdir()
    for name in ("rows.csv", "results.json"):
        text = (folders["good"] / name).read_text("utf-8", "surrogateescape")
        changed = re.sub(pattern, by, text, count=count) if name == file else text
        assert (changed != text) == (name == file)
        (to / name).write_text(changed, "utf-8", "surrogateescape")
    return to


@pytest.mark.parametrize(
    ("file", "pattern", "by", "words"),
    [
        ("rows.csv", r"(regression,heart-1,,,age,.*),\d+\.\d+", r"\g<1>,3.5", "heart-1, age: truth is .* same truth"),
        ("results.json", r'"threshold": 0.5', '"threshold": 0.4', "age: .* has Target"),
        ("results.json", r'"targets"', '"target"', "results.json is damaged"),
        ("rows.csv", r"heart-1,sax,0,RV,[^,]*", "heart-1,sax,0,RV,x", r"line \d+: column dice: 'x' is not a number"),
        ("rows.csv", r"segmentation,heart-1", "segmentatio,heart-1", "kind 'segmentatio'; expected one of"),
        ("rows.csv", KEYS[0], "kinds", "no column kind"),
        ("rows.csv", r",[^,]*\n\Z", "", "fewer cells"),
        ("rows.csv", r"segmentation,heart-2,sax,0,RV", "segmentation,heart-1,sax,0,RV", "each of another study"),
    ],
)
def test_what_cannot_be_compared_is_named(folders, tmp_path, file, pattern, by, words):
    other = altered(folders, tmp_path / "other", file, pattern, by)
    with pytest.raises(ValueError, match=words):
        compare_evaluations([folders["good"], other])


def test_evaluations_of_other_studies_have_nothing_in_common(folders):
    with pytest.raises(ValueError, match=r"elsewhere \(segmentation, function, .*have no study with the same view"):
        compare_evaluations([folders["good"], folders["elsewhere"]])


def test_names_of_bytes_are_spelt_out(folders):
    text = compare_evaluations([folders["bad"], folders["fewer"]])
    assert HOSTILE not in text and text.encode("utf-8")


def test_a_heart_whose_ventricle_was_missed_counts_as_failed():
    """Its EF is left out of both, and who missed it is said."""
    rows = [new_row("cycle", study, "lv_ef", "sax", pred=50.0 + i, truth=55.0) for i, study in enumerate("abc")]
    missed = [row | ({"pred": math.inf} if row["study"] == "b" else {}) for row in rows]
    mae = differences(rows, missed, {}, resamples=20)["cycle", "sax", "lv_ef"]["mae"]
    assert mae.note.startswith("failed in 0 (first) and 1 (second)") and (mae.n, mae.first) == (2, mae.second)
