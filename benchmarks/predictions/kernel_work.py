"""What the rows of benchmarks/operations/bench_*.py launch on a GPU: {(operation, pass, shape, dtype): kernels}.

Calls are those of the audit, on fake CUDA tensors.
"""

from collections import Counter
from importlib import import_module

import torch
from audit_launches import Case, cases
from faked_gpu import faked_gpu
from operation_work import Compiler, works
from step_cost import Work
from step_traffic import OURS, Operator, Traffic

from cinema_fast.kernels import OPERATIONS

BACKWARD = ("_backward", "_bwd", "_dw", "_dx")  # ends of the operators' names

Row = tuple[str, str, str, str]


def kernel_work(code_of: Compiler) -> dict[Row, Counter[Work]]:
    """Of every row that a benchmark has predicted; dtypes as the rows name them."""
    audited = {(case.operation, case.name): case for case in cases()}
    found = {}
    for op in OPERATIONS:
        bench = import_module(f"bench_{op}")
        for (shape, dtype), names in getattr(bench, "predicted", dict)().items():
            operators = sum((_operators(audited[op, name]) for name in names), Counter())
            for pass_ in ("fwd", "bwd"):
                mine = Counter({o: n for o, n in operators.items() if o.name.endswith(BACKWARD) == (pass_ == "bwd")})
                if mine:
                    found[op, pass_, shape, dtype] = works(mine, code_of)
        for (shape, dtype), (n_bytes, launches) in getattr(bench, "predicted_traffic", dict)().items():
            found[op, "fwd", shape, dtype] = Counter({Work(n_bytes): launches})
    return found


def _operators(case: Case) -> Counter[Operator]:
    """Our operators that a case calls, forward and backward."""
    with faked_gpu(), torch.device("cuda"), Traffic() as traffic:
        case.call()
    return Counter({o: n for o, n in traffic.operators.items() if o.name.startswith(OURS)})
