"""The experiment on few labels: its subsets, its paired comparison, its floor, and the script as a whole."""

import json
import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path

import label_cells
import label_efficiency as experiment
import numpy as np
import pytest

from cinema_fast.common.tables import read_table
from cinema_fast.evaluation.results import write_results
from cinema_fast.metrics.assessment import Assessment
from cinema_fast.metrics.regression import Agreement
from cinema_fast.tasks.split import subsample

SIZE = label_cells.Size(studies=2, seeds=(0, 1), resamples=400)
EF = next(figure for figure in experiment.FIGURES if figure.rows == ("regression", "", "ef"))


def test_the_few_hold_every_disease_and_are_among_the_half():
    training = [f"heart-{i:03}" for i in range(40)]
    disease = {study: "abcd"[i % 7 % 4] for i, study in enumerate(training)}
    keys = list(islice(label_cells.few_keys(training, disease, 5), 4))
    assert keys == sorted(set(keys))
    for at in range(keys[-1] + 1):
        few, half = (set(subsample(training, fraction=share, shots=None, seed=at)) for share in (5 / 40, 0.5))
        assert len(few) == 5 and len(half) == 20 and few < half
        assert (at in keys) == ({disease[study] for study in few} == set("abcd"))


def test_no_few_can_hold_more_diseases_than_hearts():
    with pytest.raises(SystemExit, match="no 2 training studies hold all of a, b, c"):
        next(label_cells.few_keys(["1", "2", "3"], {"1": "a", "2": "b", "3": "c"}, 2))


def test_cells_of_a_seed_come_before_those_of_the_next():
    cells = label_cells.cells(label_cells.Size())
    assert len(set(cells)) == 36 and [cell.seed for cell in cells] == [0] * 12 + [1] * 12 + [2] * 12
    assert all((a.task, a.level, a.seed) == (b.task, b.level, b.seed) for a, b in zip(cells[::2], cells[1::2]))


def test_a_sum_is_drawn_as_one():
    rng = np.random.default_rng(0)
    truth = rng.uniform(20, 70, 12)
    ours = [truth + rng.normal(0, 3, 12) for _ in range(2)]
    parts = [(0.5, Agreement(pred, truth)) for pred in ours]
    weights = rng.integers(0, 3, (5, 12)).astype(float)
    errors = np.mean([np.abs(pred - truth) for pred in ours], axis=0)
    np.testing.assert_allclose(experiment.Sum(parts)(weights)["mae"], weights @ errors / weights.sum(1))
    studies = [str(i) for i in range(12)]
    same = experiment.estimate(experiment.Sum([(1, parts[0][1]), (-1, parts[0][1])]), studies, resamples=100)["mae"]
    assert (same.value, same.low, same.high) == (0, 0, 0)


def judge(out: Path, start: str, seed: int, errors: dict[str, float]) -> None:
    """An evaluation of a cell whose predictions of EF miss by `errors` {study: points}."""
    made = Assessment(resamples=20)
    for i, (study, error) in enumerate(errors.items()):
        made.add_regression(study, "ef", 40.0 + i + error, 40.0 + i)
    folder = label_cells.Cell("multitask", "few", start, seed).folder(out)
    write_results(made, folder / "evaluation", about={}, table={})


def test_starts_are_compared_heart_by_heart_over_the_seeds_of_both(tmp_path):
    base = {f"heart-{i}": float(1 + i) for i in range(6)}
    judge(tmp_path, "scratch", 0, {study: error + 2 for study, error in base.items()})
    judge(tmp_path, "scratch", 1, {study: error + 4 for study, error in base.items()})
    judge(tmp_path, "pre-trained", 1, dict(reversed(base.items())) | base)
    found = experiment.compare(tmp_path, SIZE, EF, "few")
    assert found.seeds == {"scratch": 2, "pre-trained": 1}
    assert found.of_start["scratch"].value == pytest.approx(3.5 + 3)
    assert found.of_start["pre-trained"].value == pytest.approx(3.5)
    assert found.of_start["pre-trained"].low < 3 < 4 < found.of_start["pre-trained"].high
    # seed 1 alone has both, and there every heart is better by 4
    assert [found.difference.value, found.difference.low, found.difference.high] == pytest.approx([-4, -4, -4])
    nothing = experiment.compare(tmp_path, SIZE, EF, "all")
    assert nothing.of_start == {} and nothing.difference is None


def test_cells_of_other_hearts_are_not_compared(tmp_path):
    judge(tmp_path, "scratch", 0, {"a": 1.0, "b": 2.0})
    judge(tmp_path, "pre-trained", 0, {"a": 1.0, "c": 2.0})
    with pytest.raises(SystemExit, match="judges other studies"):
        experiment.compare(tmp_path, SIZE, EF, "few")


def test_the_floor_is_that_of_the_stored_labels(tmp_path):
    """EF of voxels counted in the store's own files."""
    store = label_cells.make_store(tmp_path, SIZE)
    truth = read_table(tmp_path / "cohort/truth.csv").numeric("ef")
    missed = experiment.label_floor(tmp_path, sorted(truth))
    for study, error in zip(sorted(truth), missed):
        voxels = (np.load(store / f"studies/{study}/sax.labels.npy") == 3).sum((1, 2, 3))
        assert len(voxels) == 10 and abs(error) < 5
        assert error == pytest.approx(100 * (1 - voxels.min() / voxels.max()) - truth[study])


@pytest.mark.long
def test_the_script_runs_goes_on_and_writes_what_is_done(tmp_path):
    out, page = tmp_path / "out", tmp_path / "doc.md"
    command = [sys.executable, experiment.__file__, "--out", out, "--document", page, "--smoke"]
    subprocess.run(command, check=True, capture_output=True, timeout=1500)
    subprocess.run([*command, "--write"], check=True, capture_output=True, timeout=600)
    text = page.read_text()
    assert "All cells are complete." in text and "not done" not in text and page.with_suffix(".png").exists()
    run = json.loads((out / "cells/multitask-few-pre-trained-0/evaluation/results.json").read_text())["about"]
    assert run["training studies"] == 8 and run["init_from"].endswith("pretraining")
    log = (out / "cells/multitask-few-pre-trained-0/run/run.log").read_text()
    assert "a run it started from, has used" not in log  # the test hearts are those that pre-training was kept from
    shutil.rmtree(out / "cells/multitask-half-scratch-0")
    subprocess.run([*command, "--write"], check=True, capture_output=True, timeout=600)
    assert "**11 of 12 cells are complete.** Missing: seed 0, multitask half scratch." in page.read_text()
    subprocess.run(command, check=True, capture_output=True, timeout=600)  # that one alone
    subprocess.run([*command, "--write"], check=True, capture_output=True, timeout=600)
    drop = lambda page: [line for line in page.splitlines() if "minutes of one core" not in line]  # noqa: E731
    assert drop(page.read_text()) == drop(text)
    other = subprocess.run(command[:-1], capture_output=True, text=True, timeout=60)
    assert other.returncode and "holds an experiment of another size" in other.stderr
