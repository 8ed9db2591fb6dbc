"""Compiles the step's Triton kernels for a GPU that is not there, into a cache that gpu_first.py unpacks and uses:

    .venv-gpu/bin/python benchmarks/gpu/triton_cache.py [--work DIR] [--arch 90]

Triton finds them there if the GPU's machine has the same Triton and ptxas: `make env-gpu` gives the stack for that. It
is what launches find, as they are recorded by audit_launches.py, at the shapes of cinema-base, and attention's at every
tile that gpu_tiles.py tries.
"""

import argparse
import json
import os
import sys
import tarfile
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import checkout

# isort: split
import audit_launches
import torch
import triton
from audit_code import threads_may_compile
from audit_launches import Case, Launch
from gpu_tiles import TILES, table_of
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.cache import triton_key

from cinema_fast.kernels import tuning
from cinema_fast.kernels.shapes import ATTENTION_SHAPES


def step_cases() -> list[Case]:
    """Those of cinema-base, and the awkward shapes that every operation is checked at."""
    return [case for case in audit_launches.cases() if case.name.startswith(("cinema-base", "cinema-dec", "awkward"))]


def tile_launches(arch: int) -> dict[str, Launch]:
    """Of sparse_attention at every tile, by key. A tile is tried in all passes at once."""
    found = {}
    cases = [c for c in step_cases() if c.operation == "sparse_attention" and c.name.endswith("b64 bf16")]
    for case in cases:
        shape = ATTENTION_SHAPES[case.name.removesuffix(" bf16")]
        for tile in TILES:
            with tuning.override(table_of(shape, torch.bfloat16, dict.fromkeys(("fwd", "dq", "dkv"), tile))):
                found |= audit_launches.record([case], arch)
    return found


def fill(launches: list[Launch], folder: Path) -> None:
    """Compile what is not in the cache yet."""
    os.environ["TRITON_CACHE_DIR"] = str(folder)

    def compile_one(launch: Launch) -> None:
        source = ASTSource(launch.kernel, launch.signature, launch.constants, launch.attributes)
        triton.compile(source, target=GPUTarget("cuda", launch.arch, 32), options=launch.options)

    with threads_may_compile(), ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, launches))


def pack(launches: list[Launch], archive: Path) -> None:
    """Compile them into a file that gpu_work.py unpacks."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        fill(launches, Path(folder))
        made = {"launches": len(launches), "arch": launches[0].arch, "triton": triton.__version__, "key": triton_key()}
        Path(folder, "made.json").write_text(json.dumps(made))
        part = archive.with_name(archive.name + ".part")
        with tarfile.open(part, "w:gz") as file:
            file.add(folder, "triton")
        part.replace(archive)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=checkout.ROOT / "build" / "gpu_first", metavar="DIR")
    parser.add_argument("--arch", type=int, default=90, help="90 for H100 and H200, 100 for B200, 80 for A100")
    args = parser.parse_args()
    archive = args.work / "triton.tar.gz"
    launches = list((audit_launches.record(step_cases(), args.arch) | tile_launches(args.arch)).values())
    pack(launches, archive)
    size = archive.stat().st_size / 2**20
    print(f"{len(launches)} launches for sm_{args.arch} by triton {triton.__version__}: {archive}, {size:.0f} MiB")


if __name__ == "__main__":
    main()
