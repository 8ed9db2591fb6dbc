"""One command for a machine with a GPU and no network: correctness, then timings, written down row by row.

    python benchmarks/gpu/gpu_report.py --out DIR [--budget SECONDS] [--only SECTION ...] [--reference DIR]

Runs from a checkout that is not installed, with torch, triton, numpy, pytest and hypothesis; --reference is a checkout
of the CineMA reference, which also wants timm and einops. DIR/<gpu>-<date>.json is written anew after every row, the
most valuable rows first; what the budget did not reach is listed in it, what ran out of memory or gave a wrong result
too. SECTIONs are tests, kernels, step and data; loaders are set against the step where both are in one report. Exit
status 1 where something failed. --smoke runs all of it on the CPU at toy sizes, to test this script, no more.
"""

import os

os.environ.setdefault(
    "PYTORCH_ALLOC_CONF", "expandable_segments:True"
)  # before torch: ways of all sizes share the card

import argparse
import importlib
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import checkout
import conditions
import torch
from bench_data import data_names, data_rows
from gpu_breakdown import Breakdown
from gpu_step import COMPILED, PUBLISHED, StepGroup, attempt, release
from gpu_waterfall import Waterfall
from reference import Reference
from report_schema import Report

SECTIONS = ("tests", "kernels", "step", "data")
BENCHMARKS = Path(__file__).resolve().parents[1]
# marked by hand, or about an operation: with a GPU the fixture `backend` and flow_cases.WAYS bring the mark
GPU_TEST = re.compile(r"\bmark\.gpu\b|\bparams=WAYS\b|^def test_\w+\([^)]*\bbackend\b", re.MULTILINE)


@dataclass
class Item:
    """A piece of work: the rows that it gives, by name, and what measures them, given the seconds that are left."""

    section: str
    names: list[str]
    measure: Callable[[Callable[[], float]], Iterator[tuple[str, object]]]


def plan_work(device: str, out: Path, reference: Reference | None, smoke: bool) -> list[Item]:
    """Everything that could be measured, the most valuable first."""
    preset, batches = ("toy", (4,)) if smoke else ("cinema-base", (64, 16))
    effort = {"rounds": 1, "steps": 1} if smoke else {"rounds": 10, "steps": 3}
    first, *others = (
        [
            Item("step", group.names, group.measure)
            for peer in ((PUBLISHED, COMPILED) if reference else (None,))
            for group in [StepGroup(preset, batch, device, reference, peer, **effort)]
        ]
        for batch in batches
    )
    batch = 4 if smoke else 16
    ladder = Waterfall(preset, batch, device, reference, steps=4 if smoke else 200)
    parts = Breakdown(preset, batches[0], device, steps=effort["steps"])
    explained = [Item("step", what.names, what.measure) for what in (parts, ladder)]
    tests = Item("tests", ["tests"], lambda seconds_left: run_tests(checkout.ROOT / "tests", out, seconds_left()))
    data = Item("data", data_names(), lambda _: data_rows(device, smoke))
    kernels = kernel_items(device, smoke)
    return [*first, *kernels, data, tests, *explained, *(item for items in others for item in items)]


def kernel_items(device: str, smoke: bool) -> list[Item]:
    """The kernels' rows: bench_<op>.py may define kernel_rows(device, smoke) -> {name: function giving a KernelRow}."""
    items = []
    for path in sorted(BENCHMARKS.glob("bench_*.py")):

        def rows_of(stem=path.stem):
            define = getattr(importlib.import_module(stem), "kernel_rows", None)
            return define(device, smoke) if define else {}

        rows = attempt(rows_of)
        if isinstance(rows, str):  # the file does not import: one failure, not the end of the report
            rows = {f"kernels of {path.name}": lambda reason=rows: reason}
        for name, measure in rows.items():
            items.append(Item("kernels", [name], lambda _, name=name, measure=measure: iter([(name, measure())])))
    return items


