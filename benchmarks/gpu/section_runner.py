"""Runs sections, each in a process of its own with a time limit, and brings what they write into one report.

The report is whole and on disk after every row. A section that is killed keeps the rows that it had written; the rows
that it had announced are listed as unreached.
"""

import argparse
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import conditions
import torch
from checkout import ROOT
from report_schema import Report, from_json
from sections import WITH_REFERENCE, Task

MIB = 2**20
FILES_HOME, FILE_MIB = 8, 16  # what is brought home of a run: at most so many files, each at most so large
POLL_SECONDS = 0.1
SCRIPT = Path(__file__).with_name("sections.py")


@dataclass(frozen=True)
class Section:
    """What is run: a section of `sections.py`, for each of `parts` (its argument) in a process of its own.

    seconds: its limit, all parts together, or of each where `at_once` of them run side by side. background: beside the
    sections that follow, up to the end.
    """

    name: str
    seconds: float
    parts: tuple[str, ...] = ("",)
    at_once: int = 1
    background: bool = False


@dataclass
class Process:
    """A part of a section at work."""

    label: str
    process: subprocess.Popen
    lines: Path
    log: Path
    ends: float
    read: int = 0
    announced: bool = False
    left: list[str] = field(default_factory=list)


class Runner:
    """Sections one after the other, until `deadline` (of time.monotonic); `report` is written as rows come."""

    def __init__(self, report: Report, task: Task, deadline: float, script: Path = SCRIPT):
        self.report, self.task, self.deadline, self.script = report, task, deadline, script
        self.out, self.work = Path(task.out), Path(task.work)
        self.lines = Path(task.logs)
        self.lines.mkdir(parents=True, exist_ok=True)
        self.background: list[Process] = []

    def run(self, sections: list[Section]) -> None:
        """All of them; those for which no time is left, or no reference is given, stay unreached."""
        self.report.unreached = [f"section {s.name}" for s in sections]
        if not self.task.reference:
            sections = [s for s in sections if s.name not in WITH_REFERENCE]
        self.report.write()
        try:
            for section in sections:
                if self._left() <= 0:
                    break
                self._run(section)
            while self.background and self._left() > 0:
                self._poll(self.background)
        finally:
            for process in self.background:
                self._kill(process, "the run was over")
            self.background = []

    def _left(self) -> float:
        return self.deadline - time.monotonic()

    def _run(self, section: Section) -> None:
        if section.background and len(section.parts) > section.at_once:
            raise ValueError(f"{section.name}: all parts of a section in the background begin at once")
        self.report.unreached.remove(f"section {section.name}")
        waiting, working = list(section.parts), []
        begin = time.monotonic()
        while waiting or working:
            while waiting and len(working) < section.at_once:
                spent = 0 if section.at_once > 1 else time.monotonic() - begin
                if (seconds := min(section.seconds - spent, self._left())) <= 0:
                    self.report.unreached += [f"section {_label(section.name, part)}" for part in waiting]
                    waiting = []
                    break
                working.append(self._start(section.name, waiting.pop(0), seconds))
            if section.background:
                self.background += working
                return
            self._poll(working)
            self._poll(self.background, wait=False)
        self.report.write()

    def _start(self, name: str, part: str, seconds: float) -> Process:
        label = _label(name, part)
        if name == "errors" and self.task.fallbacks.pop(part, None):  # it may have been mended since
            self._keep_fallbacks()
        stem = re.sub(r"\W+", "-", label)
        lines, log, told = (self.lines / f"{stem}.{suffix}" for suffix in ("jsonl", "log", "json"))
        lines.write_text("")
        told.write_text(json.dumps(dataclasses.asdict(self.task)))
        command = [sys.executable, str(self.script), name, str(told), str(lines)]
        with log.open("w") as file:
            process = subprocess.Popen(
                [*command, *([part] if part else [])], stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
                env=os.environ | self._environment(name),
            )  # fmt: skip
        print(f"{label}: begun, {seconds:.0f} s at most", flush=True)
        return Process(label, process, lines, log, time.monotonic() + seconds)

    def _environment(self, name: str) -> dict[str, str]:
        """Caches stay between runs; compilation in the background leaves cores to what is timed."""
        caches = {"TRITON_CACHE_DIR": str(self.work / "triton"), "TORCHINDUCTOR_CACHE_DIR": str(self.work / "inductor")}
        threads = max((os.cpu_count() or 1) // 3, 1)  # two ratios compile at once
        interpreted = {"TRITON_INTERPRET": "1"} if self.task.smoke and name == "tiles" else {}
        return caches | {"TORCHINDUCTOR_COMPILE_THREADS": str(threads)} | interpreted

    def _poll(self, processes: list[Process], wait: bool = True) -> None:
        """Take in what is new; forget those that have ended, and end those whose time is up."""
        if wait:
            time.sleep(POLL_SECONDS)
        for process in list(processes):
            ended = process.process.poll() is not None
            self._take_in(process)
            if ended:
                processes.remove(process)
                self._ended(process)
            elif time.monotonic() > process.ends:
                processes.remove(process)
                self._kill(process, "its time was up")

    def _take_in(self, process: Process) -> None:
        with process.lines.open("rb") as file:
            file.seek(process.read)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        process.read += len(whole)
        for line in whole.splitlines():
            value = json.loads(line)
            if "rows" in value:
                process.announced, process.left = True, value["rows"]
                self.report.unreached += value["rows"]
                continue
            name = value["name"]
            outcome = value.get("failed") or value.get("tests")
            row = from_json(value["section"], value["row"]) if "row" in value else outcome
            self.report.add(name, row)
            process.left = [other for other in process.left if other != name]
            print(f"{name}: {value.get('failed', 'done')}", flush=True)
            if process.label.startswith("errors") and (value.get("failed") or not value["row"]["right"]):
                self._replace(process.label)

    def _ended(self, process: Process) -> None:
        status = process.process.returncode
        if status and (process.left or not process.announced):
            self._fail(process, f"ended with status {status}")

    def _kill(self, process: Process, why: str) -> None:
        with suppress(ProcessLookupError):
            os.killpg(process.process.pid, signal.SIGKILL)
        try:
            process.process.wait(timeout=5)
        except subprocess.TimeoutExpired:  # it hangs in the driver, and may have had its turn on the GPU
            self.task.lock += "-next"
            why += " (it does not end)"
        self._take_in(process)
        self._fail(process, f"killed: {why}")

    def _fail(self, process: Process, why: str) -> None:
        """Say why the rest of its rows are missing; an operation that could not be checked is not trusted."""
        tail = process.log.read_text(errors="replace").strip().splitlines()[-1:] or ["nothing printed"]
        self.report.add(f"section {process.label}", f"{why}; {tail[0][:300]}")
        print(f"{process.label}: {why}", flush=True)
        if process.label.startswith("errors"):
            self._replace(process.label)

    def _replace(self, label: str) -> None:
        from gpu_errors import fallback

        op = label.removeprefix("errors ")
        self.task.fallbacks[op] = fallback(op)
        self._keep_fallbacks()

    def _keep_fallbacks(self) -> None:
        """For the sections that follow, the next run, and the report."""
        conditions.write_json(self.work / "fallbacks.json", self.task.fallbacks)
        self.report.fallbacks = dict(self.task.fallbacks)
        self.report.write()


def _label(name: str, part: str) -> str:
    return f"{name} {part}".strip()


def start(device: str, args: argparse.Namespace, *, quick: bool) -> tuple[Report, Task]:
    """The report of a run that begins now, and what its sections are told."""
    out, work = args.out.resolve(), args.work.resolve()
    for folder in (out, work):
        folder.mkdir(parents=True, exist_ok=True)
    if (work / "triton.tar.gz").exists() and not (work / "triton").exists():
        unpack(work / "triton.tar.gz", work)
    name, about = describe_device(device)
    date, commit = conditions.now(), conditions.commit()
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    kept = work / "fallbacks.json"
    fallbacks = json.loads(kept.read_text()) if kept.exists() else {}
    report = Report(
        path=out / f"{slug}-{date}.json", device=name, date=date, versions=conditions.versions(), commit=commit,
        conditions=about, smoke=args.smoke, unreached=[], fallbacks=dict(fallbacks),
    )  # fmt: skip
    report.write()
    task = Task(
        device=device, out=str(out), work=str(work), logs=str(work / "logs" / report.path.stem),
        lock=str(work / "gpu.lock"), commit=commit,
        reference=str(args.reference.resolve()) if args.reference else None, fallbacks=fallbacks, quick=quick,
        smoke=args.smoke,
    )  # fmt: skip
    return report, task


def unpack(archive: Path, folder: Path) -> None:
    """What triton_cache.py packed; Triton wants the files of a kernel by their whole paths."""
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    for group in (folder / "triton").rglob("__grp__*.json"):
        names = json.loads(group.read_text())["child_paths"]
        group.write_text(json.dumps({"child_paths": {name: str(group.with_name(name)) for name in names}}))


def describe_device(device: str) -> tuple[str, dict]:
    """The device's name, and under what conditions it runs."""
    about = {"cpu": conditions.cpu_model(), "threads": torch.get_num_threads()}
    if device != "cuda":
        return "cpu-smoke", about
    properties = torch.cuda.get_device_properties(0)
    about |= {"memory_mib": properties.total_memory // MIB, "multiprocessors": properties.multi_processor_count}
    fields = "power.limit,clocks.max.sm,clocks.max.memory"
    about["power_and_clocks"] = conditions.output(
        "nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader", "--id=0"
    )
    return properties.name, about


def finish(report: Report, runner: Runner) -> int:
    """Bring the logs together, keep to what may come home, print the table last. The exit status: 1 where anything
    failed, or a test did."""
    table = report.table()
    (runner.out / f"{report.path.stem}.md").write_text(table + "\n")
    with tarfile.open(runner.out / f"{report.path.stem}-logs.tar.gz", "w:gz") as archive:
        for path in sorted(runner.lines.iterdir()):
            archive.add(path, path.name)
    for path, why in too_much(runner.out):
        print(f"left behind: {path.name} ({why})")
        path.replace(runner.work / path.name)
    print(f"\n{table}\n\nwritten to {report.path}")
    return 1 if report.failed or (report.tests and report.tests["failed"]) else 0


def too_much(folder: Path) -> Iterator[tuple[Path, str]]:
    """Files beyond what is brought home, the largest of too many first."""
    files = sorted(folder.iterdir(), key=lambda path: path.stat().st_size)
    large = [path for path in files if path.stat().st_size > FILE_MIB * MIB]
    yield from ((path, f"more than {FILE_MIB} MiB") for path in large)
    kept = [path for path in files if path not in large]
    yield from ((path, f"more than {FILES_HOME} files") for path in kept[FILES_HOME:])


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those of every report."""
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "gpu_first", metavar="DIR")
    parser.add_argument("--reference", type=Path, metavar="DIR", help="checkout of the CineMA reference")
    parser.add_argument("--smoke", action="store_true", help="toy sizes on the CPU")


def device_or_error(parser: argparse.ArgumentParser, args: argparse.Namespace) -> str:
    """ "cpu" for a smoke test, else "cuda"; ends with the parser's message where there is no GPU, or no reference."""
    if not args.smoke and not torch.cuda.is_available():
        parser.error("PyTorch sees no GPU here; --smoke runs on the CPU")
    if args.reference:
        from reference import Reference

        try:
            Reference(args.reference)
        except (FileNotFoundError, ImportError) as error:
            parser.error(str(error))
    return "cpu" if args.smoke else "cuda"
