"""From a folder of NIfTI or DICOM cines to a cine store: `cinema-fast prepare SRC DST`.

Every study is prepared by itself, in worker processes, into a temporary folder; this process alone moves whole
studies into the store and writes the index. So a run may be killed at any moment and started again: studies that are
whole and whose sources have not changed are kept, the others are made, and a lost index is made from what is there.
Motion maps (`motion.py`) are made last, for all that the store then holds. Many jobs may share the work (`shards.py`).
"""

from __future__ import annotations

import errno
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from .check import find_altered, read_studies
from .dicom_sources import find_dicom_sources, holds_dicom
from .labels import find_labels
from .motion import add_motion_maps
from .nifti import file_sha256
from .orientation import AS_STORED_STORE, gather_remarks, orientation_of, told_remarks
from .pool import available_cores, run_in_processes
from .progress import progress_bar
from .shards import (
    SHARDS,
    Shard,
    failures_file,
    forget_shards,
    hold_store,
    parse_shard,
    read_outcomes,
    write_failures,
)
from .sources import Source, Sources, find_sources, holds_nifti, unmatched_line
from .store import IndexLost, StoreError, index_records, publish_study, read_index, write_index
from .study import Failure, StudyTask, failure_lines, file_stats, prepare_study
from .view_rules import read_rules

_SHAPING = ("sax_size", "lax_size", "sax_spacing", "lax_spacing", "labels", "lv_label")
_TEMPORARY = ".preparing"
MOST_CUT = 6  # views named of those whose labels the crop cuts off


