"""The tests marked `gpu`, spread over processes, each test within a time limit; what has ended is known at any moment.

As a pytest plugin it writes a line for every test that ends, and leaves out files that import what is not installed.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import checkout
import pytest

MARKED = "gpu and not slow and not recompiles"
LINES = "GPU_TESTS_LINES"  # the environment's name of the file


def run(folder: Path, out: Path, *, processes: int, seconds_a_test: int) -> Iterator[tuple[str, dict[str, int] | str]]:
    """("tests", counts so far) whenever some have ended, and ("test <id>", reason) for one that failed.

    folder: of the tests. out: gets tests.log, what pytest printed.
    """
    lines, log = out / "tests.jsonl", out / "tests.log"
    lines.write_text("")
    path = os.pathsep.join(filter(None, [str(checkout.BENCHMARKS), os.environ.get("PYTHONPATH")]))
    command = [
        sys.executable, "-m", "pytest", "-p", "checkout", "-p", "gpu_tests", "-m", MARKED, "-q",
        "--continue-on-collection-errors", "-n", str(processes), f"--timeout={seconds_a_test}",
        "--timeout-method=thread",  # a hung driver answers no signal: the process ends, and xdist starts another
        str(folder),
    ]  # fmt: skip
    outcomes, read = {}, 0  # of every test; a file that is not collected is none in every process
    environment = os.environ | {"PYTHONPATH": path, LINES: str(lines), "OMP_NUM_THREADS": "2"}
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=checkout.ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)
    while True:
        ended = process.poll() is not None
        with lines.open() as file:
            file.seek(read)
            text = file.read()
        new = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        read += sum(len(line.encode()) for line in text.splitlines(keepends=True) if line.endswith("\n"))
        for test in new:
            if test["outcome"] == "failed" and outcomes.get(test["id"]) != "failed":
                yield f"test {test['id']}", test["reason"]
            if outcomes.get(test["id"]) != "failed":
                outcomes[test["id"]] = test["outcome"]
        if new or ended:
            yield "tests", {what: list(outcomes.values()).count(what) for what in ("passed", "failed", "skipped")}
        if ended:
            break
        time.sleep(0.2)
    if process.returncode not in (0, 1, 5) and "failed" not in outcomes.values():  # 5: there was none
        yield "test run", f"pytest ended with status {process.returncode}: {log.read_text().strip()[-300:]}"


def _write(outcome: str, report) -> None:
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash else str(report.longrepr).strip().rpartition("\n")[2]
    reason = text[:300] if outcome == "failed" else ""
    with open(os.environ[LINES], "a") as file:
        file.write(json.dumps({"id": report.nodeid, "outcome": outcome, "reason": reason}) + "\n")


def pytest_runtest_logreport(report) -> None:
    """A test has failed or been skipped in any of its phases, or passed in the middle one."""
    if os.environ.get("PYTEST_XDIST_WORKER"):  # whose reports come to the main process
        if report.failed and not _gpu_answers():
            os._exit(1)  # every later test of this process would fail too; xdist starts another
        return
    if report.failed or report.skipped or report.when == "call":
        _write(report.outcome, report)


def _gpu_answers() -> bool:
    """Whether the GPU still works for this process, if it has used it: an illegal access ends that for good."""
    torch = sys.modules.get("torch")
    try:
        if torch and torch.cuda.is_initialized():
            torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def pytest_collectreport(report) -> None:
    """A file that cannot be collected counts as a failure, one that imports what is not installed as skipped."""
    if (report.failed or report.skipped) and not os.environ.get("PYTEST_XDIST_WORKER"):
        _write(report.outcome, report)


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector):
    """A file that imports a package which is not installed is skipped."""
    result = yield
    report = result.get_result()
    if report.failed and "ModuleNotFoundError" in str(report.longrepr):
        report.outcome = "skipped"
        report.longrepr = (str(collector.path), 0, str(report.longrepr).strip().splitlines()[-1])
        report.result = []
