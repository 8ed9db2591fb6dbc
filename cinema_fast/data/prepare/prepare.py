"""From a folder of NIfTI or DICOM cines to a cine store: `cinema-fast prepare SRC STORE`.

Worker processes prepare each study separately, into a temporary folder. Only this process moves complete studies into
the store and writes the index. So a run may be killed at any moment and repeated: complete studies whose sources have
not changed are kept, the others are prepared, and a lost index is rebuilt from the studies. Motion maps (`motion.py`)
are computed last, for all studies of the store. Many jobs may share the work (`shards.py`).
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from ...common.atomic import TEMPORARY, replace_folder
from ...common.naming import count_studies
from ...common.pool import available_cores, run_in_processes
from ...common.progress import progress_bar
from ..formats.cine import file_sha256
from ..store.check import find_altered, read_studies
from ..store.orientation import gather_remarks, orientation_of
from ..store.store import IndexLost, StoreError, index_records, read_index, write_index
from .dataset_tables import TABLES, remove_tables, write_tables
from .failure import Failure
from .label_measures import BY_LABELS
from .labels import find_labels
from .motion import add_motion_maps
from .prepare_config import PrepareConfig
from .prepare_report import PrepareReport
from .shards import (
    SHARDS,
    failures_file,
    forget_shards,
    hold_store,
    read_outcomes,
    write_failures,
)
from .source_format import find_studies, format_of
from .sources import Phases, Source, Sources, add_phases
from .study import StudyTask, file_stats, prepare_study

_PREPARING = ".preparing"


def prepare(config: PrepareConfig, *, progress: bool = True) -> PrepareReport:
    """Prepare every study of `config.src` into the store `config.dst`, and report failures.

    A view that fails is reported and the study's other views are kept. A study is replaced only as a whole, and only
    if at least one of its views could be prepared. Failures are also written to DST/failures.jsonl, one JSON object
    (study, view, file, reason) a line; every run replaces that file.

    Args:
        progress: show a progress bar on stderr.

    Raises:
        ValueError: SRC is not a folder, no file matches the pattern (or that of labels) or is DICOM, or pydicom is not
            installed.
        StoreError: DST is in use by another run, is not a store, was prepared with other options, or the disk is full
            (finished studies stay; the same command continues from there).
        KeyboardInterrupt: its message says what is kept.
    """
    report = PrepareReport(shard=config.part)
    again = "the same command without --overwrite" if config.overwrite else "the same command"
    try:
        _prepare(config, report, progress)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; {_kept(report, config)}: {again} continues from there") from None
    except OSError as err:
        if err.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StoreError(f"{config.dst}: the disk is full; {_kept(report, config)}: free some space and run {again} "
                         "again") from err
    return report


def _kept(report: PrepareReport, config: PrepareConfig) -> str:
    kept = report.prepared + report.unchanged
    if kept:
        return f"{count_studies(kept)} complete and kept"
    return "nothing was prepared" + ("" if config.overwrite else ", existing files are kept")


def _prepare(config: PrepareConfig, report: PrepareReport, progress: bool) -> None:
    """`prepare`, into `report`."""
    part = config.part
    sources = find_studies(config, progress)
    if config.labels is not None:
        find_labels(sources, config.src, config.labels)
    if config.phases is not None:
        add_phases(sources, config.phases)
    store = config.dst
    if store.exists() and not store.is_dir():
        raise StoreError(f"{store} is a file; a store is a folder")
    if part:
        sources.studies = {study: views for study, views in sources.studies.items() if part.holds(study)}
        sources.refused = [refusal for refusal in sources.refused if part.holds(refusal.study)]
    else:
        report.unmatched_files, report.series = sources.unmatched_names(config.src), sources.series
        report.files = sources.found()
    store.mkdir(parents=True, exist_ok=True)
    with hold_store(store, part):
        temporary = store / SHARDS / f"{part.name}.preparing" if part else store / _PREPARING
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            _fill(store, temporary, config, sources, report, progress)
            if not part:
                forget_shards(store, outcomes=not config.merge)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _fill(
    store: Path, temporary: Path, config: PrepareConfig, sources: Sources, report: PrepareReport, progress: bool
) -> None:
    config, rebuild = _open_for_writing(store, config)
    report.as_stored = config.orientation == "stored"
    done, unchanged, broken = _survey(store, config, sources, rebuild)
    if config.repair:
        _check(store, config, done, broken, report, progress)
    had_motion = any("motion" in record for views in done.values() for record in views.values())
    unchanged -= broken.keys()
    report.unchanged = len(unchanged)
    if config.merge:
        report.unchanged = len(done)
        report.failures += _missing(config, sources, done, broken, read_outcomes(store))
    else:
        report.failures += [Failure(*refusal) for refusal in sources.refused]
        for study in sorted(broken.keys() - sources.studies.keys()):
            reason = f"{broken[study]}; removed from the index, because {config.src} has no files of it"
            report.failures.append(Failure(study, None, f"studies/{study}", reason))
        tasks = [StudyTask(study, views, config, temporary / str(n))
                 for n, (study, views) in enumerate(sources.studies.items()) if study not in unchanged]
        with closing(prepared_studies(tasks, config.workers, progress)) as results:
            for task, result in results:
                _take_in(store, task, result, done, report)
    report.n_studies = len(done)
    gather_remarks(report.remarks, done)
    if config.reads_labels:
        report.labelled = sum(any("labels" in record for record in views.values()) for views in done.values())
        report.cut = sorted(((record["labels"]["cut"], study, view) for study, views in done.items()
                             for view, record in views.items() if "cut" in record.get("labels", {})), reverse=True)
    _write_outcome(store, config, done, report)
    if not config.part:
        if config.overwrite:
            remove_tables(store)
        if config.dataset:
            report.tables = write_tables(store, sources, done)
    if config.motion:
        report.motion_maps, failures = add_motion_maps(
            store, done, temporary, workers=config.workers, progress=progress)
        report.failures += failures
        if report.motion_maps or failures:
            _write_outcome(store, config, done, report)
    elif had_motion:
        report.without_motion = sum(any(not {"motion", "channels"} & record.keys() for record in views.values())
                                    for views in done.values())


def _check(
    store: Path, config: PrepareConfig, done: dict, broken: dict[str, str], report: PrepareReport, progress: bool
) -> None:
    """Move studies with an altered file from `done` to `broken`; drop altered motion maps."""
    checksums = {study: {file["file"]: file["sha256"] for record in views.values()
                         for file in (record, record.get("motion"), record.get("labels")) if file}
                 for study, views in done.items()}
    for fault in find_altered(store, checksums, workers=config.workers, progress=progress):
        if fault.motion and config.motion:
            del done[fault.study][fault.motion]["motion"]
        elif fault.motion:
            reason = f"{fault.reason}; --motion computes it again"
            report.failures.append(Failure(fault.study, fault.motion, fault.file, reason))
        else:
            broken[fault.study] = f"{store / fault.file}: {fault.reason}"
    for study in broken:
        done.pop(study, None)


def _missing(
    config: PrepareConfig, sources: Sources, done: dict, broken: dict[str, str], outcomes: list[Failure]
) -> list[Failure]:
    """The failures of the shards, the damaged studies, and the studies that no shard has prepared."""
    failures = outcomes + [Failure(study, None, f"studies/{study}", reason) for study, reason in broken.items()]
    known = done.keys() | {failure.study for failure in failures}
    for study, views in sources.studies.items():
        if study not in known:
            file = next(iter(views.values())).files[0].relative_to(config.src).as_posix()
            failures.append(Failure(study, None, file, f"the study {study} is missing: no shard has prepared it"))
    return failures


def _write_outcome(store: Path, config: PrepareConfig, done: dict[str, dict[str, dict]], report: PrepareReport) -> None:
    if config.part:
        write_failures(failures_file(store, config.part.name), report.failures)
    else:
        write_failures(store / "failures.jsonl", report.failures)
        write_index(store, config.shaping(), done)


def _survey(
    store: Path, config: PrepareConfig, sources: Sources, rebuild: bool
) -> tuple[dict[str, dict[str, dict]], set[str], dict[str, str]]:
    """The content of the store: complete studies with their records as in the index, the complete studies that need not
    be prepared again, and {study: what is wrong} of the others.

    Raises:
        StoreError: with `rebuild` (the index is lost), studies that were prepared with other options.
    """
    options = config.shaping()
    done, unchanged, broken, others = {}, set(), {}, []
    wanted = (config.part.holds,) if config.part else ()
    for study, records in read_studies(store, *wanted):
        if isinstance(records, StoreError):
            broken[study] = str(records)
            continue
        prepared_with = [record.get("prepare") for record in records.values()]
        # records of version 1 do not hold their options; they are those of the index, if there is one
        if different := [before for before in prepared_with if before != options and (before is not None or rebuild)]:
            others.append(different[0])
            broken[study] = (f"it was prepared with {_difference(different[0], options)}, probably before an "
                             f"unfinished --overwrite")
            continue
        done[study] = index_records(records)
        if _unchanged(records, sources.studies.get(study, {}), config.src):
            unchanged.add(study)
    if rebuild and others:
        raise StoreError(f"{store}: its index is lost, and {len(others)} of its {len(done) + len(broken)} studies were "
                         f"prepared with {_difference(others[0], options)}: prepare with the options of these studies, "
                         f"which restores the index, or with --overwrite to start the store over")
    return done, unchanged, broken


def _difference(before: dict | None, options: dict) -> str:
    if before is None:
        return "unknown options"
    before, options = ({"orientation": "stored"} | one for one in (before, options))
    names = dict.fromkeys([*options, *before])
    differ = [f"{k}={before.get(k)!r} (now {options.get(k)!r})" for k in names if before.get(k) != options.get(k)]
    return ", ".join(differ) or "other options"


def _as_begun(config: PrepareConfig, begun: dict | None) -> PrepareConfig:
    """The options, with --orientation auto resolved. begun: the options of the existing store, or None."""
    if config.orientation != "auto":
        return config
    return replace(config, orientation="patient" if begun is None or config.overwrite else orientation_of(begun))


def _open_for_writing(store: Path, config: PrepareConfig) -> tuple[PrepareConfig, bool]:
    """Check that the folder is empty, or a store with the same options. Returns the options, with --orientation auto
    resolved, and whether it is a store that has lost its index.

    Raises:
        StoreError: the folder is neither.
    """
    has_studies = any((store / "studies").glob("*/study.json"))
    rebuild = False
    try:
        before = read_index(store)["prepare"]
    except IndexLost:
        first = next((found for _, found in read_studies(store) if isinstance(found, dict)), {}) if has_studies else {}
        config = _as_begun(config, next(iter(first.values()), {}).get("prepare"))
        rebuild = has_studies and not config.overwrite
        ours = {".lock", SHARDS, _PREPARING, *TABLES, f"{TEMPORARY}index.json", f"{TEMPORARY}failures.jsonl",
                ".index.json.tmp"}  # of an earlier version
        if has_studies or (config.part and (store / "studies").is_dir()):
            ours |= {"index.json", "failures.jsonl", "studies"}
        elif (store / "studies").is_dir() and not any((store / "studies").iterdir()):
            ours.add("studies")  # killed before it wrote its first index
        if not rebuild and (others := sorted({path.name for path in store.iterdir()} - ours)):
            raise StoreError(f"{store} is not empty and is not a cine store (it holds {others[0]!r}): choose another "
                             f"folder") from None
    except StoreError as err:
        if not config.overwrite or not (store / "studies").is_dir():
            raise StoreError(f"{err} (--overwrite starts the store over)") from err
        config = _as_begun(config, None)
    else:
        config = _as_begun(config, before)
        options = config.shaping()
        if before != options and not config.overwrite:
            raise StoreError(f"{store} was prepared with {_difference(before, options)}: choose another folder, the "
                             f"same options, or --overwrite to start the store over")
    (store / "studies").mkdir(exist_ok=True)
    if config.part:
        return config, not (store / "index.json").exists()
    if config.overwrite or not (rebuild or (store / "index.json").exists()):
        write_index(store, config.shaping(), {})
        for study in (store / "studies").glob("*/study.json"):
            shutil.rmtree(study.parent)
    return config, rebuild


def prepared_studies(
    tasks: list[StudyTask], workers: int, progress: bool, what: str = "preparing studies"
) -> Iterator[tuple[StudyTask, tuple | Exception]]:
    """Each task with the result of `prepare_study`, or the exception that ended it, in the order of completion."""
    workers = min(workers or available_cores(), max(len(tasks), 1))
    contained = any(format_of(source.format).contained for task in tasks for source in task.sources.values())
    results = run_in_processes(prepare_study, tasks, workers, contained=contained)
    with progress_bar(what, len(tasks), show=progress) as advance, closing(results):
        for result in results:
            yield result
            advance()


def _take_in(store: Path, task: StudyTask, result: tuple | Exception, done: dict, report: PrepareReport) -> None:
    if isinstance(result, OSError):
        raise result  # the store cannot be written, so other studies would fail too
    if isinstance(result, Exception):
        file = next(iter(task.sources.values())).files[0]
        reason = f"its preparation ended with {type(result).__name__}: {result}"
        result = {}, [task.failure(None, file, reason)]
    records, failures = result
    report.failures += failures
    if records:
        replace_folder(task.folder, store / "studies" / task.study)
        done[task.study] = records
        report.prepared += 1


def _unchanged(records: dict[str, dict], views: dict[str, Source], src: Path) -> bool:
    """Whether a stored study was made from exactly these files, including label files, as they are now."""
    unlabelled = {"source": {"files": []}}
    return records.keys() == views.keys() and all(
        _same_files(records[view]["source"], source.files, src)
        and _same_files(records[view].get("labels", unlabelled).get("source"), source.labels, src)
        and _same_phases(records[view].get("phases"), source.phases)
        for view, source in views.items()
    )


def _same_phases(recorded: dict | None, given: Phases | None) -> bool:
    """Whether the ED and ES of a record need not change: none are given, or the same. So those of an earlier --phases
    stay."""
    if given is None:
        return True
    return recorded is not None and recorded["source"] != BY_LABELS and (recorded["ed"], recorded["es"]) == given[:2]


def _same_files(source: dict | None, files: tuple[Path, ...], src: Path) -> bool:
    try:
        now = file_stats(files, src)
        if source["files"] == now:
            return True
        # copied or touched files: names and sizes are the same, so the content is compared
        same_sizes = [file[:2] for file in source["files"]] == [file[:2] for file in now]
        return same_sizes and source["sha256"] == file_sha256(files)
    except (OSError, KeyError, TypeError):
        return False
