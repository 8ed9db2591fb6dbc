"""What operators cost a GPU: PyTorch's by their bytes and FLOPs, ours by what their launchers launch.

Attention, patch_embed and prototype_loss are charged the cycles of their machine code, the depthwise convolution its
multiply-adds on the ordinary units, all of them at least their bytes.
"""

from collections import Counter
from collections.abc import Iterable

from attention_time import PRODUCTS, ROUND_TRIP, WAITS, Sequences, attention_cycles, constants
from audit_launches import Launch
from machine_cycles import MachineCode, machine_code
from step_cost import Work
from step_traffic import OURS, Operator, OwnLaunch, TensorSpec, own_launches

from cinema_fast.kernels.sparse_depthwise_conv import sparse_depthwise_conv_flops

ARCH = 90
LOOPS = {  # of prototype_loss's kernels, in their order: the constants that are their turns
    "_prototype_rows": ("STEPS",), "_prototype_figures": ("STEPS",), "_prototype_bwd": ("TEACHER_STEPS", "STEPS"),
}  # fmt: skip


class Compiler:
    """Machine code by a launch's key; `known` is taken as it is, everything used is in `used`."""

    def __init__(self, known: dict[str, dict]):
        self.known, self.used = known, {}
        self.launches: dict[str, Launch] = {}

    def __call__(self, launch: Launch) -> MachineCode:
        """Compiles where it must."""
        key = launch.key
        if key not in self.used:
            known = self.known.get(key)
            self.used[key] = MachineCode.from_dict(known) if known else machine_code(launch)
            self.launches[key] = launch
        return self.used[key]


def works(operators: Iterable[Operator], code_of: Compiler) -> Counter[Work]:
    """Kernels of a collection of operators."""
    found = Counter()
    counts = operators.items() if isinstance(operators, Counter) else Counter(operators).items()
    for operator, n in counts:
        for work, times in _works_of(operator, code_of).items():
            found[work] += n * times
    return found


def _works_of(operator: Operator, code_of: Compiler) -> Counter[Work]:
    if operator.call is None:
        return Counter([Work(operator.n_bytes, operator.flops, launches=operator.launches)])
    launched, between = own_launches(operator.call, ARCH)
    found = Counter(
        Work(operator.n_bytes / len(launched), ordinary_flops=_ordinary_flops(operator.call), cycles=cycles)
        for cycles in (_cycles(own, operator.call, code_of) for own in launched)
    )
    return found + works(between, code_of)


def _cycles(own: OwnLaunch, call: tuple, code_of: Compiler) -> float:
    kernel = own.launch.kernel.__name__
    if kernel in PRODUCTS:
        return attention_cycles(own.launch, code_of(own.launch), sequences(call))[0]
    if kernel.startswith("_patch_embed"):
        tile, code = constants(own.launch), code_of(own.launch)
        trips = tile["STEPS"] if kernel.endswith("dw") else -(-tile["N_VALUES"] // tile["BLOCK_P"])
        turns = sum(trips * loop.serial for loop in code.matrix_loops)
        return own.programs * (code.straight + turns + WAITS * ROUND_TRIP / code.programs)
    if kernel in LOOPS:
        tile, code = constants(own.launch), code_of(own.launch)
        trips = [tile[name] for name in LOOPS[kernel] if tile[name] > 1]  # what is done once is no loop
        turns = sum(n * loop.serial for n, loop in zip(trips, code.matrix_loops, strict=True))
        return own.programs * (code.straight + turns + WAITS * ROUND_TRIP / code.programs)
    return 0.0


def sequences(call: tuple) -> Sequences:
    """Those of a call of attention's operators, forward or backward."""
    name, args, _ = call
    tensors = [x for x in args if isinstance(x, TensorSpec)]
    queries, keys = tensors[:2] if name == f"{OURS}sparse_attention" else tensors[1:3]  # after the upstream gradient
    batch = tensors[-1].shape[0] - 1
    total, heads, head_dim = queries.shape
    return Sequences(batch, total // batch, keys.shape[0] // batch, heads, head_dim)


def _ordinary_flops(call: tuple) -> int:
    """Of a depthwise convolution, or one of its gradients, at masks drawn by chance; of all else 0."""
    name, args, _ = call
    if not name.startswith(f"{OURS}sparse_depthwise_conv"):
        return 0
    x = args[1] if name.endswith("_dw") else args[0]
    kernel = args[-1] if name.endswith("_dw") else args[1].shape[1:]
    grid = args[-2] if name.endswith("_dw") else args[-1]
    batch, keep, *block, channels = x.shape
    return sparse_depthwise_conv_flops(batch, keep, tuple(grid), tuple(block), tuple(kernel), channels)
