"""Puts the measured figures into README.md and docs/reference/, from the files under benchmarks/results.

    python benchmarks/readme_tables.py [--check]

Sections stand between <!-- NAME --> and <!-- /NAME -->. README.md has `cpu`, some lines of the newest comparison on a
CPU, and `findings`, the most important figures on self-distillation, reading and few labels. docs/reference/results.md
has `cpu`, every comparison in full, `dino`, the newest one of self-distillation, and `reading`.
docs/reference/kernels.md has `kernels`, the table of operations: what each says of itself (kernels/registry.py), and
what the newest report of a GPU that holds it measured. --check changes nothing, and gives exit status 1 where a page is
not what it would be.
"""

import argparse
import json
import re
import statistics
import sys
from pathlib import Path

from checkout import ROOT
from compare_dino import parts_in_words
from report_schema import kernel_sha

from cinema_fast.kernels import OPERATIONS

RESULTS, REFERENCE = ROOT / "benchmarks" / "results", ROOT / "docs" / "reference"
UNMEASURED, EARLIER = "not measured on a GPU", "measured on an earlier version"
BRIEF = (  # ours, reference: in the README
    ("fp32", "fp32"), ("fp32, a quarter decoded", "fp32"), ("bf16", "bf16"), ("bf16, a quarter decoded", "bf16"),
)  # fmt: skip


def brief_section(result: dict) -> str:
    """The same precision side by side, and what decoding a quarter adds: what is read in ten seconds."""
    about, rows = result["conditions"], {(row["ours"], row["reference"]): row for row in result["speedups"]}
    memory = {row["ours"]: f"{row['ratio']:.2f}" for row in result["memory"]}
    lines = ["| cinema-fast | CineMA reference | times as fast | peak memory |", "| --- | --- | --- | --- |"]
    for case, reference in BRIEF:
        ours = f"ours {case}"
        speedup = rows[ours, f"reference {reference}"]["speedup"]
        lines.append(f"| {case} | {reference} | **{speedup:.2f}** | {memory.get(ours, '')} |")
    cpu, seconds = about["cpu"].replace("(R)", ""), {way: statistics.median(s) for way, s in result["seconds"].items()}
    slower = seconds["ours bf16"] / seconds["ours fp32"]
    how = f"bf16 takes {slower:.2f} times the time of fp32 there"
    return "\n".join([*lines, "", f"{cpu}, {about['threads']} threads, {about['date'][:10]}; {how}."])


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


def dino_section(result: dict) -> str:
    """Steps and memory of self-distillation against plain PyTorch, from a file of compare_dino.py."""
    about = result["conditions"]
    lines = ["| preset | case | against | s | s | times as fast (range) | peak memory |", "| --- " * 7 + "|"]
    for found in result["presets"]:
        median = {case: statistics.median(seconds) for case, seconds in found["seconds"].items()}
        memory = {(row["ours"], row["reference"]): f"{row['ratio']:.2f}" for row in found["memory"]}
        for row in found["speedups"]:
            pair = row["ours"], row["reference"]
            times = f"**{row['speedup']:.2f}** ({row['low']:.2f}-{row['high']:.2f})"
            cells = [found["preset"], *pair, *(f"{median[case]:.3f}" for case in pair), times, memory.get(pair, "")]
            lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"Batch {about['batch']}: {about['step']}; medians of {about['rounds']} rounds in turn in one process. "
        f"{about['cpu'].replace('(R)', '')}, {about['threads']} threads, torch {about['versions']['torch']}, commit "
        f"{about['commit'][:7]}, {about['date'][:10]}.",
        "",
        *(f"- {found['preset']}, {words}." for found in result["presets"] for words in parts_in_words(found)),
    ]
    return "\n".join(lines)


def rates_of(reading: dict) -> dict[tuple[str, str], dict[str, float]]:
    """{(task, cache): {way: frames/s}} of a file of bench_data.py."""
    found = {}
    for row in reading["rows"]:
        found.setdefault((row["task"], row["cache"]), {})[row["way"]] = row["frames_per_s"]
    return found


