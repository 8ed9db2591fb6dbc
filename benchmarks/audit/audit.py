"""The machine code of every kernel as it is launched, for GPUs that need not be there: `make audit`.

Triton's kernels are compiled for sm_80, sm_90 and sm_100 in the calls that operations declare (kernels/registry.py),
csrc/*.cu for sm_80 and sm_90. What was compiled before from the same source, specialisation and compiler is taken from
results/audit.json, and what another version of Triton made of today's launches stays there: each version in use runs
this once. Writes that file and docs/reference/audit.md; prints a line for each thing that is wrong, with any version,
and exits with 1 where there is any.
"""

import hashlib
import os
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import audit_code
import audit_launches
import triton
from audit_document import markdown, what
from audit_launches import Launch
from audit_results import key_of, read_results, write_results
from checkout import ROOT

from cinema_fast.kernels import OPERATIONS
from cinema_fast.kernels.registry import Code

ARCHS = (80, 90, 100)
RESULTS, DOCUMENT = ROOT / "benchmarks/results/audit.json", ROOT / "docs/reference/audit.md"
CUDA_SOURCES = ROOT / "csrc"
TRITON = f"triton {triton.__version__}"
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes that a block may have
UNALIGNED = "awkward"  # of this shape no address is a multiple of anything


def expected() -> dict[str, Code]:
    """What operations say of their kernels' code, by operation, or by kernel where an operation's kernels differ."""
    found = {}
    for name, operation in OPERATIONS.items():
        if isinstance(operation.code, Code):
            found[name] = operation.code
        else:
            found |= {f"{name}.{kernel}": code for kernel, code in operation.code.items()}
    return found


def faults(entry: dict, expected: dict[str, Code]) -> list[str]:
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
        wrong.append("its operation does not say what its code must hold")
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
        return launch.entry | {"code": code}

    return {key: partial(entry, key, launch) for key, launch in launches.items()}


def other_versions(launches: dict[str, Launch], known: dict[str, dict]) -> dict[str, dict]:
    """Known entries, by key, that another version of Triton made of these launches."""
    cases = {what(entry): entry["cases"] for entry in (launch.entry for launch in launches.values())}
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
    version = audit_code.nvcc_version() if sources and audit_code.nvcc() else ""
    found = {}
    for source in sources:
        digest = cuda_hash(source)
        for arch in audit_code.CUDA_ARCHS:
            about = {"source": digest, "arch": arch, "cases": [source.name]}
            if version:
                about["compiler"] = f"nvcc {version}"
            entries = [entry for entry in known.values() if entry.items() >= about.items()]
            if not entries and not version:
                raise RuntimeError(f"no nvcc on PATH to compile {source.name} for sm_{arch}")
            entries = entries or [
                about | {"kernel": f"{source.stem}.{name}", "passed": {}, "digest": "", "code": code}
                for name, code in audit_code.compile_cuda(source, arch).items()
            ]
            found |= {key_of(entry): entry for entry in entries}
    return found


def audit(
    launches: dict[str, Launch], sources: Path, results: Path, document: Path, expected: dict[str, Code]
) -> tuple[list[str], int]:
    """Brings `results` and `document` up to date; what is wrong, and how many entries had to be compiled."""
    known = read_results(results)
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
        write_results(results, (known | entries).values())
        raise
    entries = dict(sorted(entries.items()))
    write_results(results, entries.values())
    wrong = [fault for entry in entries.values() for fault in faults(entry, expected)]
    document.write_text(markdown(list(entries.values()), wrong, expected))
    return wrong, len(entries.keys() - known.keys())


def main() -> int:
    """The exit status."""
    cases = audit_launches.cases()
    launches = {key: launch for arch in ARCHS for key, launch in audit_launches.record(cases, arch).items()}
    every = audit_launches.kernels_of(audit_launches.kernel_modules())
    missing = every.keys() - {launch.name for launch in launches.values()}
    wrong, compiled = audit(launches, CUDA_SOURCES, RESULTS, DOCUMENT, expected())
    wrong += [f"{name}: launched by no call that its operation declares" for name in sorted(missing)]
    print("\n".join([*wrong, f"{len(launches)} launches, {compiled} compiled, {len(wrong)} faults"]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
