"""The step on a CPU, ours against the reference implementation of CineMA, in turn in one process.

    python benchmarks/step/compare_reference.py --reference DIR [--batch 1] [--rounds 7] [--memory]

DIR is a checkout of the reference, with timm and einops importable. A step is forward and backward (no optimiser) on
the same weights, images and masks; the losses are compared before anything is timed. A ratio is the median over rounds
of the two times within one round, so that a machine that slows down for a while slows both. --memory measures the peak
above what is resident before the step, at batch 4, each case in a process of its own. Prints a table and writes
benchmarks/results/cpu-<date>.json.
"""

import argparse
import ctypes
import gc
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import checkout
import conditions
import torch
import workload
from reference import Reference
from torch import Tensor

import cinema_fast as cf

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
EVERYTHING = (  # ours, reference, what it should be at least
    ("ours fp32", "reference fp32", 1.25),
    ("ours bf16", "reference fp32", 2.2),
    ("ours bf16", "reference bf16", 1.3),
)
A_QUARTER = (
    ("ours fp32, a quarter decoded", "reference fp32"),
    ("ours bf16, a quarter decoded", "reference fp32"),
    ("ours bf16, a quarter decoded", "reference bf16"),
)
MEMORY = (("ours fp32", "reference fp32", 0.65), ("ours bf16", "reference bf16", 0.55))  # ..., at most
MEMORY_BATCH = 4
# glibc keeps freed memory, and would count it as used, unless told to return it
RETURN_FREED = {"MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TOP_PAD_": "0"}


class Contest:
    """Both models with the reference's weights, and `steps`: {case: step}, each returning its loss."""

    def __init__(self, reference: Reference, config: cf.CineMAConfig, batch: int):
        torch.manual_seed(0)
        self.reference, self.config = reference, config
        self.theirs, self.ours = reference.build(config), cf.CineMA(config)
        cf.load_cinema_weights(self.ours, self.theirs.state_dict())
        self.images = workload.random_images(config, batch)
        self.plans = {ratio: workload.draw_plan(config, batch, decode_ratio=ratio) for ratio in (1.0, 0.25)}
        self.masks = workload.masks_of(self.plans[1.0])
        self.steps: dict[str, Callable[[], Tensor]] = {}
        for name, dtype in DTYPES.items():
            self.steps[f"reference {name}"] = partial(self._their_step, dtype)
            self.steps[f"ours {name}"] = partial(self._our_step, dtype, 1.0)
            self.steps[f"ours {name}, a quarter decoded"] = partial(self._our_step, dtype, 0.25)

    def _their_step(self, dtype: torch.dtype) -> Tensor:
        with self.reference.masks(self.masks):
            return workload.forward_backward(
                self.theirs, lambda: self.theirs(self.images, workload.MASK_RATIO)[0], dtype
            )

    def _our_step(self, dtype: torch.dtype, ratio: float) -> Tensor:
        return workload.forward_backward(self.ours, lambda: self.ours(self.images, self.plans[ratio]).loss, dtype)

    def forget_gradients(self) -> None:
        self.theirs.zero_grad(set_to_none=True)
        self.ours.zero_grad(set_to_none=True)


def check(contest: Contest) -> dict[str, float]:
    """{case: loss} of one step each, which warms up too. Raises GateError where ours does not compute the same."""
    loss = {case: step().item() for case, step in contest.steps.items()}
    oracle = loss["reference fp32"]
    workload.gate("ours fp32", loss["ours fp32"], oracle, workload.LOSS_BUDGET[torch.float32])
    workload.gate("reference bf16", loss["reference bf16"], oracle, workload.LOSS_BUDGET[torch.bfloat16])
    workload.gate("ours bf16", loss["ours bf16"], oracle, workload.LOSS_BUDGET[torch.bfloat16])
    workload.gate_partial(contest.ours, contest.images, contest.plans[1.0], contest.plans[0.25])
    quarter = [loss[f"ours {name}, a quarter decoded"] for name in DTYPES]
    workload.gate("a quarter decoded in bf16", quarter[1], quarter[0], workload.LOSS_BUDGET[torch.bfloat16])
    return loss


def time_in_turn(steps: dict[str, Callable[[], Tensor]], rounds: int) -> dict[str, list[float]]:
    """{case: seconds of each round}."""
    seconds: dict[str, list[float]] = {case: [] for case in steps}
    for _ in range(rounds):
        for case, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[case].append(time.perf_counter() - start)
    return seconds


def ratio_row(ours: str, theirs: str, seconds: dict[str, list[float]], target: float | None) -> dict:
    """How many times faster: the median of the rounds' ratios with their range."""
    ratios = sorted(r / o for r, o in zip(seconds[theirs], seconds[ours]))
    return {
        "ours": ours, "reference": theirs, "speedup": statistics.median(ratios), "low": ratios[0], "high": ratios[-1],
        "target": target,
    }  # fmt: skip


