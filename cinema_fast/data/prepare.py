"""From a folder of NIfTI cines to a cine store: `cinema-fast prepare SRC DST`.

Every study is prepared by itself, in worker processes, into a temporary folder; this process alone moves whole
studies into the store and writes the index. So a run may be killed at any moment and started again: studies that are
whole and whose sources have not changed are kept, the others are made, and a lost index is made from what is there.
Motion maps (`motion.py`) are made last, for all that the store then holds.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .check import find_altered, read_studies
from .motion import add_motion_maps
from .nifti import file_sha256
from .pool import available_cores, run_in_processes
from .progress import progress_bar
from .sources import Source, Sources, find_sources
from .store import (
    IndexLost,
    StoreError,
    index_records,
    lock_store,
    publish_study,
    read_index,
    write_atomic,
    write_index,
)
from .study import Failure, StudyTask, file_stats, prepare_study

_SHAPING = ("sax_size", "lax_size", "sax_spacing", "lax_spacing", "labels", "lv_label")
_TEMPORARY = ".preparing"


@dataclass(frozen=True)
class PrepareConfig:
    """Options of `prepare`."""

    src: Path
    """Folder of NIfTI cines (.nii or .nii.gz), 4D with time last: (X, Y, Z, T), long-axis views (X, Y, 1, T)."""
    dst: Path
    """Folder of the store: new, empty, or a store that an earlier run with the same options began."""
    pattern: str = "{id}_{view}.nii.gz"
    """Where the files lie, relative to SRC. {id} names the study (without it SRC is one study), {view} the view,
    * matches anything within one name; sub-folders are allowed, as in "{id}/*_{view}.nii.gz". With {frame}, as in
    "{id}_{view}_{frame}.nii.gz", every file is one 3D frame, and they are stacked in the order of that part of the
    name (which holds no _; numbers by value; so ED before ES)."""
    aliases: tuple[str, ...] = ()
    """How the files spell the views, each as VIEW=SPELLING: lax_2c=Se8_2ch sax=sax_4d_6slices. Other views than sax,
    lax_2c, lax_3c and lax_4c may be named too; they are taken for single slices."""
    labels: str | None = None
    """Pattern of label files relative to SRC, with {id}, {view} and {frame} as in the file they belong to: where such
    a file exists, the view is centred on its left ventricle."""
    lv_label: int = 3
    """Value of the left ventricle's cavity in the label files."""
    sax_size: tuple[int, int, int] = (192, 192, 16)
    """Size of short-axis frames in voxels. In plane cropped or padded to it; of more slices the middle ones are kept,
    fewer slices are stored as they are and padded when they are loaded."""
    lax_size: tuple[int, int] = (256, 256)
    """Size of long-axis frames in pixels."""
    sax_spacing: tuple[float, float, float] = (1.0, 1.0, 10.0)
    """Spacing of short-axis frames in mm."""
    lax_spacing: tuple[float, float] = (1.0, 1.0)
    """Spacing of long-axis frames in mm."""
    workers: int = 0
    """Studies prepared at a time, each in a process of its own; 0: one per core."""
    overwrite: bool = False
    """Empty the store first. Without it, studies whose sources are unchanged are kept."""
    motion: bool = False
    """Also give every view in the store a motion map, where it has none or a damaged one: how much each pixel moves
    over the cycle, by which the masks of pre-training can be guided. It is made from the stored frames, on a GPU where
    there is one."""
    check: bool = False
    """Also read all that is in the store, and make anew the studies whose files are not what was written: altered
    pixels, that is; a study with a file missing, cut short or of another header is made anew without it."""

    def __post_init__(self) -> None:
        for name in ("src", "dst"):
            object.__setattr__(self, name, Path(getattr(self, name)))
        for name in ("sax_size", "lax_size", "sax_spacing", "lax_spacing"):
            if not all(value > 0 for value in getattr(self, name)):
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.workers < 0:
            raise ValueError(f"workers must be 0 (one per core) or more, got {self.workers}")

    def shaping(self) -> dict:
        """The options that shape the stored frames, as they read back from JSON."""
        return json.loads(json.dumps({name: getattr(self, name) for name in _SHAPING}))