def run_tests(folder: Path, out: Path, seconds: float) -> Iterator[tuple[str, dict[str, int] | str]]:
    """Run the tests marked `gpu`, and those of the kernels, in a process of their own, which writes out/tests.log.

    Other files are not opened: they may import what is not installed here.
    """
    files = [str(p) for p in sorted(folder.glob("test_*.py")) if GPU_TEST.search(p.read_text())]
    if not files:
        yield "tests", dict.fromkeys(("passed", "failed", "skipped"), 0)
        return
    results, log = out / "tests.xml", out / "tests.log"
    command = [sys.executable, "-m", "pytest", "-p", "checkout", "-m", "gpu", "-q", "--continue-on-collection-errors"]
    path = os.pathsep.join(filter(None, [str(BENCHMARKS), os.environ.get("PYTHONPATH")]))
    try:
        with log.open("w") as file:
            subprocess.run(
                [*command, f"--junitxml={results}", *files], cwd=checkout.ROOT, env=os.environ | {"PYTHONPATH": path},
                stdout=file, stderr=subprocess.STDOUT, timeout=seconds,
            )  # fmt: skip
        suites = ElementTree.parse(results).getroot().iter("testsuite")
        total = {key: 0 for key in ("tests", "failures", "errors", "skipped")}
        for suite in suites:
            for key in total:
                total[key] += int(suite.get(key, 0))
    except subprocess.TimeoutExpired:
        yield "tests", f"stopped after {seconds:.0f} s, see {log.name}"
    except (OSError, ElementTree.ParseError) as error:
        yield "tests", f"no result ({error}), see {log.name}"
    else:
        failed = total["failures"] + total["errors"]
        passed = total["tests"] - failed - total["skipped"]
        yield "tests", {"passed": passed, "failed": failed, "skipped": total["skipped"]}


def run(report: Report, items: list[Item], seconds_left: Callable[[], float]) -> None:
    """Measure item after item while time is left."""
    for item in items:
        if seconds_left() <= 0:
            return
        reason = attempt(lambda item=item: take_in(report, item, seconds_left))
        for name in item.names if reason else ():
            if name in report.unreached:
                report.add(name, reason)
        torch.compiler.reset()
        release()


def take_in(report: Report, item: Item, seconds_left: Callable[[], float]) -> None:
    for name, outcome in item.measure(seconds_left):
        report.add(name, outcome)
        print(f"{name}: {outcome if isinstance(outcome, str) else 'done'}", flush=True)


def describe_device(device: str) -> tuple[str, dict]:
    """The device's name, and under what conditions it runs."""
    about = {"cpu": conditions.cpu_model(), "threads": torch.get_num_threads()}
    if device != "cuda":
        return "cpu-smoke", about
    properties = torch.cuda.get_device_properties(0)
    about |= {"memory_mib": properties.total_memory // 2**20, "multiprocessors": properties.multi_processor_count}
    fields = "power.limit,clocks.max.sm,clocks.max.memory"
    about["power_and_clocks"] = conditions.output(
        "nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader", "--id=0"
    )
    return properties.name, about


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--budget", type=float, default=540, metavar="SECONDS", help="no row is begun later")
    parser.add_argument("--only", choices=SECTIONS, nargs="+", default=SECTIONS, metavar="SECTION")
    parser.add_argument("--reference", type=Path, metavar="DIR", help="checkout of the CineMA reference")
    parser.add_argument("--smoke", action="store_true", help="toy sizes on the CPU")
    args = parser.parse_args()
    start = time.monotonic()
    if not args.smoke and not torch.cuda.is_available():
        parser.error("PyTorch sees no GPU here; --smoke runs on the CPU")
    device = "cpu" if args.smoke else "cuda"
    torch.backends.cudnn.benchmark = True  # as the reference pre-trains
    torch.backends.cudnn.allow_tf32 = False  # float32 is the oracle here
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        reference = Reference(args.reference) if args.reference else None
    except (FileNotFoundError, ImportError) as error:
        parser.error(str(error))
    items = [i for i in plan_work(device, args.out, reference, args.smoke) if i.section in args.only]
    name, about = describe_device(device)
    date = conditions.now()
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    report = Report(
        path=args.out / f"{slug}-{date}.json",
        device=name,
        date=date,
        versions=conditions.versions(),
        commit=conditions.commit(),
        conditions=about,
        smoke=args.smoke,
        unreached=[row for item in items for row in item.names],
    )
    report.write()
    run(report, items, lambda: args.budget - (time.monotonic() - start))
    print(f"\n{report.table()}\n\nwritten to {report.path}")
    return 1 if report.failed or (report.tests and report.tests["failed"]) else 0


if __name__ == "__main__":
    sys.exit(main())
