"""The cine store: a folder of plain 8-bit arrays, from which single frames can be read.

    STORE/index.json                    the index: options of the preparation, and one line per study
    STORE/studies/ID/VIEW.npy           uint8, C order, (T, X, Y, Z) for a stack or (T, X, Y) for a single slice
    STORE/studies/ID/VIEW.motion.npy    uint8, C order, (X, Y[, Z]): how much each pixel moves; only with --motion
    STORE/studies/ID/VIEW.labels.npy    uint8, C order, (labelled frames, X, Y[, Z]): classes; only if there are labels
    STORE/studies/ID/study.json         the study's full records, from which the index is made
    STORE/failures.jsonl                what could not be prepared, and why

A record of the index holds, per study and view:

- `file`, `shape`, `spacing_mm` of the stored grid, `frame_time_ms` (or null), `sha256` of the .npy, `source` (file and
  its sha256), and `remarks` about the headers of its files, where there are any;
- where there is one, `motion`, the motion map (`motion.py`): file, sha256 and `max_px`, the motion in pixels of the
  value 255;
- where there are any, `labels`, the label maps (`labels.py`): file, sha256, `frames` (the labelled frames of the cine),
  `values` (the labels in them without 0), both ascending, and `cut`, the share of their volume that the crop cuts off,
  where it does. Older stores have no `values` and `cut`;
- where they are known, `phases`: the frames `ed` and `es`, from 0;
- for a view that is no cine, `channels`: the names of its images, single volumes on one grid that lie along T. Their
  label map is that of frame 0.

The sequence and the image plane are not recorded: the names of view and channels say them (`CineInfo.sequences`,
`plane`), also in older stores. So a reader of a data set names its channels after their sequences.

It has 0.4 kB a view, 0.5 with a motion or label map, so that a store of 70,000 studies opens in seconds. The record in
study.json holds more: `window` (raw intensities that became 0 and 255), `affine` (stored voxel index -> scanner mm,
RAS+), `centred_on`, `prepare` (the options), `arrangement` (the file's axis that each axis was taken from,
`orientation.py`; absent in older stores), for `source` and `labels` the name, size and modification time of every
source file, for `phases` where they were read, and for `labels` the volumes `volumes_ml` of a scanned stack, before
resampling and crop: {frame: {label: ml}}.

A store of a public data set (`prepare --dataset`) also has STORE/table.csv and STORE/split.csv, and where it has
landmarks STORE/landmarks.csv (`dataset_tables.py`).

Versions: in version 1 the index held all of these but the options, version 2 knew no channels and no phases. All three
are read, version 3 is written: an older program would take channels for frames of a cine. The index ends with its own
`sha256`, of the bytes before that key, which `cinema-fast verify` compares; older stores have none, older programs
ignore it.

`check.py` describes which damage is detected when. A study appears by one rename of a folder that is complete and on
disk, index.json by one rename of a file. So a reader sees only complete studies, even after a kill or on a full disk.
"""

from __future__ import annotations

import gc
import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from stat import S_ISREG

import numpy as np

from ...common.atomic import sync_file, sync_folder, whole_file
from ...common.naming import counted
from ...common.parsed_file import parse_json
from ...common.regular_file import read_regular
from ...common.views import views_in_order
from .npy import NPY_HEADER_BYTES, header_fault, npy_header
from .records import CineInfo, StoreError, make_info

FORMAT, VERSION = "cinema-fast store", 3
READABLE = 1, 2, VERSION
_SUM = ', "sha256": "'  # the last key of an index


class IndexLost(StoreError):
    """The index of a store is missing or damaged; `prepare` rebuilds it from the studies."""


