"""A segmented cine to be evaluated: its checks, its rows, and the crops that pictures need."""

import heapq
import math
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from .flags import cycle_flags, in_order, value_flags
from .function import (
    QUANTITIES,
    VENTRICLES,
    CycleFunction,
    cardiac_function,
    cycle_function,
    ed_es,
    has_volumes,
    volume_curves,
)
from .map_scoring import MapScoring
from .rows import Row, new_row
from .segmentation import check_label_maps, check_labels, segmentation_scores

CYCLE_FRAMES = 16  # frames of an animation
STILLS = 2  # labelled frames shown: ED and ES where there are more
SLICES = 3  # slices of a stack shown
SIDE = 112  # most voxels of a picture's longer side, cropped around the heart
MARGIN = 10  # voxels around the heart
NEEDED = "Volumes and EF need a structure named LV or RV; mass needs MYO and one of them (--structures of finetune)"
_CANDIDATES = 8  # exhibits from which the middle one is chosen


@dataclass(frozen=True)
class SegmentationCase:
    """One predicted cine and its reference data.

    study, view. spacing_mm: (X, Y) or (X, Y, Z) [mm]. image, pred (T, X, Y[, Z]) uint8: grey values 0..255 and label
    maps. frames (T,): their frame numbers in the cine, ascending; None: 0..T-1. truth: {frame of the cine:
    (X, Y[, Z]) uint8 label map}; each must be among `frames`. known: quantities of the heart measured elsewhere, by
    their names in QUANTITIES, compared with the whole predicted cycle; give it only where pred is the whole cycle.
    stability: {frame: {class: score 0..1}}. frame_time_ms: time between frames, or None.
    """

    study: str
    view: str
    spacing_mm: tuple[float, ...]
    image: np.ndarray
    pred: np.ndarray
    truth: Mapping[int, np.ndarray]
    frames: tuple[int, ...] | None = None
    known: Mapping[str, float] = field(default_factory=dict)
    stability: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    frame_time_ms: float | None = None

    @property
    def frame_numbers(self) -> tuple[int, ...]:
        return tuple(range(len(self.pred))) if self.frames is None else self.frames

    @cached_property
    def label_curves(self) -> dict[int, np.ndarray]:
        """{label: (T,) predicted volume [ml]} of all uint8 labels; empty where there are no volumes."""
        if not has_volumes(self.pred.shape):
            return {}
        return volume_curves(self.pred, self.spacing_mm, {label: label for label in range(256)})

    def curves(self, maps: MapScoring) -> dict[str, np.ndarray]:
        """{class or region: (T,) predicted volume [ml]}; empty where there are no volumes."""
        return _of_masks(self.label_curves, maps) if self.label_curves else {}

    def cycle(self, maps: MapScoring) -> CycleFunction:
        """Cardiac function, with the predicted frames taken as a whole cycle."""
        return cycle_function(self.curves(maps))


@dataclass(frozen=True)
class Exhibit:
    """The data that the report shows of a case: uint8 images cropped around the heart, and curves.

    score: mean Dice over frames and masks. cycle, cycle_pred (F, x, y): images and predictions of frames spread over
    the cycle; for a stack the middle slice, which `slice` names ("" otherwise). stills: (caption, image, pred, truth),
    each (x, y). curves: {class or region: volumes [ml]} at `frames`. truth_ml: {frame: {class or region: ml}} of
    labelled frames. Both are empty for single slices. cycle_ef: {ventricle: EF of its own predicted curve}. values:
    {quantity: (pred, truth)} at the labelled frames. flags: codes for review. classes: names of the labels.
    """

    study: str
    view: str
    score: float
    cycle: np.ndarray
    cycle_pred: np.ndarray
    slice: str
    stills: list[tuple[str, np.ndarray, np.ndarray, np.ndarray]]
    frames: tuple[int, ...]
    curves: dict[str, np.ndarray]
    truth_ml: dict[int, dict[str, float]]
    cycle_ef: dict[str, float]
    values: dict[str, tuple[float, float]]
    frame_time_ms: float | None
    flags: list[str]
    classes: Mapping[int, str]


