"""Puts the measured figures into README.md and docs/reference/, from the files under benchmarks/results.

    python benchmarks/readme_tables.py [--check]

Sections stand between <!-- NAME --> and <!-- /NAME -->. README.md has `cpu`, three lines of the comparison on a CPU.
docs/reference/results.md has `cpu`, all of it. docs/reference/kernels.md has `kernels`, the table of operations: what
each says of itself (kernels/registry.py), and what the newest report of a GPU that holds it measured. --check changes
nothing, and gives exit status 1 where a page is not what it would be.
"""

import argparse
import json
import re
import statistics
import sys
from pathlib import Path

from checkout import ROOT
from report_schema import kernel_sha

from cinema_fast.kernels import OPERATIONS

RESULTS, REFERENCE = ROOT / "benchmarks" / "results", ROOT / "docs" / "reference"
UNMEASURED, EARLIER = "not measured on a GPU", "measured on an earlier version"
BRIEF = (("fp32", "fp32"), ("bf16", "bf16"), ("bf16, a quarter decoded", "bf16"))  # ours, reference: in the README


def brief_section(result: dict) -> str:
    """The same precision side by side, and what decoding a quarter adds: what is read in ten seconds."""
    about, rows = result["conditions"], {(row["ours"], row["reference"]): row for row in result["speedups"]}
    memory = {row["ours"]: f"{row['ratio']:.2f}" for row in result["memory"]}
    lines = ["| cinema-fast | CineMA reference | times as fast | peak memory |", "| --- | --- | --- | --- |"]
    for case, reference in BRIEF:
        ours = f"ours {case}"
        speedup = rows[ours, f"reference {reference}"]["speedup"]
        lines.append(f"| {case} | {reference} | **{speedup:.2f}** | {memory.get(ours, '')} |")
    cpu = about["cpu"].replace("(R)", "")
    return "\n".join([*lines, "", f"{cpu}, {about['threads']} threads, {about['date'][:10]}."])


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
    """A row for each operation, with links from docs/reference/."""
    lines = ["| operation | computes | passes | backends | on a GPU |", "| --- | --- | --- | --- | --- |"]
    for name, operation in OPERATIONS.items():
        module = operation.function.__module__.removeprefix("cinema_fast.").replace(".", "/")
        cells = [
            f"[`{name}`]({module}.py)", operation.computes, ", ".join(operation.passes),
            ", ".join(operation.backends), gpu_cell(name, reports),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return re.sub(r"\]\((?!http)", "](../../", "\n".join(lines))


def with_section(text: str, name: str, section: str) -> str:
    """A page's text with a section as it is today."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, _, rest = text.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"the section between {begin} and {end} is missing")
    return f"{before}{begin}\n{section}\n{end}{after}"


def pages_of_today() -> dict[Path, str]:
    """{page: its text with the figures of today}."""
    cpu, reports = read_results(RESULTS)
    sections = (
        (ROOT / "README.md", "cpu", brief_section(cpu)),
        (REFERENCE / "results.md", "cpu", cpu_section(cpu)),
        (REFERENCE / "kernels.md", "kernels", kernels_section(reports)),
    )
    return {page: with_section(page.read_text(), name, section) for page, name, section in sections}


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
    pages = pages_of_today()
    if args.check:
        return int(any(page.read_text() != text for page, text in pages.items()))
    for page, text in pages.items():
        page.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
