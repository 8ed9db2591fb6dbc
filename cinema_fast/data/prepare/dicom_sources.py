"""Sorts the DICOM files of a folder into studies and views.

Headers count, not names or folders: StudyInstanceUID gives the study, SeriesInstanceUID the series, and the series
description the view (`view_rules.py`). Only where a header names no series, its folder is the series, and gives the
description if the header has none. A file that names no study is refused: names of patients, such as ANON, and folders
may be those of several people. Only magnitude images are used. A series with one image of each plane is no cine: it is
used as a single volume where the name of its view says another sequence, such as lge_sax. A study is named after the
patient's ID and a digest of its UID, in letters, digits, - and _, so that no header can name a path outside the store.
A study with several patients is refused.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ...common.pool import available_cores, run_in_processes
from ...common.progress import progress_bar
from ...common.sequences import sequence_of
from ...common.views import is_stack
from ..formats.cine import CineError
from ..formats.dicom_cine import read_dicom_cine
from ..formats.dicom_file import (
    image_places,
    is_dicom,
    is_mr_image,
    magnitudes,
    malformed,
    read_header,
    require_pydicom,
    series_of,
    text,
    whole_number,
)
from ..formats.dicom_ragged import REFUSE
from ..formats.dicom_slices import SAME_PLACE_MM
from ..formats.view_rules import ViewRules, read_rules
from .source_format import SourceFormat
from .sources import Refusal, Source, Sources, list_folder, refusal_of

if TYPE_CHECKING:
    from .prepare_config import PrepareConfig

FILES_PER_TASK = 250
# |cosine| between the normals of two images of the same plane
SAME_NORMAL = 0.999
NO_MAGNITUDES = "phase, real or imaginary images"
SEVERAL_PATIENTS = "several patients in its study"


class File(NamedTuple):
    """The header of a DICOM file. places: {(normal (3,), mm along it): number of images} of its slices, empty where the
    header does not say. mixed: it holds both magnitudes and other images. excluded: why it holds no cine, or ""."""

    path: Path
    study: str
    patient: str
    series: str
    number: int
    instance: str
    description: str
    protocol: str
    places: tuple[tuple[tuple[float, ...], float, int], ...]
    mixed: bool
    excluded: str


class Series(NamedTuple):
    """Files of one series of one study, sorted by path."""

    number: int
    description: str
    protocol: str
    files: tuple[File, ...]


def find_dicom_sources(src: Path, rules: ViewRules, *, workers: int = 0, progress: bool = True) -> Sources:
    """Sort the DICOM files below `src`, in folders of any depth, into studies and views.

    Hidden files are skipped, symbolic links followed. Of copies of one image the first by name is used. Series that are
    not MR images, not cines, or of no view in the rules are left out and counted in `Sources.series`.

    Args:
        workers: processes that read headers, if there are many files; 0: one per core.

    Raises:
        ValueError: no such folder, no DICOM file in it, pydicom not installed.
    """
    if not src.is_dir():
        raise ValueError(f"{src} is not a folder: it must hold the DICOM files to prepare")
    require_pydicom()
    sources = Sources()
    paths = [path for path in walk(src, src, sources.refused) if is_dicom(path)]
    if not paths:
        refused = "".join(f"; {file} {reason}" for *_, file, reason in sources.refused[:1])
        raise ValueError(f"no DICOM file in {src} (named .dcm or .ima, or with DICM at byte 128{refused})")
    broken: list[CineError] = []
    files = sorted(_read_all(paths, broken, workers, progress))
    studies: dict[str, list[File]] = defaultdict(list)
    for file in files:
        studies[file.study].append(file)
    homes: dict[Path, set[str]] = defaultdict(set)  # the studies that have files in a folder
    for uid, members in sorted(studies.items()):
        study = study_id(uid, min((file.patient for file in members if file.patient), default=""))
        if refusal := _several_patients(src, study, members):
            sources.refused.append(refusal)
            for description in {file.series: file.description or file.protocol for file in members}.values():
                sources.series[description, None, SEVERAL_PATIENTS] += 1
        else:
            _sort_study(src, study, members, rules, sources)
        for folder in {file.path.parent for file in members if uid}:
            homes[folder].add(study)
    _place_broken(src, broken, homes, sources)
    return sources


def _several_patients(src: Path, study: str, files: list[File]) -> Refusal | None:
    """The refusal of a study whose files name more than one patient; else None."""
    first = {file.patient: file.path for file in reversed(files) if file.patient and not file.excluded}
    if len(first) < 2:
        return None
    counts = Counter(file.patient for file in files if file.patient in first and not file.excluded).most_common()
    named = ", ".join(f"{patient!r} in {n} files" for patient, n in counts[:3]) + ", ..." * (len(counts) > 3)
    return Refusal(study, None, first[counts[-1][0]].relative_to(src).as_posix(),
                   f"one StudyInstanceUID for {len(counts)} patients (PatientID {named}): whose heart it shows is "
                   f"unknown; prepare the files of one of them alone, or give each a StudyInstanceUID")


def _place_broken(src: Path, broken: list[CineError], homes: dict[Path, set[str]], sources: Sources) -> None:
    """Refuse the files whose headers cannot be read. If only one study has files in the same folder, they count as its
    files, and its views there are marked, because they may lack images."""
    beside: dict[Path, list[Path]] = defaultdict(list)
    for error in broken:
        file, home = error.path.relative_to(src).as_posix(), homes.get(error.path.parent, set())
        if len(home) == 1:
            reason = f"{error.reason} (views may lack it)"
            sources.refused.append(Refusal(*home, None, file, reason))
        else:
            sources.refused.append(Refusal("", None, file, error.reason))
        beside[error.path.parent].append(error.path)
    for views in sources.studies.values() if broken else ():
        for view, source in views.items():
            folders = sorted({path.parent for path in source.files})
            views[view] = replace(source, broken=tuple(path for folder in folders for path in beside.get(folder, ())))


def holds_dicom(src: Path) -> bool:
    """Whether a folder, or one below it, holds a DICOM file."""
    return any(is_dicom(path) for path in walk(src, src, []))


def walk(
    src: Path, folder: Path, refused: list[Refusal], above: frozenset[tuple[int, int]] = frozenset()
) -> Iterator[Path]:
    """Files in and below a folder of `src`, sorted. Links to a folder above are not followed, broken links are skipped.
    Files and folders that may not be read are appended to `refused`."""
    try:
        info = folder.stat()
    except OSError as err:
        refused.append(refusal_of(src, folder, err))
        return
    here = (info.st_dev, info.st_ino)
    if here in above:
        return
    for entry in list_folder(src, folder, refused):
        try:
            is_folder, is_file = entry.is_dir(), entry.is_file()
        except OSError as err:  # such as a link to itself
            refused.append(refusal_of(src, entry.path, err))
            continue
        if is_folder:
            yield from walk(src, Path(entry.path), refused, above | {here})
        elif is_file:
            yield Path(entry.path)


def study_id(uid: str, patient: str) -> str:
    """Name of a study's folder: the safe characters of the patient's ID, and a digest that makes it unique."""
    name = re.sub(r"[^A-Za-z0-9_]+", "-", patient).strip("-")[:40] or "study"
    return f"{name}_{hashlib.sha256(uid.encode()).hexdigest()[:8]}"


def read_files(paths: list[Path]) -> list[File | CineError]:
    """The headers of some files."""
    found = []
    for path in paths:
        try:
            found.append(_read_file(path))
        except CineError as err:
            found.append(err)
    return found


def _read_file(path: Path) -> File:
    dataset = read_header(path)
    with malformed(path):
        study, description = text(dataset, "StudyInstanceUID"), text(dataset, "SeriesDescription")
        protocol = text(dataset, "ProtocolName")
        if not (description or protocol or text(dataset, "SeriesInstanceUID")):
            description = path.parent.name
        excluded, places, mixed = "", Counter(), False
        if text(dataset, "Modality") != "MR":
            excluded = f"modality {text(dataset, 'Modality') or 'unknown'}"
        elif "Rows" not in dataset and not is_mr_image(dataset):
            excluded = "no images"
        elif not study:
            raise CineError(path, "the header names no study (StudyInstanceUID): whose heart it shows is unknown; give "
                                  "all files of a study one StudyInstanceUID")
        else:
            try:
                shown = magnitudes(path, dataset)
                excluded, mixed = "" if any(shown) else NO_MAGNITUDES, len(set(shown)) > 1
                for normal, along in image_places(path, dataset):
                    places[tuple(round(x, 4) for x in normal), round(along, 2)] += 1
            except CineError:
                places.clear()  # reported when its view is read, if it is one
        number = whole_number(dataset, "SeriesNumber", 0)
        return File(path, study, text(dataset, "PatientID"), series_of(path, dataset), number,
                    text(dataset, "SOPInstanceUID"), description, protocol,
                    tuple((*place, n) for place, n in places.items()), mixed, excluded)


def _read_all(paths: list[Path], broken: list[CineError], workers: int, progress: bool) -> Iterator[File]:
    """The header of each file, in any order; files whose header cannot be read are appended to `broken`."""
    tasks = [paths[n : n + FILES_PER_TASK] for n in range(0, len(paths), FILES_PER_TASK)]
    workers = 1 if len(tasks) < 4 else min(workers or available_cores(), len(tasks))
    with (progress_bar("reading headers", len(paths), show=progress and len(tasks) >= 4) as advance,
          closing(run_in_processes(read_files, tasks, workers)) as results):
        for task, result in results:
            if isinstance(result, Exception):
                result = [CineError(task[0], f"reading {len(task)} headers from here on ended with "
                                             f"{type(result).__name__}: {result}")]
            for file in result:
                if isinstance(file, CineError):
                    broken.append(file)
                else:
                    yield file
            advance(len(task))


def _sort_study(src: Path, study: str, files: list[File], rules: ViewRules, sources: Sources) -> None:
    by_uid: dict[str, dict[object, File]] = defaultdict(dict)
    for file in files:
        by_uid[file.series].setdefault(file.instance or file.path, file)
    views: dict[str, list[Series]] = defaultdict(list)
    for copies in by_uid.values():
        members = tuple(copies.values())
        series = Series(members[0].number, members[0].description, members[0].protocol,
                        tuple(file for file in members if file.excluded != NO_MAGNITUDES))
        if len(series.files) < len(members) or any(file.mixed for file in members):
            sources.series[series.description or series.protocol, None, NO_MAGNITUDES] += 1
        if not series.files:
            continue
        view, reason = _view(series, rules)
        sources.series[series.description or series.protocol, view, reason] += 1
        if view:
            views[view].append(series)
    for view, found in sorted(views.items()):
        found.sort(key=lambda series: series.number)
        stack = is_stack(view) is not False
        if rules.repeated == "last":
            kept = _last(found, stack=stack)
        elif again := _repeated(found, stack=stack):
            names = ", ".join(f"{series.number} {series.description!r}" for series in again)
            sources.refused.append(Refusal(
                study, view, again[0].files[0].path.relative_to(src).as_posix(),
                f"taken more than once: the series {names} are all {view} (rules of views: repeated: last)"))
            continue
        else:
            kept = [file for series in found for file in series.files]
        paths = [file.path for file in kept]  # in the order of the series
        sources.studies.setdefault(study, {})[view] = Source(
            tuple(sorted(paths) if rules.ragged == REFUSE else paths), view, format="dicom", ragged=rules.ragged,
            channels=(view,) if all(map(_is_single, found)) else ())  # fmt: skip


def _view(series: Series, rules: ViewRules) -> tuple[str | None, str]:
    excluded = {file.excluded for file in series.files}
    if "" not in excluded:
        return None, min(excluded)
    view, reason = rules.view_of(series.description, series.protocol)
    images = _images_of_planes(series)
    if view and _is_single(series) and sequence_of(view) in (None, "cine"):
        return None, f"not a cine: one image of each of {len(images)} planes"
    return view, reason


def _is_single(series: Series) -> bool:
    """Whether it has one image of each plane; False where headers do not say."""
    return max(_images_of_planes(series), default=0) == 1


def _images_of_planes(series: Series) -> list[int]:
    """The number of images of each plane that the headers of a series name."""
    counts: list[int] = []
    before = None
    for place in sorted(place for file in series.files for place in file.places):
        if before is None or place[0] != before[0] or place[1] - before[1] > SAME_PLACE_MM:
            counts.append(0)
        counts[-1] += place[2]
        before = place
    return counts


def _repeated(found: list[Series], *, stack: bool) -> list[Series]:
    """The series of a view that show the same slice as another one; single slices: all series, if there are several."""
    if not stack:
        return found if len(found) > 1 else []
    return [series for series in found
            if any(_overlap(series, other) for other in found if other is not series)]


def _overlap(one: Series, other: Series) -> bool:
    return any(_same_place(a, b) for f in one.files for a in f.places for g in other.files for b in g.places)


def _last(found: list[Series], *, stack: bool) -> list[File]:
    """The files of a view's last series. For a stack, the files of all series, without those whose slices are all in
    later series."""
    if not stack:
        return list(found[-1].files)
    kept = []
    for n, series in enumerate(found):
        later = {place for other in found[n + 1 :] for file in other.files for place in file.places}
        kept += [file for file in series.files
                 if not file.places or not all(any(_same_place(a, b) for b in later) for a in file.places)]
    return kept


def _same_place(one: tuple, other: tuple) -> bool:
    return abs(np.dot(one[0], other[0])) > SAME_NORMAL and abs(one[1] - other[1]) < SAME_PLACE_MM


def _find(config: PrepareConfig, progress: bool) -> Sources:
    for option, given in (("--aliases", config.aliases), ("--single", config.single), ("--channels", config.channels)):
        if given:
            raise ValueError(f"{option} is for names of NIfTI files, and {config.src} is read as DICOM: use "
                             "--views-rules")
    return find_dicom_sources(config.src, read_rules(config.views_rules), workers=config.workers, progress=progress)


DICOM = SourceFormat(
    holds=lambda config: config.src.is_dir() and holds_dicom(config.src),
    find=_find,
    read=lambda source, stack: read_dicom_cine(
        source.files, stack=stack, ragged=source.ragged, single=bool(source.channels)
    ),
    contained=True,  # decoders of compressed DICOM are compiled libraries, which may crash
)
