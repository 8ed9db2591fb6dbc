"""Golden files beside the checkout, and comparisons with them."""

from collections import Counter
from contextlib import contextmanager

from cinema_fast import kernels
from cinema_fast.kernels import OPERATIONS


def part(tensors, prefix):
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def relative(actual, expected):
    return float((actual.detach() - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


def relative_rms(actual, expected):
    return float((actual - expected).norm() / expected.norm().clamp(min=1e-30))


def launches_of(*operations):
    """The launches of a forward and backward of these operations."""
    return {
        launch for name in operations
        for launch in (*OPERATIONS[name].launches, *OPERATIONS[name].backward)
    }  # fmt: skip


@contextmanager
def all_launched(backend, operations):
    """Everything in the block runs on `backend`; if that is Triton, each of `operations` must launch its kernel."""
    before = Counter(kernels.launches())
    with kernels.use(backend):
        yield
    missing = operations - (Counter(kernels.launches()) - before).keys()
    assert backend != "triton" or not missing, f"did not launch: {missing}"