@dataclass(frozen=True)
class PrepareConfig:
    """Options of `prepare`."""

    src: Path
    """Folder of NIfTI cines (.nii or .nii.gz), 4D with time last: (X, Y, Z, T), long-axis views (X, Y, 1, T); or of
    DICOM cine series, in folders of any depth."""
    dst: Path
    """Folder of the store: new, empty, or a store that an earlier run with the same options began."""
    format: Literal["auto", "nifti", "dicom"] = "auto"
    """What SRC holds. auto: NIfTI where files named so lie where the pattern looks, else DICOM."""
    views_rules: Path | None = None
    """DICOM: YAML file of the rules by which descriptions of series become views; without, those that the package
    brings (data/view_rules.yaml, to begin your own from)."""
    pattern: str = "{id}_{view}.nii.gz"
    """Where the files lie, relative to SRC. {id} names the study (without it SRC is one study), {view} the view,
    * matches anything within one name; sub-folders are allowed, as in "{id}/*_{view}.nii.gz". With {frame}, as in
    "{id}_{view}_{frame}.nii.gz", every file is one 3D frame, and they are stacked in the order of that part of the
    name (which holds no _; numbers by value; so ED before ES)."""
    aliases: tuple[str, ...] = ()
    """How the files spell the views, each as VIEW=SPELLING: lax_2c=Se8_2ch sax=sax_4d_6slices. Other views than sax,
    lax_2c, lax_3c and lax_4c may be named too; they are taken for single slices."""
    labels: str | None = None
    """Pattern of label files (NIfTI) relative to SRC, with {id} and {view} as in the files they belong to: where there
    is one, the label maps are stored beside the cine, and the view is centred on the labelled left ventricle. A file
    holds the maps of all frames (4D, frames without labels being empty); or of one frame, with {frame} in its name: as
    in the cine's own files where those are frames, else the number of the frame, from 1 ("{id}_frame{frame}_gt.nii.gz"
    for ..._frame01_gt.nii.gz)."""
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
    orientation: Literal["auto", "patient", "stored"] = "auto"
    """How the axes of the images lie. patient: alike in every study, found from each header, however a file stores
    them; stored: as in the files, as stores of earlier versions are and published weights have seen them. auto: as the
    store was begun; a new one by the patient."""
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
    pixels, that is; a study with a file missing, cut short or of another header is made anew without it. To read a
    store and change nothing, without SRC: `cinema-fast verify STORE`."""

    shard: str | None = None
    """Prepare only part k of n, as k/n (k from 1), beside other jobs that prepare the other parts of SRC into the same
    store; the store has no index until `--merge`."""
    merge: bool = False
    """Prepare nothing: make the index of what the shards have put into the store, and report what failed or is
    missing."""

    def __post_init__(self) -> None:
        for name in ("src", "dst"):
            object.__setattr__(self, name, Path(getattr(self, name)))
        for name in ("sax_size", "lax_size", "sax_spacing", "lax_spacing"):
            if not all(value > 0 for value in getattr(self, name)):
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.workers < 0:
            raise ValueError(f"workers must be 0 (one per core) or more, got {self.workers}")
        if self.merge and self.shard:
            raise ValueError("--merge comes after all shards and is none of them: leave out --shard")
        if self.overwrite and (self.merge or self.shard):
            raise ValueError("--overwrite would remove what other shards prepared: remove the store first")
        _ = self.part

    @property
    def part(self) -> Shard | None:
        """`shard`, understood. Raises ValueError."""
        return parse_shard(self.shard) if self.shard else None

    def shaping(self) -> dict:
        """The options that shape the stored frames, as they read back from JSON."""
        options = json.loads(json.dumps({name: getattr(self, name) for name in _SHAPING}))
        return options | ({} if self.orientation == "stored" else {"orientation": "patient"})


@dataclass(slots=True)
class PrepareReport:
    """What `prepare` did. prepared and unchanged count studies; n_studies is what the store now holds, of a shard its
    part of that; files counts (studies, files) of NIfTI by (view, how the files spell it), unmatched_files are those
    that the pattern does not describe; series counts DICOM series by (description, view or None, why left out);
    labelled studies of the store that have label maps, None where none were asked for, cut
    (share of the labelled volume, study, view) of maps that reach over the crop, largest first; remarks about headers,
    each with the "study view" it is about; as_stored: the axes of the store's images lie as in their files; motion_maps
    those made, None likewise; without_motion studies that lack one, in a store that has some."""

    prepared: int = 0
    unchanged: int = 0
    n_studies: int = 0
    files: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)
    unmatched_files: list[str] = field(default_factory=list)
    series: Counter[tuple[str, str | None, str]] = field(default_factory=Counter)
    shard: Shard | None = None
    labelled: int | None = None
    cut: list[tuple[float, str, str]] = field(default_factory=list)
    remarks: dict[str, list[str]] = field(default_factory=dict)
    as_stored: bool = False
    motion_maps: int | None = None
    without_motion: int = 0
    failures: list[Failure] = field(default_factory=list)

    @property
    def unmatched(self) -> int:
        """Number of NIfTI files that the pattern does not describe."""
        return len(self.unmatched_files)

    @property
    def exit_code(self) -> int:
        """0: everything was prepared; 1: something failed, the rest was prepared; 3: nothing was prepared.

        A shard that has no studies, of few that many share, has prepared everything.
        """
        if not self.prepared + self.unchanged and (self.failures or not self.shard):
            return 3
        return 1 if self.failures else 0

    def __str__(self) -> str:
        lines = [f"{self.prepared} studies prepared, {self.unchanged} unchanged, {len(self.failures)} failures; "
                 f"the store holds {self.n_studies} studies" + (f" of shard {self.shard}" if self.shard else "")]
        if self.labelled is not None:
            lines[0] += f", {self.labelled or 'none'} of them labelled"
        if self.motion_maps is not None:
            lines[0] += f"; {self.motion_maps} motion maps made"
        if self.cut:
            most = [f"{study} {view} {100 * share:.3g} %" for share, study, view in self.cut[:MOST_CUT]]
            lines.append(f"{len({study for _, study, _ in self.cut})} of these studies have labels that reach over the "
                         f"crop, which cuts them off (share of the labelled volume: "
                         f"{', '.join(most + ['...'] * (len(self.cut) > MOST_CUT))}): a larger size keeps them")
        lines += told_remarks(self.remarks)
        if self.as_stored:
            lines.append(AS_STORED_STORE)
        if self.without_motion:
            lines.append(f"{self.without_motion} of these studies have no motion map, or not of every view: the same "
                         f"command with --motion adds them")
        lines += [f"{view}: {files} files {spelling!r} of {studies} studies"
                  for (view, spelling), (studies, files) in sorted(self.files.items())]
        kinds = sorted(self.series, key=lambda kind: (kind[1] is None, kind[1] or "", kind[2], kind[0]))
        for description, view, reason in kinds:
            became = f"{view}:" if view else f"left out ({reason}):"
            lines.append(f"{became} {self.series[description, view, reason]} series {description!r}")
        if self.unmatched_files:
            lines.append(unmatched_line(self.unmatched_files))
        if self.shard:
            lines.append("when all shards have ended, --merge in the place of --shard makes the index")
        return "\n".join(lines + failure_lines(self.failures, "failures.jsonl"))


def prepare(config: PrepareConfig, *, progress: bool = True) -> PrepareReport:
    """Prepare every study of `config.src` into the store `config.dst` and report what failed.

    A view that fails is reported and the study's other views are kept. A study is replaced only as a whole, and only
    if at least one of its views could be prepared. Failures are also written to DST/failures.jsonl, one JSON object
    (study, view, file, reason) a line; every run replaces that file.

    Args:
        progress: show a progress bar on stderr.

    Raises:
        ValueError: SRC is no folder, nothing matches the pattern (or that of labels) or is DICOM, or pydicom is absent.
        StoreError: DST is in use by another run, is no store, was prepared with other options, or the disk is full
            (what was finished stays; the same command goes on from there).
        KeyboardInterrupt: with what stays, in words.
    """
    report = PrepareReport(shard=config.part)
    again = "the same command without --overwrite" if config.overwrite else "the same command"
    try:
        _prepare(config, report, progress)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; {_kept(report, config)}: {again} goes on from there") from None
    except OSError as err:
        if err.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StoreError(f"{config.dst}: the disk is full; {_kept(report, config)}: free some space and run {again} "
                         "again") from err
    return report


def _kept(report: PrepareReport, config: PrepareConfig) -> str:
    kept = report.prepared + report.unchanged
    if kept:
        return f"{kept} studies are complete and stay"
    return "nothing was prepared" + ("" if config.overwrite else ", what was there stays")


def _prepare(config: PrepareConfig, report: PrepareReport, progress: bool) -> None:
    """`prepare`, into `report`."""
    part = config.part
    sources = sources_of(config, progress)
    if config.labels is not None:
        find_labels(sources, config.src, config.labels)
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
        temporary = store / SHARDS / f"{part.name}.preparing" if part else store / _TEMPORARY
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            _fill(store, temporary, config, sources, report, progress)
            if not part:
                forget_shards(store, outcomes=not config.merge)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def sources_of(config: PrepareConfig, progress: bool) -> Sources:
    """The studies of `config.src`, NIfTI or DICOM. Raises ValueError as `prepare` does."""
    dicom = config.format == "dicom" or (
        config.format == "auto" and config.src.is_dir() and not holds_nifti(config.src, config.pattern)
        and holds_dicom(config.src))
    if dicom:
        if config.aliases:
            raise ValueError(f"--aliases is for names of NIfTI files, and {config.src} is read as DICOM: --views-rules")
        rules = read_rules(config.views_rules)
        return find_dicom_sources(config.src, rules, workers=config.workers, progress=progress)
    if config.views_rules:
        raise ValueError(f"--views-rules is for DICOM, and {config.src} is read as NIfTI: --format dicom, or --aliases")
    return find_sources(config.src, config.pattern, config.aliases)


def _fill(
    store: Path, temporary: Path, config: PrepareConfig, sources: Sources, report: PrepareReport, progress: bool
) -> None:
    config, rebuild = _open_for_writing(store, config)
    report.as_stored = config.orientation == "stored"
    done, unchanged, broken = _survey(store, config, sources, rebuild)
    if config.check:
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
            reason = f"{broken[study]}; it left the index, for {config.src} has no files to make it anew"
            report.failures.append(Failure(study, None, f"studies/{study}", reason))
        tasks = [StudyTask(study, views, config, temporary / str(n))
                 for n, (study, views) in enumerate(sources.studies.items()) if study not in unchanged]
        with closing(prepared_studies(tasks, config.workers, progress)) as results:
            for task, result in results:
                _take_in(store, task, result, done, report)
    report.n_studies = len(done)
    gather_remarks(report.remarks, done)
    if config.labels is not None:
        report.labelled = sum(any("labels" in record for record in views.values()) for views in done.values())
        report.cut = sorted(((record["labels"]["cut"], study, view) for study, views in done.items()
                             for view, record in views.items() if "cut" in record.get("labels", {})), reverse=True)
    _write_outcome(store, config, done, report)
    if config.motion:
        report.motion_maps, failures = add_motion_maps(
            store, done, temporary, workers=config.workers, progress=progress)
        report.failures += failures
        if report.motion_maps or failures:
            _write_outcome(store, config, done, report)
    elif had_motion:
        report.without_motion = sum(any("motion" not in record for record in views.values()) for views in done.values())


def _check(
    store: Path, config: PrepareConfig, done: dict, broken: dict[str, str], report: PrepareReport, progress: bool
) -> None:
    """Move the studies of which a file was altered from `done` to `broken`, and forget maps that were."""
    sums = {study: {file["file"]: file["sha256"] for record in views.values()
                    for file in (record, record.get("motion"), record.get("labels")) if file}
            for study, views in done.items()}
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


def _missing(
    config: PrepareConfig, sources: Sources, done: dict, broken: dict[str, str], outcomes: list[Failure]
) -> list[Failure]:
    """What failed in the shards, what is damaged, and the studies of the sources that no shard tells of."""
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
    """What is in the store: the whole studies as the index holds them, those of them that need not be prepared, and
    what is wrong with the others.

    Raises:
        StoreError: with `rebuild`, where no index tells the options of the store: there are studies of others.
    """
    options = config.shaping()
    done, unchanged, broken, others = {}, set(), {}, []
    wanted = (config.part.holds,) if config.part else ()
    for study, records in read_studies(store, *wanted):
        if isinstance(records, StoreError):
            broken[study] = str(records)
            continue
        prepared_with = [record.get("prepare") for record in records.values()]
        # records of version 1 do not say their options: those of the index, where there is one
        if different := [before for before in prepared_with if before != options and (before is not None or rebuild)]:
            others.append(different[0])
            broken[study] = (f"it was prepared with {_difference(different[0], options)}, as before an --overwrite "
                             f"that did not end")
            continue
        done[study] = index_records(records)
        if _unchanged(records, sources.studies.get(study, {}), config.src):
            unchanged.add(study)
    if rebuild and others:
        raise StoreError(f"{store}: its index is lost, and {len(others)} of its {len(done) + len(broken)} studies were "
                         f"prepared with {_difference(others[0], options)}: prepare with the options of these studies, "
                         f"which makes the index again, or with --overwrite to begin the store anew")
    return done, unchanged, broken


def _difference(before: dict | None, options: dict) -> str:
    if before is None:
        return "unknown options"
    before, options = ({"orientation": "stored"} | one for one in (before, options))
    differ = [f"{k}={before.get(k)!r} (asked for {v!r})" for k, v in options.items() if before.get(k) != v]
    return ", ".join(differ) or "other options"


def _as_begun(config: PrepareConfig, begun: dict | None) -> PrepareConfig:
    """The options with their orientation settled: `begun` are those of the store that is there, if any."""
    if config.orientation != "auto":
        return config
    return replace(config, orientation="patient" if begun is None or config.overwrite else orientation_of(begun))


def _open_for_writing(store: Path, config: PrepareConfig) -> tuple[PrepareConfig, bool]:
    """Make sure that the folder is an empty store or one of the same options; these, with the orientation settled, and
    whether it is one that has lost its index.

    Raises:
        StoreError: neither.
    """
    has_studies = any((store / "studies").glob("*/study.json"))
    rebuild = False
    try:
        before = read_index(store)["prepare"]
    except IndexLost:
        first = next((found for _, found in read_studies(store) if isinstance(found, dict)), {}) if has_studies else {}
        config = _as_begun(config, next(iter(first.values()), {}).get("prepare"))
        rebuild = has_studies and not config.overwrite
        ours = {".lock", SHARDS, _TEMPORARY, ".index.json.tmp", ".failures.jsonl.tmp"}
        if has_studies or (config.part and (store / "studies").is_dir()):
            ours |= {"index.json", "failures.jsonl", "studies"}
        elif (store / "studies").is_dir() and not any((store / "studies").iterdir()):
            ours.add("studies")  # killed before it wrote its first index
        if not rebuild and (others := sorted({path.name for path in store.iterdir()} - ours)):
            raise StoreError(f"{store} is not empty and is no cine store (it holds {others[0]!r}): choose another "
                             f"folder") from None
    except StoreError as err:
        if not config.overwrite or not (store / "studies").is_dir():
            raise StoreError(f"{err} (--overwrite begins the store anew)") from err
        config = _as_begun(config, None)
    else:
        config = _as_begun(config, before)
        options = config.shaping()
        if before != options and not config.overwrite:
            raise StoreError(f"{store} was prepared with {_difference(before, options)}: choose another folder, the "
                             f"same options, or --overwrite to begin the store anew")
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
    """Each task with what `prepare_study` made of it, or the exception that ended it, in the order of completion."""
    workers = min(workers or available_cores(), max(len(tasks), 1))
    # decoders of compressed DICOM are compiled code of many hands, and what a file makes of them may end a process
    contained = any(source.format == "dicom" for task in tasks for source in task.sources.values())
    results = run_in_processes(prepare_study, tasks, workers, contained=contained)
    with progress_bar(what, len(tasks), show=progress) as advance, closing(results):
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
    """Whether a stored study was made from exactly these files, those of labels too, as they are now."""
    unlabelled = {"source": {"files": []}}
    return records.keys() == views.keys() and all(
        _same_files(records[view]["source"], source.files, src)
        and _same_files(records[view].get("labels", unlabelled).get("source"), source.labels, src)
        for view, source in views.items()
    )


def _same_files(source: dict | None, files: tuple[Path, ...], src: Path) -> bool:
    try:
        now = file_stats(files, src)
        if source["files"] == now:
            return True
        # Copied or touched: names and sizes are the same, so the content decides.
        same_sizes = [file[:2] for file in source["files"]] == [file[:2] for file in now]
        return same_sizes and source["sha256"] == file_sha256(files)
    except (OSError, KeyError, TypeError):
        return False