@dataclass(frozen=True)
class LandmarkExhibit:
    """A frame whose landmarks the report shows. image (X, Y) uint8. points: {landmark: (predicted, true)}, (2,) pixels.

    score: minus the mean distance [mm]; a landmark that was not found counts as FAR_MM.
    """

    study: str
    view: str
    frame: int
    score: float
    image: np.ndarray
    points: dict[str, tuple[np.ndarray, np.ndarray]]


def check_case(case: SegmentationCase, maps: MapScoring) -> None:
    """Raises ValueError naming study and view where the parts of a case do not fit each other."""
    where, frames = f"study {case.study}, view {case.view}", case.frame_numbers
    if case.pred.ndim not in (3, 4) or case.image.shape != case.pred.shape:
        raise ValueError(f"{where}: expected image and pred of one shape (T, X, Y[, Z]), got {case.image.shape}, "
                         f"{case.pred.shape}")  # fmt: skip
    if case.image.dtype != np.uint8:
        raise ValueError(f"{where}: expected an image of uint8, got {case.image.dtype}")
    if not len(case.pred) or len(frames) != len(case.pred) or list(frames) != sorted(set(frames)):
        raise ValueError(f"{where}: expected {len(case.pred) or 'some'} ascending frame numbers, got {frames}")
    if absent := sorted({*case.truth, *case.stability} - set(frames)):
        raise ValueError(f"{where}: frames {absent} are labelled, but not among the predicted ones {frames}")
    if strange := sorted(set(case.known) - set(QUANTITIES)):
        raise ValueError(f"{where}: known holds {', '.join(strange)}; expected {', '.join(QUANTITIES)}")
    if case.known and not has_volumes(case.pred.shape):
        raise ValueError(f"{where}: known values are compared with volumes, which single slices {case.pred.shape} lack")
    for name in case.known:
        if absent := missing_structures(name, maps.masks):
            raise ValueError(f"{where}: {name} is known, and the structures lack {', '.join(absent)}. {NEEDED}")
    try:
        check_labels("pred", case.pred, maps.classes)
        for t, truth in case.truth.items() or [(frames[0], case.pred[0])]:
            check_label_maps(case.pred[frames.index(t)], truth, case.spacing_mm, maps.classes)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def missing_structures(quantity: str, structures: Collection[str]) -> list[str]:
    """The structures that a quantity of QUANTITIES needs, over a cycle, and that are not among `structures`.

    Each ventricle has its own ED and ES; the mass uses those of the LV, or of the RV where only the RV is segmented.
    """
    guide = "RV" if "RV" in structures else "LV"
    wanted = ("MYO", guide) if quantity == "lv_mass_g" else (quantity[:2].upper(),)
    return [name for name in wanted if name not in structures]


def case_rows(case: SegmentationCase, maps: MapScoring) -> list[Row]:
    """Rows of kind segmentation, function and cycle of a case that check_case has passed."""
    study, view, rows = case.study, case.view, []
    at = {frame: i for i, frame in enumerate(case.frame_numbers)}
    for frame, truth in sorted(case.truth.items()):
        how = maps.classes, maps.masks, maps.empty_dice
        for name, scores in segmentation_scores(case.pred[at[frame]], truth, case.spacing_mm, *how).items():
            if name in case.stability.get(frame, ()) and name not in maps.regions:  # it is known of classes
                scores["stability"] = float(case.stability[frame][name])
            rows.append(new_row("segmentation", study, name, view, frame, **scores))
    for kind, pairs in (("function", at_labels(case, maps)), ("cycle", over_cycle(case, maps))):
        for name, (pred, truth) in pairs.items():
            rows.append(new_row(kind, study, name, view, pred=pred, truth=truth))
            if flags := value_flags({name: pred}):
                rows[-1]["flags"] = " ".join(flags)
    return rows


