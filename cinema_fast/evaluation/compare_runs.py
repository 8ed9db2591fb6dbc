"""Several runs side by side: their loss curves, their figures, and the options in which they differ."""

import math
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

from ..common.atomic import whole_file
from ..common.naming import printable
from ..common.output import folder_for
from ..common.parsed_file import parse_json, read_json
from ..common.regular_file import read_regular
from ..figures.canvas import new_figure
from ..models.config import DINOConfig, config_class
from ..train.run_info import read_run_info

UNKNOWN = "-"
LOSSES = {  # {kind of run: its loss}
    "finetune": "loss",
    "pretrain by masked images": "masked loss (MSE)",
    "pretrain by self-distillation": "distillation loss",
}
WIDTH, LONG = 110, 28  # at most this many letters in a line, and in a cell
_EVALUATED = {  # of evaluation.json: {name: (label, format)}
    "loss": ("held-out loss", ".5f"), "ratio": ("held-out loss / that of the mean patch", ".3f"),
    "knn_view": ("k-NN accuracy of the view, held out", ".3f"),
    "knn_plane": ("k-NN accuracy of the plane, held out", ".3f"),
    "knn_sequence": ("k-NN accuracy of the sequence, held out", ".3f"),
    "feature_rank": ("feature rank, held out", ".4g"),
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """The content of a run folder.

    lines: of metrics.jsonl, by ascending step. options: of config.yaml, by their names on the command line. evaluation:
    report/evaluation.json, None before the end of the run. unread: messages about lines and files that cannot be read.
    kind: one of LOSSES.
    """

    name: str
    lines: list[dict]
    options: dict[str, str]
    evaluation: dict | None
    unread: list[str]
    kind: str

    @property
    def step(self) -> int:
        return self.lines[-1]["step"] if self.lines else 0

    def over_lines(self, what: Callable, name: str, *, after: float = 0, to: float = math.inf) -> float | None:
        """`what` (mean, median, ...) of a number over the lines with steps in (after, to]; None where none has it."""
        values = [line.get(name) for line in self.lines if after < line["step"] <= to]
        known = [value for value in values if value is not None]
        return what(known) if known else None

    def tenth(self, name: str, step: int) -> float | None:
        """Mean of a number over the tenth of the steps that ends at `step`."""
        return self.over_lines(mean, name, after=0.9 * step, to=step)


def compare_runs(paths: Sequence[Path], out: Path | None = None) -> str:
    """The tables as Markdown. With `out` also writes them to comparison.md there, and the curves to comparison.png.

    A run may be unfinished, and its last line incomplete. Raises ValueError naming a path that is not a run folder, has
    a damaged config.yaml, or is given twice; OutputError where `out` cannot be written.
    """
    if len(paths) < 2:
        raise ValueError(f"compare takes two run folders or more, got {len(paths)}")
    if len({path.resolve() for path in paths}) < len(paths):
        raise ValueError(f"compare: a run folder is given twice among {', '.join(map(str, paths))}")
    with folder_for(out) if out else nullcontext():
        return _compare(paths, out)


def _compare(paths: Sequence[Path], out: Path | None) -> str:
    names = [path.resolve().name for path in paths]
    runs = [
        read_run(path, name if names.count(name) == 1 else os.path.normpath(path)) for path, name in zip(paths, names)
    ]
    if other := next((run for run in runs if run.kind != runs[0].kind), None):
        raise ValueError(f"compare: {runs[0].name} is a run of {runs[0].kind}, {other.name} one of {other.kind}, whose "
                         "losses cannot be compared; expected runs of one kind")
    text = tables(runs)
    if out:
        with whole_file(out / "comparison.png") as file:
            draw_losses(file, runs)
        with whole_file(out / "comparison.md") as file:
            whole = f"{text}\n\n![Loss curves](comparison.png)\n"
            file.write_text(whole, encoding="utf-8", errors="backslashreplace")
    return text


def read_run(path: Path, name: str) -> Run:
    """Read a run folder; ValueError where it is not one."""
    info = read_run_info(path)
    if info is None:
        raise ValueError(f"{path} is not a run folder: it has no config.yaml; expected a folder from `pretrain --out`")
    unread: list[str] = []
    options = _flat(info.options) | _flat(info.store.to_dict(), "store.") | _flat(info.versions, "versions.")
    options.pop("out", None)
    by = "self-distillation" if config_class(info.model) is DINOConfig else "masked images"
    kind = info.kind if info.kind == "finetune" else f"pretrain by {by}"
    lines = _lines(path / "metrics.jsonl", unread)
    return Run(printable(name), lines, options, _evaluation(path, unread), unread, kind)


def tables(runs: Sequence[Run]) -> str:
    """Figures of the runs, their unreadable lines and files, and the options in which they differ, as Markdown."""
    ends = {run.step for run in runs if run.lines}
    shared = min(ends) if len(ends) > 1 else None
    figures = [_figures(run, shared) for run in runs]
    rows = [[label, *(of.get(label, UNKNOWN) for of in figures)] for label in _in_order(figures)]
    names, parts = [run.name for run in runs], []
    if max(map(len, names)) > LONG:
        numbers = [f"run {n}" for n in range(1, 1 + len(names))]
        parts.append("\n".join(f"- {number}: {name}" for number, name in zip(numbers, names)))
        names = numbers
    parts.append(fitting_table(["figure", *names], rows))
    parts += [f"{run.name}: {what}" for run in runs for what in run.unread]
    options = [run.options for run in runs]
    differing = [[name, *(of.get(name, UNKNOWN) for of in options)] for name in _in_order(options)]
    differing = [row for row in differing if len(set(row[1:])) > 1]
    if short := [row for row in differing if max(map(len, row)) <= LONG]:
        parts.append(fitting_table(["option", *names], short))
    for option, *values in (row for row in differing if max(map(len, row)) > LONG):  # paths and the like
        parts.append("\n".join([f"option {option}:", "", *(f"- {n}: {value}" for n, value in zip(names, values))]))
    if not differing:
        parts.append("They do not differ in any option.")
    return "\n\n".join(parts)


def draw_losses(path: Path, runs: Sequence[Run]) -> None:
    """Loss over steps of each run; a run with a held-out evaluation has a cross at that loss."""
    figure = new_figure(8, 4.5)
    axes = figure.subplots()
    for run in runs:
        made = [(line["step"], line["loss"]) for line in run.lines if line["loss"] is not None]
        # a label that begins with _ would be left out of the legend
        (curve,) = axes.plot(*zip(*made) if made else ([], []), label=f" {run.name}", linewidth=1)
        if run.evaluation and "loss" in run.evaluation:
            label = f" {run.name}, held out {run.evaluation['loss']:.4f}"
            axes.plot(run.step, run.evaluation["loss"], "x", color=curve.get_color(), label=label)
    positive = all(line["loss"] > 0 for run in runs for line in run.lines if line["loss"] is not None)
    axes.set(xlabel="step", ylabel=LOSSES[runs[0].kind], yscale="log" if positive else "linear")
    axes.grid(alpha=0.3, which="both")
    for text in axes.legend().get_texts():
        text.set_parse_math(False)  # $ may be in a folder's name
    figure.savefig(path, dpi=120)


def _figures(run: Run, shared: int | None) -> dict[str, str]:
    """The known figures of a run. shared: a step that every run with lines has reached."""
    found = {"steps made": f"{run.step} of {run.options.get('steps', UNKNOWN)}"}
    if not run.lines:
        return found
    last = run.lines[-1]
    found["loss, last"] = "not finite" if last["loss"] is None else f"{last['loss']:.5f}"
    values = {
        "loss, mean of the last 10 % of steps": (run.tenth("loss", run.step), ".5f"),
        f"loss, mean of the last 10 % up to step {shared}": (run.tenth("loss", shared) if shared else None, ".5f"),
        "gradient norm, mean of the last 10 % of steps": (run.tenth("grad_norm", run.step), ".4g"),
        "updates skipped": (last.get("skipped"), ".0f"),
        "studies/s, median": (run.over_lines(median, "studies_per_s"), ".4g"),
        "data wait, median": (run.over_lines(median, "data_wait"), ".1%"),
        "MFU, median": (run.over_lines(median, "mfu"), ".1%"),
        "peak memory, MiB": (run.over_lines(max, "peak_mib"), ".0f"),
    }
    validated = [line for line in run.lines if "score" in line]
    if validated:  # of equally good steps the first, as in `finetune`
        best = max(validated, key=lambda line: line["score"])
        found["best validation"] = f"step {best['step']}"
        values |= {f"{name}, there": (value, ".4g") for name, value in best.items()
                   if name == "score" or name.startswith("val_")}  # fmt: skip
    values |= {label: ((run.evaluation or {}).get(name), how) for name, (label, how) in _EVALUATED.items()}
    return found | {label: format(value, how) for label, (value, how) in values.items() if value is not None}


def _lines(path: Path, unread: list[str]) -> list[dict]:
    """The lines of a metrics.jsonl, which need not exist yet. An incomplete last line is still being written."""
    if not path.exists():
        return []
    content = read_regular(path)
    *whole, _ = content.decode(errors="replace").split("\n")
    found, bad = [], []
    for number, text in enumerate(whole, start=1):
        try:
            line = parse_json(text)
            if not isinstance(line["step"], int) or not isinstance(line["loss"], float | int | None):
                raise TypeError("expected a step, and a loss or null")
            found.append(line)
        except (ValueError, KeyError, TypeError):
            bad.append(str(number))
    if not found and not _is_text(content):
        unread.append(f"{path} cannot be read: it is not text, or damaged; restore it from a copy")
    elif bad:
        unread.append(f"left out of {path.name}, as it cannot be read: line {', '.join(bad)}")
    return found


def _is_text(content: bytes) -> bool:
    try:
        return "\0" not in content.decode()
    except UnicodeDecodeError:
        return False


def _evaluation(path: Path, unread: list[str]) -> dict | None:
    file = path / "report" / "evaluation.json"
    if not file.exists():
        return None
    try:
        found = read_json(file)
        wanted = _EVALUATED if "knn_view" in found else ("loss", "ratio")
        return {name: float(found[name]) for name in wanted if name in found or wanted is not _EVALUATED}
    except (ValueError, KeyError, TypeError) as error:
        unread.append(f"report/{file.name} cannot be read ({type(error).__name__}: {error})")
        return None


def _flat(options: dict, before: str = "") -> dict[str, str]:
    """{dotted name: text} of nested options."""
    found = {}
    for name, value in options.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{before}{name}.")
        else:
            found[before + name] = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return found


def _in_order(dicts: Sequence[dict]) -> list[str]:
    """All keys, in the order of the first dict that has each."""
    return list(dict.fromkeys(key for one in dicts for key in one))


def fitting_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; where its lines would be longer than WIDTH, several tables, each with the first column."""
    of_columns = [max(3, *(len(cell) for cell in column)) + 3 for column in zip(head, *rows)]
    parts, room = [[0]], WIDTH - of_columns[0] - 1
    for k, width in enumerate(of_columns[1:], start=1):
        if width > room and len(parts[-1]) > 1:
            parts.append([0])
            room = WIDTH - of_columns[0] - 1
        parts[-1].append(k)
        room -= width
    return "\n\n".join(markdown_table([head[k] for k in of], [[row[k] for k in of] for row in rows]) for of in parts)


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns also line up as plain text."""
    cells = [[cell.replace("|", r"\|") for cell in row] for row in (head, *rows)]
    widths = [max(3, *(len(cell) for cell in column)) for column in zip(*cells)]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in cells]
    return "\n".join([lines[0], "| " + " | ".join("-" * width for width in widths) + " |", *lines[1:]])
