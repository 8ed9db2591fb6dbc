"""What pre-training is worth when labels are few: synthetic hearts, fine-tuned from scratch and from pre-training.

    python benchmarks/experiments/label_efficiency.py --out DIR    (with the `test` extra; under two hours on two cores)
    python benchmarks/experiments/label_efficiency.py --out DIR --write

The second writes docs/experiments/labels.md and .png of what is complete.

One pre-training run sees the images of all hearts but the test ones, and no label. Then one fit a cell: two tasks
(SAX segmentation; ejection fraction and disease from all views), all, half or few of the labels, from scratch or
pre-trained, several seeds. Each is judged on the test hearts by `evaluate`. Everything is kept in DIR, so that a run
that was stopped goes on; a round of one seed is finished before the next, and a page can be written between them.
"""

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import checkout
import conditions
import numpy as np
import torch
from label_cells import LEVELS, PRESET, SMOKE, STARTS, Cell, Size, cells, fit, labelled, make_start, make_store

from cinema_fast.common.tables import read_table
from cinema_fast.data.store.store import CineStore
from cinema_fast.evaluation.compare_evaluations import is_evaluation, read_evaluation
from cinema_fast.evaluation.compare_runs import markdown_table
from cinema_fast.evaluation.score_kinds import SCORE_KINDS
from cinema_fast.evaluation.summary import row_sets
from cinema_fast.metrics.bootstrap import Estimate, Measure, estimate
from cinema_fast.metrics.function import cardiac_function, ed_es, volume_curves
from cinema_fast.metrics.rows import Row, key
from cinema_fast.metrics.score_kind import Target
from cinema_fast.metrics.segmentation import CLASSES
from cinema_fast.tasks.split import split_studies
from cinema_fast.train.run_info import read_run_info

TARGET_EF_MAE = 2.0