def reading_section(reading: dict) -> str:
    """Frames/s of ours and of each peer, with the speed-up over the peer in brackets, and the conditions."""
    rates, about = rates_of(reading), reading["conditions"]
    ours, *peers = next(iter(rates.values()))
    lines = [f"| frames/s | {' | '.join([ours, *peers])} |", "| --- " * (2 + len(peers)) + "|"]
    for (task, cache), rate in rates.items():
        cells = [f"{rate[way]:.1f} ({rate[ours] / rate[way]:.0f})" for way in peers]
        lines.append(f"| {task}, {cache} | {rate[ours]:.0f} | {' | '.join(cells)} |")
    cpu = about["cpu"].replace("(R)", "")
    return "\n".join([*lines, "", f"{cpu}, one thread, commit {about['commit'][:7]}, {about['date'][:10]}."])


def labels_row(page: str, heading: str) -> tuple[float, float]:
    """Scratch and pre-trained, with all labels, of a table of docs/experiments/labels.md."""
    first = re.search(rf"^### {re.escape(heading)}.*?^\| \d+ +\|([^|]*)\|[^|]*\|([^|]*)\|", page, re.M | re.S)
    scratch, pretrained = (float(cell.split()[0]) for cell in first.groups())
    return scratch, pretrained


def findings_section(reading: dict, labels: str, dino: dict) -> str:
    """The README's sentences on self-distillation, reading and pre-training."""
    cpu, threads = dino["conditions"]["cpu"].replace("(R)", ""), dino["conditions"]["threads"]
    small8 = next(found for found in dino["presets"] if found["preset"] == "cmrfm-small8")
    times, share = (
        {(row["ours"][5:], row["reference"][6:]): row[figure] for row in small8[table]}
        for table, figure in (("speedups", "speedup"), ("memory", "ratio"))
    )
    fp32, bf16, both = ("fp32", "fp32"), ("bf16", "bf16"), ("bf16", "fp32")
    rate = rates_of(reading)["read", "cold"]
    segmented = labels_row(labels, "EF measured by segmentation, MAE")
    regressed = labels_row(labels, "EF by regression, MAE")
    return (
        f"A step of the DINO model (ViT-S/8) is {times[fp32]:.2f} times as fast as plain PyTorch in fp32, "
        f"{times[bf16]:.2f} times in bf16,\nand {times[both]:.2f} times from plain fp32 to our bf16; its memory is "
        f"{share[fp32]:.2f} and {share[both]:.2f} of plain fp32's ({cpu}, {threads} threads).\n"
        "Reading a frame from disk (cold cache, one core) is "
        f"{rate['cinema-fast'] / rate['nibabel']:.0f} times as fast as reading `.nii.gz` with nibabel.\n"
        "On synthetic hearts, the mean error of EF by segmentation is "
        f"{segmented[1]:.1f} points with pre-training and {segmented[0]:.1f} without;\n"
        f"of EF by regression, {regressed[1]:.1f} with and {regressed[0]:.1f} without."
    )


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
    steps, dinos, reading, reports = read_results(RESULTS)
    labels = (ROOT / "docs" / "experiments" / "labels.md").read_text()
    sections = (
        (ROOT / "README.md", "cpu", brief_section(steps[0])),
        (REFERENCE / "results.md", "dino", dino_section(dinos[0])),
        (ROOT / "README.md", "findings", findings_section(reading, labels, dinos[0])),
        (REFERENCE / "results.md", "cpu", "\n\n".join(map(cpu_section, steps))),
        (REFERENCE / "results.md", "reading", reading_section(reading)),
        (REFERENCE / "kernels.md", "kernels", kernels_section(reports)),
    )
    pages = {}
    for page, name, section in sections:
        pages[page] = with_section(pages.get(page) or page.read_text(), name, section)
    return pages


def read_results(folder: Path) -> tuple[list[dict], list[dict], dict, list[dict]]:
    """Comparisons on CPUs and those of self-distillation, newest first, the newest rates of reading, and every report
    of a GPU, oldest first."""
    steps, dinos = (
        [json.loads(path.read_text()) for path in sorted(folder.glob(f"{kind}-*.json"), reverse=True)]
        for kind in ("cpu", "dino")
    )
    reading = json.loads(max(folder.glob("reading-*.json")).read_text())
    others = (json.loads(path.read_text()) for path in folder.glob("*.json"))
    reports = [r for r in others if "kernels" in r and "device" in r and not r["smoke"]]
    return steps, dinos, reading, sorted(reports, key=lambda r: r["date"])


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
