"""`evaluate`: what a fine-tuned model says of studies with known labels, judged, with a report."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..common.output import new_folder
from ..common.progress import progress_bar
from ..common.tables import Table, check_matches, is_number, read_landmarks
from ..data.loading.loader import LoaderError
from ..data.store.clips import CLIP, ClipStore
from ..data.store.landmarks import check_landmarks, landmark_voxels
from ..data.store.orientation import check_orientation
from ..data.store.store import CineStore, StoreError
from ..metrics.cases import NEEDED, SegmentationCase, missing_structures
from ..metrics.function import QUANTITIES, VENTRICLES, has_volumes
from ..metrics.segmentation import stability_score
from ..tasks.finetuned_run import FinetunedRun, load_run
from ..tasks.landmark_positions import check_positions
from ..tasks.landmarks import Landmarks
from ..tasks.named_files import read_named
from ..tasks.registry import Task
from ..tasks.seen import seen_among, seen_of
from ..tasks.segmentation import Segmentation, SegmentationLabels
from ..tasks.table_targets import TableTask
from ..train.setup import store_fingerprint
from .assessment import Assessment
from .evaluate_config import EvaluateConfig
from .results import write_results
from .summary import check_groups


def evaluate_run(config: EvaluateConfig) -> dict:
    """Judge a run; returns what results.json holds.

    Raises:
        ValueError: no run, its store or a table that is not there, labels that do not fit, nothing that can be judged.
        OutputError: OUT cannot be written; nothing of it stays.
    """
    with new_folder(config.out, "evaluate", vars(config), ("rows.csv", "report", "results.json", "results.json.tmp")):
        return _evaluate(config)


def _evaluate(config: EvaluateConfig) -> dict:
    run = load_run(config.run, device=config.device, precision=config.precision)
    cines = CineStore(config.data or _of_run(run, "data"))
    _check_prepared(run, cines)
    own = store_fingerprint(cines) == run.info.store.sha256
    if config.data is None and not own:
        raise ValueError(
            f"{cines.path} has changed since the run: --data {cines.path} judges its --part {config.part} studies and "
            "those that the run did not know"
        )
    structures = getattr(run.task, "structures", ())
    named = {"classes": dict(enumerate(structures, start=1))} if structures else {}
    sums = Assessment(resamples=config.resamples, seed=config.seed, **named)
    studies, chosen = _chosen(run, cines, config.part, sums, own=own)
    of_labels = config.table or _of_run(run, "table")
    landmarks, table_task = isinstance(run.task, Landmarks), isinstance(run.task, TableTask)
    table = read_named("--table", of_labels) if of_labels and not landmarks else None
    about = read_named("--about", config.about) if config.about else table
    for one in (table, about if about is not table else None):
        if one:
            check_matches(one.path, one.rows, studies, cines.path, cines.ids)
    groups = {column: _about(about, "--subgroups").values(column) for column in config.subgroups}
    for column in config.subgroups:
        if not all(map(is_number, groups[column].values())):  # numbers make groups by their size
            about.check_classes(column, studies)
    check_groups(groups, studies)  # now, not after the studies are predicted
    scans = _scans(config, about, studies, landmarks, structures)
    known = _known(config, about, run.task)
    _check_decisions(config, run.task)
    if structures:
        maps = SegmentationLabels(cines, run.task.views, structures)
        maps.values_of([study for study in studies if study in maps.views_of], workers=2)
    if landmarks:
        _judge_landmarks(run, cines, studies, of_labels, sums)
    elif table_task:
        _compare_scans(scans, _judge_table(run, cines, studies, table, sums, config), sums)
    else:
        _compare_scans(scans, _judge_segmentation(run, cines, studies, known, sums), sums)
    told = {
        "run": str(config.run), "step": run.step, "task": run.task.kind, "model": type(run.model).__name__,
        "init_from": run.info.options["init_from"], "training studies": len(run.info.labels.used),
        "store": str(cines.path), "studies": chosen, "seen by the starting weights": seen_among(run.info, studies),
        "precision": str(run.precision)[6:],
    }  # fmt: skip
    if training := run.trained_views():
        told["training"] = training
    return write_results(sums, config.out, about=told, table=groups)


def _of_run(run: FinetunedRun, option: Literal["data", "table"]) -> Path | None:
    """The store or the table of a run. Raises ValueError where it is not there."""
    said = run.info.options[option]
    if said and not Path(said).exists():
        what = {"data": "store", "table": "table"}[option]
        raise ValueError(f"{said}, the {what} of {run.folder}, is not here (the run was made in another folder or on "
                         f"another machine, or it has been moved): name it by --{option}")  # fmt: skip
    return Path(said) if said else None


def _chosen(
    run: FinetunedRun, cines: CineStore, part: str, sums: Assessment, *, own: bool
) -> tuple[tuple[str, ...], str]:
    """The studies to judge, and what they are: of the run's own store a part, of another that and what is new to it.

    What the run was trained on or validated by is left out by its name, whatever store it is in.
    """
    if own:
        if not (studies := getattr(run.split, part)):
            raise ValueError(f"the run has no labelled studies for --part {part}: judge another --part, or a store of "
                             "others by --data")  # fmt: skip
        return studies, f"{part} of the run"
    part_of = {study: name for name, studies in run.split._asdict().items() for study in studies}
    earlier = set(seen_of(run.info.labels)["studies"]) - part_of.keys()
    for study in cines.ids:
        if (other := part_of.get(study, part)) != part:
            sums.leave_out(study, f"by its name one of the run's {other} studies, which --part {other} judges")
        elif study in earlier:
            sums.leave_out(study, "by its name one that the run's starting weights have learnt from")
    studies = tuple(study for study in cines.ids if part_of.get(study, part) == part and study not in earlier)
    if not studies:
        others = ", ".join(dict.fromkeys(part_of.get(study, "starting weights'") for study in cines.ids))
        raise ValueError(f"{cines.path}: by their names all its {len(cines.ids)} studies are {others} studies of the "
                         f"run, none is new to it or for --part {part}: judge another --part")  # fmt: skip
    new = sum(study not in part_of for study in studies)
    return studies, f"of another store: {new} that the run did not know, {len(studies) - new} {part} of the run"


def _check_prepared(run: FinetunedRun, cines: CineStore) -> None:
    """Raise ValueError where a store has pixels of another size than the run's, or other axes, which its model does not
    know."""
    check_orientation(cines, run.folder, run.info.store.orientation)
    options = {name for name in ("sax_spacing", "lax_spacing") if name in run.info.store.prepare}
    for name in sorted(options & cines.prepare.keys()):
        here, there = (tuple(prepared[name]) for prepared in (cines.prepare, run.info.store.prepare))
        if here != there:
            raise ValueError(
                f"{cines.path} was prepared with --{name.replace('_', '-')} {' '.join(map(str, here))}, and the run's "
                f"store with {' '.join(map(str, there))} (mm): prepare the studies as the run's store was"
            )


def _about(table: Table | None, option: str) -> Table:
    if table is None:
        raise ValueError(f"{option} wants a table with a line per study: --table CSV, for landmarks --about CSV")
    return table


def _known(
    config: EvaluateConfig, table: Table | None, task: Task
) -> dict[str, dict[str, float]]:
    """{study: {quantity: value}} of the columns that --known names."""
    columns = dict(pair.split("=", 1) for pair in config.known)
    if columns:
        table = _about(table, "--known")
    for name in columns:
        if not isinstance(task, Segmentation):
            raise ValueError(f"--known {name} is for what segmentation measures, and the run is of {task.kind}")
        structures = task.structures
        if absent := missing_structures(name, structures):
            raise ValueError(f"--known {name}: the run segments {', '.join(structures)}, not {', '.join(absent)}. "
                             f"{NEEDED}")  # fmt: skip
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for quantity, column in columns.items():
        for study, value in table.numeric(column).items():
            found[study][quantity] = value
    return found


def _check_decisions(config: EvaluateConfig, task: Task) -> None:
    """Raise ValueError where --threshold or --positive is given, and no target has two classes that it is about."""
    targets = getattr(task, "targets", ())
    two = [target for target in targets if len(target.classes) == 2]
    for option, given in (("--threshold", config.threshold), ("--positive", config.positive)):
        if given is not None and not two:
            found = "; ".join(f"{t.name}: {', '.join(t.classes) or 'a number'}" for t in targets) or task.kind
            raise ValueError(f"{option} {given} is for targets of two classes, and the run predicts {found}")
    classes = [name for target in two for name in target.classes]
    if config.positive is not None and config.positive not in classes:
        raise ValueError(f"--positive {config.positive!r} is no class of two: want one of {', '.join(classes)}")


def _judge_segmentation(
    run: FinetunedRun, store: CineStore, studies: Sequence[str], known: Mapping, sums: Assessment
) -> dict[str, dict[str, float]]:
    """Judge every view of every study over its whole cycle; returns {study: {quantity: measured}}."""
    measured: dict[str, dict[str, float]] = {}
    for study in _told(studies, "segmenting studies"):
        for view in (v for v in store.views(study) if v in run.task.views):
            info = store.info(study, view)
            try:
                frames = store.read_frames(study, view, range(info.shape[0]))
                truth = {t: store.read_labels(study, view, t) for t in (info.labels.frames if info.labels else ())}
            except (StoreError, OSError) as error:
                sums.leave_out(study, f"view {view}: {error}")
                continue
            probability = run.predict_frames(view, frames)
            pred = probability.argmax(1).byte().numpy()
            volumes = has_volumes(pred.shape)
            case = SegmentationCase(
                study=study,
                view=view,
                spacing_mm=info.spacing_mm,
                image=frames,
                pred=pred,
                truth=truth,
                known=known.get(study, {}) if volumes else {},
                stability=_stability(probability, run.task, truth),
                frame_time_ms=info.frame_time_ms,
            )
            sums.add_segmentation(case)
            if run.has_few_slices(view, info.shape):
                sums.flag(study, "few_slices", view)
            if pred.ndim == 4 and not volumes and study in known:
                sums.leave_out(study, f"view {view}: of a single slice there is no {', '.join(known[study])}")
            if volumes:
                function = case.cycle(sums.classes).function
                measured[study] = {name: function.get(name, math.nan) for name in QUANTITIES
                                   if not missing_structures(name, run.task.structures)}  # fmt: skip
    return measured


def _stability(probability: Tensor, task: Segmentation, truth: Mapping[int, np.ndarray]) -> dict[int, dict[str, float]]:
    """{labelled frame: {structure: score}}; the logits are known up to what the score takes off."""
    if not truth:
        return {}
    at = sorted(truth)
    scores = stability_score(probability[at].clamp(min=torch.finfo(torch.float32).tiny).log())[:, 1:].tolist()
    return {t: dict(zip(task.structures, row)) for t, row in zip(at, scores)}


def _judge_table(
    run: FinetunedRun, cines: CineStore, studies: Sequence[str], table: Table, sums: Assessment,
    config: EvaluateConfig,
) -> dict[str, dict[str, float]]:
    """Judge every target of every study that has a value; returns {study: {target: predicted number}}."""
    clips, fewest = CLIP in run.shape.views, run.info.min_frames
    store = ClipStore(cines, run.info.options["views"], min_frames=fewest) if clips else cines
    for target in (target for target in run.task.targets if target.classes):
        table.check_classes(target.name, studies)
    truth = {target.name: table.values(target.name) if target.classes else table.numeric(target.name)
             for target in run.task.targets}  # fmt: skip
    predicted: dict[str, dict[str, float]] = defaultdict(dict)
    for study in _told(studies, "reading studies"):
        views = tuple(v for v in store.views(study) if v in run.shape.views)
        if not views:
            reads = f"views {', '.join(run.shape.views)}"
            sums.leave_out(study, f"no cine of {fewest} frames or more" if clips else f"none of the {reads}")
            continue
        try:
            found = run.predict_study(store, study, views)
        except (StoreError, LoaderError, OSError) as error:
            sums.leave_out(study, str(error))
            continue
        if missing := run.missing_views(views):
            sums.flag(study, "missing_views", " ".join(missing))
        if few := [v for v in views if not clips and run.has_few_slices(v, cines.info(study, v).shape)]:
            sums.flag(study, "few_slices", " ".join(few))
        for target in run.task.targets:
            value, right = found[target.name], truth[target.name].get(study)
            if not target.classes:
                predicted[study][target.name] = float(value)
            if right is None:
                sums.leave_out(study, f"no value of {target.name} in {table.path.name}")
            elif target.classes:
                if right not in target.classes:
                    sums.leave_out(study, f"{target.name} {right!r}, which training did not know")
                    continue
                shares, classes = (value.double() / value.double().sum()).tolist(), target.classes
                if len(classes) == 2 and classes[0] == config.positive:
                    shares, classes = shares[::-1], classes[::-1]  # the second is the positive one
                threshold = 0.5 if config.threshold is None else config.threshold
                sums.add_classification(study, target.name, shares, right, classes, threshold)
            else:
                sums.add_regression(study, target.name, float(value), right)
    return predicted


def _judge_landmarks(
    run: FinetunedRun, store: CineStore, studies: Sequence[str], path: Path, sums: Assessment
) -> None:
    points = read_named("--table", path, read_landmarks)
    judged = [(study, view) for study in studies for view in store.views(study)
              if view in run.task.views and view in points.get(study, {})]  # fmt: skip
    check_positions(path, store, points, judged)
    check_landmarks(path, points, {study: store.views(study) for study in store.ids}, studies, store.path)
    for study in _told(studies, "finding landmarks"):
        for view in (v for v in store.views(study) if v in run.task.views and v in points.get(study, {})):
            info, known = store.info(study, view), points[study][view]
            frames = [t for t in sorted(known) if t < info.shape[0]]
            if absent := sorted(set(known) - set(frames)):
                sums.leave_out(study, f"view {view}: landmarks of frame {absent[0]}, of {info.shape[0]} frames")
            if not frames:
                continue
            try:
                images = store.read_frames(study, view, frames)
                found = run.predict_frames(view, images)
            except (StoreError, OSError) as error:
                sums.leave_out(study, f"view {view}: {error}")
                continue
            spacing = np.array(info.spacing_mm)
            for t, image, row in zip(frames, images, found.numpy()):
                pred = {name: at * spacing for name, at in zip(run.task.names, row)}
                right = {name: landmark_voxels(info, mm)[0] * spacing for name, mm in known[t].items()
                         if name in run.task.of_view[view]}  # fmt: skip
                if unknown := sorted(set(known[t]) - set(right)):
                    sums.leave_out(study, f"view {view}, frame {t}: {unknown[0]}, which training did not know there")
                sums.add_landmarks(study, view, t, pred, right, image=image, spacing_mm=spacing)


def _scans(
    config: EvaluateConfig, about: Table | None, studies: Sequence[str], landmarks: bool,
    structures: Sequence[str],
) -> dict[str, list[str]]:
    """{heart: its scans among the studies, at least two}; empty where no --retest is asked for."""
    if not config.retest:
        return {}
    if landmarks:
        raise ValueError("--retest compares numbers of two scans of a heart, and the run finds landmarks")
    if structures and not set(VENTRICLES) & set(structures):
        raise ValueError(f"--retest: the run segments {', '.join(structures)}. {NEEDED}")
    heart_of = _about(about, "--retest").values(config.retest)
    scans: dict[str, list[str]] = defaultdict(list)
    for study in studies:
        if study in heart_of:
            scans[heart_of[study]].append(study)
    scans = {heart: several for heart, several in scans.items() if len(several) > 1}
    if not scans:
        raise ValueError(f"--retest {config.retest}: no two of the {len(studies)} studies have the same value there")
    return scans


def _compare_scans(
    scans: Mapping[str, Sequence[str]], values: Mapping[str, Mapping[str, float]], sums: Assessment
) -> None:
    """Compare the first two scans of each heart, under the first one's name: what was measured or predicted."""
    for first, second, *_ in scans.values():
        found = values.get(first, {}), values.get(second, {})
        for name in found[0] or found[1]:
            pair = tuple(one.get(name, math.nan) for one in found)
            if all(map(math.isfinite, pair)):
                sums.add_retest(first, name, *pair)
            else:
                sums.leave_out(first, f"{name} could not be measured in it and in {second}, the same heart")


def _told(studies: Sequence[str], what: str):
    with progress_bar(what, len(studies)) as advance:
        for study in studies:
            yield study
            advance()