class Sum(Measure):
    """Weighted sum of measures of the same rows in the same order: the mean over seeds, or what two starts differ by.

    So that one draw of the studies is the same for all of them.
    """

    def __init__(self, parts: Sequence[tuple[float, Measure]]):
        self.parts, self.n, self.used = parts, parts[0][1].n, {}
        self.notes = {name: note for _, measure in parts for name, note in measure.notes.items()}

    def __call__(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        found = [(factor, measure(weights)) for factor, measure in self.parts]
        return {name: sum(factor * one[name] for factor, one in found) for name in found[0][1]}


@dataclass(frozen=True)
class Figure:
    """A number of the tables: of which rows of an evaluation, which of their metrics."""

    title: str
    task: str
    rows: tuple[str, str, str]
    metric: str
    form: str = ".2f"


FIGURES = (
    Figure("Dice, mean of RV, MYO, LV", "segmentation", ("segmentation", "sax", "all classes"), "dice", ".3f"),
    Figure("EF measured by segmentation, MAE [points]", "segmentation", ("cycle", "sax", "lv_ef"), "mae"),
    Figure("EDV measured by segmentation, MAE [ml]", "segmentation", ("cycle", "sax", "lv_edv_ml"), "mae", ".1f"),
    Figure("EF by regression, MAE [points]", "multitask", ("regression", "", "ef"), "mae"),
    Figure("disease, AUROC (one against the rest)", "multitask", ("classification", "", "disease"), "auroc", ".3f"),
    Figure("disease, balanced accuracy", "multitask", ("classification", "", "disease"), "balanced_accuracy", ".3f"),
)


@dataclass(frozen=True)
class Comparison:
    """A figure at a level: by start over the seeds that are complete for it, and pre-trained - scratch over those that
    are complete for both."""

    of_start: dict[str, Estimate]
    seeds: dict[str, int]
    difference: Estimate | None


def compare(out: Path, size: Size, figure: Figure, level: str) -> Comparison:
    """Judge a figure at a level by the rows of its complete cells."""
    measures: dict[str, dict[int, Measure]] = {start: {} for start in STARTS}
    studies: list[str] = []
    for start, seed in product(STARTS, size.seeds):
        folder = Cell(figure.task, level, start, seed).folder(out) / "evaluation"
        if is_evaluation(folder):
            rows, target = rows_of(folder, figure)
            of = [row["study"] for row in rows]
            if studies and of != studies:
                raise SystemExit(f"{folder} judges other studies than the cells before: begin with another --out")
            studies, measures[start][seed] = of, SCORE_KINDS[figure.rows[0]].measure(rows, target)

    def judged(parts: list[tuple[float, Measure]]) -> Estimate:
        return estimate(Sum(parts), studies, resamples=size.resamples)[figure.metric]

    scratch, pretrained = (measures[start] for start in STARTS)
    both = sorted(scratch.keys() & pretrained.keys())
    parts = [(sign / len(both), found[seed]) for seed in both for sign, found in ((-1, scratch), (1, pretrained))]
    done = {start: [(1 / len(found), one) for one in found.values()] for start, found in measures.items() if found}
    return Comparison(
        {start: judged(mean) for start, mean in done.items()},
        {start: len(found) for start, found in measures.items()},
        judged(parts) if parts else None,
    )


def rows_of(evaluation: Path, figure: Figure) -> tuple[list[Row], Target]:
    """The rows a figure is made of, in the same order for all evaluations."""
    read = read_evaluation(evaluation)
    sets = dict(row_sets(list(read.rows.values())))
    return sorted(sets[figure.rows], key=key), read.targets.get(figure.rows[2], Target())


def label_floor(out: Path, studies: Sequence[str]) -> np.ndarray:
    """(n,) EF [points] of the stored label maps minus the known one: what a perfect segmenter would miss it by."""
    store, known = CineStore(out / "store"), read_table(out / "cohort/truth.csv").numeric("ef")
    errors = []
    for study in studies:
        info = store.info(study, "sax")
        maps = np.stack([store.read_labels(study, "sax", t) for t in info.labels.frames])
        curves = volume_curves(maps, info.spacing_mm, CLASSES)
        errors.append(cardiac_function(curves, *ed_es(curves["LV"]))["lv_ef"] - known[study])
    return np.array(errors)


def shown(found: Estimate | None, form: str) -> str:
    if found is None or found.value is None:
        return "undefined" if found else "not done"
    interval = "no interval" if found.low is None else f"{found.low:{form}} to {found.high:{form}}"
    return f"{found.value:{form}} ({interval})"


def missing(size: Size, seed: int, todo: Sequence[Cell]) -> str:
    """Which cells of a seed are not complete."""
    of_seed = [cell for cell in todo if cell.seed == seed]
    if len(of_seed) == len(cells(size)) / len(size.seeds):
        return f"seed {seed}, all of them"
    return f"seed {seed}, " + ", ".join(f"{cell.task} {cell.level} {cell.start}" for cell in of_seed)


def document(out: Path, size: Size, results: Mapping[tuple[str, str], Comparison]) -> str:
    """The experiment as Markdown; every number from the cells."""
    store, truth = CineStore(out / "store"), read_table(out / "cohort/truth.csv")
    split = split_studies(store.ids, val=size.val, test=size.test)
    n_training, disease = len(split.train), truth.values("disease")
    missed = label_floor(out, split.test)
    counts = Counter(disease[study] for study in split.test)
    kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items()))
    head = ["labelled hearts", "scratch", "seeds", "pre-trained", "seeds", "pre-trained - scratch"]
    tables = []
    for figure in FIGURES:
        lines, notes = [], {}
        for level in ("all", "half", "few"):
            one = results[figure.title, level]
            for start, found in one.of_start.items():
                notes.setdefault(found.note, []).append(f"{start}, {level}")
            row = [str(labelled(size, level, n_training))]
            for start in STARTS:
                row += [shown(one.of_start.get(start), figure.form), str(one.seeds[start])]
            lines.append([*row, shown(one.difference, "+" + figure.form)])
        tables += [
            f"### {figure.title}",
            "",
            markdown_table(head, lines),
            "",
            *(part for note, of in notes.items() if note for part in (f"{'; '.join(of)}: {note}.", "")),
        ]
    todo = [cell for cell in cells(size) if not is_evaluation(cell.folder(out) / "evaluation")]
    runs = [out / "pretraining", *(cell.folder(out) / "run" for cell in cells(size) if cell not in todo)]
    commits = sorted({str(read_run_info(run).versions["commit"]) for run in runs})
    status = "All cells are complete." if not todo else (
        f"**{len(cells(size)) - len(todo)} of {len(cells(size))} cells are complete.** Missing: "
        + "; ".join(missing(size, seed, todo) for seed in size.seeds if any(c.seed == seed for c in todo)) + "."
    )  # fmt: skip
    spent = sum(json.loads(path.read_text()) for path in out.rglob("seconds.json"))
    sizes = (size.pretraining, size.segmentation, size.multitask)
    pretraining, segmentation, multitask = (f"{steps} steps of {batch}" for steps, batch in sizes)
    ratio = json.loads((out / "pretraining/report/evaluation.json").read_text())["ratio"]
    return "\n".join([
        "# The effect of pre-training with few labels",
        "",
        f"`python benchmarks/experiments/label_efficiency.py --out DIR`, then with `--write`; {spent / 60:.0f} minutes "
        f"of one core for pre-training, fits and evaluations; {conditions.cpu_model()}, PyTorch {torch.__version__}; "
        f"{conditions.now()[:10]}; runs of commit {', '.join(commits)}",
        "",
        status,
        "",
        f"{size.studies} synthetic hearts of {len(set(disease.values()))} disease classes, 10 frames; SAX stored as "
        "32 x 32 pixels of 3 mm, which hold the left ventricle and cut the right one, and 20 slices of 6 mm. "
        f"{len(split.test)} test hearts ({kinds}) are used in no training. {len(split.val)} validation hearts, "
        f"labelled in all fits, select the best weights. {n_training} are for training: the labels of all, of half, or "
        f"of {size.few} are used. These {size.few} include every disease; they differ between seeds and are the same "
        "for both tasks, with and without pre-training.",
        "",
        f"Pre-training: one run of CineMA (`{PRESET}`) on the images of all but the test hearts, all views, "
        f"{pretraining}, without labels; its error on masked patches of test hearts is {ratio:.2f} times that of "
        "the mean patch. Every pre-trained fit starts from this run, so the intervals do not include the variation "
        "between pre-training runs. "
        f"Segmentation: ConvUNetR on SAX frames, {segmentation}, images not augmented. EF and disease: one ConvViT for "
        f"both (multitask), 5 frames of the three long axes, {multitask}, augmented. The number of "
        "steps is the same for any number of labels, and all other options are the same with and without pre-training: "
        "they were chosen by validation from scratch on another cohort, and layer-wise learning-rate decay is off. "
        "Earlier options had been evaluated on these test hearts before (four fits, since deleted, and a shorter "
        "pre-training), so the test hearts are not completely untouched.",
        "",
        "## Results on the test hearts",
        "",
        f"Means over seeds, with 95 % intervals from {size.resamples} bootstrap resamples of the {len(split.test)} "
        "test hearts: they show the variation with other test hearts, for these fits. Differences are paired: the same "
        "hearts, seeds and labels. The intervals do not include the variation between seeds. Dice is over all frames. "
        "EF and EDV are measured over the predicted cycle and compared with the phantom's exact values, not with those "
        "of its label maps. Balanced accuracy gives every disease the same weight, however few test hearts have it.",
        "",
        *tables,
        "![figure](labels.png)",
        "",
        "## Is EF measured to within 2 points?",
        "",
        f"EF from the stored label maps differs from the known EF of the test hearts by {np.abs(missed).mean():.2f} "
        f"points on average (bias {missed.mean():+.2f}, at most {np.abs(missed).max():.2f}), with slices of 6 mm and "
        f"10 frames, so a perfect segmentation would have this error too. {verdict(results)}",
        "",
    ])  # fmt: skip


