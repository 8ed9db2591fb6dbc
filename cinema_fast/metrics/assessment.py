"""Collects the scores of an evaluation, study by study; `evaluation.results` writes them."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ..common.extras import need
from .bootstrap import RESAMPLES
from .cases import Exhibit, Gallery, LandmarkExhibit, SegmentationCase, case_rows, check_case, exhibit_of
from .classification import checked, decide
from .function import has_volumes
from .means import landmark_scores
from .rows import Row, new_row
from .score_kind import ScoreKind, Target
from .segmentation import CLASSES

WITHIN_MM = (5.0, 10.0)
FAR_MM = 1000.0  # distance assumed for a landmark that was not found, when cases are chosen for pictures


class Assessment:
    """Scores of predictions as rows, and the arrays of only a few cases for pictures, to save memory.

    Each add_ method evaluates one prediction; `write_results` summarises them. A ValueError names the study and the
    fault.
    """

    def __init__(
        self,
        *,
        classes: Mapping[int, str] = CLASSES,
        within_mm: Sequence[float] = WITHIN_MM,
        resamples: int = RESAMPLES,
        seed: int = 0,
    ):
        need("jinja2", "the report is written")  # reports a missing library now, not after hours of predictions
        self.classes, self.within_mm, self.resamples, self.seed = dict(classes), tuple(within_mm), resamples, seed
        self.rows: list[Row] = []
        self.left_out: list[tuple[str, str]] = []
        self.flags: list[tuple[str, str, str]] = []  # study, view, code
        self.targets: dict[str, Target] = {}
        self.score_kinds: dict[str, ScoreKind] = {}  # a task's own, by name
        self.galleries: dict[tuple[str, str], Gallery] = {}  # by kind and view
        self._seen: set[tuple] = set()

    def add_segmentation(self, case: SegmentationCase) -> None:
        """Evaluate a segmented cine; it becomes a candidate for the pictures."""
        check_case(case, self.classes)
        self._once("segmentation", case.study, case.view)
        rows = case_rows(case, self.classes)
        if not case.truth and not case.known:
            self.leave_out(case.study, f"view {case.view}: no frame is labelled, so nothing to compare label maps with")
        elif (
            case.truth and has_volumes(case.pred.shape) and "LV" in self.classes.values()
            and len(case.pred) > 1  # a single volume has no function
            and not any(row["kind"] == "function" for row in rows)
        ):  # fmt: skip
            why = "volumes at ED and ES need two labelled frames that hold the LV"
            self.leave_out(case.study, f"view {case.view}, function: {why}, got {len(case.truth)} labelled")
        self.rows += rows
        exhibit = exhibit_of(case, rows, self.classes)
        for code in exhibit.flags:
            self.flag(case.study, code, case.view)
        self._offer("segmentation", exhibit)

    def add_regression(self, study: str, target: str, pred: float, truth: float, unit: str = "") -> None:
        """A predicted number and the true one."""
        self._target(target, Target(unit=unit), study)
        self._once("regression", study, target)
        self.rows.append(new_row("regression", study, target, pred=_finite(pred, study, target, "prediction"),
                                 truth=_finite(truth, study, target, "truth")))  # fmt: skip

    def add_retest(self, study: str, target: str, first: float, second: float, unit: str = "") -> None:
        """Two measurements of the same heart, for instance predictions on two scans of a subject."""
        self._target(target, Target(unit=unit), study)
        self._once("retest", study, target)
        values = (_finite(value, study, target, name) for name, value in (("first", first), ("second", second)))
        self.rows.append(new_row("retest", study, target, **dict(zip(("first", "second"), values))))

    def add_classification(
        self,
        study: str,
        target: str,
        probabilities: Sequence[float],
        truth: str,
        classes: Sequence[str],
        threshold: float = 0.5,
    ) -> None:
        """Probabilities (K,) of classes, and the true class. Of two classes the second is positive, from `threshold`
        on."""
        need("sklearn.metrics", "AUROC and AUPRC are computed")
        self._target(target, Target(tuple(classes), threshold), study)
        self._once("classification", study, target)
        if truth not in classes:
            raise ValueError(f"study {study}, {target}: true class {truth!r}; expected one of {', '.join(classes)}")
        try:
            p = checked(np.asarray(probabilities, float)[None], 1, classes)
        except ValueError as error:
            raise ValueError(f"study {study}, {target}: {error}") from None
        decided = classes[int(decide(p, threshold)[0])]
        named = {f"p{i}": float(value) for i, value in enumerate(p[0])}
        self.rows.append(new_row("classification", study, target, truth=truth, decided=decided, **named))

    def add_landmarks(
        self,
        study: str,
        view: str,
        frame: int,
        pred_mm: Mapping[str, Sequence[float]],
        truth_mm: Mapping[str, Sequence[float]],
        *,
        image: np.ndarray | None = None,
        spacing_mm: Sequence[float] = (),
    ) -> None:
        """Positions {landmark: (2 or 3,) [mm]} of one frame; a landmark that was not found is nan, or missing.

        image: the frame (X, Y) uint8, for the pictures, with pixels of spacing_mm (2,); the positions are then (2,),
        measured from the centre of the first pixel.
        """
        self._once("landmarks", study, view, frame)
        rows = []
        for name, truth in truth_mm.items():
            try:
                scores = landmark_scores(pred_mm.get(name, np.full(len(truth), math.nan)), truth, self.within_mm)
            except ValueError as error:
                raise ValueError(f"study {study}, view {view}, frame {frame}, {name}: {error}") from None
            rows.append(new_row("landmarks", study, name, view, frame, **scores))
        self.rows += rows
        if image is not None and rows:
            nowhere, pixel = np.full(2, math.nan), np.asarray(spacing_mm, float)
            points = {name: (np.asarray(pred_mm.get(name, nowhere)) / pixel, np.asarray(truth) / pixel)
                      for name, truth in truth_mm.items()}  # fmt: skip
            score = -sum(min(row["distance_mm"], FAR_MM) for row in rows) / len(rows)
            self._offer("landmarks", LandmarkExhibit(study, view, frame, score, image.copy(), points))

    def add(
        self, score_kind: ScoreKind, study: str, name: str, view: str = "", frame: int | str = "", **values: float
    ) -> None:
        """Add a row of a task's own kind, with numbers by name. nan: nothing to evaluate; inf: a failure."""
        if self.score_kinds.setdefault(score_kind.kind, score_kind) is not score_kind:
            raise ValueError(f"{score_kind.kind}: there is another kind of scores of this name")
        self._once(score_kind.kind, study, name, view, frame)
        values = {column: float(value) for column, value in values.items()}
        self.rows.append(new_row(score_kind.kind, study, name, view, frame, **values))

    def flag(self, study: str, code: str, view: str = "") -> None:
        """Mark a study for review with a code of `metrics.flags`; it is still evaluated."""
        self.flags.append((study, view, code))

    def leave_out(self, study: str, why: str) -> None:
        """Note a study that could not be evaluated; the report and results.json list it."""
        self.left_out.append((study, why))

    def _offer(self, kind: str, exhibit: Exhibit | LandmarkExhibit) -> None:
        self.galleries.setdefault((kind, exhibit.view), Gallery()).offer(exhibit)

    def _once(self, kind: str, study: str, *where: object) -> None:
        if (kind, study, *where) in self._seen:
            case = ", ".join(map(str, where))
            raise ValueError(f"study {study}, {case}: {kind} was evaluated before; each must come once")
        self._seen.add((kind, study, *where))

    def _target(self, name: str, target: Target, study: str) -> None:
        before = self.targets.setdefault(name, target)
        if before != target:
            raise ValueError(f"study {study}, {name}: was {before}, now {target}; it must be the same for all studies")


def _finite(value: float, study: str, target: str, what: str) -> float:
    if not math.isfinite(value):
        raise ValueError(f"study {study}, {target}: the {what} is {value}; expected a finite number; call leave_out "
                         "for a study without one")  # fmt: skip
    return float(value)
