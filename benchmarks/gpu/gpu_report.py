"""Everything that is measured on a GPU, the most valuable first, for a machine that has one and no network:

    python benchmarks/gpu/gpu_report.py --out DIR [--budget SECONDS] [--only SECTION ...] [--reference DIR]

For a quarter of an hour on a GPU `gpu_first.py` beside it has a plan. Runs from a checkout that is not installed, with
torch, triton, numpy, pytest, pytest-xdist, pytest-timeout and hypothesis; --reference is a checkout of the CineMA
reference, which also wants timm and einops. Every section runs in a process of its own. DIR/<gpu>-<date>.json is
written anew after every row; what the budget did not reach is listed in it, what ran out of memory, gave a wrong result
or was killed too. Exit status 1 where something failed. --smoke runs all of it on the CPU at toy sizes, to test this
script, no more.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gpu_first import AT_ONCE
from gpu_work import add_options
from section_runner import Section, drive

from cinema_fast.kernels import OPERATIONS

SECTIONS = [
    Section("machine", 60),
    Section("errors", 120, parts=tuple(OPERATIONS), at_once=AT_ONCE),
    Section("step", 300),
    Section("compiled", 600),
    Section("profile", 120),
    Section("tiles", 300),
    Section("reference", 300),
    Section("kernels", 1200, parts=tuple(OPERATIONS)),
    Section("tests", 900),
    Section("data", 300),
    Section("reference compiled", 900),
    Section("waterfall", 900),
]


def main() -> int:
    names = {section.name: section for section in SECTIONS}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=3600, metavar="SECONDS", help="what is left then is killed")
    parser.add_argument("--only", choices=names, nargs="+", default=names, metavar="SECTION", help=", ".join(names))
    add_options(parser)
    args = parser.parse_args()
    wanted = [section for section in SECTIONS if section.name in args.only]
    return drive(parser, args, wanted, args.budget, quick=False)


if __name__ == "__main__":
    sys.exit(main())