def verdict(results: Mapping[tuple[str, str], Comparison]) -> str:
    """Whether EF is measured to within TARGET_EF_MAE with all labels."""
    parts = []
    for start, found in results[FIGURES[1].title, "all"].of_start.items():
        holds = found.value is not None and found.value <= TARGET_EF_MAE
        parts.append(f"{start} {shown(found, '.2f')}, {'within' if holds else 'not within'} {TARGET_EF_MAE:g} points")
    return f"The mean absolute error of segmentation trained on all labels is: {'; '.join(parts) or 'not done'}."


def draw(path: Path, size: Size, n_training: int, results: Mapping[tuple[str, str], Comparison]) -> None:
    """Each figure over the number of labelled hearts, with its intervals."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(10, 5.6), layout="constrained")
    for axes, figure in zip(canvas.subplots(2, 3).flat, FIGURES):
        for start, shift, colour in zip(STARTS, (0.97, 1.03), ("tab:gray", "tab:blue")):
            found = {labelled(size, level, n_training): results[figure.title, level].of_start.get(start)
                     for level in LEVELS}  # fmt: skip
            points = [(n, e) for n, e in sorted(found.items()) if e and e.low is not None]
            ends = [[e.value - e.low for _, e in points], [e.high - e.value for _, e in points]]
            axes.errorbar([n * shift for n, _ in points], [e.value for _, e in points], ends, fmt="o-", color=colour,
                          capsize=3, label=start)  # fmt: skip
        if figure is FIGURES[1]:
            axes.axhline(TARGET_EF_MAE, color="tab:red", lw=1, ls="--")
        axes.set(xlabel="labelled hearts", xscale="log", xticks=list(found), xticklabels=list(found),
                 xlim=(0.8 * min(found), 1.25 * max(found)))  # fmt: skip
        axes.set_title(figure.title, fontsize=9)
        axes.minorticks_off()
    canvas.axes[0].legend(frameon=False)
    canvas.savefig(path, dpi=110)


def write(out: Path, size: Size, page: Path) -> None:
    """The page and its figure, from the cells that are complete."""
    results = {(figure.title, level): compare(out, size, figure, level) for figure in FIGURES for level in LEVELS}
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(document(out, size, results))
    n_training = len(split_studies(CineStore(out / "store").ids, val=size.val, test=size.test).train)
    draw(page.with_suffix(".png"), size, n_training, results)
    print(page.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for cohort, store, runs and evaluations")
    parser.add_argument("--write", action="store_true", help="fit nothing: write the page of the cells that are done")
    parser.add_argument("--document", type=Path, default=checkout.ROOT / "docs/experiments/labels.md")
    parser.add_argument("--smoke", action="store_true", help="toy size: whether it runs, not what it says")
    given = parser.parse_args()
    size, out = SMOKE if given.smoke else Size(), given.out
    size_file = out / "size.json"
    if size_file.exists() and json.loads(size_file.read_text()) != json.loads(json.dumps(asdict(size))):
        parser.error(f"--out {out} holds an experiment of another size: {size_file.read_text()}; choose another folder")
    if given.write:
        if not size_file.exists():
            parser.error(f"--out {out} holds no experiment: run it first without --write")
        write(out, size, given.document)
        return
    out.mkdir(parents=True, exist_ok=True)
    size_file.write_text(json.dumps(asdict(size)))
    began = time.perf_counter()
    make_store(out, size)
    make_start(out, size)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for cell, done in zip(cells(size), pool.map(fit, [(out, cell, size) for cell in cells(size)])):
            state = "done" if done else "stopped"
            print(f"[{time.perf_counter() - began:5.0f} s] {cell} {state}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
