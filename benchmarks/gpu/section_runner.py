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
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from gpu_work import Checks, checked, finish, start
from report_schema import Report, brief, from_json
from sections import PARENT, WITH_REFERENCE, Task

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
    """Sections one after the other, until `deadline` (of time.monotonic); `report` is written as rows come.

    stopped: whether Ctrl-C or SIGTERM ended it.
    """

    def __init__(self, report: Report, task: Task, checks: Checks, deadline: float, script: Path = SCRIPT):
        self.report, self.task, self.checks, self.deadline, self.script = report, task, checks, deadline, script
        self.out, self.work = Path(task.out), Path(task.work)
        self.lines = Path(task.logs)
        self.lines.mkdir(parents=True, exist_ok=True)
        self.working: list[Process] = []
        self.background: list[Process] = []
        self.stopped = False

    def run(self, sections: list[Section]) -> None:
        """All of them; those for which no time is left, or no reference is given, stay unreached."""
        self.report.unreached = [f"section {_label(s.name, part)}" for s in sections for part in s.parts]
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
        except KeyboardInterrupt:
            self.stopped = True
        finally:
            for process in [*self.working, *self.background]:
                self._kill(process, "the run was stopped" if self.stopped else "no time was left")
            self.report.write()

    def _left(self) -> float:
        return self.deadline - time.monotonic()

    def _run(self, section: Section) -> None:
        if section.background and len(section.parts) > section.at_once:
            raise ValueError(f"{section.name}: all parts of a section in the background begin at once")
        waiting, begin = list(section.parts), time.monotonic()
        started = self.background if section.background else self.working
        while waiting or self.working:
            while waiting and (section.background or len(started) < section.at_once):
                spent = 0 if section.at_once > 1 else time.monotonic() - begin
                if (seconds := min(section.seconds - spent, self._left())) <= 0:
                    waiting = []
                    break
                started.append(self._start(section.name, waiting.pop(0), seconds))
            if section.background:
                return
            self._poll(self.working)
            self._poll(self.background, wait=False)

    def _start(self, name: str, part: str, seconds: float) -> Process:
        label = _label(name, part)
        if name == "errors":  # it may have been mended since
            self.checks.forget(part)
            self._keep_checks()
        stem = re.sub(r"\W+", "-", label)
        lines, log, told = (self.lines / f"{stem}.{suffix}" for suffix in ("jsonl", "log", "json"))
        lines.write_text("")
        told.write_text(json.dumps(dataclasses.asdict(self.task)))
        command = [sys.executable, str(self.script), name, str(told), str(lines)]
        with log.open("w") as file:
            process = subprocess.Popen(
                [*command, *([part] if part else [])], stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
                env=os.environ | {PARENT: str(os.getpid())} | self._environment(name),
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
                self._reached(process, value["rows"])
                continue
            name = value["name"]
            outcome = value.get("failed") or value.get("tests")
            row = from_json(value["section"], value["row"]) if "row" in value else outcome
            self.report.add(name, row)
            process.left = [other for other in process.left if other != name]
            print(f"{name}: {value['failed'] if 'failed' in value else brief(row)}", flush=True)
            if process.label.startswith("errors") and (value.get("failed") or not value["row"]["right"]):
                self._replace(process.label)

    def _ended(self, process: Process) -> None:
        status = process.process.returncode
        if process.label.startswith("errors") and not status and process.announced and not process.left:
            self.checks.keep(process.label.removeprefix("errors "))
            self._keep_checks()
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
        self._reached(process, [])
        tail = process.log.read_text(errors="replace").strip().splitlines()[-1:] or ["nothing printed"]
        self.report.add(f"section {process.label}", f"{why}; {tail[0][:300]}")
        print(f"{process.label}: {why}", flush=True)
        if process.label.startswith("errors"):
            self._replace(process.label)

    def _reached(self, process: Process, rows: list[str]) -> None:
        """The section has its rows listed in its place."""
        self.report.unreached = [n for n in self.report.unreached if n != f"section {process.label}"] + rows
        self.report.write()

    def _replace(self, label: str) -> None:
        self.checks.replace(label.removeprefix("errors "))
        self._keep_checks()

    def _keep_checks(self) -> None:
        """For the sections that follow, the next run, and the report."""
        self.checks.write(self.work)
        self.task.fallbacks = dict(self.checks.replaced)
        self.report.fallbacks, self.report.unchecked = dict(self.checks.replaced), self.checks.unchecked()
        self.report.write()


def _label(name: str, part: str) -> str:
    return f"{name} {part}".strip()


def drive(
    parser: argparse.ArgumentParser, args: argparse.Namespace, sections: list[Section], seconds: float, *, quick: bool
) -> int:
    """A whole run of at most so many seconds, its imports included; Ctrl-C and SIGTERM end it with its table. The exit
    status."""
    begin = time.monotonic() - time.process_time()
    device = checked(parser, args)
    lacking = [s.name for s in sections if s.name in WITH_REFERENCE and not args.reference]
    if lacking and len(lacking) == len(sections):
        parser.error(f"{', '.join(lacking)}: needs --reference DIR")
    for name in lacking:
        print(f"without --reference there is no section {name}")
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    before = set(args.out.iterdir())
    report, task, checks = start(device, args, quick=quick)
    runner = Runner(report, task, checks, begin + seconds)
    runner.run(sections)
    return finish(report, task, before, stopped=runner.stopped)
