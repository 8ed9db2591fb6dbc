"""The machine code of every kernel as it is launched, for GPUs that need not be there: `make audit`.

Triton's kernels are compiled for sm_80, sm_90 and sm_100 at the registry's shapes, csrc/*.cu for sm_80 and sm_90. What
was compiled before from the same source, specialisation and compiler is taken from results/audit.json, and what another
version of Triton made of today's launches stays there: each version in use runs this once. Writes that file and
docs/audit.md; prints a line for each thing that is wrong, with any version, and exits with 1 where there is any.
"""

import hashlib
import os
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from json import loads
from pathlib import Path
from typing import NamedTuple
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import audit_code
import audit_launches
import conditions
import triton
from audit_document import markdown, what
from audit_launches import Launch
from checkout import ROOT

ARCHS = (80, 90, 100)
RESULTS, DOCUMENT, CUDA_SOURCES = ROOT / "benchmarks/results/audit.json", ROOT / "docs/audit.md", ROOT / "csrc"
TRITON = f"triton {triton.__version__}"
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes that a block may have
UNALIGNED = "awkward"  # of this shape no address is a multiple of anything


class Expected(NamedTuple):
    """What a kernel's code must hold: instructions of the matrix units where it computes in 16 bit; 16-byte loads and
    16-byte stores of global memory at every shape but UNALIGNED (or only where the constant of that name is True)."""

    matrix: bool
    wide_loads: bool
    wide_stores: bool | str
    why: str


# by operation, or by kernel where an operation's kernels differ
EXPECTED = {
    "assemble_queries._assemble_queries_fwd": Expected(False, True, True, "rows of the table in, of queries out"),
    "assemble_queries._assemble_queries_bwd": Expected(
        False, True, False, "rows of gradients in; out goes one sum for every 16 rows at most"
    ),
    "augment_triton._extremes": Expected(False, True, False, "8-bit pixels in, two numbers for each part out"),
    "augment_triton._move": Expected(
        False, False, True, "four neighbouring pixels a thread out; in come 8-bit ones, from where rotation says"
    ),
    "augment_triton._brighten": Expected(
        False, False, True, "four neighbouring pixels a thread: 16 bytes out, and in 4 where they come as stored"
    ),
    "masked_mse": Expected(
        False, True, "GRAD", "predictions in; their gradient out, but forward writes one number a row"
    ),
    "optical_flow": Expected(False, False, False, "a thread makes one pixel: neighbours read neighbouring floats"),
    "patch_embed": Expected(
        True, True, True, "a GEMM: weight in and tokens out, or gradients; pixels as wide as they lie together"
    ),
    "sample_mask": Expected(False, False, False, "all in registers; a sample's weights and ids are a few KB"),
    "sparse_attention": Expected(True, True, True, "GEMMs: heads' rows in and out"),
    "sparse_depthwise_conv": Expected(
        False, False, False, "a lane holds two channels: 4 or 8 bytes, whole lines of 128 bytes a warp"
    ),
}


def faults(entry: dict, expected: dict[str, Expected]) -> list[str]:
    """What is wrong with an entry of the results, each with the kernel, its shapes and its architecture."""
    code, types = entry["code"], entry["passed"].get("types", "")
    wants = expected.get(entry["kernel"]) or expected.get(entry["kernel"].partition(".")[0])
    wrong = []
    if code["spill_loads"] or code["spill_stores"] or code["local"]:
        wrong.append(
            f"spills: {code['spill_stores']} stores and {code['spill_loads']} loads, {code['local']} bytes a thread"
        )
    if code["shared"] > (limit := SHARED_LIMIT[entry["arch"]]):
        wrong.append(f"{code['shared']} bytes of shared memory, the limit is {limit}")
    if wants is None:
        wrong.append("audit.EXPECTED does not say what its code must hold")
    else:
        if wants.matrix and ("bf16" in types or "fp16" in types) and not code["matrix"]:
            wrong.append("no instruction of the matrix units")
        aligned = any(not case.startswith(UNALIGNED) for case in entry["cases"])
        for kind, wanted in (("loads", wants.wide_loads), ("stores", wants.wide_stores)):
            if isinstance(wanted, str):
                wanted = f"{wanted}=True" in entry["passed"]["constants"]
            if wanted and aligned and not wide(code[kind]):
                found = ", ".join(f"{n} of {size} bytes" for size, n in code[kind].items()) or "none at all"
                wrong.append(f"no 16-byte {kind} of global memory: {found}")
    where = f"{entry['kernel']}, {', '.join(entry['cases'])}, sm_{entry['arch']}, {entry['compiler']}"
    return [f"{where}: {fault}" for fault in wrong]


def wide(accesses: dict[str, int]) -> int:
    """How many are of 16 bytes or more."""
    return sum(n for size, n in accesses.items() if int(size) >= 16)


