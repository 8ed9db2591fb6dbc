"""Describes a cine store in a page of numbers: studies, sequences and planes, sizes, labels, failures."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from itertools import product
from pathlib import Path

import numpy as np

from ...common.naming import count_studies, counted
from ...common.parsed_file import parse_json
from ...common.regular_file import read_regular
from ...common.sequences import IN_WORDS, SEQUENCES
from ...common.structures import STRUCTURES
from ...common.views import VIEWS, views_in_order
from .orientation import orientation_of
from .store import CineInfo, CineStore

LISTED = 5
KINDS = (("cine",), ("single volume",), ("set of channels", "sets of channels"), ("image series", "image series"))


def describe(store: CineStore) -> str:
    """Studies, views, sequences, sizes, times, bytes, motion maps, labels and failures of a store, one line each."""
    views = {study: store.views(study) for study in store.ids}
    infos: dict[str, list[CineInfo]] = {}
    for study, names in views.items():
        for view in names:
            infos.setdefault(view, []).append(store.info(study, view))
    every = [info for one in infos.values() for info in one]
    n_bytes = sum(Path(path).stat().st_size for info in every for path, _ in info.files)
    lines = [f"{store.path}: {count_studies(len(views))}, {_kinds(every)}, "
             f"{counted(sum(info.shape[0] for info in every), 'frame')}, {n_bytes / 1e6:.1f} MB"]
    for names, n in Counter(views.values()).most_common():
        lines.append(f"  {count_studies(n)} {'has' if n == 1 else 'have'} {', '.join(names)}")
    how = {"patient": "the same in every study",
           "stored": "as in the source files (may differ between studies; prepare --overwrite aligns them)"}
    lines.append(f"  axes: {how[orientation_of(store.prepare)]}")
    if labelled := labelled_studies(store):
        lines.append(f"  {count_studies(labelled)} with labels")
    lines.append(f"  2D images: {_images(every)}")
    structures = _structures(store)
    for view in views_in_order(infos):
        lines += [f"{view}: {_kinds(infos[view], _sequences)}, {_plane(infos[view][0].plane)}",
                  *_describe_view(infos[view], structures)]
    return "\n".join([*lines, *_failures(store.path)])


def labelled_studies(store: CineStore) -> int:
    """Number of studies with a labelled view."""
    return sum(any(store.info(study, view).labels for view in store.views(study)) for study in store.ids)


def _kinds(infos: list[CineInfo], words: Callable[[CineInfo], str] = lambda info: "") -> str:
    """The infos, counted by their kind and what `words` says of them: 3 cines; 2 single volumes, LGE."""
    kinds = Counter((_kind(info), words(info)) for info in infos)
    return "; ".join(counted(n, *KINDS[kind]) + said for (kind, said), n in sorted(kinds.items()))


def _kind(info: CineInfo) -> int:
    """Its place in KINDS."""
    return min(len(info.channels), 2) if info.channels or info.is_cine else 3


def _sequences(info: CineInfo) -> str:
    """", LGE", ", cine + LGE + T2w"; "" of a cine."""
    return ", " + " + ".join(map(_in_words, info.sequences)) if _kind(info) else ""


def _in_words(sequence: str | None) -> str:
    return IN_WORDS[sequence] if sequence else "unknown sequence"


def _plane(plane: str | None) -> str:
    return plane.upper().replace("_", " ") if plane else "unknown plane"


def _images(infos: list[CineInfo]) -> str:
    """The number of 2D images of each sequence and plane."""
    found: Counter[tuple[str | None, str | None]] = Counter()
    for info in infos:
        for sequence in info.sequences:
            found[sequence, info.plane] += math.prod((info.shape[0], *info.shape[3:])) // len(info.sequences)
    return ", ".join(f"{found[kind]} {_in_words(kind[0])} in {_plane(kind[1])}"
                     for kind in product((*SEQUENCES, None), (*VIEWS, None)) if kind in found)  # fmt: skip


def _structures(store: CineStore) -> dict[int, str]:
    """{label: name}, as far as the store says what its labels mean: those of public data sets are this project's."""
    named = {int(label): name for label, name in store.prepare.get("structures", {}).items()}
    return (STRUCTURES if "dataset" in store.prepare else {}) | named


def _describe_view(infos: list[CineInfo], structures: Mapping[int, str]) -> list[str]:
    channels = Counter(", ".join(info.channels) for info in infos if info.channels)
    return [
        f"  size {_common(' x '.join(map(str, info.shape[1:])) for info in infos)}",
        f"  spacing {_common(' x '.join(f'{mm:g}' for mm in info.spacing_mm) for info in infos)} mm",
        *(f"  single volumes, no cine: {names} ({n})" for names, n in channels.items()),
        *_describe_cines([info for info in infos if not info.channels]),
        *_describe_labels(infos, structures),
    ]


def _describe_cines(cines: list[CineInfo]) -> list[str]:
    if not cines:
        return []
    times = [info.frame_time_ms for info in cines if info.frame_time_ms is not None]
    unknown = f", {len(cines) - len(times)} unknown" if len(times) < len(cines) else ""
    maps = [info.motion.max_px for info in cines if info.motion]
    motion = f", up to {_range(maps)} pixels a frame" if maps else ""
    known = sum(info.phases is not None for info in cines)
    return [
        f"  frames {_range([info.shape[0] for info in cines])}",
        f"  ms from frame to frame {_range(times) if times else 'unknown'}{unknown if times else ''}",
        f"  motion maps {len(maps)} of {len(cines)}{motion}",
        *[f"  ED and ES known in {known} of {counted(len(cines), 'cine')}"] * bool(known),
    ]


def _describe_labels(infos: list[CineInfo], structures: Mapping[int, str]) -> list[str]:
    labelled = [info for info in infos if info.labels]
    if not labelled:
        return []
    kinds = {_kind(info) for info in infos}
    what = {(0,): ("cine",), (1,): ("volume",)}.get(tuple(kinds), ("study", "studies"))
    frames = [len(info.labels.frames) for info in labelled if not info.channels]
    each = f", {_range(frames)} frames each" if frames else ""
    values = sorted(set().union(*(info.labels.values or () for info in labelled)))
    names = ", ".join(structures.get(label, str(label)) for label in values)
    return [f"  labels of {len(labelled)} of {counted(len(infos), *what)}{each}{f': {names}' * bool(names)}"]


def _common(values: Iterable[str]) -> str:
    counts = Counter(values).most_common()
    shown = ", ".join(value if len(counts) == 1 else f"{value} ({n})" for value, n in counts[:LISTED])
    return shown + (f" and {len(counts) - LISTED} others" if len(counts) > LISTED else "")


def _range(values: list[float]) -> str:
    low, middle, high = np.percentile(values, (0, 50, 100))
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g} (median {middle:.4g})"


def _failures(path: Path) -> list[str]:
    try:
        failures = [parse_json(line) for line in read_regular(path / "failures.jsonl").decode().splitlines()]
        lines = [f"  {failure['file']}: {failure['reason']}" for failure in failures[:LISTED]]
    except FileNotFoundError:
        return ["failures: no failures.jsonl"]
    except (OSError, ValueError, KeyError, TypeError) as err:
        return [f"failures: failures.jsonl cannot be read ({err})"]
    more = [f"  and {len(failures) - LISTED} more in failures.jsonl"] if len(failures) > LISTED else []
    return [f"failures when it was prepared: {len(failures)}", *lines, *more]
