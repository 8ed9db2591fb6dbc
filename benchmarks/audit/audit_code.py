"""Machine code without a GPU: compiles Triton launches and CUDA sources, and counts what matters in the SASS.

The disassembler is the one that comes with Triton (cuobjdump, which calls nvdisasm); it knows sm_80, sm_90 and sm_100.
Counts are of instructions as they stand in the code, not of how often they run.
"""

import ast
import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest import mock

import triton
from audit_launches import Launch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
CUDA_ARCHS = (80, 90)
NVCC_FLAGS = ("-std=c++17", "-O3", "-lineinfo")  # those of setup.py
RESERVED_SHARED = {80: 0, 90: 1024, 100: 1024}  # bytes that the tools add for the system's own use
SIZE = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}

MATRIX = re.compile(r"[HIDQO]?G?MMA|UTC\w*MMA")


@dataclass
class Code:
    """A compiled kernel.

    registers: of a thread; shared: bytes of a block; local: bytes of a thread's stack and local memory; spill_loads,
    spill_stores: instructions that read and write these; matrix: instructions of the matrix units by name; loads,
    stores: instructions that read and write global memory (asynchronous copies too), by bytes of a thread's access.
    """

    registers: int
    shared: int
    local: int
    spill_loads: int
    spill_stores: int
    matrix: dict[str, int]
    loads: dict[str, int]
    stores: dict[str, int]


def mnemonics(sass: str) -> Counter[str]:
    """Instructions of a listing by cuobjdump or nvdisasm, with their modifiers, without predicates and operands."""
    return Counter(re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", sass, re.MULTILINE))


def access_bytes(mnemonic: str) -> int:
    """Bytes that one thread moves by a load, a store or an asynchronous copy."""
    return next((SIZE[part] for part in mnemonic.split(".")[1:] if part in SIZE), 4)


def parse(listing: str, arch: int, dynamic_shared: int = 0) -> dict[str, Code]:
    """Kernels by name from what `cuobjdump -res-usage -sass` prints of a cubin.

    dynamic_shared: bytes of shared memory that the launch asks for; the listing knows only what the code declares.
    """
    used = {
        name: {key: int(value) for key, value in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", facts)}
        for name, facts in re.findall(r"^ Function (\S+):\n(.*)", listing, re.MULTILINE)
    }
    found = {}
    for part in re.split(r"^\s*Function : ", listing, flags=re.MULTILINE)[1:]:
        name, sass = part.split("\n", 1)
        resources, by_unit = used[name], Counter()
        accesses = {"LDG": Counter(), "LDGSTS": Counter(), "STG": Counter()}
        for mnemonic, n in mnemonics(sass).items():
            unit = mnemonic.split(".")[0]
            by_unit[unit] += n
            if unit in accesses:
                accesses[unit][access_bytes(mnemonic)] += n
        found[name] = Code(
            registers=resources["REG"],
            shared=dynamic_shared + max(resources["SHARED"] - RESERVED_SHARED[arch], 0),
            local=resources["STACK"] + resources["LOCAL"],
            spill_loads=by_unit["LDL"],
            spill_stores=by_unit["STL"],
            matrix={unit: n for unit, n in by_unit.items() if MATRIX.fullmatch(unit)},
            loads=_widest_first(accesses["LDG"] + accesses["LDGSTS"]),
            stores=_widest_first(accesses["STG"]),
        )
    return found


def _widest_first(accesses: Counter[int]) -> dict[str, int]:
    return {str(size): accesses[size] for size in sorted(accesses, reverse=True)}


def read_cubin(cubin: Path, arch: int, dynamic_shared: int = 0) -> dict[str, Code]:
    """Kernels of a cubin by name. RuntimeError where it cannot be disassembled."""
    done = subprocess.run([TOOLS / "cuobjdump", "-res-usage", "-sass", cubin], capture_output=True, text=True)
    found = parse(done.stdout, arch, dynamic_shared)
    if done.returncode or not found:
        raise RuntimeError(f"cuobjdump finds no kernel for sm_{arch} in {cubin}: {done.stderr or done.stdout}")
    return found


@contextmanager
def threads_may_compile() -> Iterator[None]:
    """Inside it several threads may compile at once: Python 3.11's `ast.parse`, by which Triton reads a kernel, fails
    now and then where two threads are in it ("AST constructor recursion depth mismatch")."""
    parse, lock = ast.parse, threading.Lock()

    def one_at_a_time(*args, **how):
        with lock:
            return parse(*args, **how)

    with mock.patch.object(ast, "parse", one_at_a_time):
        yield


def compile_launch(launch: Launch) -> dict:
    """A `Code` as a dict. Triton's own cache must be an empty folder, else this reads what lies there."""
    source = ASTSource(launch.kernel, launch.signature, launch.constants, launch.attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", launch.arch, 32), options=launch.options)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(compiled.asm["cubin"])
        (code,) = read_cubin(cubin, launch.arch, compiled.metadata.shared).values()
    return asdict(code)


def nvcc() -> str | None:
    """The CUDA compiler on PATH."""
    return shutil.which("nvcc")


def nvcc_version() -> str:
    """As in 13.0.88."""
    return re.search(r"V([\d.]+)", subprocess.check_output([nvcc(), "--version"], text=True))[1]


def compile_cuda(source: Path, arch: int) -> dict[str, dict]:
    """The kernels of a .cu, each a `Code` as a dict. RuntimeError with the compiler's words where it does not compile.

    They are `extern "C"`, and their shared memory is what they declare.
    """
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        command = [nvcc(), "-cubin", f"-arch=sm_{arch}", *NVCC_FLAGS, "-o", cubin, source]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"TMPDIR": folder})
        if done.returncode:
            raise RuntimeError(f"nvcc cannot compile {source.name} for sm_{arch}: {done.stderr}")
        return {name: asdict(code) for name, code in read_cubin(cubin, arch).items()}
