"""`evaluate` on stores: what the weights have learnt from, pixels of another size, labels of no name."""

import json

import numpy as np
import pytest
import torch
from labelled_discs import rewrite, write_discs

from cinema_fast.evaluation.evaluate import evaluate_run
from cinema_fast.evaluation.evaluate_config import EvaluateConfig
from cinema_fast.evaluation.results import scores_in_words
from cinema_fast.metrics.rows import read_rows
from cinema_fast.metrics.segmentation import stability_score
from cinema_fast.tasks.finetune import finetune
from cinema_fast.tasks.finetuned_run import FinetunedRun, load_run
from cinema_fast.train.run_info import read_run_info

pytest.importorskip("jinja2")
FEW = {"steps": 2, "validate_every": 2, "views": ("sax",)}
SEEN = "evaluated studies used in pre-training"


@pytest.fixture(scope="module")
def runs(discs, tmp_path_factory):
    """`first` on twelve studies, and `second`, which begins with it, on the first six of them."""
    folder = tmp_path_factory.mktemp("runs")
    finetune(discs.config(folder / "first", "segmentation", **FEW))
    few = write_discs(folder / "few", 6, views=("sax",))
    split = folder / "split.csv"
    split.write_text("study,split\n" + "".join(f"s0{n},{'train' if n < 3 else 'test'}\n" for n in range(6)))
    finetune(discs.config(folder / "second", "segmentation", data=few, split=split, init_from=folder / "first", **FEW))
    return folder


def judge(run, out, **options) -> tuple[dict, set[str]]:
    results = evaluate_run(EvaluateConfig(run, out, resamples=5, device="cpu", **options))
    return results, {row["study"] for row in read_rows(out / "rows.csv")}


@pytest.mark.slow
def test_what_the_starting_weights_have_learnt_from(runs, discs, tmp_path):
    """Of the run's own test studies it is told; studies of another store are left out."""
    first, second = (read_run_info(runs / name).labels for name in ("first", "second"))
    learnt = {*first.used, *first.split["val"]}
    results, judged = judge(runs / "second", tmp_path / "own")
    both = len(learnt & {"s03", "s04", "s05"})
    assert judged == {"s03", "s04", "s05"} and results["about"][SEEN] == f"{both} of 3" and both > 0
    assert SEEN in (tmp_path / "own" / "report" / "index.html").read_text()
    other = write_discs(tmp_path / "other", 14, views=("sax",))
    results, judged = judge(runs / "second", tmp_path / "other_eval", data=other)
    every = {f"s{n:02d}" for n in range(14)}
    assert judged == every - learnt - {"s00", "s01", "s02"} | {"s03", "s04", "s05"}
    why = {line["study"]: line["why"] for line in results["left_out"]}
    for study in learnt - set(second.split["train"]) - {"s03", "s04", "s05"}:
        assert why[study] == "by its name one that the run's initial weights were trained on"
    results, _ = judge(runs / "first", tmp_path / "first")
    assert results["about"][SEEN] == "none: the run began from random weights"


def test_studies_without_labels_but_with_reference_values(discs, tmp_path):
    """Those of the run's own store that are in no part of its split: such as the second part of a retest. What is left
    out is said in words."""
    store = write_discs(tmp_path / "store", 8, views=("sax",))
    index = json.loads((store / "index.json").read_text())
    for study in ("s06", "s07"):
        del index["studies"][study]["sax"]["labels"]
    (store / "index.json").write_text(json.dumps(index))
    split, table = tmp_path / "split.csv", tmp_path / "table.csv"
    split.write_text("study,split\n" + "".join(f"s0{n},{'train' if n < 4 else 'test'}\n" for n in range(8)))
    finetune(discs.config(tmp_path / "run", "segmentation", data=store, split=split, **FEW))
    table.write_text("study,ef\ns06,50\ns00,60\n")
    run = load_run(tmp_path / "run", device="cpu")
    assert run.split.test == ("s04", "s05")
    options = {"resamples": 5, "device": "cpu", "table": table, "known": ("lv_ef=ef",)}
    results = evaluate_run(EvaluateConfig(tmp_path / "run", tmp_path / "eval", **options))
    judged = {row["study"] for row in read_rows(tmp_path / "eval" / "rows.csv")}
    assert judged <= {"s04", "s05", "s06"} and {"s04", "s05"} <= judged  # not s00, which was trained on, nor s07
    assert results["about"]["studies"].endswith("and 1 without labels but with reference values")
    words = scores_in_words(results | {"left_out": [{"study": "a", "why": "x"}] * 3 + [{"study": "b", "why": "y"}]})
    assert words.splitlines()[1:3] == ["  left out (3): x", "  left out (1): y"]


