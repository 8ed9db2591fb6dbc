"""The options of `evaluate`: the one source of their defaults and checks."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ..common.checks import check, check_at_least, check_phases
from ..metrics.map_options import EmptyDice, component_parts, region_parts


@dataclass(frozen=True)
class EvaluateConfig:
    """Evaluate a fine-tuned model on labelled studies. Writes OUT/results.json, rows.csv and report/index.html."""

    # folder of a fine-tuning run
    run: Annotated[Path, tyro.conf.arg(metavar="RUN")]
    # folder to write, new or empty
    out: Annotated[Path, tyro.conf.arg(metavar="OUT")]
    # store to evaluate on; if not given: the run's own
    data: Path | None = None
    # part of the run's data split to evaluate; with --data of another store also the studies that are not in the run
    part: Literal["train", "val", "test"] = "test"
    # segmentation: predict and score the frames of end-diastole and end-systole alone (ed es), not the whole cycle; for
    # targets of a table it must be what the run was trained on
    frames: tuple[Literal["ed", "es"], ...] = ()
    # CSV with one line per study: targets (if not given: the run's table), reference values, subgroups; for landmarks
    # one line per point
    table: Path | None = None
    # reference values, as lv_ef=COLUMN (lv_edv_ml, lv_mass_g, rv_ef, ...), compared with the values measured over the
    # whole cycle
    known: tuple[str, ...] = ()
    # columns to report subgroups by
    subgroups: tuple[str, ...] = ()
    # CSV with one line per study, for --known, --subgroups and --retest, where --table has landmarks
    study_table: Path | None = None
    # test-retest: column that identifies the heart; the measurements of scans with the same value are compared
    retest: str | None = None
    # positive class of two, for sensitivity and --threshold; if not given: the second by name
    positive: str | None = None
    # decision threshold on the probability of the positive class; if not given: 0.5
    threshold: float | None = None
    # label maps: unions of labels that are scored as one structure, as MYO=2+4+5 or scar=scar+no-reflow; one with the
    # name of a structure takes its place
    regions: tuple[str, ...] = ()
    # label maps: Dice and IoU where neither label map has a structure: left out, or 1
    empty_dice: EmptyDice = "leave-out"
    # label maps: remove predicted components with fewer pixels of the stored grid, slice by slice, before scoring, as
    # scar=60 scar+oedema=200; they take the most frequent label around them
    min_component: tuple[str, ...] = ()
    # bootstrap resamples of the studies, for the confidence intervals
    resamples: int = 1000
    # random seed of the bootstrap
    seed: int = 0
    # device to run on; auto: the GPU if there is one
    device: Literal["auto", "cpu", "cuda"] = "auto"
    # precision of activations; if not given: the run's
    precision: Literal["fp32", "bf16"] | None = None

    def __post_init__(self):
        check(self, "threshold", valid=lambda x: 0 <= x <= 1, must="is a probability, between 0 and 1")
        check_at_least(self, 1, "resamples")
        region_parts(self.regions)
        component_parts(self.min_component)
        check_phases(self.frames)
        if self.known:
            from ..metrics.function import QUANTITIES
        for pair in self.known:
            quantity, equals, column = pair.partition("=")
            if not equals or not column or quantity not in QUANTITIES:
                raise ValueError(f"--known {pair}: expected QUANTITY=COLUMN, with one of {', '.join(QUANTITIES)}")
