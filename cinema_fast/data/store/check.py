"""Checks that a store holds what was written to it.

Opening a store detects files that are missing or of another size; the first read of a file detects another header.
`prepare` detects both, and a damaged study.json, and prepares these studies again. `cinema-fast verify` and `prepare
--repair` read everything and detect any changed byte of a .npy. A damaged motion map is dropped from the index, and
`prepare --motion` computes it again. Where label maps are damaged, their study is prepared again, because they come
from the sources like the cine. Modification times are not compared, since copies have their own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...common.naming import count_studies, counted
from ...common.parsed_file import read_json
from ...common.pool import available_cores
from ...common.progress import progress_bar
from ...common.regular_file import open_regular
from .store import (
    NPY_HEADER_BYTES,
    CineInfo,
    StoreError,
    check_npy_header,
    files_of,
    index_is_as_written,
    labels_file,
    make_info,
    motion_file,
    read_index,
    wrong_sizes,
)

INDEX = "index.json"


UNLISTED = "is not in the index: prepare has not finished, or has left it out as damaged"


class Fault(NamedTuple):
    """A file of a store that differs from what was prepared. file: relative to the store. study: "" for the index."""

    study: str
    file: str
    reason: str

    @property
    def motion(self) -> str | None:
        """The view whose motion map the file is; None for other files."""
        view = self.file.rpartition("/")[2].removesuffix(".npy")
        return view.removesuffix(".motion") if view.endswith(".motion") else None


@dataclass(frozen=True, slots=True)
class CheckReport:
    """The result of `check_store` for a store of `n_studies`; faults are sorted by study and file.

    index_summed: the index has its own checksum, which older stores lack.
    """

    n_studies: int
    faults: list[Fault]
    index_summed: bool = True

    @property
    def exit_code(self) -> int:
        """0: every file is as it was prepared; 1: some are not."""
        return 1 if self.faults else 0

    def __str__(self) -> str:
        if not self.faults:
            unsummed = "; the index itself has no checksum: the next `cinema-fast prepare` of this store gives it one"
            sound = f"{count_studies(self.n_studies)}, every file as it was prepared"
            return sound + unsummed * (not self.index_summed)
        spoilt = len({fault.study for fault in self.faults if fault.file != INDEX})
        maps = [fault.motion is not None for fault in self.faults]
        what = "motion maps" if all(maps) else "studies and motion maps" if any(maps) else "studies"
        check = f"`cinema-fast prepare SRC STORE{' --repair' * bool(spoilt)}{' --motion' * any(maps)}`"
        files = counted(len(self.faults), "file")
        return "\n".join([
            f"damaged or altered: {files}, of {spoilt} of {count_studies(self.n_studies)}",
            *(f"{fault.file}: {fault.reason}" for fault in self.faults),
            f"to restore these {what}: {check}, with the original options" if spoilt else
            f"to rebuild the index from the studies: remove it, then {check}, with the original options",
        ])


def check_store(path: Path | str, *, workers: int = 0, progress: bool = True) -> CheckReport:
    """Read every file of a store and compare it with its checksum in the index.

    Args:
        workers: files read at a time; 0: one per core.
        progress: show a progress bar on stderr.

    Raises:
        StoreError: no store, or its index cannot be read.
    """
    path = Path(path)
    index = read_index(path)
    faults, checksums = [], {}
    as_written = "sha256" not in index or index_is_as_written(path, index["sha256"])
    if not as_written:
        faults.append(Fault("", INDEX, "altered: its SHA-256 does not match the one at its end"))
    begun = sorted(file.parent.name for file in (path / "studies").glob("*/study.json"))
    for study in (study for study in begun if study not in index["studies"]):
        faults.append(Fault(study, f"studies/{study}/study.json", UNLISTED))
    for study, views in index["studies"].items():
        of_study = {f"studies/{study}/{view}.npy": info.sha256 for view, info in views.items()}
        of_study |= {motion_file(study, view): info.motion.sha256 for view, info in views.items() if info.motion}
        of_study |= {labels_file(study, view): info.labels.sha256 for view, info in views.items() if info.labels}
        checksums[study] = of_study
        file = f"studies/{study}/study.json"
        try:
            records = _records(path, study)
            differs = _difference(_infos(path, study, records), views)
            options = [record.get("prepare", index["prepare"]) for record in records.values()]
            if as_written and any(one != index["prepare"] for one in options):  # else the index was altered
                differs = "was prepared with other options than those of the index"
            if differs:
                faults.append(Fault(study, file, differs))
        except StoreError as err:
            faults.append(Fault(study, file, str(err).removeprefix(f"{path / file}: ")))
    if not index["studies"] and not faults:
        raise StoreError(f"{path} holds no studies: its preparation has not finished, or nothing could be prepared; "
                         f"run prepare again")
    faults += find_altered(path, checksums, workers=workers, progress=progress)
    return CheckReport(len(checksums), sorted(faults), index_summed="sha256" in index)


def _difference(found: dict[str, CineInfo], index: dict[str, CineInfo]) -> str | None:
    """How study.json differs from the index."""
    if {view: info.sha256 for view, info in found.items()} != {view: info.sha256 for view, info in index.items()}:
        return "belongs to another preparation than the index"
    for view, info in found.items():
        if index[view].motion is None:  # a run was killed before it entered this map in the index
            info = info._replace(motion=None)
        for name, here, there in zip(info._fields, info, index[view]):
            if here != there:
                return f"{name} of {view} is {here} here, {there} in the index"
    return None


def find_altered(
    store: Path, checksums: dict[str, dict[str, str]], *, workers: int = 0, progress: bool = True
) -> list[Fault]:
    """The files whose SHA-256 differs from `checksums`, {study: {file relative to the store: hex digest}}."""

    def faults_of(study: str) -> list[Fault]:
        faults = []
        for file, expected in checksums[study].items():
            try:
                with open_regular(store / file) as content:
                    found = hashlib.file_digest(content, "sha256").hexdigest()
            except OSError as err:
                faults.append(Fault(study, file, str(err.strerror)))
            else:
                if found != expected:
                    faults.append(Fault(study, file, f"altered: its SHA-256 is {found}, was {expected}"))
        return faults

    faults = []
    pool = ThreadPoolExecutor(workers or available_cores())
    try:
        with progress_bar("checking studies", len(checksums), show=progress) as advance:
            for found in pool.map(faults_of, checksums):
                faults += found
                advance()
    finally:
        pool.shutdown(cancel_futures=True)
    return faults


def read_studies(
    store: Path, wanted: Callable[[str], bool] = lambda study: True
) -> Iterator[tuple[str, dict[str, dict] | StoreError]]:
    """Every wanted study in the store's folder, in the index or not, with its records by view from study.json.

    Incomplete motion maps are left out. Where a cine or its label maps are incomplete (a file is missing, cut short or
    has another header), a StoreError in place of the records says so.
    """
    folders = [path.name for path in (store / "studies").iterdir() if path.is_dir() and not path.name.startswith(".")]
    for study in sorted(filter(wanted, folders)):
        try:
            records = _records(store, study)
            for view, info in _infos(store, study, records).items():
                for path, shape in info.files:
                    try:
                        _check_file(path, shape)
                    except StoreError:
                        if not info.motion or path != info.motion.path:
                            raise
                        del records[view]["motion"]
            yield study, records
        except StoreError as err:
            yield study, err


def _records(store: Path, study: str) -> dict[str, dict]:
    file = store / "studies" / study / "study.json"
    try:
        records = read_json(file)
        if not isinstance(records, dict) or not records:
            raise ValueError("no records in it")
        return records
    except (OSError, ValueError) as err:
        raise StoreError(f"{file}: cannot be read ({err})") from err


def _infos(store: Path, study: str, records: dict[str, dict]) -> dict[str, CineInfo]:
    """The views of a study whose records are complete. Raises StoreError."""
    infos = {}
    for view, record in records.items():
        try:
            infos[view] = info = make_info(str(store), record)
            for path, expected in zip(info.paths, files_of(study, view)):
                if path not in (None, f"{store}/{expected}"):
                    raise ValueError(f"its file is {path.removeprefix(f'{store}/')}, expected {expected}")
            found = np.shape(record["window"]), np.shape(record["affine"])
            if found != ((info.shape[0], 2), (4, 4)):
                raise ValueError(f"a window and an affine of the shapes {found}")
        except (KeyError, TypeError, ValueError, AttributeError) as err:
            file = store / "studies" / study / "study.json"
            raise StoreError(f"{file}: the record of {view!r} is damaged ({type(err).__name__}: {err})") from err
    return infos


def _check_file(path: str, shape: tuple[int, ...]) -> None:
    for wrong in wrong_sizes([(path, shape)]):
        raise StoreError(wrong)
    try:
        with open_regular(path) as file:
            check_npy_header(path, shape, file.read(NPY_HEADER_BYTES))
    except OSError as err:
        raise StoreError(f"{path}: {err.strerror}") from err