@pytest.mark.slow
def test_pixels_of_another_size(runs, tmp_path):
    """Volumes and distances would be scaled, and the model has never seen such a heart."""
    run, config = load_run(runs / "first", device="cpu"), runs / "first" / "config.yaml"
    other = write_discs(tmp_path / "other", 14, views=("sax",))
    index = json.loads((other / "index.json").read_text())
    index["prepare"]["sax_spacing"] = [2.0, 2.0, 10.0]
    (other / "index.json").write_text(json.dumps(index))
    assert "sax_spacing" not in run.info.store.prepare
    judge(runs / "first", tmp_path / "eval", data=other)  # of one of them it is not known
    before = config.read_text()
    config.write_text(before.replace("prepare:\n", "prepare:\n    sax_spacing: [1.5, 1.5, 10.0]\n"))
    try:
        assert load_run(runs / "first", device="cpu").reads == ("sax",)
        # long axes, which the run does not read, may differ
        index["prepare"] |= {"sax_spacing": [1.5, 1.5, 10.0], "lax_spacing": [2.0, 2.0]}
        (other / "index.json").write_text(json.dumps(index))
        config.write_text(config.read_text().replace("prepare:\n", "prepare:\n    lax_spacing: [1.0, 1.0]\n"))
        judge(runs / "first", tmp_path / "eval1", data=other)
        index["prepare"]["sax_spacing"] = [2.0, 2.0, 10.0]
        (other / "index.json").write_text(json.dumps(index))
        with pytest.raises(ValueError, match=r"other was prepared with --sax-spacing 2\.0 2\.0 10\.0, and the run's "
                           r"store with 1\.5 1\.5 10\.0 \(mm\): prepare the studies as"):  # fmt: skip
            judge(runs / "first", tmp_path / "eval2", data=other)
    finally:
        config.write_text(before)


def test_a_label_without_a_name_is_named_before_the_work(runs, tmp_path, monkeypatch):
    other = write_discs(tmp_path / "other", 14, views=("sax",))
    rewrite(other, "s13", "sax", lambda maps: np.where(maps == 3, 9, maps))
    monkeypatch.setattr(FinetunedRun, "predict_frames", lambda *_: pytest.fail("studies were judged"))
    with pytest.raises(ValueError, match=r"study s13: its sax label maps hold the label 9, and the structures are 3"):
        judge(runs / "first", tmp_path / "eval", data=other)
    assert not (tmp_path / "eval").exists()


def test_known_values_are_for_what_is_segmented(discs, tmp_path):
    finetune(discs.config(tmp_path / "run", "regression", **FEW))
    with pytest.raises(ValueError, match="--known lv_ef is measured by segmentation, and the run is of regress"):
        judge(tmp_path / "run", tmp_path / "eval", known=("lv_ef=radius",))


def test_the_stability_of_a_sure_model(runs):
    """Logits further apart than the logarithm of a small probability: the score is theirs, not that of a limit."""
    task, rng = load_run(runs / "first", device="cpu").task, torch.Generator().manual_seed(0)
    logits = 15 * torch.randn(2, 4, 24, 24, 3, generator=rng)
    assert float((logits.amax(1) - logits.amin(1)).median()) > 28
    right = stability_score(logits)[:, 1:]
    found = task.stability(logits.softmax(1), (0, 1))
    for t in (0, 1):
        assert list(found[t].values()) == pytest.approx(right[t].tolist(), abs=1e-3)
