"""Sorts the NIfTI files of a folder into studies and views."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ...common.naming import counted, named
from ...common.sequences import SEQUENCES, sequence_of
from ...common.tables import check_matches, read_table
from ...common.views import VIEWS
from ..formats.cine import Cine
from ..formats.dicom_ragged import REFUSE
from ..formats.nifti import is_volume, read_cine
from .source_format import SourceFormat

if TYPE_CHECKING:
    from .prepare_config import PrepareConfig

_PLACEHOLDERS = {"{id}": "(?P<id>[^/]+)", "{view}": "(?P<view>)", "{frame}": "(?P<frame>[^/_]+)"}
NAMED_VOLUMES = tuple(f"{sequence}_{plane}" for sequence in SEQUENCES if sequence != "cine" for plane in VIEWS)
NO_STUDY = ("", ".", "..")  # names that a study cannot have


class Phases(NamedTuple):
    """The frames of end-diastole and end-systole, from 0, and where they were read, for messages."""

    ed: int
    es: int
    source: str


@dataclass(frozen=True, slots=True)
class Source:
    """The files of one view of one study: NIfTI in the order of time (several only where the pattern has {frame}, or of
    channels), DICOM in the order of their names; where `ragged` is given, those of a later series after those of an
    earlier one.

    spelling: the view's name in the file names. frames: the {frame} of each file, where there is one. format: its name
    in `source_format.FORMATS`. labels: the files of its label maps. label_frames: the {frame} of each, where there is
    one. broken: DICOM files in the same folders whose headers cannot be read; they may belong to this view. channels:
    the name of each file of a view that is no cine: single 3D volumes on one grid. phases: ED and ES, where known.
    ragged: the rule for DICOM slices that differ, of `dicom_ragged.py`.
    """

    files: tuple[Path, ...]
    spelling: str
    frames: tuple[str, ...] = ()
    format: str = "nifti"
    labels: tuple[Path, ...] = ()
    label_frames: tuple[str, ...] = ()
    broken: tuple[Path, ...] = ()
    channels: tuple[str, ...] = ()
    phases: Phases | None = None
    ragged: str = REFUSE


class Refusal(NamedTuple):
    """Files that are not prepared. study, view: theirs; "" and None where unknown. file: one name or several, relative
    to the source folder."""

    study: str
    view: str | None
    file: str
    reason: str


@dataclass(slots=True)
class Sources:
    """studies: id -> view -> Source. refused: files that are not prepared, and why. unmatched: NIfTI files that do not
    match the pattern. series: number of DICOM series of each (description, view or None, why left out). table, split,
    landmarks: of a public data set, the values of each study by column, its part (train, val or test), and landmarks,
    each a line of `LANDMARK_COLUMNS`."""

    studies: dict[str, dict[str, Source]] = field(default_factory=dict)
    refused: list[Refusal] = field(default_factory=list)
    unmatched: list[Path] = field(default_factory=list)
    series: Counter[tuple[str, str | None, str]] = field(default_factory=Counter)
    table: dict[str, dict[str, str | float]] = field(default_factory=dict)
    split: dict[str, str] = field(default_factory=dict)
    landmarks: list[tuple[str, str, int, str, float, float, float]] = field(default_factory=list)

    def unmatched_names(self, src: Path) -> list[str]:
        """The files that do not match the pattern, relative to `src`."""
        return [path.relative_to(src).as_posix() for path in self.unmatched]

    def found(self) -> dict[tuple[str, str], tuple[int, int]]:
        """(view, its spelling in NIfTI file names) -> numbers of studies and files."""
        counts: dict[tuple[str, str], tuple[int, int]] = {}
        for views in self.studies.values():
            for view, source in views.items():
                if source.format == "nifti":
                    studies, files = counts.get((view, source.spelling), (0, 0))
                    counts[view, source.spelling] = studies + 1, files + len(source.files)
        return counts


def series_lines(series: Counter[tuple[str, str | None, str]]) -> list[str]:
    """A line for each kind of DICOM series: its view, or why it was left out; how many there are; its description."""
    kinds = sorted(series, key=lambda kind: (kind[1] is None, kind[1] or "", kind[2], kind[0]))
    used = [f"{view}:" if view else f"left out ({reason}):" for _, view, reason in kinds]
    return [f"{how} {series[kind]} series {kind[0]!r}" for how, kind in zip(used, kinds)]


def unmatched_line(names: list[str]) -> str:
    """The line on NIfTI files that the pattern does not match, by their names relative to the sources."""
    return f"{counted(len(names), 'NIfTI file')} ignored, not matching --pattern: {named(names)}"


def parse_aliases(aliases: tuple[str, ...]) -> dict[str, str]:
    """{spelling in file names: view}; a view's own name is always accepted, with that of a sequence before it too.

    Raises:
        ValueError: an alias that is not VIEW=SPELLING.
    """
    spellings = {view: view for view in (*VIEWS, *NAMED_VOLUMES)}
    for alias in aliases:
        view, equals, spelling = alias.partition("=")
        if not equals or not re.fullmatch(r"[a-z][a-z0-9_]*", view) or not spelling or "/" in spelling:
            raise ValueError(f"alias {alias!r} is not VIEW=SPELLING, for instance lax_2c=Se8_2ch "
                             f"(views: {', '.join(VIEWS)} or another name of a-z, 0-9 and _)")
        spellings[spelling] = view
    return spellings


class NamePattern:
    """A pattern of file paths relative to the source folder, as `PrepareConfig.pattern`.

    Raises:
        ValueError: no {view}, or a placeholder other than {id}, {view}, {frame}.
    """

    def __init__(self, pattern: str, spellings: Collection[str]):
        seen, parts = set(), []
        for part in re.split(r"(\{[^}]*\}|\*)", pattern):
            if part == "*":
                parts.append("[^/]*")
            elif part in seen:
                parts.append(f"(?P={part[1:-1]})")
            elif part in _PLACEHOLDERS:
                parts.append(_PLACEHOLDERS[part])
                seen.add(part)
            elif part.startswith("{"):
                raise ValueError(f"pattern {pattern!r}: unknown placeholder {part}; there are "
                                 f"{', '.join(_PLACEHOLDERS)} and *")  # fmt: skip
            else:
                parts.append(re.escape(part))
        if "{view}" not in seen:
            raise ValueError(f"pattern {pattern!r} has no {{view}}: put it where the file names have the view, and "
                             "give the spelling of views by --aliases VIEW=SPELLING")  # fmt: skip
        regex, names = "".join(parts), sorted(spellings, key=len, reverse=True)

        def of_views(names: Iterable[str]) -> re.Pattern[str]:
            return re.compile(regex.replace(_PLACEHOLDERS["{view}"], f"(?P<view>{'|'.join(map(re.escape, names))})"))

        self._regex = of_views(names)
        self._longer = {name: [of_views([other]) for other in names if other.endswith(name) and other != name]
                        for name in names}  # fmt: skip

    def fields(self, path: str) -> dict[str, str] | None:
        """{"id", "view", "frame": what stands in their places}, as far as the pattern has them; None where the path
        does not match. The longest spelling that fits is the view: of p1_lge_sax it is lge_sax, not sax of a study
        p1_lge."""
        match = self._regex.fullmatch(path)
        if match is None:
            return None
        longer = (regex.fullmatch(path) for regex in self._longer[match["view"]])
        return next(filter(None, longer), match).groupdict()


def find_sources(
    src: Path, pattern: str, aliases: tuple[str, ...] = (), single: tuple[str, ...] = (), channels: tuple[str, ...] = ()
) -> Sources:
    """Sort the files of `src` into studies and views. Hidden files are skipped, symbolic links followed.

    Args:
        pattern: as `PrepareConfig.pattern`. Without {id} the folder is one study, named after the folder.
        single, channels: as in `PrepareConfig`.

    Raises:
        ValueError: no such folder, a bad pattern, alias or channel, or no file that matches.
    """
    if not src.is_dir():
        raise ValueError(f"{src} is not a folder: it must hold the NIfTI cines to prepare")
    spellings, channels_of = parse_aliases(aliases), parse_channels(channels)
    for view, names in channels_of.items():
        spellings |= dict.fromkeys(names, view)
    for view in single:
        if view not in spellings.values():
            views = ", ".join(view for view in dict.fromkeys(spellings.values()) if view not in NAMED_VOLUMES)
            raise ValueError(f"--single {view}: no such view; expected one of {views} (--aliases names others)")
    names_of = NamePattern(pattern, spellings)
    found: dict[tuple[str, str], list[tuple[str, str, Path]]] = {}
    sources = Sources()
    for path in _walk(src, src, pattern.count("/"), sources.refused):
        if group := names_of.fields(path.relative_to(src).as_posix()):
            key = group.get("id") or src.resolve().name, spellings[group["view"]]
            found.setdefault(key, []).append((group.get("frame") or "", group["view"], path))
        elif path.name.endswith((".nii", ".nii.gz")):
            sources.unmatched.append(path)
    for (study, view), files in sorted(found.items()):
        files.sort(key=lambda file: _natural(file[0]))
        frames, names, paths = zip(*files)
        if study in NO_STUDY:
            file = paths[0].relative_to(src).as_posix()
            sources.refused.append(Refusal(study, view, file, f"a study cannot have the name {study!r}"))
        elif view in channels_of:
            reason = _unlike(names, channels_of[view])
            if reason:
                files = ", ".join(path.relative_to(src).as_posix() for path in paths)
                sources.refused.append(Refusal(study, view, files, f"{view} of {study!r}: {reason}"))
                continue
            paths = tuple(paths[names.index(name)] for name in channels_of[view])
            sources.studies.setdefault(study, {})[view] = Source(paths, view, channels=channels_of[view])
        elif len(set(frames)) < len(frames) or len(set(names)) > 1:
            files = ", ".join(path.relative_to(src).as_posix() for path in paths)
            sources.refused.append(Refusal(study, view, files, f"more than one file for {view} of {study!r}"))
        elif view in single:
            sources.studies.setdefault(study, {})[view] = Source(paths, names[0], channels=(names[0],))
        else:
            frames = frames if frames[0] else ()
            source = Source(paths, names[0], frames, phases=phases_of_names(frames))
            sources.studies.setdefault(study, {})[view] = source
    if not found:
        there = ", ".join(path.name for path in sources.unmatched[:3]) or "no .nii or .nii.gz at that depth"
        raise ValueError(f"no file in {src} matches the pattern {pattern!r} (found there: {there}); "
                         f"set --pattern, and --aliases where views have other names")
    return sources


def _of_another_sequence(view: str) -> bool:
    return sequence_of(view) not in (None, "cine")


def with_volumes(sources: Mapping[str, Source]) -> dict[str, Source]:
    """The sources of a study, {view: Source}, where a NIfTI file of one frame is a single volume also without --single,
    if its view's name says another sequence than a cine."""
    return {
        view: replace(source, channels=(source.spelling,))
        if source.format == "nifti" and not source.channels and not source.frames
        and _of_another_sequence(view) and is_volume(source.files[0])
        else source
        for view, source in sources.items()
    }  # fmt: skip


