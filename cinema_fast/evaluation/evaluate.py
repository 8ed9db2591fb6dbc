"""`evaluate`: scores of a fine-tuned model on labelled studies, with a report."""

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal

from ..common.output import new_folder
from ..common.progress import progress_bar
from ..common.tables import Table, check_matches, is_number, read_named
from ..common.views import is_stack
from ..data.store.orientation import check_orientation
from ..data.store.store import CineStore
from ..metrics.assessment import Assessment
from ..metrics.map_scoring import MapScoring
from ..tasks.context import EvaluationData
from ..tasks.finetuned_run import FinetunedRun, load_run
from ..tasks.seen import seen_among, seen_of
from ..tasks.task import Task
from ..train.setup import store_fingerprint
from .evaluate_config import EvaluateConfig
from .results import write_results
from .summary import check_groups


def evaluate_run(config: EvaluateConfig) -> dict:
    """Evaluate a run; returns the content of results.json.

    Raises:
        ValueError: not a run, a missing store or table, labels that do not fit, nothing to evaluate.
        OutputError: OUT cannot be written; no part of it is left.
    """
    with new_folder(config.out, "evaluate", vars(config), ("rows.csv", "report", "results.json")):
        return _evaluate(config)


def _evaluate(config: EvaluateConfig) -> dict:
    run = load_run(config.run, device=config.device, precision=config.precision).at_frames(config.frames)
    cines = CineStore(config.data or _of_run(run, "data"))
    _check_prepared(run, cines)
    own = store_fingerprint(cines) == run.info.store.sha256
    if config.data is None and not own:
        raise ValueError(
            f"{cines.path} has changed since the run: --data {cines.path} evaluates its --part {config.part} studies "
            "and those that are new to the run"
        )
    task = run.task
    maps = task.map_scoring(config.regions, config.empty_dice, config.min_component)
    assessment = Assessment(maps=maps, resamples=config.resamples, seed=config.seed)
    of_labels = config.table or _of_run(run, "table")
    table = read_named("--table", of_labels) if of_labels and task.table_of_studies else None
    study_table = read_named("--study-table", config.study_table) if config.study_table else table
    measured = _with_values(config, study_table) if config.part == "test" else set()
    studies, chosen = _chosen(run, cines, config.part, assessment, own=own, measured=measured)
    for one in (table, study_table if study_table is not table else None):
        if one:
            check_matches(one.path, one.rows, studies, cines.path, cines.ids)
    groups = {column: _required(study_table, "--subgroups").values(column) for column in config.subgroups}
    for column in config.subgroups:
        if not all(map(is_number, groups[column].values())):  # numbers are grouped by size
            study_table.check_classes(column, studies)
    check_groups(groups, studies)  # before the studies are predicted
    scans = _scans(config, study_table, studies, task, maps)
    known = _known(config, study_table, task, maps)
    task.check_decisions(config.threshold, config.positive)
    data = EvaluationData(cines, studies, of_labels, table, known, config.positive, config.threshold)
    judge = task.evaluator(run, data, assessment)
    _compare_scans(scans, {study: judge(study) for study in _with_progress(studies, "evaluating studies")}, assessment)
    about = {
        "run": str(config.run), "step": run.step, "task": task.kind, "model": type(run.model).__name__,
        "init_from": run.info.options["init_from"], "training studies": len(run.info.labels.used),
        "store": str(cines.path), "studies": chosen,
        "evaluated studies used in pre-training": seen_among(run.info, studies),
        "precision": str(run.precision)[6:],
    }  # fmt: skip
    about |= {f"--{name.replace('_', '-')}": value for name in ("regions", "min_component", "empty_dice")
              if (value := getattr(config, name)) and value != "leave-out"}  # fmt: skip
    if config.frames:
        about["frames"] = " ".join(config.frames)
    if training := run.trained_views():
        about["training"] = training
    return write_results(assessment, config.out, about=about, table=groups)


def _of_run(run: FinetunedRun, option: Literal["data", "table"]) -> Path | None:
    """The store or the table of a run. Raises ValueError where it is missing."""
    saved = run.info.options[option]
    if saved and not Path(saved).exists():
        what = {"data": "store", "table": "table"}[option]
        raise ValueError(f"{saved}, the {what} of {run.folder}, was not found (the run was made in another folder or "
                         f"on another machine, or it has been moved): give its path by --{option}")  # fmt: skip
    return Path(saved) if saved else None