class CineStore:
    """Reads a cine store. It can be pickled and holds no open file, so any number of worker processes may share one.

    Opening it checks that every file of the index is there with the size that the index implies (one `stat` each);
    the first read of a file, and the first after it changed, checks its header; every read checks its length.

    Args:
        path: the folder that `prepare` wrote.

    Raises:
        StoreError: not a store, another version, no studies, or a file that is missing or altered.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        index = read_index(self.path)
        if not index["studies"]:
            raise StoreError(f"{self.path} holds no studies: its preparation has not finished or nothing could be "
                             f"prepared (see failures.jsonl there); run prepare again")
        self.prepare = index["prepare"]
        self._checked: dict[str, tuple[int, int, int]] = {}  # path -> identity of the file whose header was checked
        self._studies: dict[str, dict[str, CineInfo]] = {}
        for study, views in sorted(index["studies"].items()):
            order = views_in_order(views)
            self._studies[study] = {view: views[view] for view in order}
        self._check_sizes()

    def _check_sizes(self) -> None:
        files = [file for views in self._studies.values() for info in views.values() for file in info.files]
        begun = time.perf_counter()
        wrong = wrong_sizes(files[:200])
        # a local disk answers in microseconds, so threads would only compete for the interpreter; a network disk takes
        # a millisecond or more, but answers many requests at a time
        threads = 32 if time.perf_counter() - begun > 0.02 else 1
        parts = (files[start : start + 1000] for start in range(200, len(files), 1000))
        with ThreadPoolExecutor(threads) as pool:
            wrong.extend(chain.from_iterable(pool.map(wrong_sizes, parts)))
        if wrong:
            more = f"\n  and {len(wrong) - 5} more" if len(wrong) > 5 else ""
            files = counted(len(wrong), "file does", "files do")
            raise StoreError(f"{self.path}: {files} not match the index:\n  " + "\n  ".join(wrong[:5])
                             + more + "\nrun prepare again to replace them, with --motion for motion maps")

    @property
    def ids(self) -> list[str]:
        """The studies, sorted."""
        return list(self._studies)

    def views(self, study: str) -> tuple[str, ...]:
        """The views of a study, in the order sax, lax_2c, lax_3c, lax_4c, others."""
        if study not in self._studies:
            raise StoreError(f"{self.path} has no study {study!r} ({len(self._studies)} studies, "
                             f"the first is {self.ids[0]!r})")
        return tuple(self._studies[study])

    def info(self, study: str, view: str) -> CineInfo:
        """The record of one view of a study."""
        if view not in self.views(study):
            raise StoreError(f"{self.path}: study {study!r} has no view {view!r}, only {self.views(study)}")
        return self._studies[study][view]

    def n_frames(self, study: str, view: str) -> int:
        """Number of frames of a view, which may differ between the views of a study."""
        return self.info(study, view).shape[0]

    def read_frame(self, study: str, view: str, t: int) -> np.ndarray:
        """Frame `t` of a view: uint8 (X, Y[, Z]), reading that frame's bytes only."""
        return self.read_frames(study, view, [t])[0]

    def read_frames(self, study: str, view: str, ts: Iterable[int]) -> np.ndarray:
        """Frames `ts` of a view, in that order: uint8 (len(ts), X, Y[, Z]), one positional read each.

        Raises:
            StoreError: the file is gone, unreadable, or not what the index says.
            IndexError: a frame outside 0..T-1.
        """
        info = self.info(study, view)
        ts = [int(t) for t in ts]
        for t in ts:
            if not 0 <= t < info.shape[0]:
                raise IndexError(f"study {study!r}, view {view!r}: frame {t} of {info.shape[0]}")
        return self._read(info.path, info.shape, info.shape[1:], ts)

    def read_motion(self, study: str, view: str) -> np.ndarray:
        """How much each pixel of a view moves: uint8 (X, Y[, Z]), in units of `info(study, view).motion.max_px` / 255.

        Raises:
            StoreError: the view has no motion map, or its file is missing, unreadable, or not what the index says.
        """
        info = self.info(study, view)
        if info.motion is None:
            raise StoreError(f"{self.path}: study {study!r} has no motion map of {view!r}; "
                             f"`cinema-fast prepare SRC {self.path} --motion` adds it")
        return self._read(info.motion.path, info.shape[1:], info.shape[1:], [0])[0]

    def read_labels(self, study: str, view: str, t: int) -> np.ndarray:
        """The label map of frame `t` of a view: uint8 (X, Y[, Z]), the values of the label files, 0 for background.

        `info(study, view).labels.frames` are the frames that have one.

        Raises:
            StoreError: the frame has no label map, or the file is gone, unreadable, or not what the index says.
            IndexError: a frame outside 0..T-1.
        """
        info = self.info(study, view)
        if not 0 <= t < info.shape[0]:
            raise IndexError(f"study {study!r}, view {view!r}: frame {t} of {info.shape[0]}")
        if info.labels is None:
            raise StoreError(f"{self.path}: study {study!r} has no labels of {view!r}, so none of frame {t}; "
                             f"`cinema-fast prepare SRC STORE --labels PATTERN` stores them")
        frames = info.labels.frames
        if t not in frames:
            listed = ", ".join(map(str, frames[:8])) + (f" and {len(frames) - 8} more" if len(frames) > 8 else "")
            raise StoreError(f"{self.path}: study {study!r}, view {view!r}: frame {t} is not labelled, only {listed}")
        return self._read(info.labels.path, (len(frames), *info.shape[1:]), info.shape[1:], [frames.index(t)])[0]

    def _read(self, path: str, shape: tuple[int, ...], part: tuple[int, ...], at: list[int]) -> np.ndarray:
        """(len(at), *part): parts number `at` of the uint8 array of `shape` that a file holds. Raises StoreError."""
        out = np.empty((len(at), *part), np.uint8)
        n_bytes = math.prod(part)
        try:  # non-blocking, so that a pipe does not wait for a writer
            fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
        except OSError as err:
            raise StoreError(f"{path}: {err.strerror}; it was there when the store was opened") from err
        try:
            stat = os.fstat(fd)
            if not S_ISREG(stat.st_mode):
                raise StoreError(f"{path}: not a regular file; {_again(path)}")
            stamp = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
            if self._checked.get(path) != stamp:
                check_npy_header(path, shape, os.read(fd, NPY_HEADER_BYTES))
                self._checked[path] = stamp
            for target, n in zip(out, at):
                data = os.pread(fd, n_bytes, NPY_HEADER_BYTES + n * n_bytes)
                if len(data) != n_bytes:
                    what = f"frame {n}" if part != shape else "the map"
                    raise StoreError(f"{path}: {what} has {len(data)} bytes, expected {n_bytes}: "
                                     f"the file was cut short; {_again(path)}")
                target[:] = np.frombuffer(data, np.uint8).reshape(part)
        except OSError as err:
            raise StoreError(f"{path}: {err.strerror}") from err
        finally:
            os.close(fd)
        return out

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_checked": {}}  # each process checks headers itself


