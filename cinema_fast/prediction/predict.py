"""`cinema-fast predict`: prepare studies, predict them, and bring the predictions back to the grid of the scan.

Each study is prepared by the code of `prepare`, with the options of the run's store, into OUT/.preparing, and removed
from there after its prediction. Its files go to OUT/studies/ID/. Its lines are appended to the tables before the next
study begins; at the end the tables are sorted by study.
"""

import csv
import json
import math
import shutil
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from .. import __version__
from ..common.atomic import replace_folder, whole_file
from ..common.naming import count_studies, counted, named
from ..common.output import new_folder
from ..data.formats.cine import CineError
from ..data.prepare.failure import Failure, failure_lines
from ..data.prepare.prepare import PrepareConfig, prepared_studies
from ..data.prepare.source_format import find_studies
from ..data.prepare.sources import (
    NO_STUDY,
    NamePattern,
    Source,
    Sources,
    add_phases,
    parse_aliases,
    series_lines,
    unmatched_line,
    with_volumes,
)
from ..data.prepare.study import StudyTask
from ..data.store.orientation import AS_STORED_RUN, gather_remarks, orientation_of, remark_lines
from ..data.store.store import CineStore, write_index
from ..metrics.flags import CODES, in_order
from ..tasks.context import StudyPrediction
from ..tasks.finetuned_run import FinetunedRun, load_run, task_of
from ..tasks.task import Task
from .predict_config import PredictConfig

TABLES = (".csv", ".cfg", ".txt")  # endings of the tables of public data sets
_GRID = ("sax_size", "lax_size", "sax_spacing", "lax_spacing")
# names of files may hold bytes that are not text; surrogateescape preserves them
_TEXT = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}


@dataclass
class PredictReport:
    """Summary of OUT: number of studies, failures, and NIfTI files that the pattern does not match.

    series: a line for each kind of DICOM series. cut_off: {study: structures that reach the edge of the model's image,
    whose volumes may be too small}. flags: {study: codes for review}. missing: {study: views that the model reads and
    the study lacks}. trained: the views of the training studies, in words. remarks: {remark on a header: ["study
    view"]}. as_stored: the run was trained on images with the axes of their files, and these are predicted likewise.
    """

    out: Path
    studies: int = 0
    unmatched_files: list[str] = field(default_factory=list)
    series: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    cut_off: dict[str, str] = field(default_factory=dict)
    flags: dict[str, list[str]] = field(default_factory=dict)
    missing: dict[str, tuple[str, ...]] = field(default_factory=dict)
    trained: str = ""
    remarks: dict[str, list[str]] = field(default_factory=dict)
    as_stored: bool = False

    @property
    def unmatched(self) -> int:
        """Number of NIfTI files that do not match the pattern."""
        return len(self.unmatched_files)

    @property
    def exit_code(self) -> int:
        """0: everything was predicted; 1: something failed; 3: no study was predicted, and there is no OUT."""
        if not self.studies:
            return 3
        return 1 if self.failures else 0

    def __str__(self) -> str:
        nothing = sum("nothing_found" in codes for codes in self.flags.values())
        lines = [f"{count_studies(self.studies)} predicted, {counted(len(self.failures), 'failure')}"
                 + f", nothing found in a view of {count_studies(nothing)}" * bool(nothing)]  # fmt: skip
        if self.unmatched_files:
            lines.append(unmatched_line(self.unmatched_files))
        lines += self.series
        if self.as_stored:
            lines.append(AS_STORED_RUN)
        lines += remark_lines(self.remarks)
        lines += [f"study {study}: {what} reach the edge of the model's image, so volumes may be too small"
                  for study, what in self.cut_off.items()]
        for views in dict.fromkeys(self.missing.values()):
            have = [study for study, missing in self.missing.items() if missing == views]
            lines.append(f"{_named(have)} without {', '.join(views)}, which the model uses")
        if self.missing:
            lines.append(self.trained)
        shown = {"cut_off", "missing_views"}  # listed above, with details
        for code in in_order(code for codes in self.flags.values() for code in codes if code not in shown):
            having = [study for study, codes in self.flags.items() if code in codes]
            lines.append(f"flag {code}: {_named(having)}: {CODES[code]}")
        lines += failure_lines(self.failures, "results.json")
        return "\n".join(lines + [f"written: {self.out}"] * bool(self.studies))


def _named(ids: list[str]) -> str:
    """The number of studies, and the names of the first ones."""
    return f"{count_studies(len(ids))} ({named(ids)})"


