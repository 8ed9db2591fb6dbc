"""What a model says of one prepared study, in the geometry of its scan: as values, lines of tables, and files."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ..common.tables import LANDMARK_COLUMNS
from ..data.formats.nifti import Cine
from ..data.prepare.geometry import spacing_of
from ..data.prepare.original_geometry import (
    label_files,
    label_map,
    original_points,
    plan_return,
    reaching_edge,
    voxel_size,
)
from ..data.prepare.sources import Source
from ..data.prepare.study import read_source
from ..data.store.clips import CLIP, ClipStore
from ..data.store.orientation import arrange, arranged, inverse
from ..data.store.records import CineInfo
from ..data.store.store import CineStore
from ..figures.prediction import landmarks_gif, outlines_gif, volume_png
from ..metrics.flags import cycle_flags, in_order
from ..metrics.function import QUANTITIES, CycleFunction, cycle_function, has_volumes, volume_curves
from ..tasks.finetuned_run import FinetunedRun
from ..tasks.landmarks import Landmarks
from ..tasks.segmentation import Segmentation

# columns of ED and ES, and of frames without the ventricle; where the RV alone is segmented it has those of the LV
ENDS = {"LV": ("ed_frame", "es_frame"), "RV": ("rv_ed_frame", "rv_es_frame")}
EMPTY = {"LV": "empty_frames", "RV": "rv_empty_frames"}
LENGTHS = ("longest_mm", "shortest_mm", "shortening_mm")
Cell = str | int | float


@dataclass
class StudyPrediction:
    """summary: what results.json holds of the study. row: its line of studies.csv, by column. lines: those of the table
    that has more than one line for a study. files: {name in the study's folder: content}. flags: what is to be looked
    at again, codes of `flags`. missing: views that the answer is made of and the study has not."""

    summary: dict = field(default_factory=dict)
    row: dict[str, Cell] = field(default_factory=dict)
    lines: list[dict[str, Cell]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tables:
    """Columns of studies.csv, besides the study; name of the other table, "" where there is none, and its columns."""

    columns: tuple[str, ...]
    other: str = ""
    other_columns: tuple[str, ...] = ()


def tables_of(run: FinetunedRun) -> Tables:
    """Which tables the predictions of a run fill."""
    task = run.task
    if isinstance(task, Segmentation):
        volumes = tuple(f"{name}_ml" for name in task.structures)
        found = ("frames", "flags", "cut_off", *EMPTY.values(), *(column for pair in ENDS.values() for column in pair))
        return Tables((*found, *QUANTITIES), "frames.csv", ("study", "view", "frame", "time_ms", *volumes))
    if isinstance(task, Landmarks):
        along = (view for view in task.views if _has_axis(task.of_view[view]))
        lengths = tuple(f"{view}_{name}" for view in along for name in LENGTHS)
        points = (*LANDMARK_COLUMNS, "x_voxel", "y_voxel", "z_voxel")
        return Tables(("flags", "landmarks", *lengths), "landmarks.csv", points)
    columns = []
    for target in task.targets:
        columns += [target.name, *(f"{target.name}: {name}" for name in target.classes)]
    return Tables(("views", flags_column(run), *columns))


def flags_column(run: FinetunedRun) -> str:
    """The name of the column of flags: "flags", but where the run has a target of that name."""
    name, taken = "flags", {target.name for target in getattr(run.task, "targets", ())}
    while name in taken:
        name = f"predict_{name}"
    return name


def predict_prepared(
    run: FinetunedRun, store: CineStore, study: str, sources: Mapping[str, Source]
) -> StudyPrediction:
    """Predict a study of a store, bring it back to the files it was prepared from, and flag what is doubtful in it.

    Raises:
        ValueError: none of its views is one that the model reads, or a file no longer is what was prepared.
        OSError: a file can no longer be read.
    """
    made = _predicted(run, store, study, sources)
    made.missing = run.missing_views(store.views(study))
    flags = in_order([*made.flags, *["missing_views"] * bool(made.missing)])
    made.summary |= {"flags": flags, "missing_views": list(made.missing)}
    made.row[flags_column(run)] = " ".join(flags)
    return made


def _predicted(
    run: FinetunedRun, store: CineStore, study: str, sources: Mapping[str, Source]
) -> StudyPrediction:
    if CLIP in run.shape.views:
        reads, fewest = run.info.options["views"], run.info.min_frames
        moving = tuple(v for v in store.views(study) if v in (reads or [v]) and store.n_frames(study, v) >= fewest)
        if not moving:
            raise ValueError(f"the model reads clips of the cycle, and no {' or '.join(reads) or 'view'} has "
                             f"{fewest} frames or more: give cines, not ED and ES alone")  # fmt: skip
        return _values(run, ClipStore(store, moving, min_frames=fewest), study, (CLIP,), moving)
    views = tuple(view for view in store.views(study) if view in run.shape.views)
    if not views:
        have, read = ", ".join(store.views(study)), ", ".join(run.shape.views)
        raise ValueError(f"none of the views that the model reads: {read}; it has {have}")
    if isinstance(run.task, Segmentation | Landmarks):
        made, one = StudyPrediction(), _segmented if isinstance(run.task, Segmentation) else _landmarks
        made.summary["views"] = {}
        for view in views:
            scan = read_source(sources[view], stack=view == "sax")
            info = store.info(study, view)
            found = run.predict_frames(view, store.read_frames(study, view, range(info.shape[0]))).numpy()
            one(run, made, study, view, found, info, scan, sources[view])
        return made
    return _values(run, store, study, views, views)


def _segmented(
    run: FinetunedRun, made: StudyPrediction, study: str, view: str, probability: np.ndarray, stored: CineInfo,
    scan: Cine, source: Source,
) -> None:  # fmt: skip
    """probability: (T, classes, X, Y[, Z]) on the stored grid. scan: with the axes of its files."""
    few = run.has_few_slices(view, (len(probability), *probability.shape[2:]))
    probability = probability.reshape(*probability.shape[:4], -1)
    cine = arrange(scan, stored.arrangement)
    back = plan_return(probability.shape[2:], stored.affine, cine.shape, cine.affine)
    labels = np.stack([label_map(frame, back) for frame in probability])
    names = dict(enumerate(run.task.structures, start=1))
    files = label_files(view, arranged(labels, inverse(stored.arrangement), first=1), source, scan)
    made.files |= files
    summary = {
        "label_maps": list(files), "frames": cine.n_frames, "frame_time_ms": cine.frame_time_ms,
        "slices": cine.shape[2], "voxel_mm": list(voxel_size(cine.affine)),
        "cut_off": [names[label] for label in sorted(reaching_edge(labels, back))],
    }  # fmt: skip
    made.summary["views"][view] = summary
    flags = ["nothing_found"] * (not labels.any()) + ["few_slices"] * few + ["cut_off"] * bool(summary["cut_off"])
    marks: dict[int, list[str]] = {}  # frame: what it is called
    if has_volumes(labels.shape):
        curves = volume_curves(labels, voxel_size(cine.affine), names)
        cycle = cycle_function(curves)
        flags = in_order([*flags, *cycle_flags(cycle, cine.n_frames), *_named_otherwise(source, cycle)])
        for ventricle, (ed, es) in cycle.frames.items():
            marks.setdefault(ed, []).append(f"{ventricle} ED")
            marks.setdefault(es, []).append(f"{ventricle} ES")
        _tell_volumes(made, summary, study, view, curves, cycle, cine)
        made.files[f"{view}_volumes.png"] = volume_png(curves, cycle, cine.frame_time_ms, study, flags)
    summary["flags"] = flags
    made.flags += flags
    made.files[f"{view}.gif"] = outlines_gif(
        cine, labels, voxel_size(cine.affine), run.task.structures, marks=marks, flags=flags
    )


def _tell_volumes(
    made: StudyPrediction, summary: dict, study: str, view: str, curves: Mapping[str, np.ndarray],
    cycle: CycleFunction, cine: Cine,
) -> None:  # fmt: skip
    """Put what was measured in a stack into its summary and into the tables."""
    summary["volumes_ml"] = {name: curve.tolist() for name, curve in curves.items()}
    made.lines += [
        {"study": study, "view": view, "frame": t, "time_ms": t * cine.frame_time_ms if cine.frame_time_ms else ""}
        | {f"{name}_ml": float(curve[t]) for name, curve in curves.items()}
        for t in range(cine.n_frames)
    ]
    place = {ventricle: "LV" if ventricle == cycle.guide else ventricle for ventricle in cycle.empty}
    ends = {
        column: t for ventricle, frames in cycle.frames.items() for column, t in zip(ENDS[place[ventricle]], frames)
    }
    if cycle.function:
        summary |= {**ends, "function": cycle.function}
    empty = {EMPTY[place[ventricle]]: frames for ventricle, frames in cycle.empty.items()}
    summary |= empty
    made.row |= {"frames": cine.n_frames, "cut_off": " ".join(summary["cut_off"]), **ends, **cycle.function}
    made.row |= {column: " ".join(map(str, frames)) for column, frames in empty.items()}


def _named_otherwise(source: Source, cycle: CycleFunction) -> list[str]:
    """The flag of a cine of single files, two of which are named ed and es, whose LV is larger in that of es."""
    names = [frame.lower() for frame in source.frames]
    if "LV" not in cycle.frames or not {"ed", "es"} <= set(names):
        return []
    return ["ed_es_swapped"] * (cycle.frames["LV"] == (names.index("es"), names.index("ed")))


def _landmarks(
    run: FinetunedRun, made: StudyPrediction, study: str, view: str, pixels: np.ndarray, stored: CineInfo,
    scan: Cine, source: Source,
) -> None:  # fmt: skip
    """pixels: (T, landmarks, 2) of the stored frames. scan: with the axes of its files."""
    names = run.task.of_view[view]
    pixels = pixels[:, [run.task.names.index(name) for name in names]]
    voxels, mm = (np.round(found, 6) + 0.0 for found in original_points(pixels, stored.affine, scan.affine))
    cine = arrange(scan, stored.arrangement)
    made.files[f"{view}.gif"] = landmarks_gif(cine, original_points(pixels, stored.affine, cine.affine)[0][..., :2],
                                              names)  # fmt: skip
    summary = {
        "files": [path.name for path in source.files], "frames": cine.n_frames, "frame_time_ms": cine.frame_time_ms,
        "pixel_mm": spacing_of(scan.affine)[:2].tolist(),
        "landmarks": {name: {"mm": mm[:, k].tolist(), "voxel": voxels[:, k].tolist()} for k, name in enumerate(names)},
    }  # fmt: skip
    made.summary["views"][view] = summary
    made.row["landmarks"] = int(made.row.get("landmarks", 0)) + mm.shape[0] * mm.shape[1]
    for t in range(cine.n_frames):
        for k, name in enumerate(names):
            values = dict(zip((*LANDMARK_COLUMNS[4:], "x_voxel", "y_voxel", "z_voxel"), (*mm[t, k], *voxels[t, k])))
            made.lines.append({"study": study, "view": view, "frame": t, "landmark": name}
                              | {column: float(value) for column, value in values.items()})  # fmt: skip
    if _has_axis(names) and cine.n_frames > 1:
        length = annulus_to_apex({name: mm[:, k] for k, name in enumerate(names)})
        ends = dict(zip(LENGTHS, (float(length.max()), float(length.min()), float(np.ptp(length)))))
        summary |= {"annulus_to_apex_mm": length.tolist(), **ends}
        made.row |= {f"{view}_{name}": value for name, value in ends.items()}


def annulus_to_apex(mm: Mapping[str, np.ndarray]) -> np.ndarray:
    """(T,) [mm] from the middle of the mitral annulus to the apex, of {annulus_1, annulus_2, apex: (T, 3) mm}."""
    return np.linalg.norm((mm["annulus_1"] + mm["annulus_2"]) / 2 - mm["apex"], axis=-1)


def _has_axis(names: tuple[str, ...]) -> bool:
    return {"annulus_1", "annulus_2", "apex"} <= set(names)


def _values(
    run: FinetunedRun, store: CineStore | ClipStore, study: str, views: tuple[str, ...], shown: tuple[str, ...]
) -> StudyPrediction:
    """shown: the views of the scan that go in, which for clips are not the model's."""
    found = run.predict_study(store, study, views)
    made = StudyPrediction({"views": list(shown), "predictions": {}}, {"views": " ".join(shown)})
    if shown == views:  # else they are clips
        few = any(run.has_few_slices(view, store.info(study, view).shape) for view in views)
        made.flags += ["few_slices"] * few
    for target in run.task.targets:
        value = found[target.name].double()
        if not target.classes:
            made.summary["predictions"][target.name] = made.row[target.name] = float(value)
            continue
        shares = dict(zip(target.classes, (value / value.sum()).tolist()))
        likeliest = max(shares, key=shares.get)
        made.summary["predictions"][target.name] = {"class": likeliest, "probabilities": shares}
        made.row |= {target.name: likeliest, **{f"{target.name}: {name}": p for name, p in shares.items()}}
    return made
