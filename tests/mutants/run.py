"""Plants the faults of `faults.py`, one after another, into a copy of the code, and asks whether the tests catch them.

    python tests/mutants/run.py [NAME ...] [--jobs 2] [--limit 120] [--whole] [--baseline] [--out results.json]

Each job has a copy of its own, in a temporary folder; nothing here is changed. Exit status 1 where more than two faults
survive.
"""

import argparse
import datetime
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from covering import Covering
from faults import FAULTS, Fault

ROOT = Path(__file__).resolve().parents[2]
MOST_SURVIVORS = 2
WHOLE_LIMIT = 3600  # seconds of one half of the whole suite
MARKS = "not slow and not long and not gpu"
_PROBE = "import cinema_fast, cinema_fast.kernels as k; print(cinema_fast.__file__); print(k.__file__)"


@dataclass(frozen=True)
class Ended:
    """How pytest ended: passed, failed, import (an error before any test ran), crash, limit, or nothing (no test was
    selected). test: the first that failed. seconds: of the whole process."""

    how: str
    test: str
    seconds: float

    @property
    def caught(self) -> bool:
        return self.how in ("failed", "import", "crash")


class Copy:
    """A copy of the checkout in `folder` that Python imports in place of the installed package."""

    def __init__(self, folder: Path):
        self.root, self._folder = folder / "tree", folder
        files = [name for name in _git("ls-files", "-z").split("\0") if name and (ROOT / name).is_file()]
        for name in [*files, *(path.relative_to(ROOT).as_posix() for path in (ROOT / "kernels").glob("_*.*"))]:
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, self.root / name)
        for package in ("kernels", "csrc"):  # where setup.py's package_dir has them
            (self.root / "cinema_fast" / package).symlink_to(Path("..", package))
        if (ROOT.parent / "shared").is_dir():  # golden files, which tests/support/machine.py looks for there
            (folder / "shared").symlink_to(ROOT.parent / "shared")
        self._env = os.environ | {"PYTHONPATH": str(self.root), "OMP_NUM_THREADS": "1"}
        self._env.pop("TRITON_INTERPRET", None)
        self._check_imports()

    def _check_imports(self) -> None:
        """Raise RuntimeError where Python, or a process that it starts, does not import the copy."""
        again = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {_PROBE!r}], check=True)"
        for code in (_PROBE, again):
            done = subprocess.run([sys.executable, "-c", code], cwd=self._folder, env=self._env, capture_output=True,
                                  text=True, check=True)  # fmt: skip
            for file in done.stdout.split():
                if not Path(file).resolve().is_relative_to(self.root.resolve()):
                    raise RuntimeError(f"Python imports {file} in place of the copy in {self.root}")

    @contextmanager
    def with_fault(self, fault: Fault):
        """The copy with the fault in it, and without it afterwards."""
        path = self.root / fault.file
        before, info = path.read_bytes(), path.stat()
        library = self.root / "kernels" / f"_{path.stem}.so" if path.suffix == ".cpp" else None
        built = library.read_bytes() if library else b""
        try:
            path.write_text(fault.planted(before.decode()), encoding="utf-8")
            if library:
                self._build(path, library)
            yield
        finally:
            path.write_bytes(before)
            os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))  # by which Python knows its compiled files
            if library:
                library.unlink(missing_ok=True)
                library.write_bytes(built)

    def _build(self, source: Path, library: Path) -> None:
        """Build the C library of one source anew, by setup.py. Raises RuntimeError where it does not compile."""
        with tempfile.TemporaryDirectory(dir=self._folder) as name:
            folder = Path(name)
            (folder / "csrc").mkdir()
            for path in (source, *source.parent.glob("*.hpp"), *source.parent.glob("*.cuh")):
                shutil.copy2(path, folder / "csrc")
            shutil.copy2(self.root / "setup.py", folder)
            command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", "lib", "--build-temp", "temp"]
            done = subprocess.run(command, cwd=folder, env=self._env, capture_output=True, text=True)
            found = next((folder / "lib").rglob(library.name), None)
            if found is None:
                raise RuntimeError(f"{source.name} does not compile with the fault in it:\n{done.stderr}")
            library.unlink(missing_ok=True)  # a new file: the loaded one is left alone
            shutil.copy2(found, library)

    def pytest(self, arguments: list[str], *, interpreter: bool, limit: float) -> Ended:
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-rfE", "--tb=no", "-m", MARKS, "-p", "no:cacheprovider"]
        env = self._env | ({"TRITON_INTERPRET": "1"} if interpreter else {})
        began = time.perf_counter()
        with subprocess.Popen([*command, *arguments], cwd=self.root, env=env, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, start_new_session=True) as run:  # fmt: skip
            try:
                output, _ = run.communicate(timeout=limit)
            except subprocess.TimeoutExpired:
                output = None
            finally:
                _end_group(run.pid)  # also processes that a failed test has left
        shutil.rmtree(self.root / ".hypothesis", ignore_errors=True)  # what it has learnt of one fault
        return _how_it_ended(output, run.returncode, round(time.perf_counter() - began, 1))


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def _end_group(group: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _how_it_ended(output: str | None, status: int, seconds: float) -> Ended:
    if output is None:
        return Ended("limit", "", seconds)
    found = re.search(r"^(FAILED|ERROR) (\S.*?)(?: - .*)?$", output, re.MULTILINE)
    if status in (0, 5):
        return Ended("passed" if status == 0 else "nothing", "", seconds)
    if found:
        return Ended("failed" if "::" in found[2] else "import", found[2], seconds)
    if status < 0 or status > 4:
        return Ended("crash", "", seconds)
    raise RuntimeError(f"pytest ended with status {status} and names no test:\n{output[-2000:]}")


def run_fault(copy: Copy, fault: Fault, tests: list[str], *, limit: float, whole: bool) -> dict:
    """The outcome of one fault, as results.json has it."""
    with copy.with_fault(fault):
        ended, of_whole = copy.pytest(tests, interpreter=fault.interpreter, limit=limit), False
        if whole and not ended.caught:
            of_whole = True
            arguments = ["tests", "--ignore=tests/mutants", "-n", "2"]
            for interpreter in (False, True):
                ended = copy.pytest(arguments, interpreter=interpreter, limit=WHOLE_LIMIT)
                if ended.caught:
                    break
    about = {name: value for name, value in asdict(fault).items() if name in ("name", "wrong", "file", "interpreter")}
    return about | {"caught": ended.caught, **asdict(ended), "whole": of_whole}


def run_baseline(copy: Copy, fault: Fault, tests: list[str], *, limit: float) -> dict:
    """The covering tests of a fault without it."""
    return {"name": fault.name, "file": fault.file,
            **asdict(copy.pytest(tests, interpreter=fault.interpreter, limit=limit))}  # fmt: skip


def each_in_a_copy(work, faults: list[Fault], jobs: int) -> list[dict]:
    """`work(copy, fault)` of every fault, in their order, in so many copies at once; one line each as it is done."""
    free, lock = queue.SimpleQueue(), threading.Lock()

    def one(fault: Fault) -> dict:
        copy = free.get()
        try:
            found = work(copy, fault)
        finally:
            free.put(copy)
        with lock:
            print(f"{fault.name}: {found['how']} {found['test']} ({found['seconds']} s)", flush=True)
        return found

    with tempfile.TemporaryDirectory(prefix="mutants-") as folder, ThreadPoolExecutor(jobs) as pool:
        for number in range(jobs):
            free.put(Copy(Path(folder, str(number))))
        try:
            return list(pool.map(one, faults))
        finally:
            pool.shutdown(cancel_futures=True)  # after an error of the script itself


def table(results: list[dict]) -> str:
    rows = [("fault", "file", "caught by", "s")]
    for found in results:
        by = found["test"] or found["how"]
        by = by if found["caught"] else f"SURVIVED ({found['how']})"
        rows.append((found["name"], found["file"], by, f"{found['seconds']:.0f}"))
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.ljust(n) for cell, n in zip(row, widths)).rstrip() for row in rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="faults; if not given: all")
    parser.add_argument("--jobs", type=int, default=2, help="faults at a time")
    parser.add_argument("--limit", type=float, default=120, help="seconds for the covering tests of a fault")
    parser.add_argument("--whole", action="store_true", help="run the whole suite on what survives its covering tests")
    parser.add_argument("--baseline", action="store_true", help="run the covering tests without the faults")
    parser.add_argument("--out", type=Path, help="file for the outcomes, as JSON")
    options = parser.parse_args()
    known = {fault.name: fault for fault in FAULTS}
    if unknown := set(options.names) - known.keys():
        parser.error(f"no fault {min(unknown)}; there are {', '.join(known)}")
    faults, covering = [known[name] for name in options.names or known], Covering(ROOT)
    for fault in faults:  # stale ones now, not after half an hour
        fault.planted((ROOT / fault.file).read_text(encoding="utf-8"))
    tests = {fault.name: covering.tests_of(fault.file) for fault in faults}
    commit = _git("rev-parse", "HEAD").strip()  # of what is copied now

    if options.baseline:
        def work(copy, fault):
            return run_baseline(copy, fault, tests[fault.name], limit=options.limit)
    else:
        def work(copy, fault):
            return run_fault(copy, fault, tests[fault.name], limit=options.limit, whole=options.whole)

    results = each_in_a_copy(work, faults, options.jobs)
    if options.baseline:
        wrong = [found["name"] for found in results if found["how"] not in ("passed", "limit")]
        print(f"{len(wrong)} of {len(results)} fail without a fault: {', '.join(wrong) or 'none'}")
        return 1 if wrong else 0
    caught = sum(found["caught"] for found in results)
    print(f"\n{table(results)}\n\n{caught} of {len(results)} faults caught")
    if options.out:
        about = {"date": datetime.date.today().isoformat(), "commit": commit, "limit_s": options.limit,
                 "jobs": options.jobs, "whole": options.whole, "caught": caught, "faults": results}  # fmt: skip
        options.out.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return 1 if len(results) - caught > MOST_SURVIVORS else 0


if __name__ == "__main__":
    sys.exit(main())