def files_of(study: str, view: str) -> tuple[str, str, str]:
    """Paths of a view's cine, motion map and label maps, relative to the store."""
    return f"studies/{study}/{view}.npy", motion_file(study, view), labels_file(study, view)


def motion_file(study: str, view: str) -> str:
    """Path of a view's motion map, relative to the store."""
    return f"studies/{study}/{view}.motion.npy"


def labels_file(study: str, view: str) -> str:
    """Path of a view's label maps, relative to the store."""
    return f"studies/{study}/{view}.labels.npy"


def wrong_sizes(files: Iterable[tuple[str, tuple[int, ...]]]) -> list[str]:
    """Messages about the files, (path, shape), that are missing or whose size does not fit their shape."""
    wrong = []
    for path, shape in files:
        expected = NPY_HEADER_BYTES + math.prod(shape)
        try:
            size = os.stat(path).st_size
        except OSError as err:
            wrong.append(f"{path}: {err.strerror}")
        else:
            if size != expected:
                wrong.append(f"{path}: {size} bytes, expected {expected} for the shape {shape}")
    return wrong


def check_npy_header(path: str, expected: tuple[int, ...], head: bytes) -> None:
    """Raise StoreError where `head`, the first bytes of a .npy, is not the header of a uint8 array of that shape."""
    if fault := header_fault(head, expected):
        raise StoreError(f"{path}: {fault}; {_again(path)}")


def _again(path: str) -> str:
    return "run prepare again" + (" with --motion" if path.endswith(".motion.npy") else "")


def read_index(path: Path) -> dict:
    """The index of a store, with format, version and structure checked; "studies" is id -> view -> CineInfo.

    Raises:
        IndexLost: no index, unreadable, or damaged.
        StoreError: of another format or version.
    """
    file, root = path / "index.json", str(path)

    def shrunk(pairs: list[tuple[str, object]]) -> object:
        """Converts a record to its CineInfo while parsing: the dictionaries of a large store would fill the memory."""
        value = dict(pairs)
        if "file" in value and "shape" in value:
            try:
                return make_info(root, value)
            except (KeyError, TypeError, ValueError, AttributeError) as err:
                return err  # reported below, where its study and view are known
        return value

    collecting = gc.isenabled()
    gc.disable()  # nothing here is garbage, and the collector's passes would cost a fifth of the time
    try:
        index = parse_json(read_regular(file).decode(), object_pairs_hook=shrunk)
    except FileNotFoundError:
        what = "is not a cine store (no index.json there)" if path.is_dir() else "does not exist"
        merge = " --merge" if (path / ".shards").is_dir() else ""
        raise IndexLost(f"{path} {what}: make one with `cinema-fast prepare SRC {path}{merge}`") from None
    except (OSError, ValueError) as err:
        raise IndexLost(f"{file}: unreadable index ({err}); run prepare again") from err
    finally:
        if collecting:
            gc.enable()
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise StoreError(f"{file} is not the index of a cine store (no \"format\": \"{FORMAT}\")")
    if index.get("version") not in READABLE:
        raise StoreError(f"{file}: version {index.get('version')!r} of the store format, this program reads "
                         f"{', '.join(map(str, READABLE))}; prepare the store again, or use the program that wrote it")
    if not isinstance(index.get("studies"), dict) or not isinstance(index.get("prepare"), dict):
        raise IndexLost(f"{file}: damaged index (\"studies\" and \"prepare\" must be objects); run prepare again")
    for study, views in index["studies"].items():
        for view, info in views.items() if isinstance(views, dict) else [("", views)]:
            if not isinstance(info, CineInfo):
                why = f"{type(info).__name__}: {info}" if isinstance(info, Exception) else "no record"
                raise IndexLost(f"{file}: the record of study {study!r}, view {view!r} is damaged ({why}); "
                                 f"run prepare again")
            if "/" in study + view or {study, view} & {"", ".", ".."}:  # prepare writes to paths made of these names
                raise StoreError(f"{file}: study {study!r}, view {view!r} are not names of a folder and a file in it; "
                                 f"this store was not written by prepare")
            for path, expected in zip(info.paths, files_of(study, view)):  # refuse paths to other files of this machine
                if path not in (None, f"{root}/{expected}"):
                    raise IndexLost(f"{file}: study {study!r}, view {view!r}: its file is "
                                    f"{path.removeprefix(f'{root}/')}, expected {expected}: the index was altered; run "
                                    f"prepare again")
    return index