def _chosen(
    run: FinetunedRun, cines: CineStore, part: str, assessment: Assessment, *, own: bool, measured: Collection[str]
) -> tuple[tuple[str, ...], str]:
    """The studies to evaluate, and their description. In the run's own store they are a part of its data split, and
    those of `measured` (studies with reference values) that are in no part, because they have no labels; in another
    store, that part and the studies that are not in the run.

    Studies used for training or validation are left out by name, whatever store they are in.
    """
    if own:
        studies, split = getattr(run.split, part), {study for studies in run.split for study in studies}
        used = split.union(seen_of(run.info.labels)["studies"])
        others = tuple(study for study in cines.ids if study in measured and study not in used)
        if others:
            return (*studies, *others), (f"{part} part of the run's data split, and {len(others)} without labels but "
                                         "with reference values")  # fmt: skip
        if not studies:
            raise ValueError(f"the run has no labelled studies for --part {part}: evaluate another --part, or a store "
                             "of others by --data")  # fmt: skip
        return studies, f"{part} part of the run's data split"
    part_of = {study: name for name, studies in run.split._asdict().items() for study in studies}
    earlier = set(seen_of(run.info.labels)["studies"]) - part_of.keys()
    for study in cines.ids:
        if (other := part_of.get(study, part)) != part:
            assessment.leave_out(study, f"by its name one of the run's {other} studies, which --part {other} evaluates")
        elif study in earlier:
            assessment.leave_out(study, "by its name one that the run's initial weights were trained on")
    studies = tuple(study for study in cines.ids if part_of.get(study, part) == part and study not in earlier)
    if not studies:
        others = ", ".join(dict.fromkeys(part_of.get(study, "pre-training") for study in cines.ids))
        raise ValueError(f"{cines.path}: nothing to evaluate: by name, all of its studies ({len(cines.ids)}) are "
                         f"{others} studies of the run: choose another --part")  # fmt: skip
    new = sum(study not in part_of for study in studies)
    return studies, f"another store: {new} not in the run, {len(studies) - new} of its {part} part"


def _with_values(config: EvaluateConfig, study_table: Table | None) -> set[str]:
    """The studies with a value in a column of --known or --retest."""
    columns = [pair.partition("=")[2] for pair in config.known] + ([config.retest] if config.retest else [])
    if study_table is None:  # the options are checked later
        return set()
    return {study for column in columns if column in study_table.columns for study in study_table.values(column)}


def _check_prepared(run: FinetunedRun, cines: CineStore) -> None:
    """Raise ValueError where a store's axes, or its pixel sizes in the run's views, differ from those of the run's
    store."""
    check_orientation(cines, run.folder, run.info.store.orientation)
    stacks = {is_stack(view) for view in run.reads} or {None}
    of_views = {"sax_spacing": stacks != {False}, "lax_spacing": stacks != {True}}
    options = {name for name, of_a_view in of_views.items() if of_a_view and name in run.info.store.prepare}
    for name in sorted(options & cines.prepare.keys()):
        here, there = (tuple(prepared[name]) for prepared in (cines.prepare, run.info.store.prepare))
        if here != there:
            raise ValueError(
                f"{cines.path} was prepared with --{name.replace('_', '-')} {' '.join(map(str, here))}, and the run's "
                f"store with {' '.join(map(str, there))} (mm): prepare the studies as the run's store was"
            )


def _required(table: Table | None, option: str) -> Table:
    if table is None:
        raise ValueError(f"{option} needs a table with a line per study: --table CSV, for landmarks --study-table CSV")
    return table


def _known(
    config: EvaluateConfig, table: Table | None, task: Task, maps: MapScoring
) -> dict[str, dict[str, float]]:
    """{study: {quantity: value}} of the columns that --known names."""
    columns = dict(pair.split("=", 1) for pair in config.known)
    if columns:
        table = _required(table, "--known")
        task.check_known(columns, maps.masks)
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for quantity, column in columns.items():
        for study, value in table.numeric(column).items():
            found[study][quantity] = value
    return found


def _scans(
    config: EvaluateConfig, study_table: Table | None, studies: Sequence[str], task: Task, maps: MapScoring
) -> dict[str, list[str]]:
    """{heart: its scans among the studies, at least two}; empty without --retest."""
    if not config.retest:
        return {}
    task.check_retest(maps.masks)
    heart_of = _required(study_table, "--retest").values(config.retest)
    scans: dict[str, list[str]] = defaultdict(list)
    for study in studies:
        if study in heart_of:
            scans[heart_of[study]].append(study)
    scans = {heart: several for heart, several in scans.items() if len(several) > 1}
    if not scans:
        raise ValueError(f"--retest {config.retest}: no two of the {len(studies)} studies have the same value there")
    return scans


def _compare_scans(
    scans: Mapping[str, Sequence[str]], values: Mapping[str, Mapping[str, float]], assessment: Assessment
) -> None:
    """Compare the values of the first two scans of each heart, under the first scan's name."""
    for first, second, *_ in scans.values():
        found = values.get(first, {}), values.get(second, {})
        for name in found[0] or found[1]:
            pair = tuple(one.get(name, math.nan) for one in found)
            if all(map(math.isfinite, pair)):
                assessment.add_retest(first, name, *pair)
            else:
                assessment.leave_out(first, f"{name} could not be measured in it and in {second}, the same heart")


def _with_progress(studies: Sequence[str], what: str):
    with progress_bar(what, len(studies)) as advance:
        for study in studies:
            yield study
            advance()
