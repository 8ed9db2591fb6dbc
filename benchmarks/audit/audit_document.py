"""docs/reference/audit.md: what benchmarks/audit/audit.py found, side by side for the versions of Triton."""

import re
from collections.abc import Iterable
from itertools import pairwise
from json import dumps

AMOUNTS = {"registers": 1, "spill_loads": 1, "spill_stores": 1, "shared": 1 / 1024}  # and what a unit of them counts
KINDS = ("matrix", "loads", "stores")


def what(entry: dict) -> tuple[str, str, int, str]:
    """What was compiled, whatever compiled it: kernel, source, architecture and specialisation."""
    return entry["kernel"], entry["source"], entry["arch"], dumps(entry["passed"], sort_keys=True)


def tritons(entries: Iterable[dict]) -> list[str]:
    """Versions of Triton that made them, as "triton 3.6.0", the oldest first."""
    found = {entry["compiler"] for entry in entries if entry["compiler"].startswith("triton")}
    return sorted(found, key=lambda compiler: [int(n) for n in re.findall(r"\d+", compiler)])


def markdown(entries: list[dict], wrong: list[str], expected: dict) -> str:
    """The document: what kernels must hold, the range of each kernel's figures, what differs between compilers."""
    versions = tritons(entries)
    compilers = ", ".join([*sorted({entry["compiler"] for entry in entries} - set(versions)), *versions])
    lines = [
        "# The kernels' machine code",
        "",
        f"Written by `make audit` from `benchmarks/results/audit.json`; compiled by {compilers}, without a GPU.",
        "Every kernel is compiled as it is launched at the shapes of `kernels/shapes.py`: with the same blocks,",
        "warps, stages and divisibility. Counts are of instructions in the code (SASS, by Triton's cuobjdump), not of",
        "how often they run; they say nothing about time. No kernel may spill registers.",
        "",
        f"Faults: {len(wrong)}." if wrong else "No faults were found.",
        *[f"- {fault}" for fault in wrong],
        "",
        "| kernel | must contain | reason |",
        "|---|---|---|",
    ]
    for name, wants in sorted(expected.items()):
        holds = {"matrix units in 16 bit": wants.matrix, "16-byte loads": wants.wide_loads,
                 "16-byte stores": wants.wide_stores}  # fmt: skip
        lines.append(f"| {name} | {', '.join(k for k, v in holds.items() if v) or 'nothing else'} | {wants.why} |")
    compiled: dict[tuple, dict[str, dict]] = {}
    for entry in entries:
        compiled.setdefault(what(entry), {})[entry["compiler"]] = entry
    lines += figures(entries)
    for old, new in pairwise(versions):
        lines += differences(compiled, old, new)
    return "\n".join(lines) + "\n"


def figures(entries: list[dict]) -> list[str]:
    """Lines of the document with the figures of every kernel, each as least-most; architectures alike in one row."""
    codes: dict[tuple[str, int], list[dict]] = {}
    made: dict[tuple[str, int], set] = {}
    for entry in entries:
        codes.setdefault((entry["kernel"], entry["arch"]), []).append(entry["code"])
        made.setdefault((entry["kernel"], entry["arch"]), set()).add(what(entry))
    archs: dict[tuple[str, ...], list[int]] = {}
    for (name, arch), found in sorted(codes.items()):
        archs.setdefault((name, str(len(made[name, arch])), *_figures(found)), []).append(arch)
    columns = ["kernel", "sm", "specialisations", "registers", "shared KiB", *KINDS]
    return [
        "",
        "## Figures",
        "",
        "Minimum-maximum over all specialisations of a kernel and all versions; the results file has each of them.",
        "",
        "- registers: per thread",
        "- shared: per block (of a .cu file: as declared); the limit is 163 KiB on sm_80, 227 on sm_90 and sm_100",
        "- matrix: instructions for the matrix units (HMMA, on sm_90 HGMMA, on sm_100 UTCHMMA)",
        "- loads, stores: of global memory, number x bytes per thread",
        "",
        f"| {' | '.join(columns)} |",
        "|---" * len(columns) + "|",
        *(f"| {name} | {', '.join(map(str, on))} | {' | '.join(cells)} |" for (name, *cells), on in archs.items()),
    ]


def _figures(codes: list[dict]) -> list[str]:
    """The cells of a row."""
    cells = [_range(code["registers"] for code in codes), _range(code["shared"] / 1024 for code in codes)]
    for kind in KINDS:
        units = _in_order(set().union(*(code[kind] for code in codes)))
        sign = "" if kind == "matrix" else " x"
        cells.append(", ".join(f"{_range(code[kind].get(unit, 0) for code in codes)}{sign} {unit}" for unit in units))
    return cells


def _range(values: Iterable[float]) -> str:
    values = list(values)
    least, most = f"{min(values):.3g}", f"{max(values):.3g}"
    return least if least == most else f"{least}-{most}"


def differences(compiled: dict[tuple, dict[str, dict]], old: str, new: str) -> list[str]:
    """Lines of the document that name the kernels of which two compilers make different code.

    compiled: entries by `what` was compiled and by compiler.
    """
    pairs: dict[tuple[str, int], list[tuple[dict, dict]]] = {}
    for (name, _, arch, _), by_compiler in compiled.items():
        if {old, new} <= by_compiler.keys():
            pairs.setdefault((name, arch), []).append((by_compiler[old]["code"], by_compiler[new]["code"]))
    rows, alike = [], {name for name, _ in pairs}
    for (name, arch), both in sorted(pairs.items()):
        amounts = [_more([(b[key] - a[key]) * unit for a, b in both]) for key, unit in AMOUNTS.items()]
        kinds = [_other([(a[key], b[key]) for a, b in both]) for key in KINDS]
        if any(amounts + kinds):
            alike.discard(name)
            rows.append(f"| {name} | {arch} | {len(both)} | {' | '.join(amounts + kinds)} |")
    columns = ["kernel", "sm", "specialisations", "registers", "spill loads", "spill stores", "shared KiB", *KINDS]
    return [
        "",
        f"## Differences between {old} and {new}",
        "",
        f"\"6: -8 to +4\" means: {new} differs in 6 of a kernel's specialisations, from 8 fewer to 4 more. For matrix",
        "instructions, loads and stores the units or widths (bytes per thread) are named instead.",
        "",
        *([f"Equal: {', '.join(sorted(alike))}."] if alike else ["No kernel is equal in all figures."]),
        "",
        f"| {' | '.join(columns)} |",
        "|---" * len(columns) + "|",
        *rows,
    ]


def _more(changes: list[float]) -> str:
    found = [change for change in changes if change]
    least, most = (f"{bound(found):+.3g}" for bound in (min, max)) if found else ("", "")
    return "" if not found else f"{len(found)}: {least}" + f" to {most}" * (least != most)


def _other(both: list[tuple[dict, dict]]) -> str:
    found = [{kind for kind in a | b if a.get(kind) != b.get(kind)} for a, b in both if a != b]
    return f"{len(found)}: {', '.join(_in_order(set().union(*found)))}" if found else ""


def _in_order(kinds: set[str]) -> list[str]:
    """Units by name, accesses by width, the widest first."""
    return sorted(kinds, key=lambda kind: (-int(kind), "") if kind.isdigit() else (0, kind))