def index_is_as_written(path: Path, sha256: object) -> bool:
    """Whether the bytes of a store's index are those that `write_index` wrote under this checksum. Raises OSError."""
    before, _, end = read_regular(path / "index.json").rpartition(_SUM.encode())
    return end.decode(errors="replace") == f'{sha256}"}}\n' and hashlib.sha256(before).hexdigest() == sha256


def write_index(path: Path, options: dict, studies: dict[str, dict[str, dict]]) -> None:
    """Replace the index of the store by one of `studies`: id -> view -> record, one line per study."""
    head = json.dumps({"format": FORMAT, "version": VERSION, "prepare": options})
    lines = (f"{json.dumps(study)}: {json.dumps(index_records(studies[study]))}" for study in sorted(studies))
    parts = (f"{',' if n else ''}\n{line}" for n, line in enumerate(lines))
    with whole_file(path / "index.json", durable=True) as name, name.open("w", encoding="utf-8") as file:
        file.writelines(_summed(chain([f'{head[:-1]}, "studies": {{'], parts, ["\n}"])))


def _summed(parts: Iterable[str]) -> Iterator[str]:
    sha256 = hashlib.sha256()
    for part in parts:
        sha256.update(part.encode())
        yield part
    yield f'{_SUM}{sha256.hexdigest()}"}}\n'


def index_records(records: dict[str, dict]) -> dict[str, dict]:
    """The parts of a study's records that the index holds."""
    keys = ("file", "shape", "spacing_mm", "frame_time_ms", "sha256")
    return {view: {**{key: record[key] for key in keys},
                   **{key: record[key] for key in ("remarks", "channels") if key in record},
                   **({"phases": {key: record["phases"][key] for key in ("ed", "es")}} if "phases" in record else {}),
                   "source": {key: record["source"][key] for key in ("file", "sha256")},
                   **({"motion": record["motion"]} if "motion" in record else {}),
                   **({"labels": {key: record["labels"][key] for key in ("file", "sha256", "frames", "values", "cut")
                                  if key in record["labels"]}}
                      if "labels" in record else {})}
            for view, record in records.items()}


def write_study(
    folder: Path,
    study: str,
    cines: dict[str, tuple[np.ndarray, dict]],
    labels: dict[str, tuple[np.ndarray, dict]] | None = None,
) -> dict[str, dict]:
    """Write the complete folder of one study, synced to disk, for `replace_folder` to move into the store.

    cines: view -> (uint8 frames (T, X, Y[, Z]), record without `file`, `shape` and `sha256`).
    labels: view -> (uint8 label maps (len(frames), X, Y[, Z]), their record with `frames`).
    Returns view -> record as in the index.
    """
    shutil.rmtree(folder, ignore_errors=True)  # left by a worker that died
    folder.mkdir(parents=True)
    records = {}
    for view, (frames, record) in cines.items():
        sha256 = write_array(folder / f"{view}.npy", frames)
        records[view] = {"file": f"studies/{study}/{view}.npy", "shape": list(frames.shape),
                         "sha256": sha256, **record}
    for view, (maps, record) in (labels or {}).items():
        file = labels_file(study, view)
        sha256 = write_array(folder / Path(file).name, maps)
        values = [label for label in np.unique(maps).tolist() if label]
        records[view]["labels"] = {"file": file, "sha256": sha256, "values": values, **record}
    with (folder / "study.json").open("w", encoding="utf-8") as file:
        json.dump(records, file)
        sync_file(file)
    sync_folder(folder)
    return index_records(records)


def write_array(path: Path, array: np.ndarray) -> str:
    """Write uint8 `array` as a .npy in C order, synced to disk; returns the file's SHA-256 in hexadecimal."""
    if array.dtype != np.uint8:
        raise TypeError(f"{path}: the array is {array.dtype}, not uint8")
    sha256 = hashlib.sha256()
    with path.open("wb") as file:
        for part in (npy_header(array.shape), np.ascontiguousarray(array).data.cast("B")):
            file.write(part)
            sha256.update(part)
        sync_file(file)
    return sha256.hexdigest()
