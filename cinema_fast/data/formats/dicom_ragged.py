"""The regular part of a ragged DICOM stack: the longest run of slices that are alike and evenly spaced.

Slices of one view may differ in size, orientation, pixel spacing, number of frames or distance, or be taken more than
once. The rules for such a view, in this order:

- Images of one size, orientation and pixel spacing are sorted into slices by their place. Of a slice that was taken
  more than once with equally many frames, the last one counts: that of the later series in the order of the files, or,
  within a series, that with the later instance numbers.
- Slices with equally many frames make a stack, along their normal. The longest run of neighbours at one distance is the
  result, over all such stacks; of equally long runs that with the shorter distance, then the one that was taken last.
- What is left out is said in the remarks.

The CineMA reference has such a rule (cinema/data/kaggle, `filter_sax_images`) but takes slices by the number of their
folder, and cuts by size, spacing, direction and distance one after the other.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict

import numpy as np

from ...common.naming import counted
from .cine import CineError, IncompleteCine
from .dicom_slices import CLOCKS, LONG_STEP, Image, affine_of, by_place, check_places, difference

REFUSE, LONGEST_RUN = RAGGED = ("refuse", "longest run")
# The same, and where a slice lacks a single one of the frames that its header counts, the frame before stands in.
LONGEST_RUN_FILLED = "longest run, a missing frame filled"

_REASONS = {"size": "of another size", "orientation": "of another orientation", "spacing": "of another pixel spacing",
            "": "with another number of frames"}  # fmt: skip


def longest_run(images: list[Image], *, stack: bool | None, fill: bool) -> tuple[list[list[Image]], list[str]]:
    """The slices of a view, each of equally many images, ordered along their normal; and remarks on what was left out.

    Args:
        images: in the order of their files.
        stack: whether the view is a stack of slices, as in `read_dicom_cine`.
        fill: whether a copy stands in for a single missing frame of a slice.

    Raises:
        IncompleteCine: a stack of which no two slices are alike.
    """
    order = {id(image): n for n, image in enumerate(images)}
    kinds: list[list[Image]] = []
    for image in images:
        kind = next((kind for kind in kinds if not difference(kind[0], image)), None)
        if kind is None:
            kinds.append([image])
        else:
            kind.append(image)
    stacks: dict[tuple[int, int], list[list[Image]]] = defaultdict(list)  # (kind, number of frames) -> slices
    repeated = 0
    for k, kind in enumerate(kinds):
        for place in by_place(kind):
            takes = _takes(sorted(place, key=lambda image: order[id(image)]))
            takes = [_filled(take) for take in takes] if fill else takes
            last = {len(take): take for take in takes}
            repeated += len(takes) - len(last)
            for n_frames, take in last.items():
                stacks[k, n_frames].append(take)
    runs = {key: _longest_even(slices) for key, slices in stacks.items()}
    best = max(runs, key=lambda key: (len(runs[key]), -_extent_mm(runs[key]),
                                      max(order.get(id(image), 0) for image in runs[key][-1])))  # fmt: skip
    run, total = runs[best], sum(map(len, stacks.values()))
    if len(run) == 1 < total and stack is not False:
        raise IncompleteCine(run[0][0].path, f"no stack: of {total} slices no two are alike in size, orientation, "
                                             "pixel spacing and number of frames")
    left_out = Counter({"at another distance or beside the line": len(stacks[best]) - len(run)})
    for key, slices in stacks.items():
        if key != best:
            left_out[_REASONS[difference(run[0][0], slices[0][0])]] += len(slices)
    return run, _remarks(len(run), total, +left_out, repeated, sum(_is_filled(take) for take in run))


def _remarks(used: int, total: int, left_out: Counter[str], repeated: int, filled: int) -> list[str]:
    remarks = []
    if left_out:
        why = ", ".join(f"{n} {reason}" for reason, n in sorted(left_out.items()))
        remarks.append(f"of {total} slices the longest run of alike and evenly spaced ones is used, {used}; left out: "
                       f"{why}")
    if repeated:
        remarks.append(f"{counted(repeated, 'slice')} left out, taken again later (the last one counts)")
    if filled:
        remarks.append(f"a frame is missing in {counted(filled, 'slice')}: the frame before stands in")
    return remarks


def _takes(place: list[Image]) -> list[list[Image]]:
    """The images of one place, in the order of their files, by the times that it was taken."""
    by_series: dict[str, list[Image]] = defaultdict(list)
    for image in place:
        by_series[image.series].append(image)
    return [take for images in by_series.values() for take in _takes_of_series(images)]


def _takes_of_series(images: list[Image]) -> list[list[Image]]:
    """One take, or, where trigger times come twice or are more than the phases of the cycle, one from each fall of the
    trigger time to the next, in the order of the instance numbers."""
    numbers = [image.header.instance for image in images]
    times = [image.header.trigger_ms for image in images]
    if None in times or len(set(times)) < 2:
        return [images]
    if None not in numbers and len(set(numbers)) == len(images):
        images = sorted(images, key=lambda image: image.header.instance)
        times = [image.header.trigger_ms for image in images]
    if len(images) <= (images[0].header.n_phases or len(images)) and len(set(times)) == len(images):
        return [images]
    takes: list[dict[float, Image]] = [{}]
    for image, time, before in zip(images, times, [times[0], *times]):
        if time < before:
            takes.append({})
        takes[-1][time] = image
    return [list(take.values()) for take in takes]


def _filled(take: list[Image]) -> list[Image]:
    """The images of a slice in the order of time, the one before a single missing frame twice; its copy has a time of
    its own. Unchanged where not exactly one is missing. Without a gap the last frame counts as missing."""
    expected = take[0].header.n_phases
    clock = next((clock for clock in CLOCKS if len({getattr(image.header, clock) for image in take} - {None})
                  == len(take)), None)  # fmt: skip
    if clock is None or expected is None or len(take) != expected - 1 or len(take) < 2:
        return take
    take = sorted(take, key=lambda image: getattr(image.header, clock))
    steps = np.diff([getattr(image.header, clock) for image in take])
    usual = np.sort(steps)[(len(steps) - 1) // 2]  # of two steps the shorter one: the other may be the gap
    at = int(steps.argmax()) if steps.max() > LONG_STEP * usual else len(take) - 1
    before, times = take[at].header, {}
    for name in CLOCKS:
        here = getattr(before, name)
        # half way to the next frame; at the end, as much later as the last step is long
        other, part = (take[at + 1], 0.5) if at + 1 < len(take) else (take[at - 1], -1.0)
        there = getattr(other.header, name)
        times[name] = None if here is None or there is None else here + part * (there - here)
    return [*take[: at + 1], take[at]._replace(header=before._replace(**times)), *take[at + 1 :]]


def _is_filled(take: list[Image]) -> bool:
    return len({id(image.pixels) for image in take}) < len(take)


def _longest_even(slices: list[list[Image]]) -> list[list[Image]]:
    """The longest run of neighbours at one distance; all slices where none keeps its place over time."""
    for n in range(len(slices), 0, -1):
        runs = (slices[first : first + n] for first in range(len(slices) - n + 1))
        if even := [run for run in runs if _even(run)]:
            return min(even, key=_extent_mm)
    return slices


def _extent_mm(run: list[list[Image]]) -> float:
    first, last = (take[0].header.position for take in (run[0], run[-1]))
    return round(math.dist(first, last), 3)


def _even(run: list[list[Image]]) -> bool:
    try:
        check_places(run, affine_of(run))
    except CineError:
        return False
    return True
