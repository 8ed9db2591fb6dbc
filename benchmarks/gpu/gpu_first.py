"""Fifteen minutes on a GPU, as two commands one right after the other:

    python benchmarks/gpu/gpu_first.py A --out OUT_A
    python benchmarks/gpu/gpu_first.py B --out OUT_B [--reference CINEMA_CHECKOUT]

A, 330 s: what the GPU reaches; every operation against float64, those that fail being replaced from there on; the eager
step and its CUDA graph, with cuDNN's attention too; its profile; attention's tiles. The compiled step compiles beside
all that. B, 400 s: the compiled step, the reference as published, the other kernels, the tests, the loaders. `--only`
runs single sections again.

OUT gets at most 8 files of 16 MiB a run: the report as JSON, written anew after every row, and as a table; traces; the
tuned table of tiles, to be committed as kernels/tuned/<gpu>.json; logs. --work keeps caches, the operations that failed
and the tuned table from A to B. Runs from a checkout that is not installed. Exit status 1 where something failed, 130
where the run was stopped. --smoke runs all of it on the CPU at toy sizes, to test this script, no more.
"""

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gpu_work import add_options
from section_runner import Section, drive

from cinema_fast.kernels import OPERATIONS

AT_ONCE = min(len(OPERATIONS), os.cpu_count() or 1)
SECONDS = {"A": 330, "B": 400}
COMMANDS = {
    "A": [
        Section("compile", 330, parts=("1", "0.25"), at_once=2, background=True),
        Section("machine", 25),
        Section("errors", 60, parts=tuple(OPERATIONS), at_once=AT_ONCE),
        Section("step", 90),
        Section("profile", 45),
        Section("tiles", 110),
    ],
    "B": [
        Section("compiled", 120),
        Section("reference", 70),
        Section("kernels", 70, parts=("sparse_depthwise_conv patch_embed masked_mse sample_mask",)),
        Section("tests", 110),
        Section("data", 30),
    ],
}  # fmt: skip


def main() -> int:
    sections = {section.name: section for command in COMMANDS.values() for section in command}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=COMMANDS, nargs="?", help="the first, or the second part of the plan")
    parser.add_argument("--only", choices=sections, nargs="+", default=(), metavar="SECTION", help=", ".join(sections))
    add_options(parser)
    args = parser.parse_args()
    if bool(args.command) == bool(args.only):
        parser.error("expected either A or B, or --only with names of sections")
    wanted = COMMANDS[args.command] if args.command else [sections[name] for name in args.only]
    slower = 4 if args.smoke else 1  # a CPU that tests share
    wanted = [replace(section, seconds=slower * section.seconds) for section in wanted]
    seconds = SECONDS[args.command] * slower if args.command else sum(section.seconds for section in wanted)
    return drive(parser, args, wanted, seconds, quick=True)


if __name__ == "__main__":
    sys.exit(main())
