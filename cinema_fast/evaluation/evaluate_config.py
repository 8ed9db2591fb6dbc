"""What an evaluation is: the one source of its options, defaults and checks."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..common.checks import check, check_at_least


@dataclass(frozen=True)
class EvaluateConfig:
    """Judge a fine-tuned model on studies whose labels are known: OUT/results.json, rows.csv, report/index.html."""

    # folder of a fine-tuning run
    run: Path
    # folder to write
    out: Path
    # store to judge on; the run's own where none is named
    data: Path | None = None
    # which studies of the run; of another store those that the run did not know are judged too
    part: Literal["train", "val", "test"] = "test"
    # CSV with a line per study: labels of classes and numbers (the run's own where none is named), what is known of
    # hearts, and columns for subgroups; for landmarks a line per point
    table: Path | None = None
    # columns of what is known of hearts, as lv_ef=COLUMN: compared with what segmentation measures over the cycle
    known: tuple[str, ...] = ()
    # columns by which studies are grouped
    subgroups: tuple[str, ...] = ()
    # table of known values and of subgroups where that of the labels is another (landmarks)
    about: Path | None = None
    # column that is the same for scans of one heart: the repeated measurements of which are compared
    retest: str | None = None
    # which of two classes is the positive one, of sensitivity and --threshold; the second by name where none is named
    positive: str | None = None
    # from which probability of the positive one of two classes it is decided for; 0.5 where none is named
    threshold: float | None = None
    # resamples of the studies for the intervals
    resamples: int = 1000
    # key of the resampling
    seed: int = 0
    # where to run; auto takes the GPU if there is one
    device: Literal["auto", "cpu", "cuda"] = "auto"
    # arithmetic of activations; that of the run where none is named
    precision: Literal["fp32", "bf16"] | None = None

    def __post_init__(self):
        check(self, "threshold", valid=lambda x: 0 <= x <= 1, must="is a probability, between 0 and 1")
        check_at_least(self, 1, "resamples")
        if self.known:
            from ..metrics.function import QUANTITIES
        for pair in self.known:
            quantity, equals, column = pair.partition("=")
            if not equals or not column or quantity not in QUANTITIES:
                raise ValueError(f"--known {pair}: want QUANTITY=COLUMN, with one of {', '.join(QUANTITIES)}")
