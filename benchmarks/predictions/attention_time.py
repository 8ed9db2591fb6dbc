"""How long our attention takes by its machine code: cycles of a tile, tiles of a program, programs of a launch.

A turn of a loop is charged what it issues and what the matrix units then do, one after the other (every wait in the
code is for all outstanding products), times `calibration`: what the published speed of a tutorial's kernel on an H100
is to the same sum for a tutorial's kernel compiled here. A program also waits for memory a few times before its first
product; other programs on the multiprocessor fill such waits.
"""

from typing import NamedTuple

from audit_launches import Launch
from machine_cycles import MachineCode

MULTIPROCESSORS = 132
ROUND_TRIP = 800  # cycles from a load of global memory to its use
WAITS = 3  # of a program: its own rows, the first of those that it walks, the tail's
PRODUCTS = {"_attention_fwd": 2, "_attention_bwd_dq": 3, "_attention_bwd_dkv": 4}  # matrix products of a tile


class Sequences(NamedTuple):
    """Equally long ones: how many, their queries and keys, heads and their width."""

    batch: int
    queries: int
    keys: int
    heads: int
    head_dim: int


def constants(launch: Launch) -> dict:
    """The kernel's compile-time arguments by name."""
    names = list(launch.signature)
    return {names[path[0]]: value for path, value in launch.constants.items() if len(path) == 1}


def attention_cycles(launch: Launch, code: MachineCode, shape: Sequences) -> tuple[float, dict[str, float]]:
    """Cycles of all multiprocessors together for one launch, before calibration; and of a whole tile by unit.

    RuntimeError where the loops of the code are not those that the kernel is written with.
    """
    tile = constants(launch)
    rows, tail_rows, cols, tail_cols = (tile[name] for name in ("ROWS", "TAIL_ROWS", "COLS", "TAIL_COLS"))
    kernel = launch.kernel.__name__
    owned, walked = (shape.keys, shape.queries) if kernel.endswith("dkv") else (shape.queries, shape.keys)
    loops, has_tail_rows = code.matrix_loops, tail_rows < rows
    # more where two warpgroups of a narrow tile compute the same
    flops = 2 * PRODUCTS[kernel] * rows * cols * tile["HEAD"][1]
    if len(loops) != 2 + 2 * has_tail_rows or loops[0].flops < flops:
        raise RuntimeError(
            f"{launch.name}: expected {2 + 2 * has_tail_rows} loops with matrix products, the first of {flops} FLOPs "
            f"or more; the code has {[loop.flops for loop in loops]}: attention_time.py must learn its new shape"
        )
    trips, left = divmod(walked, cols)
    tail_trips = -(-left // tail_cols)
    once = code.straight / (1 + has_tail_rows) + WAITS * ROUND_TRIP / code.programs

    def program(whole, tail):
        return once + trips * whole.serial + tail_trips * tail.serial

    n_whole, rest = divmod(owned, rows)
    if rest > (tail_rows if has_tail_rows else 0):
        n_whole, rest = n_whole + 1, 0
    cycles = n_whole * program(*loops[:2]) + (program(*loops[2:]) if rest else 0)
    unit = {"issue": loops[0].issue, "matrix": loops[0].matrix, "exponential": loops[0].exponential}
    return shape.batch * shape.heads * cycles, unit
