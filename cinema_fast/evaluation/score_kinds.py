"""The kinds of scores of every evaluation: label maps, function, numbers, repeated numbers, classes, landmarks, long
axis."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby

import numpy as np

from ..figures.overlays import cycle_gif, landmarks_png, stills_png
from ..metrics.bootstrap import Measure
from ..metrics.cases import Exhibit, LandmarkExhibit
from ..metrics.classification import Classification
from ..metrics.function import EF_CLASSES, QUANTITIES, ef_class
from ..metrics.long_axis import LONG_AXIS
from ..metrics.means import Means
from ..metrics.regression import Agreement, Repeatability
from ..metrics.rows import Row, new_row, number
from ..metrics.score_kind import Picture, ScoreKind, Sets, Target, with_unit
from .report_figures import agreement_png, classification_png, dice_png, distances_png, volume_png

ALL_CLASSES = "all classes"
OVERLAP = ("dice", "iou", "hd95_mm", "msd_mm", "stability")


def _overlap(rows: Sequence[Row], target: Target) -> Measure:
    names = dict.fromkeys(name for row in rows for name in row if name in OVERLAP)
    return Means({name: [number(row, name) for row in rows] for name in names})


def _over_classes(sets: Sets) -> Sets:
    """Rows of the mean over the classes and regions of a frame that have a score."""
    frames: dict[tuple, list[Row]] = defaultdict(list)
    for found in sets.values():
        for row in found:
            frames[row["view"], row["study"], row["frame"]].append(row)
    means = defaultdict(list)
    for (view, study, frame), found in frames.items():
        known = [name for name in OVERLAP if any(name in row for row in found)]
        scores = {name: _mean([number(row, name) for row in found]) for name in known}
        mean = new_row("segmentation", study, ALL_CLASSES, view, frame, **scores)
        means["segmentation", view, ALL_CLASSES].append(mean)
    return means


def _mean(values: Sequence[float]) -> float:
    """The mean of the values that are not nan; inf where one of them is a failure."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _dice_pictures(sets: Sets, targets: Mapping) -> Iterator[Picture]:
    for view in dict.fromkeys(view for _, view, _ in sets):
        rows = {name: rows for (_, of, name), rows in sets.items() if of == view and name != ALL_CLASSES}
        yield Picture(dice_png(view, rows), f"{view}: Dice of every labelled frame")


def _segmented_case(exhibit: Exhibit, where: str) -> tuple[str, list[Picture], Mapping[str, int]]:
    pictures = []
    if len(exhibit.cycle) > 1:
        alt = ", ".join(filter(None, ("prediction over the cycle", exhibit.slice)))
        pictures.append(Picture(cycle_gif(exhibit), alt))
    # a picture for each frame, since one row of all would be shrunk to the page's width
    for _, of_frame in groupby(exhibit.stills, lambda still: still[0].partition(",")[0]):
        stills = list(of_frame)
        captions = "; ".join(caption for caption, *_ in stills)
        pictures.append(Picture(stills_png(stills), f"truth above, prediction below: {captions}"))
    if exhibit.curves:
        pictures.append(Picture(volume_png(exhibit), "volume over time"))
    title = f"{where}: {exhibit.study}, mean Dice {exhibit.score:.3f}"
    return title, pictures, {name: label - 1 for label, name in exhibit.classes.items()}


def _ef_classes(title: str) -> Callable[[Sets], Sets]:
    """Rows of the classes of ejection fractions, of the kind ef_class."""

    def derived(sets: Sets) -> Sets:
        found = {}
        for (_, view, name), rows in sets.items():
            defined = [row for row in rows if math.isfinite(number(row, "pred") + number(row, "truth"))]
            if name == "lv_ef" and defined:
                found["ef_class", view, title] = [_ef_class_row(row, title) for row in defined]
        return found

    return derived


def _ef_class_row(row: Row, name: str) -> Row:
    classes = {"truth": ef_class(row["truth"]), "decided": ef_class(row["pred"])}
    return new_row("ef_class", row["study"], name, row["view"], **classes)


