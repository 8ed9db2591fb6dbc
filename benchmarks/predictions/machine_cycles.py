"""Cycles of a multiprocessor from a kernel's machine code: what its loops issue, and what its units need for it.

A loop is what lies between a branch backwards and where it leads. Of one turn of a loop, by all warps of a program:

    issue        instructions x warps / 4: each of the four schedulers issues one a cycle
    matrix       FLOPs of HGMMA and HMMA / 4096, what the matrix units do a cycle in 16 bit on sm_90
    exponential  MUFU instructions x warps x 32 / 16: the special-function units give 16 results a cycle

Nothing here is measured: these are lower bounds of each unit alone; how far they overlap the listing does not say.
"""

import re
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import audit_code
import triton
from audit_launches import Launch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

SCHEDULERS = 4
MATRIX_FLOPS = 4096  # a cycle of an sm_90 multiprocessor, bf16 and fp16
SPECIAL_RESULTS = 16  # a cycle
REGISTERS, THREADS, PROGRAMS = 65536, 2048, 32  # of a multiprocessor
SHARED = 228 * 1024
SYSTEM_SHARED = 1024  # bytes that every program takes besides its own
WARPGROUP = 4  # warps that do one HGMMA together

INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);", re.MULTILINE)
TARGET = re.compile(r"0x([0-9a-f]+)")


@dataclass(frozen=True)
class Loop:
    """One turn: instructions and special-function instructions of a warp, FLOPs of a program, warps of a program."""

    instructions: int
    special: int
    flops: int
    warps: int

    @property
    def issue(self) -> float:
        """Cycles."""
        return self.instructions * self.warps / SCHEDULERS

    @property
    def matrix(self) -> float:
        """Cycles."""
        return self.flops / MATRIX_FLOPS

    @property
    def exponential(self) -> float:
        """Cycles."""
        return self.special * self.warps * 32 / SPECIAL_RESULTS

    @property
    def serial(self) -> float:
        """Cycles where nothing overlaps but the exponential, which is issued beside the rest."""
        return max(self.issue + self.matrix, self.exponential)


def matrix_flops(mnemonic: str, warps: int) -> int:
    """Of one instruction of each of `warps` warps: HGMMA.64x128x16 is one of a warpgroup, HMMA.16816 of a warp."""
    unit, *modifiers = mnemonic.split(".")
    if unit == "HGMMA":
        m, n, k = map(int, modifiers[0].split("x"))
        return 2 * m * n * k * warps // WARPGROUP
    if unit == "HMMA":
        shape = modifiers[0]  # m16n8k16 or m16n8k8
        return 2 * 16 * 8 * int(shape.removeprefix("168")) * warps
    return 0


def loops(listing: str, warps: int) -> list[Loop]:
    """Loops of the one kernel in a listing by cuobjdump, in the order of their ends."""
    code = [(int(at, 16), mnemonic, operands) for at, mnemonic, operands in INSTRUCTION.findall(listing)]
    found = []
    for at, mnemonic, operands in code:
        target = TARGET.search(operands) if mnemonic.split(".")[0] == "BRA" else None
        if target and int(target[1], 16) < at:
            body = [name for address, name, _ in code if int(target[1], 16) <= address <= at]
            special = sum(name.startswith("MUFU") for name in body)
            found.append(Loop(len(body), special, sum(matrix_flops(name, warps) for name in body), warps))
    return found


@dataclass(frozen=True)
class MachineCode:
    """A compiled launch. instructions: of the whole kernel; programs: how many fit a multiprocessor at a time."""

    instructions: int
    registers: int
    shared: int
    warps: int
    loops: tuple[Loop, ...]

    def as_dict(self) -> dict:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "MachineCode":
        """Of `as_dict`."""
        return cls(**values | {"loops": tuple(Loop(**loop) for loop in values["loops"])})

    @property
    def programs(self) -> int:
        """By registers (given out in eights), shared memory and threads."""
        threads = 32 * self.warps
        by_registers = REGISTERS // (-(-self.registers // 8) * 8 * threads)
        return max(min(by_registers, SHARED // (self.shared + SYSTEM_SHARED), THREADS // threads, PROGRAMS), 1)

    @property
    def matrix_loops(self) -> list[Loop]:
        """Those that use the matrix units."""
        return [loop for loop in self.loops if loop.flops]

    @property
    def straight(self) -> float:
        """Cycles to issue once what lies in no loop."""
        return (self.instructions - sum(loop.instructions for loop in self.loops)) * self.warps / SCHEDULERS


def machine_code(launch: Launch) -> MachineCode:
    """Compiles a recorded launch for its architecture and reads the code; Triton's cache is used as it is."""
    source = ASTSource(launch.kernel, launch.signature, launch.constants, launch.attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", launch.arch, 32), options=launch.options)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(compiled.asm["cubin"])
        (code,) = audit_code.read_cubin(cubin, launch.arch, compiled.metadata.shared).values()
        listing = subprocess.check_output([audit_code.TOOLS / "cuobjdump", "-sass", cubin], text=True)
    warps = launch.options["num_warps"]
    return MachineCode(
        instructions=len(INSTRUCTION.findall(listing)), registers=code.registers, shared=code.shared, warps=warps,
        loops=tuple(loops(listing, warps)),
    )  # fmt: skip