def predict(config: PredictConfig, *, progress: bool = True) -> PredictReport:
    """Predict every study of `config.src`, and report what failed; see `PredictConfig` for what is written.

    A view that fails is reported, and the study is predicted from its other views that the model reads.

    Args:
        progress: show a progress bar on stderr.

    Raises:
        ValueError: not a fine-tuned run, OUT is not empty, no file matches, or none is of a view that the model reads.
        OutputError: OUT cannot be written; no part of it is left.
    """
    tables = _columns_of(task_of(config.run))
    with new_folder(config.out, "predict", vars(config), ("studies", *tables, "results.json", ".preparing")):
        return _predict(config, progress)


def _predict(config: PredictConfig, progress: bool) -> PredictReport:
    out = config.out
    run = load_run(config.run, device=config.device, precision=config.precision).at_frames(config.frames)
    made_as = run.info.store.prepare
    grid = {name: tuple(made_as[name]) for name in _GRID if name in made_as}
    grid["orientation"] = orientation_of(made_as)
    preparing = PrepareConfig(
        config.src.parent if config.src.is_file() else config.src, out / ".preparing", format=config.format,
        views_rules=config.views_rules, pattern=config.pattern, aliases=config.aliases, workers=config.workers,
        dataset=config.dataset, single=config.single, channels=config.channels, phases=config.phases, **grid,
    )  # fmt: skip
    sources = _one_file(config) if config.src.is_file() else find_studies(preparing, progress)
    if config.dataset:
        _forget_labels(sources, tables=not (run.frames or run.task.joint_range))
    if config.phases is not None:
        add_phases(sources, config.phases)
    _check_views(config, run, sources)
    report = PredictReport(out, unmatched_files=sources.unmatched_names(preparing.src),
                           series=series_lines(sources.series),
                           failures=[Failure(*r) for r in sources.refused], trained=run.trained_views(),
                           as_stored=preparing.orientation == "stored")  # fmt: skip
    tasks = [
        StudyTask(study, views, preparing, preparing.dst / str(n))
        for n, (study, views) in enumerate(sources.studies.items())
    ]
    try:
        (preparing.dst / "store" / "studies").mkdir(parents=True)
        _predict_all(run, config, tasks, report, progress)
    finally:
        shutil.rmtree(preparing.dst, ignore_errors=True)
    return report


def _forget_labels(sources: Sources, *, tables: bool) -> None:
    """Remove the label maps of a public data set, which must not guide the crop, and what is wrong with them; with
    `tables` also what is wrong with its tables, which are read for ED and ES alone."""
    for views in sources.studies.values():
        views |= {view: replace(source, labels=(), label_frames=()) for view, source in views.items()}
    sources.refused = [refusal for refusal in sources.refused if not refusal.reason.endswith("(labels)")
                       and not (tables and refusal.file.endswith(TABLES))]  # fmt: skip


def _predict_all(
    run: FinetunedRun, config: PredictConfig, tasks: list[StudyTask], report: PredictReport, progress: bool
) -> None:
    studies = {}
    with ExitStack() as files, closing(
        prepared_studies(tasks, config.workers, progress, "predicting studies")
    ) as results:
        writers = None
        for task, result in results:
            made = _one_study(run, task, result, report)
            if made is None:
                continue
            writers = writers or _begin_tables(run, config.out, files)
            _write_study(config.out, task.study, made, writers)
            studies[task.study] = made.summary
            if made.cut_off:
                report.cut_off[task.study] = "; ".join(made.cut_off)
            if made.summary["flags"]:
                report.flags[task.study] = made.summary["flags"]
            if missing := made.summary["missing_views"]:
                report.missing[task.study] = tuple(missing)
            report.studies += 1
    order = {task.study: n for n, task in enumerate(tasks)}
    report.flags, report.missing = (
        {study: found[study] for study in order if study in found} for found in (report.flags, report.missing)
    )
    report.failures.sort(key=lambda failure: order.get(failure.study, -1))  # failures without a task first
    if studies:
        _sort_tables(run, config.out, order)
        results = {
            "format": 1, "version": __version__, "run": str(config.run), "step": run.step, "task": run.task.kind,
            "model": type(run.model).__name__, "precision": str(run.precision)[6:], "source": str(config.src),
            "studies": dict(sorted(studies.items())),
            "trained": report.trained,
            "series": report.series, "unmatched": report.unmatched_files,
            "orientation": "stored" if report.as_stored else "patient", "remarks": report.remarks,
            "flags": {code: sum(code in codes for codes in report.flags.values()) for code in CODES},
            "failures": [{"study": f.study, "view": f.view, "file": f.file, "reason": f.reason}
                         for f in report.failures],
        }  # fmt: skip
        text = json.dumps(_finite(results), indent=1, allow_nan=False) + "\n"
        (config.out / "results.json").write_text(text, encoding="utf-8")