def _agreement(rows: Sequence[Row], target: Target) -> Measure:
    return Agreement(*([number(row, name) for row in rows] for name in ("pred", "truth")))


def _repeatability(rows: Sequence[Row], target: Target) -> Measure:
    return Repeatability(*([number(row, name) for row in rows] for name in ("first", "second")))


def _quantity(name: str, target: Target) -> str:
    return (QUANTITIES | LONG_AXIS).get(name, name)


def _error(row: Row) -> float:
    return abs(number(row, "pred") - number(row, "truth"))


def _error_of(quantity: str) -> Callable[[Row], float]:
    """The error of one quantity, nan for others: errors of several quantities cannot be ranked together."""
    return lambda row: _error(row) if row["name"] == quantity else math.nan


def _agreement_pictures(words: Callable, names: tuple[str, str], keys: tuple[str, str]) -> Callable:
    def draw(sets: Sets, targets: Mapping[str, Target]) -> Iterator[Picture]:
        for (_, view, name), rows in sets.items():
            text = words(name, targets.get(name, Target()))
            png = agreement_png(text, *([number(row, key) for row in rows] for key in keys), names)
            if png:
                yield Picture(png, ", ".join(part for part in (view, text, "agreement") if part))

    return draw


def _class_words(name: str, target: Target) -> str:
    positive = f": {target.classes[1]} from {target.threshold:g}" if len(target.classes) == 2 else ""
    return with_unit(name, target) + positive


def _classification(rows: Sequence[Row], target: Target) -> Classification:
    unknown = sorted({str(row[name]) for row in rows for name in ("truth", "decided")} - set(target.classes))
    if unknown:
        known = ", ".join(target.classes)
        raise ValueError(f"{rows[0]['name']}: class {', '.join(unknown)}; expected one of {known}")
    truth, decided = ([target.classes.index(row[name]) for row in rows] for name in ("truth", "decided"))
    probable = [[number(row, f"p{i}") for i in range(len(target.classes))] for row in rows]
    probabilities = None if np.isnan(probable).all() else np.array(probable)
    return Classification(truth, target.classes, probabilities, decided, target.threshold)


def _ef_classification(rows: Sequence[Row], target: Target) -> Classification:
    return _classification(rows, Target(EF_CLASSES, target.threshold))


def _class_pictures(words: Callable, measure: Callable[..., Classification]) -> Callable:
    def draw(sets: Sets, targets: Mapping[str, Target]) -> Iterator[Picture]:
        for (_, _, name), rows in sets.items():
            target = targets.get(name, Target())
            found, title = measure(rows, target), words(name, target)
            shown = "confusion" if found.p is None else "confusion, ROC, reliability"
            yield Picture(classification_png(title, found, target.threshold), f"{title}: {shown}")

    return draw


def _wrong(row: Row) -> float:
    probabilities = [number(row, name) for name in row if name[:1] == "p" and name[1:].isdigit()]
    return math.nan if row["truth"] == row["decided"] else max(probabilities, default=math.nan)


def _distance_pictures(sets: Sets, targets: Mapping) -> Iterator[Picture]:
    for view in dict.fromkeys(view for _, view, _ in sets):
        distances = {name: [number(row, "distance_mm") for row in rows]
                     for (_, of, name), rows in sets.items() if of == view}  # fmt: skip
        yield Picture(distances_png(view, distances), f"{view}: share of landmarks within a distance")


def _landmark_case(exhibit: LandmarkExhibit, where: str) -> tuple[str, list[Picture], Mapping[str, int]]:
    alt = f"landmarks of frame {exhibit.frame}: {', '.join(exhibit.points)}"
    title = f"{where} frames: {exhibit.study}, frame {exhibit.frame}, mean distance {-exhibit.score:.1f} mm"
    return title, [Picture(landmarks_png(exhibit), alt)], {}