def resident_mib(field: str) -> float:
    """VmRSS (now) or VmHWM (highest since it was cleared) of this process."""
    return int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def peak_above_resident(step: Callable[[], Tensor]) -> float:
    """MiB that a step needs at most beyond what is resident before it. Linux only."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = resident_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    step()
    return resident_mib("VmHWM") - before


def measure_memory(args: argparse.Namespace) -> dict[str, float]:
    """{case: MiB}, each from a child process."""
    given = ["--reference", args.reference, "--preset", args.preset]
    return peaks_of(__file__, given, dict.fromkeys(name for row in MEMORY for name in row[:2]))


def peaks_of(script: str, options: list[str], cases: Iterable[str]) -> dict[str, float]:
    """{case: MiB}, each as `script --peak-of CASE` prints it in a child process."""
    peaks = {}
    for case in cases:
        command = [sys.executable, script, *options, "--threads", str(torch.get_num_threads()), "--peak-of", case]
        done = subprocess.run(command, env=os.environ | RETURN_FREED, stdout=subprocess.PIPE, text=True, check=True)
        peaks[case] = json.loads(done.stdout.splitlines()[-1])
    return peaks


def table(result: dict) -> str:
    """The result as markdown."""
    about, lines = result["conditions"], []
    lines.append(
        f"Forward and backward of {about['preset']}, batch {about['batch']}, {about['cpu']}, {about['threads']} "
        f"threads, PyTorch {about['versions']['torch']}, {about['rounds']} rounds in turn, {about['date']}"
    )
    lines += ["", "| ours | reference | ours s | reference s | times faster (range) | target |"]
    lines.append("|---|---|---|---|---|---|")
    for row in result["speedups"]:
        seconds = [f"{statistics.median(result['seconds'][row[side]]):.2f}" for side in ("ours", "reference")]
        lines.append(
            f"| {row['ours']} | {row['reference']} | {' | '.join(seconds)} | **{row['speedup']:.2f}** "
            f"({row['low']:.2f}-{row['high']:.2f}) | {row['target'] or ''} |"
        )
    if result["memory"]:
        lines += ["", f"Peak memory above what is resident, batch {MEMORY_BATCH}:", ""]
        lines += ["| ours | reference | ours MiB | reference MiB | ratio | target |", "|---|---|---|---|---|---|"]
        for row in result["memory"]:
            lines.append(
                f"| {row['ours']} | {row['reference']} | {row['ours_mib']:.0f} | {row['reference_mib']:.0f} | "
                f"**{row['ratio']:.2f}** | {row['target']} |"
            )
    return "\n".join(lines)


def compare(reference: Reference, args: argparse.Namespace) -> dict:
    """Measure everything that was asked for; the content of the results file."""
    config = workload.config_of(args.preset)
    contest = Contest(reference, config, args.batch)
    loss = check(contest)
    seconds = time_in_turn(contest.steps, args.rounds)
    del contest
    speedups = [ratio_row(ours, theirs, seconds, target) for ours, theirs, target in EVERYTHING]
    speedups += [ratio_row(ours, theirs, seconds, None) for ours, theirs in A_QUARTER]
    memory = []
    if args.memory:
        peaks = measure_memory(args)
        memory = [
            {"ours": ours, "reference": theirs, "ours_mib": peaks[ours], "reference_mib": peaks[theirs],
             "ratio": peaks[ours] / peaks[theirs], "target": target}
            for ours, theirs, target in MEMORY
        ]  # fmt: skip
    about = {
        "date": conditions.now(), "commit": conditions.commit(), "cpu": conditions.cpu_model(),
        "threads": torch.get_num_threads(), "versions": conditions.versions(), "preset": args.preset,
        "batch": args.batch, "rounds": args.rounds, "memory_batch": MEMORY_BATCH, "step": "forward and backward",
    }  # fmt: skip
    return {"conditions": about, "loss": loss, "seconds": seconds, "speedups": speedups, "memory": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", required=True, metavar="DIR", help="checkout of the CineMA reference")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory", action="store_true", help=f"peak memory too, at batch {MEMORY_BATCH}")
    parser.add_argument("--preset", default="cinema-base")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=checkout.ROOT / "benchmarks" / "results", metavar="DIR")
    parser.add_argument("--peak-of", metavar="CASE", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    try:
        reference = Reference(args.reference)
    except (FileNotFoundError, ImportError) as error:
        parser.error(str(error))
    if args.peak_of:
        contest = Contest(reference, workload.config_of(args.preset), MEMORY_BATCH)
        contest.steps[args.peak_of]()
        contest.forget_gradients()
        print(json.dumps(peak_above_resident(contest.steps[args.peak_of])))  # of a process's second step
        return
    result = compare(reference, args)
    path = args.out / f"cpu-{result['conditions']['date']}.json"
    conditions.write_json(path, result)
    print(f"{table(result)}\n\nwritten to {path}")


if __name__ == "__main__":
    main()