def _one_study(
    run: FinetunedRun, task: StudyTask, result: tuple | Exception, report: PredictReport
) -> StudyPrediction | None:
    """The prediction of a prepared study; None, and a failure in the report, where there is none."""
    file = next(iter(task.sources.values())).files[0]
    if isinstance(result, OSError):
        raise result  # OUT cannot be written, so other studies would fail too
    if isinstance(result, Exception):
        ended = f"its preparation ended with {type(result).__name__}: {result}"
        report.failures.append(task.failure(None, file, ended))
        return None
    records, failures = result
    report.failures += failures
    if not records:
        return None
    gather_remarks(report.remarks, {task.study: records})
    root = task.config.dst / "store"
    replace_folder(task.folder, root / "studies" / task.study)
    write_index(root, task.config.shaping(), {task.study: records})
    try:
        store = CineStore(root)
        made = run.task.export(run, store, task.study, with_volumes(task.sources))
    except CineError as error:
        report.failures.append(task.failure(None, error.path, error.reason))
    except (ValueError, OSError) as error:
        report.failures.append(task.failure(None, file, f"study {task.study}: {error}"))
    else:
        for view in run.views_of(store, task.study):
            if remark := run.task.remark(view, store.info(task.study, view)):
                report.remarks.setdefault(remark, []).append(f"{task.study} {view}")
        missing = run.missing_views(run.views_of(store, task.study))
        flags = in_order([*made.flags, *["missing_views"] * bool(missing)])
        made.summary |= {"flags": flags, "missing_views": list(missing)}
        made.row[run.task.flags_column] = " ".join(flags)
        return made
    finally:
        shutil.rmtree(root / "studies" / task.study, ignore_errors=True)
    return None


def _one_file(config: PredictConfig) -> Sources:
    """The sources for a single NIfTI file: one study with one view."""
    name = config.src.name
    if config.view:
        study, view, frames = name.removesuffix(".gz").removesuffix(".nii"), config.view, ()
    else:
        spellings = parse_aliases(config.aliases)
        pattern = config.pattern.rpartition("/")[2]
        group = NamePattern(pattern, spellings).fields(name)
        if not group:
            raise ValueError(f"{config.src}: its name does not give the view by the pattern {pattern!r}; give it by "
                             "--view, for instance --view sax")  # fmt: skip
        study, view = group.get("id") or config.src.resolve().parent.name, spellings[group["view"]]
        frames = (group["frame"],) if group.get("frame") else ()
    if study in NO_STUDY:
        raise ValueError(f"{config.src}: a study cannot have the name {study!r}")
    channels = (view,) if view in config.single else ()
    return Sources({study: {view: Source((config.src,), view, frames, channels=channels)}})


def _check_views(config: PredictConfig, run: FinetunedRun, sources: Sources) -> None:
    """Raise ValueError, before the work, where no study has a view that the model reads."""
    found = {view: None for views in sources.studies.values() for view in views}
    if run.reads and found and not set(run.reads) & set(found):
        what = f"--view {config.view}" if config.view else f"{config.src} has {', '.join(found)}"
        raise ValueError(f"{what}: the model of {config.run} reads {', '.join(run.reads)}")


def _columns_of(task: Task) -> dict[str, tuple[str, ...]]:
    """{file: columns} of studies.csv and of the table with several lines per study, where the task has one."""
    tables = task.tables
    files = {"studies.csv": ("study", *tables.columns)}
    return files | {tables.other: tables.other_columns} if tables.other else files


def _begin_tables(run: FinetunedRun, out: Path, files: ExitStack) -> list[csv.DictWriter]:
    writers = []
    for name, columns in _columns_of(run.task).items():
        file = (out / name).open("w", buffering=1, **_TEXT)
        writers.append(csv.DictWriter(files.enter_context(file), columns, restval=""))
        writers[-1].writeheader()
    return writers


def _sort_tables(run: FinetunedRun, out: Path, order: Mapping[str, int]) -> None:
    """Sort the lines by study; lines of one study keep their order."""
    for name in _columns_of(run.task):
        with (out / name).open(**_TEXT) as file:
            head, *lines = csv.reader(file)
        lines.sort(key=lambda line: order[line[0]])
        with whole_file(out / name) as path, path.open("w", **_TEXT) as file:
            csv.writer(file).writerows([head, *lines])


def _write_study(out: Path, study: str, made: StudyPrediction, writers: list[csv.DictWriter]) -> None:
    if made.files:
        folder = out / "studies" / study
        folder.mkdir(parents=True)
        for name, content in made.files.items():
            (folder / name).write_bytes(content)
    for writer, lines in zip(writers, ([{"study": study, **made.row}], made.lines)):
        writer.writerows({name: _cell(value) for name, value in line.items()} for line in lines)


def _cell(value: str | int | float) -> str | int:
    if isinstance(value, float):
        return f"{value:.7g}" if math.isfinite(value) else ""
    return value


def _finite(value: object) -> object:
    """The value for JSON, which has no nan."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