@dataclass(slots=True)
class PrepareReport:
    """What `prepare` did. prepared and unchanged count studies; n_studies is what the store now holds; unmatched
    counts NIfTI files that the pattern does not describe; motion_maps those made, None where none were asked for;
    without_motion studies that lack one, in a store that has some."""

    prepared: int = 0
    unchanged: int = 0
    n_studies: int = 0
    unmatched: int = 0
    motion_maps: int | None = None
    without_motion: int = 0
    failures: list[Failure] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0: everything was prepared; 1: something failed, the rest was prepared; 3: nothing was prepared."""
        if not self.prepared + self.unchanged:
            return 3
        return 1 if self.failures else 0

    def __str__(self) -> str:
        lines = [f"{self.prepared} studies prepared, {self.unchanged} unchanged, {len(self.failures)} failures; "
                 f"the store holds {self.n_studies} studies"]
        if self.motion_maps is not None:
            lines[0] += f"; {self.motion_maps} motion maps made"
        if self.without_motion:
            lines.append(f"{self.without_motion} of these studies have no motion map, or not of every view: the same "
                         f"command with --motion adds them")
        if self.unmatched:
            lines.append(f"{self.unmatched} NIfTI files do not match the pattern and were left alone")
        return "\n".join(lines + [f"failed: {failure.file}: {failure.reason}" for failure in self.failures])


def prepare(config: PrepareConfig, *, progress: bool = True) -> PrepareReport:
    """Prepare every study of `config.src` into the store `config.dst` and report what failed.

    A view that fails is reported and the study's other views are kept. A study is replaced only as a whole, and only
    if at least one of its views could be prepared. Failures are also written to DST/failures.jsonl, one JSON object
    (study, view, file, reason) a line; every run replaces that file.

    Args:
        progress: show a progress bar on stderr.

    Raises:
        ValueError: SRC is no folder or nothing in it matches the pattern.
        StoreError: DST is in use by another run, is no store, was prepared with other options, or the disk is full
            (what was finished stays; the same command goes on from there).
    """
    sources = find_sources(config.src, config.pattern, config.aliases)
    store = config.dst
    if store.exists() and not store.is_dir():
        raise StoreError(f"{store} is a file; a store is a folder")
    store.mkdir(parents=True, exist_ok=True)
    report = PrepareReport(unmatched=len(sources.unmatched))
    with lock_store(store):
        try:
            _fill(store, config, sources, report, progress)
        except OSError as err:
            if err.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise StoreError(f"{store}: the disk is full; {report.prepared + report.unchanged} studies are complete "
                             f"and stay: free some space and run the same command again") from err
        finally:
            shutil.rmtree(store / _TEMPORARY, ignore_errors=True)
    return report


def _fill(store: Path, config: PrepareConfig, sources: Sources, report: PrepareReport, progress: bool) -> None:
    rebuild = _open_for_writing(store, config)
    done, unchanged, broken = _survey(store, config, sources, rebuild)
    if config.check:
        sums = {study: {file["file"]: file["sha256"] for record in views.values()
                        for file in (record, record.get("motion")) if file} for study, views in done.items()}
        for fault in find_altered(store, sums, workers=config.workers, progress=progress):
            if fault.motion and config.motion:
                del done[fault.study][fault.motion]["motion"]
            elif fault.motion:
                reason = f"{fault.reason}; --motion makes it anew"
                report.failures.append(Failure(fault.study, fault.motion, fault.file, reason))
            else:
                broken[fault.study] = f"{store / fault.file}: {fault.reason}"
        for study in broken:
            done.pop(study, None)
    had_motion = any("motion" in record for views in done.values() for record in views.values())
    unchanged -= broken.keys()
    report.unchanged = len(unchanged)
    for study, view, files in sources.ambiguous:
        names = ", ".join(path.relative_to(config.src).as_posix() for path in files)
        report.failures.append(Failure(study, view, names, f"more than one file for {view} of {study!r}"))
    for study in sorted(broken.keys() - sources.studies.keys()):
        reason = f"{broken[study]}; it left the index, for {config.src} has no files to make it anew"
        report.failures.append(Failure(study, None, f"studies/{study}", reason))
    tasks = [StudyTask(study, views, config, store / _TEMPORARY / str(n))
             for n, (study, views) in enumerate(sources.studies.items()) if study not in unchanged]
    with closing(_results(tasks, config.workers, progress)) as results:
        for task, result in results:
            _take_in(store, task, result, done, report)
    report.n_studies = len(done)
    _write_outcome(store, config, done, report)
    if config.motion:
        report.motion_maps, failures = add_motion_maps(
            store, done, store / _TEMPORARY, workers=config.workers, progress=progress)
        report.failures += failures
        if report.motion_maps or failures:
            _write_outcome(store, config, done, report)
    elif had_motion:
        report.without_motion = sum(any("motion" not in record for record in views.values()) for views in done.values())


def _write_outcome(store: Path, config: PrepareConfig, done: dict[str, dict[str, dict]], report: PrepareReport) -> None:
    write_atomic(store / "failures.jsonl", (json.dumps(asdict(f)) + "\n" for f in report.failures))
    write_index(store, config.shaping(), done)


def _survey(
    store: Path, config: PrepareConfig, sources: Sources, rebuild: bool
) -> tuple[dict[str, dict[str, dict]], set[str], dict[str, str]]:
    """What is in the store: the whole studies as the index holds them, those of them that need not be prepared, and
    what is wrong with the others.

    Raises:
        StoreError: with `rebuild`, where no index tells the options of the store: there are studies of others.
    """
    options = config.shaping()
    done, unchanged, broken, others = {}, set(), {}, []
    for study, records in read_studies(store):
        if isinstance(records, StoreError):
            broken[study] = str(records)
            continue
        done[study] = index_records(records)
        prepared_with = [record.get("prepare") for record in records.values()]
        others += [before for before in prepared_with[:1] if before != options]
        if _unchanged(records, sources.studies.get(study, {}), config.src):
            unchanged.add(study)
    if rebuild and others:
        raise StoreError(f"{store}: its index is lost, and {len(others)} of its {len(done)} studies were prepared with "
                         f"{_difference(others[0], options)}: prepare with the options of these studies, which makes "
                         f"the index again, or with --overwrite to begin the store anew")
    return done, unchanged, broken


def _difference(before: dict | None, options: dict) -> str:
    if before is None:
        return "unknown options"
    differ = [f"{k}={before.get(k)!r} (asked for {v!r})" for k, v in options.items() if before.get(k) != v]
    return ", ".join(differ) or "other options"


def _open_for_writing(store: Path, config: PrepareConfig) -> bool:
    """Make sure that the folder is an empty or a like-minded store; whether it is one that has lost its index.

    Raises:
        StoreError: neither.
    """
    options = config.shaping()
    has_studies = any((store / "studies").glob("*/study.json"))
    rebuild = False
    try:
        before = read_index(store)["prepare"]
    except IndexLost:
        rebuild = has_studies and not config.overwrite
        ours = {".lock", _TEMPORARY, ".index.json.tmp", ".failures.jsonl.tmp"}
        if has_studies:
            ours |= {"index.json", "failures.jsonl", "studies"}
        elif (store / "studies").is_dir() and not any((store / "studies").iterdir()):
            ours.add("studies")  # killed before it wrote its first index
        if not rebuild and (others := sorted({path.name for path in store.iterdir()} - ours)):
            raise StoreError(f"{store} is not empty and is no cine store (it holds {others[0]!r}): choose another "
                             f"folder") from None
    except StoreError as err:
        if not config.overwrite or not (store / "studies").is_dir():
            raise StoreError(f"{err} (--overwrite begins the store anew)") from err
    else:
        if before != options and not config.overwrite:
            raise StoreError(f"{store} was prepared with {_difference(before, options)}: choose another folder, the "
                             f"same options, or --overwrite to begin the store anew")
    shutil.rmtree(store / _TEMPORARY, ignore_errors=True)
    (store / "studies").mkdir(exist_ok=True)
    if config.overwrite or not (rebuild or (store / "index.json").exists()):
        write_index(store, options, {})
        for study in (store / "studies").glob("*/study.json"):
            shutil.rmtree(study.parent)
    return rebuild


def _results(tasks: list[StudyTask], workers: int, progress: bool) -> Iterator[tuple[StudyTask, tuple | Exception]]:
    workers = min(workers or available_cores(), max(len(tasks), 1))
    results = run_in_processes(prepare_study, tasks, workers)
    with progress_bar("preparing studies", len(tasks), show=progress) as advance, closing(results):
        for result in results:
            yield result
            advance()


def _take_in(store: Path, task: StudyTask, result: tuple | Exception, done: dict, report: PrepareReport) -> None:
    if isinstance(result, OSError):
        raise result  # the store could not be written, and would not be for the next study either
    if isinstance(result, Exception):
        file = next(iter(task.sources.values())).files[0]
        reason = f"its preparation ended with {type(result).__name__}: {result}"
        result = {}, [task.failure(None, file, reason)]
    records, failures = result
    report.failures += failures
    if records:
        publish_study(store, task.folder, task.study)
        done[task.study] = records
        report.prepared += 1


def _unchanged(records: dict[str, dict], views: dict[str, Source], src: Path) -> bool:
    """Whether a stored study was made from exactly these files as they are now."""
    return records.keys() == views.keys() and all(
        _same_files(records[view]["source"], source.files, src) for view, source in views.items()
    )


def _same_files(source: dict, files: tuple[Path, ...], src: Path) -> bool:
    try:
        now = file_stats(files, src)
        if source["files"] == now:
            return True
        # Copied or touched: names and sizes are the same, so the content decides.
        same_sizes = [file[:2] for file in source["files"]] == [file[:2] for file in now]
        return same_sizes and source["sha256"] == file_sha256(files)
    except (OSError, KeyError, TypeError):
        return False