def case_flags(case: SegmentationCase, rows: Sequence[Row], maps: MapScoring) -> list[str]:
    """Codes of `flags` of a predicted cine, including those of its rows."""
    found = [code for row in rows if "flags" in row for code in row["flags"].split()]
    if not case.pred.any():
        found.append("nothing_found")
    return in_order(found + cycle_flags(case.cycle(maps), len(case.pred)))


def at_labels(case: SegmentationCase, maps: MapScoring) -> dict[str, tuple[float, float]]:
    """{quantity: (pred, truth)} of a stack with two labelled frames or more that hold the LV; else empty.

    ED and ES are the labelled frames where the true LV is largest and smallest; the prediction is measured at the same
    frames. inf: the prediction has nothing where the truth has something.
    """
    labelled = sorted(case.truth)
    if not has_volumes(case.pred.shape) or len(labelled) < 2 or "LV" not in maps.masks:
        return {}
    labels = {label: label for label in maps.classes}
    truth = volume_curves(np.stack([case.truth[t] for t in labelled]), case.spacing_mm, labels)
    truth = _of_masks(truth, maps)
    if not truth["LV"].all():
        return {}
    of = [case.frame_numbers.index(t) for t in labelled]
    pred = {name: curve[of] for name, curve in case.curves(maps).items()}
    ed, es = ed_es(truth["LV"])
    found, right = cardiac_function(pred, ed, es), cardiac_function(truth, ed, es)
    failed = {name for name, value in found.items() if math.isnan(value) and math.isfinite(right[name])}
    return {name: (math.inf if name in failed else value, right[name]) for name, value in found.items()}


def over_cycle(case: SegmentationCase, maps: MapScoring) -> dict[str, tuple[float, float]]:
    """{quantity: (pred, known value)}. pred is inf, a failure, where the ventricle is missing in a frame, and nan where
    there is only a single frame.
    """
    absent = math.inf if len(case.pred) > 1 else math.nan
    measured = case.cycle(maps).function
    return {name: (measured.get(name, absent), float(value)) for name, value in case.known.items()}