def triton_entries(launches: dict[str, Launch], known: dict[str, dict]) -> dict[str, Callable[[], dict]]:
    """By key, what gives an entry: the known one where there is one, else by compiling."""

    def entry(key, launch):
        if key in known:
            code = known[key]["code"]
        else:
            where = f"{launch.name}, {', '.join(sorted(launch.cases))}, sm_{launch.arch}"
            print(f"compiling {where}", file=sys.stderr)
            try:
                code = audit_code.compile_launch(launch)
            except Exception as error:
                raise RuntimeError(f"{where}: does not compile") from error
        return described(launch) | {"code": code}

    return {key: partial(entry, key, launch) for key, launch in launches.items()}


def described(launch: Launch) -> dict:
    """An entry without the code."""
    return {
        "kernel": launch.name, "source": audit_launches.source_hash(launch.kernel), "arch": launch.arch,
        "compiler": TRITON, "cases": sorted(launch.cases), "passed": launch.specialisation,
    }  # fmt: skip


def other_versions(launches: dict[str, Launch], known: dict[str, dict]) -> dict[str, dict]:
    """Known entries, by key, that another version of Triton made of these launches."""
    cases = {what(entry): entry["cases"] for entry in map(described, launches.values())}
    return {
        key: entry | {"cases": cases[what(entry)]}
        for key, entry in known.items()
        if entry["compiler"] != TRITON and what(entry) in cases
    }


def cuda_hash(source: Path) -> str:
    """Of a .cu and all headers beside it."""
    files = [source, *sorted(source.parent.glob("*.cuh"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def cuda_entries(folder: Path, known: dict[str, dict]) -> dict[str, dict]:
    """Entries of the kernels of all .cu files there, by key. Without nvcc what is known of any version is taken.

    RuntimeError where a file must be compiled and there is no nvcc.
    """
    sources = sorted(folder.glob("*.cu"))
    version = f"{audit_code.nvcc_version()} " if sources and audit_code.nvcc() else ""
    found = {}
    for source in sources:
        digest = cuda_hash(source)
        for arch in audit_code.CUDA_ARCHS:
            key = f"{source.name} {digest} sm_{arch} nvcc {version}"
            before = {k: entry for k, entry in known.items() if k.startswith(key)}
            if not before and not version:
                raise RuntimeError(f"no nvcc on PATH to compile {source.name} for sm_{arch}")
            found |= before or {
                f"{key}{name}": {
                    "kernel": f"{source.stem}.{name}", "source": digest, "arch": arch,
                    "compiler": f"nvcc {version}".strip(), "cases": [source.name], "passed": {}, "code": code,
                }
                for name, code in audit_code.compile_cuda(source, arch).items()
            }  # fmt: skip
    return found


def audit(
    launches: dict[str, Launch], sources: Path, results: Path, document: Path, expected: dict[str, Expected]
) -> tuple[list[str], int]:
    """Brings `results` and `document` up to date; what is wrong, and how many entries had to be compiled."""
    known = loads(results.read_text())["kernels"] if results.exists() else {}
    entries = {}
    try:
        # Triton leaves what it compiled in a folder, and would take it from there the next time
        with (
            tempfile.TemporaryDirectory() as cache,
            mock.patch.dict(os.environ, TRITON_CACHE_DIR=cache),
            audit_code.threads_may_compile(),
        ):
            pool = ThreadPoolExecutor(2)
            try:
                found = {key: pool.submit(make) for key, make in triton_entries(launches, known).items()}
                for key, entry in found.items():
                    entries[key] = entry.result()
            finally:
                pool.shutdown(cancel_futures=True)
        entries |= cuda_entries(sources, known) | other_versions(launches, known)
    except BaseException:  # an interrupt too: what is compiled need not be compiled again
        conditions.write_json(results, {"kernels": known | entries})
        raise
    entries = dict(sorted(entries.items()))
    conditions.write_json(results, {"kernels": entries})
    wrong = [fault for entry in entries.values() for fault in faults(entry, expected)]
    document.write_text(markdown(list(entries.values()), wrong, expected))
    return wrong, len(entries.keys() - known.keys())


def main() -> int:
    """The exit status."""
    cases = audit_launches.cases()
    launches = {key: launch for arch in ARCHS for key, launch in audit_launches.record(cases, arch).items()}
    every = audit_launches.kernels_of(audit_launches.kernel_modules())
    missing = every.keys() - {launch.name for launch in launches.values()}
    wrong, compiled = audit(launches, CUDA_SOURCES, RESULTS, DOCUMENT, EXPECTED)
    wrong += [f"{name}: launched by no case of audit_launches.cases()" for name in sorted(missing)]
    print("\n".join([*wrong, f"{len(launches)} launches, {compiled} compiled, {len(wrong)} faults"]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