def parse_channels(channels: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """{view: the spellings of its channels in file names}. Raises ValueError for one that is not VIEW=SPELLING+..."""
    found: dict[str, tuple[str, ...]] = {}
    for given in channels:
        view, _, spellings = given.partition("=")
        names = tuple(spellings.split("+"))
        named = re.fullmatch(r"[a-z][a-z0-9_]*", view) and view not in found
        if not named or not all(names) or len(set(names)) < len(names):
            raise ValueError(f"--channels {given}: expected VIEW=SPELLING+SPELLING, each view once and its spellings "
                             "in file names, for instance sax=C0+DE+T2")
        found[view] = names
    return found


def _unlike(names: Sequence[str], channels: Sequence[str]) -> str:
    """How the spellings of a study's files differ from those of the channels, or ""."""
    twice = sorted({name for name in names if names.count(name) > 1})
    absent = [name for name in channels if name not in names]
    if twice:
        return f"more than one file of the channel {twice[0]}"
    return f"no file of the channel {absent[0]}" if absent else ""


def phases_of_names(frames: Sequence[str]) -> Phases | None:
    """ED and ES of a cine with a file per frame, by the files' names."""
    names = [frame.lower() for frame in frames]
    if not {"ed", "es"} <= set(names):
        return None
    return Phases(names.index("ed"), names.index("es"), "file names")


def add_phases(sources: Sources, path: Path) -> None:
    """Enter ED and ES of a CSV with the columns study, ed and es, for cines. Raises ValueError where it has none of the
    studies, or for a value that is not a frame."""
    table = read_table(path)
    check_matches(path, table.rows, list(sources.studies), "the sources")
    ed, es = table.numeric("ed"), table.numeric("es")
    for study, views in sources.studies.items():
        if study not in ed and study not in es:
            continue
        where = f"{path.name}, line {table.lines[study]}"
        pair = ed.get(study, -1.0), es.get(study, -1.0)
        if any(t < 0 or t != int(t) for t in pair):
            given = ", ".join(f"{name} {table.rows[study][name]!r}" for name in ("ed", "es"))
            raise ValueError(f"{path}, line {table.lines[study]}: {given}; expected frame numbers from 0 in both")
        for view, source in views.items():
            if not source.channels and not _of_another_sequence(view):
                views[view] = replace(source, phases=Phases(*map(int, pair), where))


def holds_nifti(src: Path, pattern: str) -> bool:
    """Whether there is a file with a NIfTI name at the depth of the pattern."""
    return any(path.name.endswith((".nii", ".nii.gz")) for path in _walk(src, src, pattern.count("/"), []))


def list_folder(src: Path, folder: Path, refused: list[Refusal]) -> list[os.DirEntry]:
    """The entries of a folder at or below `src`, sorted, without hidden names. A folder below `src` that may not be
    listed counts as empty and is appended to `refused`; for `src` itself OSError is raised."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as err:
        if folder == src:
            raise
        refused.append(refusal_of(src, folder, err))
        return []


def refusal_of(src: Path, path: Path | str, err: OSError) -> Refusal:
    """The refusal of a file or folder below `src` that the system does not allow to read."""
    return Refusal("", None, Path(path).relative_to(src).as_posix(), f"cannot be read: {err.strerror}")


def _walk(src: Path, folder: Path, depth: int, refused: list[Refusal]) -> Iterator[Path]:
    """Files exactly `depth` folders below. With a fixed depth, loops of links cause no harm."""
    for entry in list_folder(src, folder, refused):
        path = folder / entry.name
        if depth and path.is_dir():
            yield from _walk(src, path, depth - 1, refused)
        elif not depth and not path.is_dir():
            yield path


def _natural(name: str) -> list[tuple[int, int | str]]:
    """Sort key by which frame 10 follows frame 9, and ED precedes ES."""
    return [(0, int(part)) if part.isdecimal() else (1, part.lower()) for part in re.split(r"(\d+)", name) if part]


def _find_nifti(config: PrepareConfig, progress: bool) -> Sources:
    if config.views_rules:
        raise ValueError(
            f"--views-rules is for DICOM, and {config.src} is read as NIfTI: use --format dicom or --aliases"
        )
    return find_sources(config.src, config.pattern, config.aliases, config.single, config.channels)


def _read_nifti(source: Source, stack: bool | None) -> Cine:
    return read_cine(source.files if source.frames or source.channels else source.files[0], stack=stack)


NIFTI = SourceFormat(
    holds=lambda config: config.src.is_dir() and holds_nifti(config.src, config.pattern),
    find=_find_nifti,
    read=_read_nifti,
)
