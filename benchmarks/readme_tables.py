"""Puts the measured figures into README.md, from the files under benchmarks/results.

    python benchmarks/readme_tables.py [--check]

The comparison on a CPU stands between <!-- cpu --> and <!-- /cpu -->, the table of operations between <!-- kernels -->
and <!-- /kernels -->: what each says of itself (kernels/registry.py), and what the newest report of a GPU that holds it
measured. --check changes nothing, and gives exit status 1 where the README is not what it would be.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

from checkout import ROOT
from report_schema import kernel_sha

from cinema_fast.kernels import OPERATIONS

README, RESULTS = ROOT / "README.md", ROOT / "benchmarks" / "results"
UNMEASURED, EARLIER = "not measured on a GPU", "measured on an earlier version"


def cpu_section(result: dict) -> str:
    """Steps and memory of ours against the reference, with the conditions, from a file of compare_reference.py."""
    about = result["conditions"]
    median = {case: statistics.median(seconds) for case, seconds in result["seconds"].items()}
    rule = "| --- | --- | --- | --- | --- |"
    lines = ["| cinema-fast | reference | cinema-fast, s | reference, s | speed-up (range) |", rule]
    for row in result["speedups"]:
        ours, theirs = row["ours"].removeprefix("ours "), row["reference"].removeprefix("reference ")
        times = f"**{row['speedup']:.2f}** ({row['low']:.2f}-{row['high']:.2f})"
        lines.append(
            f"| {ours} | {theirs} | {median[row['ours']]:.2f} | {median[row['reference']]:.2f} | {times} |"
        )
    lines += ["", "| peak memory, cinema-fast | reference | cinema-fast, MiB | reference, MiB | ratio |", rule]
    for row in result["memory"]:
        ours, theirs = row["ours"].removeprefix("ours "), row["reference"].removeprefix("reference ")
        lines.append(f"| {ours} | {theirs} | {row['ours_mib']:.0f} | {row['reference_mib']:.0f} | {row['ratio']:.2f} |")
    lines += [
        "",
        f"{about['preset']}, batch {about['batch']} (memory above what is resident: batch {about['memory_batch']}), "
        f"{about['step']}; medians of {about['rounds']} rounds in turn in one process, with the range of the rounds' "
        f"ratios. {about['cpu'].replace('(R)', '')}, {about['threads']} threads, torch {about['versions']['torch']}, "
        f"commit {about['commit'][:7]}, {about['date'][:10]}.",
    ]
    return "\n".join(lines)


def gpu_cell(operation: str, reports: list[dict]) -> str:
    """What the newest of `reports` (oldest first) says of an operation: of each pass its first shape."""
    for report in reversed(reports):
        rows = {}
        for row in report["kernels"]:
            if row["op"] == operation:
                rows.setdefault(row["pass"], row)
        if rows:
            figures = "; ".join(
                f"{name} {row['us']:.0f} us ({row['shape']}, {row['dtype']}), {row['percent_of_limit']:.0f} % of the "
                "limit" + (f", {row['speedup']:.2g} times as fast as {row['peer']}" if row["peer"] else "")
                for name, row in rows.items()
            )
            old = any(row["kernel_sha"] != kernel_sha(operation) for row in rows.values())
            return f"{report['device']}, {report['date'][:10]}: {figures}" + (f" ({EARLIER})" if old else "")
    return UNMEASURED


def kernels_section(reports: list[dict]) -> str:
    """A row for each operation."""
    lines = ["| operation | computes | passes | backends | on a GPU |", "| --- | --- | --- | --- | --- |"]
    for name, operation in OPERATIONS.items():
        module = operation.function.__module__.removeprefix("cinema_fast.").replace(".", "/")
        links = f"[test](tests/kernels/test_{name}.py), [bench](benchmarks/operations/bench_{name}.py)"
        cells = [
            f"[`{name}`]({module}.py) ({links})", operation.computes, ", ".join(operation.passes),
            ", ".join(operation.backends), gpu_cell(name, reports),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def with_figures(text: str, cpu: dict, reports: list[dict]) -> str:
    """README's text with the figures of today."""
    for name, section in (("cpu", cpu_section(cpu)), ("kernels", kernels_section(reports))):
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, _, rest = text.partition(begin)
        _, found, after = rest.partition(end)
        if not found:
            raise SystemExit(f"{README.name}: the section between {begin} and {end} is missing")
        text = f"{before}{begin}\n{section}\n{end}{after}"
    return text


def read_results(folder: Path) -> tuple[dict, list[dict]]:
    """The newest comparison on a CPU, and every report of a GPU, oldest first."""
    cpu = max(folder.glob("cpu-*.json"), key=lambda path: path.name)
    others = (json.loads(path.read_text()) for path in folder.glob("*.json") if not path.name.startswith("cpu-"))
    reports = [r for r in others if "kernels" in r and "device" in r and not r["smoke"]]
    return json.loads(cpu.read_text()), sorted(reports, key=lambda r: r["date"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing")
    args = parser.parse_args()
    text = README.read_text()
    wanted = with_figures(text, *read_results(RESULTS))
    if args.check:
        return int(text != wanted)
    README.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
