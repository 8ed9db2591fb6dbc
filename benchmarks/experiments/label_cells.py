"""The cells of label_efficiency.py: a cohort, one pre-training run, and fits with more or fewer labels, each judged.

All of it is kept in a folder, and gone on with where it was stopped.
"""

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, islice, product
from pathlib import Path

import conditions
import torch

from cinema_fast.common.tables import read_table
from cinema_fast.data.loading.augmentation import AugmentConfig
from cinema_fast.data.prepare.prepare import PrepareConfig, prepare
from cinema_fast.data.store.store import CineStore
from cinema_fast.evaluation.compare_evaluations import is_evaluation
from cinema_fast.evaluation.evaluate import evaluate_run
from cinema_fast.evaluation.evaluate_config import EvaluateConfig
from cinema_fast.methods.pretrain import pretrain
from cinema_fast.methods.pretrain_config import PretrainConfig
from cinema_fast.phantom.cohort import write_cohort
from cinema_fast.tasks.finetune import finetune
from cinema_fast.tasks.finetune_config import FinetuneConfig
from cinema_fast.tasks.split import split_studies, subsample

PRESET = "cinema-demo"
TASKS = ("segmentation", "multitask")
LEVELS = ("all", "few", "half")  # in the order in which they are fitted
STARTS = ("scratch", "pre-trained")
KNOWN = ("lv_ef=ef", "lv_edv_ml=edv_ml", "lv_esv_ml=esv_ml")
AUGMENT = {
    # by validation on another cohort: what moves the label maps costs more steps than there are
    "segmentation": AugmentConfig(zoom_share=0.0),
    "multitask": AugmentConfig(
        zoom=(0.85, 1.15), rotation=30.0, rotation_share=0.5, translation=3.0, translation_share=0.5,
        gamma=(0.7, 1.4), gamma_share=0.5, noise=0.05, noise_share=0.5,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Size:
    """Hearts, shares of them for test and validation, few: labelled hearts of the lowest level; steps and batches."""

    studies: int = 120
    test: float = 0.25
    val: float = 0.15
    few: int = 10
    pretraining: tuple[int, int] = (3600, 8)
    segmentation: tuple[int, int] = (600, 2)
    multitask: tuple[int, int] = (500, 8)
    validations: int = 5
    seeds: tuple[int, ...] = (0, 1, 2)
    resamples: int = 2000


SMOKE = Size(30, 0.2, 0.2, 8, (4, 4), (2, 2), (2, 2), 1, (0,), 50)


@dataclass(frozen=True)
class Cell:
    """One fit, and its evaluation."""

    task: str
    level: str
    start: str
    seed: int

    def folder(self, out: Path) -> Path:
        return out / "cells" / f"{self.task}-{self.level}-{self.start}-{self.seed}"


def cells(size: Size) -> list[Cell]:
    """All cells, in the order of the fits: seed by seed, the two starts of a comparison side by side."""
    order = product(size.seeds, LEVELS, TASKS, STARTS)
    return [Cell(task, level, start, seed) for seed, level, task, start in order]


def make_store(out: Path, size: Size) -> Path:
    """The cohort and its store with label maps; kept once made."""
    cohort, store = out / "cohort", out / "store"
    if not (cohort / "truth.json").exists():
        shutil.rmtree(cohort, ignore_errors=True)  # of a run that was stopped
        write_cohort(cohort, size.studies, 1, workers=2, in_plane_mm=3.0, n_frames=10, n_slices=20)
    report = prepare(
        PrepareConfig(
            src=cohort, dst=store, labels="labels/{id}_{view}.nii.gz", sax_size=(32, 32, 20), lax_size=(40, 40),
            sax_spacing=(3.0, 3.0, 6.0), lax_spacing=(3.0, 3.0),
        ),
        progress=False,
    )  # fmt: skip
    if report.prepared + report.unchanged < size.studies:  # the labels that the crop cuts are told of, and stored
        raise SystemExit(str(report))
    return store


def make_start(out: Path, size: Size) -> None:
    """The one pre-training run, which never sees the test hearts."""
    run, (steps, batch) = out / "pretraining", size.pretraining
    if (run / "report" / "loss.png").exists():
        return
    with spent_on(run):
        outcome = pretrain(
            PretrainConfig(
                data=out / "store", out=run, steps=steps, preset=PRESET, batch_size=batch, lr=4e-3, warmup=0.05,
                weight_decay=0.01, holdout=size.test, precision="fp32", device="cpu", workers=1,
                log_every=max(steps // 20, 1), checkpoint_every=max(steps // 5, 1),
                resume=(run / "config.yaml").exists(),
            )
        )  # fmt: skip
    if outcome.exit_code:
        raise SystemExit(outcome.exit_code)


def few_keys(training: Sequence[str], disease: Mapping[str, str], few: int) -> Iterator[int]:
    """Keys of subsets whose `few` studies hold a heart of every disease of the training studies, ascending.

    A smaller subset is in a larger one of the same key, so that both tasks and all levels of a key share hearts.
    """
    kinds = {disease[study] for study in training}
    for at in count():
        chosen = subsample(training, fraction=few / len(training), shots=None, seed=at)
        if {disease[study] for study in chosen} == kinds:
            yield at
        if at > 10_000:
            raise SystemExit(f"no {few} training studies hold all of {', '.join(sorted(kinds))}")


def labelled(size: Size, level: str, n_training: int) -> int:
    """Hearts whose labels are used."""
    return {"all": n_training, "half": n_training // 2, "few": size.few}[level]


def options(out: Path, cell: Cell, size: Size, subset_seed: int, n_training: int) -> FinetuneConfig:
    """The options of a fit: alike for both starts and for all numbers of labels."""
    task = {
        "segmentation": {"views": ("sax",), "decoder_channels": (16, 32, 64), "lr": 3e-3, "dropout": 0.0},
        "multitask": {
            "table": out / "cohort/truth.csv", "targets": ("ef", "disease"), "n_frames": 5, "lr": 5e-3,
            "views": ("lax_2c", "lax_3c", "lax_4c"),
        },
    }[cell.task]  # fmt: skip
    (steps, batch), run = getattr(size, cell.task), cell.folder(out) / "run"
    return FinetuneConfig(
        data=out / "store", out=run, task=cell.task, steps=steps, batch_size=batch, preset=PRESET,
        init_from=out / "pretraining" if cell.start == "pre-trained" else None, seed=cell.seed, val=size.val,
        test=size.test, label_fraction=labelled(size, cell.level, n_training) / n_training, subset_seed=subset_seed,
        augment=AUGMENT[cell.task], cutout=0.0, layer_decay=1.0, warmup=0.05, drop_path=0.0, patience=0,
        validate_every=max(steps // size.validations, 1), device="cpu", precision="fp32", workers=1,
        log_every=max(steps // 10, 1), resume=(run / "config.yaml").exists(), **task,
    )  # fmt: skip


def fit(job: tuple[Path, Cell, Size]) -> Cell | None:
    """One cell, gone on with where it was stopped; None where it was stopped again."""
    out, cell, size = job
    torch.set_num_threads(1)
    folder = cell.folder(out)
    if is_evaluation(folder / "evaluation"):
        return cell
    truth, store = out / "cohort/truth.csv", CineStore(out / "store")
    training = split_studies(store.ids, val=size.val, test=size.test).train
    keys = few_keys(training, read_table(truth).values("disease"), size.few)
    subset_seed = next(islice(keys, size.seeds.index(cell.seed), None))
    with spent_on(folder):
        if finetune(options(out, cell, size, subset_seed, len(training))).signum:
            return None
        shutil.rmtree(folder / "evaluation", ignore_errors=True)  # of a run that was stopped
        evaluate_run(
            EvaluateConfig(
                run=folder / "run", out=folder / "evaluation", table=truth, device="cpu", resamples=size.resamples,
                known=KNOWN if cell.task == "segmentation" else (),
            )
        )  # fmt: skip
    shutil.rmtree(folder / "run" / "checkpoints")  # best/ holds the weights that were judged
    return cell


@contextmanager
def spent_on(folder: Path) -> Iterator[None]:
    """Adds the processor seconds of what is done within to FOLDER/seconds.json, also where that is stopped."""
    path, began = folder / "seconds.json", time.process_time()
    try:
        yield
    finally:
        before = json.loads(path.read_text()) if path.exists() else 0.0
        conditions.write_json(path, before + time.process_time() - began)
