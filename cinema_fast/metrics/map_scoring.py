"""How label maps are scored: their classes, regions made of classes, and rules for empty masks and small components."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from .components import without_small_components
from .map_options import EmptyDice, component_parts, region_parts
from .segmentation import CLASSES

_NAMED = ("LV", "MYO", "RV")  # cardiac function is measured of masks of these names


@dataclass(frozen=True)
class MapScoring:
    """What is scored of label maps, and by which rules.

    classes: {label: name}. regions: {name: its labels}: each is scored as one mask; a region with the name of a class
    takes its place. empty_dice: Dice and IoU where neither map has the mask; nan: left out. min_component: {labels:
    pixels}; smaller components of these labels are removed from predictions, in this order.
    """

    classes: Mapping[int, str] = field(default_factory=lambda: CLASSES)
    regions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    empty_dice: float = math.nan
    min_component: Mapping[tuple[int, ...], int] = field(default_factory=dict)

    @cached_property
    def masks(self) -> dict[str, tuple[int, ...]]:
        """{name: labels} of all that is scored: every class, or the region in its place, then the other regions."""
        return {name: (label,) for label, name in self.classes.items()} | dict(self.regions)

    def cleaned(self, pred: np.ndarray) -> np.ndarray:
        """Predicted label maps (T, X, Y[, Z]) uint8 without small components."""
        for labels, least in self.min_component.items():
            pred = without_small_components(pred, labels, least)
        return pred

    def in_words(self) -> str:
        """The rules, for the report."""
        parts = []
        if self.regions:
            each = (f"{name} = {self._named(labels)}" for name, labels in self.regions.items())
            parts.append(f"Regions, scored as one mask: {'; '.join(each)}.")
        if instead := [name for name in self.regions if name in self.classes.values()]:
            parts.append(f"{', '.join(instead)}: the region, not the class.")
        if measured := [name for name in _NAMED if name in self.regions]:
            parts.append(f"Volumes and mass of {', '.join(measured)} are those of the region.")
        if math.isnan(self.empty_dice):
            parts.append("What is absent from both label maps is left out.")
        else:
            parts.append(f"What is absent from both label maps has Dice and IoU {self.empty_dice:g}, and no distance.")
        if self.min_component:
            each = (f"{self._named(labels)} below {least}" for labels, least in self.min_component.items())
            parts.append("Small components of a slice were removed from the predictions first, in pixels of the "
                         f"stored grid: {'; '.join(each)}.")  # fmt: skip
        return " ".join(parts)

    def _named(self, labels: Sequence[int]) -> str:
        return " + ".join(f"{self.classes[label]} ({label})" for label in labels)


def map_scoring(
    classes: Mapping[int, str], regions: Sequence[str], empty_dice: EmptyDice, min_component: Sequence[str]
) -> MapScoring:
    """The scoring that the options of `evaluate` ask for. classes: {label: name} that the run predicts.

    Parts of a region are labels or classes; those of --min-component may be regions too. Raises ValueError for a part
    that the run does not predict, and as `region_parts` and `component_parts`.
    """
    named = {name: (label,) for label, name in classes.items()}
    unions = {name: _labels(f"--regions {name}=", parts, named, classes)
              for name, parts in region_parts(regions).items()}  # fmt: skip
    smallest = {_labels("--min-component ", parts, named | unions, classes): least
                for parts, least in component_parts(min_component).items()}  # fmt: skip
    return MapScoring(classes, unions, 1.0 if empty_dice == "one" else math.nan, smallest)


def _labels(
    before: str, parts: Sequence[str], named: Mapping[str, tuple[int, ...]], classes: Mapping[int, str]
) -> tuple[int, ...]:
    """The labels of parts, each once, ascending. before: what is written before the parts."""
    found: set[int] = set()
    for part in parts:
        labels = (int(part),) if part.isdecimal() else named.get(part, ())
        if not labels or not set(labels) <= classes.keys():
            known = ", ".join(f"{label} ({name})" for label, name in classes.items())
            regions = [name for name in named if name not in classes.values()]
            more = f", and the regions {', '.join(regions)}" if regions else ""
            raise ValueError(f"{before}{'+'.join(parts)}: the run predicts no {part}; expected labels or names of "
                             f"{known}{more}")  # fmt: skip
        found.update(labels)
    return tuple(sorted(found))
