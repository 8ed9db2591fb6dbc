"""`cinema-fast probe`: how well the embeddings of a cohort predict columns of a table, by probes on frozen vectors."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from tyro.conf import Positional

from ..common.checks import check, check_at_least
from ..common.extras import need
from ..common.naming import count_studies, counted
from ..common.output import new_folder
from ..common.tables import Table, is_number, means_number
from ..metrics.bootstrap import RESAMPLES, Estimate, Measure, estimate
from .embeddings import Embeddings, read_beside, read_embeddings
from .probes import SCORES, Probe, probes

FEW = 20  # a warning is given for fewer test studies
LEAST = 10  # studies with a label; with fewer, intervals mean nothing


@dataclass(frozen=True)
class ProbeConfig:
    """Predict columns of a table from the embeddings of a cohort: by a linear probe, by k-NN, and without embeddings.

    A column of numbers is regressed, a column of words is classified; a column of both is refused unless --classes
    names it. The table's column `split` (train, val, test; val is not used) gives the training and test studies;
    without it they are drawn for each seed. Writes OUT/results.json.
    """

    # Parquet file of `cinema-fast embed`
    embeddings: Annotated[Positional[Path], tyro.conf.arg(metavar="EMBEDDINGS")]
    # CSV with a column study and the targets
    table: Path
    # columns of the table to predict
    targets: tuple[str, ...]
    # folder to write, new or empty
    out: Path
    # target columns whose numbers are classes, not quantities
    classes: tuple[str, ...] = ()
    # share of the studies for testing, where the table has no column split
    test: float = 0.3
    # random seeds; each draws a data split and folds, and scores are means over seeds
    seeds: tuple[int, ...] = (0, 1, 2)
    # neighbours k of the k-NN probe
    neighbours: int = 20
    # view whose vectors are probed, of a file with a vector per view (embed --per view)
    view: str | None = None

    def __post_init__(self):
        if not self.targets or len(set(self.targets)) < len(self.targets):
            raise ValueError(f"--targets needs different columns, one or more, got {' '.join(self.targets) or 'none'}")
        if unknown := sorted(set(self.classes) - set(self.targets)):
            raise ValueError(f"--classes {unknown[0]}: not among --targets")
        check(self, "test", valid=lambda x: 0 < x < 1, must="is a share, above 0 and below 1")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or not all(0 <= s < 2**32 for s in self.seeds):
            raise ValueError(f"--seeds needs different numbers in 0..2**32 - 1, got {self.seeds}")
        check_at_least(self, 1, "neighbours")


class MeanOverSeeds(Measure):
    """SCORES as the mean over probes of one kind; rows are the test studies of each probe, one probe after another."""

    def __init__(self, probes: Sequence[Probe]):
        self.parts = [probe.measure for probe in probes]
        self.n = sum(part.n for part in self.parts)
        self.notes = {name: note for part in self.parts for name, note in part.notes.items()}
        self.used = {}

    def __call__(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        of_parts = np.split(weights, np.cumsum([part.n for part in self.parts])[:-1], axis=1)
        return _mean([part(drawn) for part, drawn in zip(self.parts, of_parts)])

    def point(self) -> dict[str, float]:
        return _mean([part.point() for part in self.parts])


def _mean(found: Sequence[dict]) -> dict:
    return {name: np.mean([scores[name] for scores in found], axis=0) for name in SCORES if name in found[0]}


@dataclass(frozen=True)
class TargetReport:
    """A target: {probe: {score: Estimate}}; n studies have a label, n_train and n_test of them by seed."""

    kind: str
    n: int
    n_train: tuple[int, ...]
    n_test: tuple[int, ...]
    scores: dict[str, dict[str, Estimate]]
    penalties: tuple[float, ...]


@dataclass(frozen=True)
class ProbeReport:
    """The reports by target, and how studies were split."""

    config: ProbeConfig
    split: str
    targets: dict[str, TargetReport]

    def __str__(self) -> str:
        lines = []
        for target, found in self.targets.items():
            sizes = f"{max(found.n_train)} train, {max(found.n_test)} test"
            seeds = counted(len(self.config.seeds), "seed")
            lines.append(f"{target} ({found.kind}, {sizes}, {seeds}, split: {self.split})")
            for probe, scores in found.scores.items():
                lines.append(f"  {probe:<9}" + "  ".join(f"{name} {_text(value)}" for name, value in scores.items()))
            if (least := min(found.n_test)) < FEW:
                lines.append(f"  warning: only {count_studies(least)} to test on, so scores are uncertain: {FEW} or "
                             "more are needed (label more studies, or give a larger --test)")  # fmt: skip
        return "\n".join([*lines, f"written: {self.config.out / 'results.json'}"])


def probe(config: ProbeConfig) -> ProbeReport:
    """Probe the embeddings of a cohort; see ProbeConfig, and `probes.py` for the methods.

    A pure function of the files and the options.

    Raises:
        ValueError: no scikit-learn or pyarrow; OUT is a file or not empty; embeddings that cannot be read; a table
            without the studies or a target; a target with too few labels, one class or one value, also in one part.
        OSError: a file cannot be read. OutputError (an OSError): OUT cannot be written; no part of it is left.
    """
    need("sklearn", "probes are fitted")
    with new_folder(config.out, "probe", vars(config), ("results.json",)):
        return _probe(config)


def _probe(config: ProbeConfig) -> ProbeReport:
    from threadpoolctl import threadpool_limits

    embeddings = read_embeddings(config.embeddings, config.view)
    table = read_beside(config.table, embeddings)
    labels = {target: read_target(table, target, embeddings, target in config.classes) for target in config.targets}
    parts = read_split(table, embeddings.studies) if "split" in table.columns else None
    with threadpool_limits(1):  # several threads would add sums in varying order
        targets = {}
        for target, found in labels.items():
            try:
                targets[target] = probe_target(embeddings.vectors, found, parts, config)
            except ValueError as error:
                raise ValueError(f"{config.table}: {target}: {error}") from None
    drawn = "the column split" if parts is not None else f"{config.test:.0%} drawn for the test by seed"
    report = ProbeReport(config, drawn, targets)
    text = json.dumps(_results(report, embeddings), indent=1)
    (config.out / "results.json").write_text(text + "\n", encoding="utf-8")
    return report


def read_target(table: Table, target: str, embeddings: Embeddings, classes: bool) -> np.ndarray:
    """(n,) the label of each study: float64, NaN where missing; or words, "" where missing. classes: numbers are words.

    Raises ValueError: no such column, fewer than LEAST labels, numbers among words, labels that are all alike.
    """
    words = table.values(target)
    known = {study: words[study] for study in embeddings.studies if study in words}
    if len(known) < LEAST:
        raise ValueError(f"{table.path}: {len(known)} of the {len(embeddings.studies)} studies of {embeddings.path} "
                         f"have a value of {target}; expected {LEAST} or more")
    n_numbers = sum(map(is_number, known.values()))
    if not classes and n_numbers < len(known):  # decimal commas and values in % are not numbers either
        try:
            table.numeric(target)
        except ValueError as error:
            if any(map(means_number, known.values())):
                raise ValueError(f"{error}. Leave the cell empty where a number is unknown; columns of classes are "
                                 "named by --classes") from None
            if len(set(known.values())) > len(known) / 2:
                raise ValueError(f"{error}; and too many different words for classes") from None
    classified = classes or not n_numbers
    if classified:
        table.check_classes(target, known)
    if len(set(known.values() if classified else map(float, known.values()))) < 2:
        raise ValueError(f"{table.path}: {target} is {next(iter(known.values()))!r} in all {len(known)} studies: "
                         "nothing to predict")
    if classified:
        return np.array([known.get(study, "") for study in embeddings.studies])
    return np.array([float(known.get(study, "nan")) for study in embeddings.studies])


def read_split(table: Table, studies: list[str]) -> np.ndarray:
    """(n,) train, val or test of each study, "" where the cell is empty. Raises ValueError for another word."""
    parts = table.values("split")
    for study, part in parts.items():
        if part not in ("train", "val", "test"):
            raise ValueError(f"{table.path}, line {table.lines[study]}: split is {part!r}, expected train, val or test")
    return np.array([parts.get(study, "") for study in studies])


def probe_target(
    vectors: np.ndarray, labels: np.ndarray, parts: np.ndarray | None, config: ProbeConfig
) -> TargetReport:
    """Probe one target: vectors (n, D), labels (n,) of `read_target`, parts (n,) of `read_split` or None."""
    classified = labels.dtype.kind == "U"
    known = np.flatnonzero(labels != "" if classified else np.isfinite(labels))
    found: dict[str, list[Probe]] = {name: [] for name in probes(config.neighbours)}
    tested = []
    for seed in config.seeds:
        train, test = split_known(labels, known, parts, config.test, seed)
        tested.append(test)
        for name, fit in probes(config.neighbours).items():
            found[name].append(fit(vectors[train], labels[train], vectors[test], labels[test], seed=seed))
    of = np.concatenate(tested)
    return TargetReport(
        kind="classification" if classified else "regression",
        n=len(known),
        n_train=tuple(p.n_train for p in found["linear"]),
        n_test=tuple(p.n_test for p in found["linear"]),
        scores={name: estimate(MeanOverSeeds(by_seed), of) for name, by_seed in found.items()},
        penalties=tuple(p.penalty for p in found["linear"]),
    )  # fmt: skip


def split_known(
    labels: np.ndarray, known: np.ndarray, parts: np.ndarray | None, share: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the training and the test studies among those `known` to have a label.

    Raises ValueError where a part is empty, or where training and test studies do not have the same classes.
    """
    from sklearn.model_selection import train_test_split

    classified = labels.dtype.kind == "U"
    if parts is None:
        by_class = labels[known] if classified else None
        if classified:
            found, counts = np.unique(by_class, return_counts=True)
            if counts.min() < 4:
                raise ValueError(f"class {str(found[counts.argmin()])!r} has {count_studies(counts.min())}; expected "
                                 "four or more to train and test on, or a column `split`")
        try:
            train, test = train_test_split(known, test_size=share, stratify=by_class, random_state=seed)
        except ValueError as error:  # scikit-learn says how many studies that would be
            raise ValueError(f"--test {share:g}: {error}") from None
    else:
        train, test = (known[parts[known] == part] for part in ("train", "test"))
    for name, part in (("train", train), ("test", test)):
        if len(part) < 2:
            raise ValueError(f"{count_studies(len(part))} with a label to {name} on; expected two or more")
    if classified and (lacking := set(labels[train].tolist()) ^ set(labels[test].tolist())):
        raise ValueError(f"class {min(lacking)!r} is not among both the training and the test studies")
    return np.sort(train), np.sort(test)


def _text(value: Estimate) -> str:
    if value.value is None:
        return f"- ({value.note})"
    return f"{value.value:.3f}" + (f" [{value.low:.3f}, {value.high:.3f}]" if value.low is not None else "")


def _results(report: ProbeReport, embeddings: Embeddings) -> dict:
    config = report.config
    return {
        "targets": {target: asdict(found) for target, found in report.targets.items()},
        "studies": len(embeddings.studies),
        "split": report.split,
        "intervals": f"95 % over {RESAMPLES} bootstraps of the test studies, the same for all seeds",
        "options": {name: getattr(config, name)
                    for name in ("view", "targets", "classes", "test", "seeds", "neighbours")},
        "embeddings": embeddings.metadata | {"sha256": embeddings.sha256},
        "versions": {name: version(name) for name in ("cinema-fast", "scikit-learn", "numpy")},
    }