_KNOWN = (
    ScoreKind(
        "segmentation", "Label maps",
        "Means over labelled frames; all classes: the mean over what is listed. Distances are between surfaces. A "
        "structure that is present in only one of the label maps has Dice 0 and no distance. Stability: IoU of the "
        "masks at logit thresholds +1 and -1, logits centred over classes (Segment Anything, 2023); 1 is best.",
        measure=_overlap, derived=_over_classes, pictures=_dice_pictures, case=_segmented_case, worst="Dice",
        badness=lambda row: math.nan if row["name"] == ALL_CLASSES else -number(row, "dice"),
    ),
    ScoreKind(
        "function", "Cardiac function at the labelled frames",
        "Predicted against true label maps, both at the frames where the true LV is largest (ED) and smallest (ES). "
        "Differences are prediction - truth.",
        measure=_agreement, words=_quantity, derived=_ef_classes("lv_ef"), worst="|error|", badness=_error_of("lv_ef"),
        pictures=_agreement_pictures(_quantity, ("truth", "prediction"), ("truth", "pred")),
    ),
    ScoreKind(
        "cycle", "Cardiac function of the whole cycle",
        "ED and ES of each ventricle are the frames where its predicted volume is largest and smallest. Values are "
        "compared with the reference values of --known. A ventricle that is not found in some frame has no value.",
        measure=_agreement, words=_quantity, derived=_ef_classes("lv_ef of the cycle"), worst="|error|",
        badness=_error_of("lv_ef"), pictures=_agreement_pictures(_quantity, ("known", "prediction"), ("truth", "pred")),
    ),
    ScoreKind(
        "ef_class", "Classes of the ejection fraction",
        "Reduced: up to 40 %; borderline: above 40 to 55 %; normal: above 55 %. Sensitivity, specificity and F1 are "
        "averaged over classes. MCC: Matthews correlation coefficient; 1 is best, 0 is chance.",
        measure=_ef_classification, words=_quantity, pictures=_class_pictures(_quantity, _ef_classification),
    ),
    ScoreKind(
        "regression", "Numbers", "Differences are prediction - truth.",
        measure=_agreement, worst="|error|", badness=_error, one_scale=False,
        pictures=_agreement_pictures(with_unit, ("truth", "prediction"), ("truth", "pred")),
    ),
    ScoreKind(
        "retest", "Repeated measurements",
        "Two scans of the same heart. The coefficient of variation is a fraction; differences are second - first.",
        measure=_repeatability,
        pictures=_agreement_pictures(with_unit, ("first", "second"), ("first", "second")),
    ),
    ScoreKind(
        "classification", "Classes",
        "With two classes the second is the positive one. With more, sensitivity, specificity, F1, AUROC and AUPRC "
        "are one-vs-rest, averaged over classes. MCC: Matthews correlation coefficient; 1 is best, 0 is chance.",
        measure=_classification, words=_class_words, worst="probability of the wrong class chosen",
        badness=_wrong, pictures=_class_pictures(_class_words, _classification),
    ),
    ScoreKind(
        "landmarks", "Landmarks",
        "Mean distance of the landmarks that were found. One that was not found counts as outside every radius.",
        worst="distance (mm)", badness=lambda row: number(row, "distance_mm"), pictures=_distance_pictures,
        case=_landmark_case,
    ),
    ScoreKind(
        "long_axis", "Long-axis function from landmarks",
        "Predicted against true landmarks, both between the labelled frames where the true line from the middle of the "
        "mitral annulus to the apex is longest and shortest. MAPSE: mean displacement of both ends of the annulus. "
        "GLS: change of the line's length, not of the myocardial contour's. Differences are prediction - truth.",
        measure=_agreement, words=_quantity, worst="|error|", badness=_error_of("gls"),
        pictures=_agreement_pictures(_quantity, ("truth", "prediction"), ("truth", "pred")),
    ),
)  # fmt: skip
SCORE_KINDS = {score_kind.kind: score_kind for score_kind in _KNOWN}


def all_score_kinds(own: Mapping[str, ScoreKind]) -> dict[str, ScoreKind]:
    """The kinds of scores of every evaluation, and a task's own. Raises ValueError where a name is taken."""
    if taken := sorted(SCORE_KINDS.keys() & own.keys()):
        raise ValueError(f"a task has a kind of scores {taken[0]!r}, a name that is taken already")
    return SCORE_KINDS | own
