"""How far a result may lie from its float64 oracle: one table, and the assertion that reads it."""

from typing import NamedTuple

import torch
from torch import Tensor


class Budget(NamedTuple):
    """Limits on the relative RMS error, |actual - expected| / |expected| in the 2-norm, and on the largest error
    relative to the largest |expected|."""

    rms: float
    peak: float


# About three times the worst that the suite shows, and never above the caps of 1e-5 (float32), 2e-3 (float16) and
# 1e-2 (bfloat16) in RMS. The peak is larger because it is the worst of up to 1e5 elements, some of them sums that
# cancel.
BUDGETS = {
    # unit roundoff 1e-16, sums of at most some thousand terms
    torch.float64: Budget(rms=1e-13, peak=1e-12),
    # unit roundoff 6e-8; the deepest chain is a whole small model
    torch.float32: Budget(rms=2e-6, peak=1e-5),
    # unit roundoff 5e-4; sums accumulate in float32 and are rounded at the end
    torch.float16: Budget(rms=2e-3, peak=8e-3),
    # unit roundoff 4e-3: one rounding costs 1.7e-3 in RMS, and an operation rounds its inputs, a middle and its output
    torch.bfloat16: Budget(rms=1e-2, peak=3e-2),
}
# float64 central differences of a scalar loss at a step of 1e-5: truncation and cancellation are both about 1e-10
FINITE_DIFFERENCE = 1e-7
# Chi-square tests: draws are fixed by their seed, so that a test passes always or never; of the seeds one might have
# chosen, one in a thousand fails a fair sampler.
P_VALUE = 1e-3


def assert_close(
    actual: Tensor, expected: Tensor, dtype: torch.dtype | None = None, *, floor: float = 1e-300, name: str = ""
) -> None:
    """`actual` lies within the budget of `dtype` (its own where None) of the float64 oracle `expected`.

    dtype: names another than the tensor's own where a result is kept in more precision than it was computed in.
    floor: errors are taken relative to no less than this, where terms of that size may cancel to nothing.
    """
    assert actual.shape == expected.shape, f"{name}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    if not expected.numel():
        return
    budget = BUDGETS[dtype or actual.dtype]
    actual, expected = actual.detach().double(), expected.detach().double().to(actual.device)
    error = actual - expected
    rms = float(error.norm() / expected.norm().clamp(min=floor * expected.numel() ** 0.5))
    peak = float(error.abs().max() / expected.abs().max().clamp(min=floor))
    worst = int(error.abs().argmax())
    assert rms <= budget.rms and peak <= budget.peak, (  # a NaN fails both
        f"{name}: relative RMS {rms:.2e} (budget {budget.rms:.0e}), peak {peak:.2e} (budget {budget.peak:.0e}); "
        f"worst at {worst}: {float(actual.flatten()[worst])}, expected {float(expected.flatten()[worst])}"
    )


def assert_no_worse(actual: Tensor, peer: Tensor, expected: Tensor, name: str = "") -> None:
    """Largest error at most twice that of `peer`, plain PyTorch in the same dtype, and two units in the last place."""
    expected = expected.detach().double()
    error, theirs = (float((t.detach().double() - expected).abs().max()) for t in (actual, peer))
    slack = 2 * torch.finfo(actual.dtype).eps * float(expected.abs().max())
    assert error <= 2 * theirs + slack, f"{name}: largest error {error:.2e}, plain PyTorch's {theirs:.2e}"


def assert_same_training(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Weights after the same few steps of AdamW, which other rounding has brought about."""
    assert found.keys() == expected.keys()
    for name, weight in found.items():
        error = (weight - expected[name]).square().mean().sqrt() / expected[name].square().mean().sqrt()
        # keys' biases have no gradient but rounding, which AdamW makes as large as any other: up to lr in each step
        assert error < (0.2 if name.endswith("kv.bias") else 1e-3), f"{name}: relative RMS {float(error):.2g}"