def exhibit_of(case: SegmentationCase, rows: list[Row], maps: MapScoring) -> Exhibit:
    """Crop and copy the data for the pictures of a case; the case's arrays can then be freed."""
    frames, stack, curves = case.frame_numbers, case.pred.ndim == 4, case.curves(maps)
    labels = np.concatenate([case.pred, *(truth[None] for truth in case.truth.values())]) > 0
    x, y = (_around(labels.any(axis=tuple(a for a in range(labels.ndim) if a != axis))) for axis in (1, 2))
    slices = _slices(labels.any(axis=(0, 1, 2))) if stack else [None]
    middle = slices[len(slices) // 2]
    cut = (lambda volume, z: volume[x, y, z].copy()) if stack else (lambda image, _: image[x, y].copy())
    shown = np.unique(np.linspace(0, len(frames) - 1, min(CYCLE_FRAMES, len(frames))).round().astype(int))
    labelled = _stills(case, maps)
    stills = [
        (f"frame {t}" + (f", slice {z}" if stack else ""), *(cut(v, z) for v in (case.image[i], case.pred[i], truth)))
        for t, i, truth in labelled
        for z in slices
    ]
    dice = [row["dice"] for row in rows if "dice" in row and not math.isnan(row["dice"])]
    volumes: dict[int, dict[str, float]] = {}
    for row in rows:
        if row["kind"] == "segmentation" and curves:
            volumes.setdefault(int(row["frame"]), {})[row["name"]] = row["truth_ml"]
    measured = case.cycle(maps).function
    cycle_ef = {name: measured[ef] for name in VENTRICLES if (ef := f"{name.lower()}_ef") in measured}
    return Exhibit(
        case.study, case.view, sum(dice) / len(dice) if dice else math.nan,
        np.stack([cut(case.image[i], middle) for i in shown]), np.stack([cut(case.pred[i], middle) for i in shown]),
        f"slice {middle} of 0 to {case.pred.shape[3] - 1}" if stack else "", stills, frames,
        curves, volumes, cycle_ef,
        {row["name"]: (row["pred"], row["truth"]) for row in rows if row["kind"] == "function"}, case.frame_time_ms,
        case_flags(case, rows, maps), maps.classes,
    )  # fmt: skip


class Gallery:
    """Keeps the worst, the middle and the best few of all exhibits of a view, in bounded memory.

    A few candidates are drawn by the names of their studies; the middle one is the candidate nearest to the median of
    all scores. So it does not depend on the order of the exhibits.
    """

    def __init__(self, worst: int = 2, best: int = 1):
        self.worst, self.best = worst, best
        self.scores: list[float] = []
        self._kept: dict[str, list] = {"worst": [], "best": [], "any": []}

    def offer(self, exhibit: Exhibit | LandmarkExhibit) -> None:
        """Keep the exhibit if it belongs to the few; one without a score (nothing was labelled) never does."""
        if math.isnan(exhibit.score):
            return
        self.scores.append(exhibit.score)
        by_name = zlib.crc32(exhibit.study.encode("utf-8", "surrogateescape"))
        for name, rank, most in (
            ("worst", -exhibit.score, self.worst), ("best", exhibit.score, self.best), ("any", by_name, _CANDIDATES)
        ):  # fmt: skip
            item = (rank, -len(self.scores), exhibit)  # of equal ranks the first stays; exhibits are never compared
            (heapq.heappush if len(self._kept[name]) < most else heapq.heappushpop)(self._kept[name], item)

    def chosen(self) -> list[tuple[str, Exhibit | LandmarkExhibit]]:
        """(why it is shown, exhibit), each study once: the worst, the middle, the best."""
        if not self.scores:
            return []
        median = float(np.median(self.scores))
        middle = min(self._kept["any"], key=lambda item: (abs(item[2].score - median), -item[1]))
        shown = [("worst", item[2]) for item in sorted(self._kept["worst"], reverse=True)]
        shown += [("middle", middle[2])] + [("best", item[2]) for item in sorted(self._kept["best"], reverse=True)]
        first = {}
        for why, exhibit in shown:
            first.setdefault(exhibit.study, (why, exhibit))
        return list(first.values())


def _of_masks(curves: Mapping[int, np.ndarray], maps: MapScoring) -> dict[str, np.ndarray]:
    """{class or region: (T,) ml} from the curves of the labels {label: (T,) ml}."""
    return {name: sum(curves[label] for label in labels) for name, labels in maps.masks.items()}


def _around(holds: np.ndarray) -> slice:
    """The part of an axis where `holds` (n,) bool is true, with MARGIN, at most SIDE long; its middle where it never
    is."""
    n, found = len(holds), np.flatnonzero(holds)
    middle = (found[0] + found[-1]) // 2 if len(found) else n // 2
    half = min(SIDE, found[-1] - found[0] + 1 + 2 * MARGIN if len(found) else SIDE) // 2
    return slice(max(0, middle - half), min(n, middle + half + 1))


def _slices(holds: np.ndarray) -> list[int]:
    """SLICES of the slices where `holds` is true, spread over them at the middles of equal parts."""
    found = np.flatnonzero(holds) if holds.any() else np.arange(len(holds))
    return sorted({int(found[int((i + 0.5) / SLICES * len(found))]) for i in range(SLICES)})


def _stills(case: SegmentationCase, maps: MapScoring) -> list[tuple[int, int, np.ndarray]]:
    """(frame, its index, truth) of the labelled frames to show: all, or those with the largest and the smallest LV (all
    labels where there is no LV)."""
    lv = maps.masks.get("LV", tuple(maps.classes))
    size = {t: int(np.isin(truth, lv).sum()) for t, truth in case.truth.items()}
    frames = sorted(case.truth)
    if len(frames) > STILLS:
        frames = sorted({max(frames, key=size.get), min(frames, key=size.get)})
    return [(t, case.frame_numbers.index(t), case.truth[t]) for t in frames]
