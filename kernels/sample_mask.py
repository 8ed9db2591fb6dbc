"""sample_mask: draw which tokens of a view are masked, an exact number of them, without replacement.

With weights w (B, N) the masked set is the top M = N - keep of  log max(w, 1e-6) + g,  g = -log(-log u)  Gumbel noise
(Kool et al., "Stochastic beams and where to find them", ICML 2019: this is a draw without replacement with
probabilities proportional to w). Without weights it is the top M of the random words themselves. Ties go to the lower
position. The decoded subset is the top `decode` of a second random word among the masked tokens, so it is uniform
whatever the weights are.

Random words: Philox4x32-10 with key = seed and counter = (token, sample id, step, stream); word 0 draws the mask,
word 1 the decoded subset. Each view, step and sample has its own mask, and it does not depend on how samples are split
into batches.

The kernel is one launch with one program a sample, of up to 8192 tokens: words, selection and the three lists stay in
registers, and only the plan is written (4 (K + M + N) bytes a sample). Nothing is sorted: the M-th largest priority is
found bit by bit (32 counts over the row); running sums rank the ties and place the ids of the ascending lists. A
uniform draw is integer arithmetic throughout, so it is bit-equal to the PyTorch form on every backend; a weighted draw
is equal up to the rounding of two logarithms. Longer rows would spill registers and are drawn by the PyTorch form. The
C library for the CPU takes rows of any length and gives the PyTorch form's plans to the bit, with weights too.
"""

import operator
from collections.abc import Iterator
from functools import partial
from itertools import product

import torch
from torch import Tensor

from . import mask_native
from .backend import choose, launching, tl, triton, triton_unsupported
from .gumbel import WEIGHT_FLOOR, gumbel_priority
from .inputs import Inputs
from .philox import philox4x32
from .registry import Call, Code, Operation, register
from .shapes import SMALL_VIEW, VIEW_SHAPES, ViewShape
from .token_plan import TokenPlan

KERNEL_TOKENS = 8192  # the longest row that fits into a program's registers; longer ones use the PyTorch form


def sample_mask_ref(scores, batch, n, n_keep, n_decode, seed, step, stream, sample_ids) -> TokenPlan:
    """The plan in plain PyTorch; the arguments are those of `sample_mask`, already checked; sample_ids (B,) int64."""
    device = sample_ids.device
    token = torch.arange(n, device=device)
    mask_word, decode_word, _, _ = philox4x32(seed, token.view(1, n), sample_ids.view(batch, 1), step, stream)
    # uniform: the position is in the low bits, so no two are equal, and of equal words the lower position comes first
    priority = mask_word * n + (n - 1 - token) if scores is None else gumbel_priority(scores, mask_word)
    order = priority.argsort(dim=1, descending=True, stable=True)
    n_masked = n - n_keep
    masked, keep = order[:, :n_masked], order[:, n_masked:].sort(dim=1).values
    if n_decode < n_masked:
        second = decode_word.expand(batch, n).gather(1, masked) * n + (n - 1 - masked)
        masked = masked.gather(1, second.topk(n_decode, dim=1).indices)
    return TokenPlan.from_ids(keep.int(), masked.sort(dim=1).values.int(), n)


def sample_mask_bytes(batch: int, n: int, keep: int, decode: int, weighted: bool) -> int:
    """Bytes that must move: the weights read, the plan written."""
    return 4 * batch * (keep + decode + n + (n if weighted else 0))


@triton.jit
def _select_top(key, valid, n_select):
    """Flags of the `n_select` largest 32-bit keys (held in int64) among the valid; ties to the lower position."""
    threshold = tl.full((), 0, tl.int64)
    for bit in range(32):
        candidate = threshold | (tl.full((), 1, tl.int64) << (31 - bit))
        count = tl.sum(((key >= candidate) & valid).to(tl.int32), axis=0)
        threshold = tl.where(count >= n_select, candidate, threshold)
    above = (key > threshold) & valid
    tied = (key == threshold) & valid
    rank = tl.cumsum(tied.to(tl.int32), axis=0)
    return above | (tied & (rank <= n_select - tl.sum(above.to(tl.int32), axis=0)))


@triton.jit(do_not_specialize=["seed", "step", "stream"])
def _sample_mask(
    scores_ptr, ids_ptr, step_ptr, keep_ptr, masked_ptr, slot_ptr,
    n, n_keep, n_decode, seed, step, stream,
    WEIGHTED: tl.constexpr, HAS_IDS: tl.constexpr, HAS_STEP: tl.constexpr, PARTIAL: tl.constexpr,
    FLOOR: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    pos = tl.arange(0, BLOCK)  # [BLOCK]
    valid = pos < n
    sample = tl.load(ids_ptr + row) if HAS_IDS else row
    step_word = tl.load(step_ptr) if HAS_STEP else step
    zero = pos * 0
    word0, word1, _, _ = tl.philox(
        seed, pos, zero + sample.to(tl.int32), zero + step_word.to(tl.int32), zero + stream.to(tl.int32)
    )
    bits0 = word0.to(tl.uint32, bitcast=True).to(tl.int64)
    if WEIGHTED:
        weight = tl.load(scores_ptr + row * n + pos, mask=valid, other=1.0).to(tl.float32)
        weight = tl.where(weight > FLOOR, weight, FLOOR)
        uniform = ((bits0 >> 9).to(tl.float32) + 0.5) * (1.0 / 8388608.0)
        priority = tl.log(weight) - tl.log(-tl.log(uniform))
        # floats in the order of their bits: a positive one above every negative one, negatives turned round
        raw = priority.to(tl.int32, bitcast=True).to(tl.int64)
        key = tl.where(raw >= 0, raw + 0x80000000, -1 - raw)
    else:
        key = bits0
    hidden = _select_top(key, valid, n - n_keep)
    seen = valid & (hidden == 0)
    rank = tl.cumsum(seen.to(tl.int32), axis=0) - 1
    tl.store(keep_ptr + row * n_keep + rank, pos, mask=seen)
    tl.store(slot_ptr + row * n + pos, tl.where(seen, rank, -1), mask=valid)
    if PARTIAL:
        hidden = _select_top(word1.to(tl.uint32, bitcast=True).to(tl.int64), hidden, n_decode)
    rank = tl.cumsum(hidden.to(tl.int32), axis=0) - 1
    tl.store(masked_ptr + row * n_decode + rank, pos, mask=hidden)


def sample_mask_config(n: int, weighted: bool) -> dict[str, int]:
    """Block size and warps for a row of n tokens: enough warps that sm_80 spills no registers."""
    block = max(16, 1 << (n - 1).bit_length())
    return {"BLOCK": block, "num_warps": 4 if block <= 512 else 16 if weighted and block > 2048 else 8}


def unsupported(n: int, *tensors: Tensor | None) -> list[str]:
    """Why the kernel cannot draw from n tokens on these arguments' device; empty where it can."""
    long = [f"takes rows of up to {KERNEL_TOKENS} tokens, got n {n}"] if n > KERNEL_TOKENS else []
    return triton_unsupported(*tensors) + long


@torch.library.custom_op("cinema_fast::sample_mask", mutates_args=())
def _sample_mask_op(
    scores: Tensor | None,
    sample_ids: Tensor | None,
    step_tensor: Tensor | None,
    device: torch.device,
    batch: int,
    n: int,
    keep: int,
    decode: int,
    seed: int,
    step: int,
    stream: int,
) -> tuple[Tensor, Tensor, Tensor]:
    plan = TokenPlan.empty(batch, n, keep, decode, device)
    with launching("sample_mask", plan.slot):
        _sample_mask[(batch,)](
            scores, sample_ids, step_tensor, *plan, n, keep, decode, seed, step, stream,
            WEIGHTED=scores is not None, HAS_IDS=sample_ids is not None, HAS_STEP=step_tensor is not None,
            PARTIAL=decode < n - keep, FLOOR=WEIGHT_FLOOR, **sample_mask_config(n, scores is not None),
        )  # fmt: skip
    return tuple(plan)


@_sample_mask_op.register_fake
def _(scores, sample_ids, step_tensor, device, batch, n, keep, decode, seed, step, stream):
    return tuple(TokenPlan.empty(batch, n, keep, decode, device))


def _integer(name: str, value: int) -> int:
    """Python's int of any kind of integer; NumPy integers would overflow on their way into a kernel."""
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"sample_mask: {name} must be an integer, got {value!r}") from None


def sample_mask(
    scores: Tensor | None = None,
    *,
    batch: int,
    n: int,
    keep: int,
    seed: int,
    step: int | Tensor = 0,
    stream: int = 0,
    sample_ids: Tensor | None = None,
    decode: int | None = None,
    device: torch.device | str | None = None,
    backend: str = "auto",
) -> TokenPlan:
    """Draw the visible and the masked tokens of a batch: a pure function of its arguments.

    Args:
        scores (B, N) floating: weights of being masked, floored at 1e-6; None draws uniformly.
        batch, n, keep: samples B, tokens N of the view's grid, tokens that stay visible.
        seed: 64-bit key.
        step: training step, an int or a one-element integer tensor on the device.
        stream: the view's index, so that views draw different masks.
        sample_ids (B,) integer: ids of the samples, which enter the random counter; 0..B-1 where None.
        decode: how many of the N - keep masked tokens to decode, a uniform subset; None: all of them.
        device: of the plan; that of `scores` or `sample_ids` where None.
        backend: "auto", "torch", "triton" or "native" (a C library for the CPU, see mask_native.py).

    Returns:
        TokenPlan with keep (B, keep), masked (B, decode or N - keep), slot (B, N).

    Raises:
        ValueError: counts, ranks, shapes or types that do not fit together; BackendError: `backend` cannot run here.
    """
    batch, n, keep = _integer("batch", batch), _integer("n", n), _integer("keep", keep)
    seed, stream = _integer("seed", seed), _integer("stream", stream)
    decode = None if decode is None else _integer("decode", decode)
    step = step if isinstance(step, Tensor) else _integer("step", step)
    if not (n > 0 and batch > 0):
        raise ValueError(f"sample_mask: batch and n must be 1 or more, got batch {batch}, n {n}")
    if not 0 <= keep <= n:
        raise ValueError(f"sample_mask: keep must lie in 0..{n} (n), got {keep}")
    n_decode = n - keep if decode is None else decode
    if not 0 <= n_decode <= n - keep:
        raise ValueError(f"sample_mask: decode must lie in 0..{n - keep} (the masked tokens), got {n_decode}")
    if scores is not None and (scores.shape != (batch, n) or not scores.is_floating_point()):
        raise ValueError(
            f"sample_mask: scores must be floating ({batch}, {n}), got {scores.dtype} {tuple(scores.shape)}"
        )
    if isinstance(step, Tensor) and (step.numel() != 1 or step.is_floating_point()):
        raise ValueError(f"sample_mask: step must be one integer, got {step.dtype} {tuple(step.shape)}")
    if sample_ids is not None and (sample_ids.shape != (batch,) or sample_ids.is_floating_point()):
        raise ValueError(
            f"sample_mask: sample_ids must be integer ({batch},), got {sample_ids.dtype} {tuple(sample_ids.shape)}"
        )
    if device is None:
        device = next((t.device for t in (scores, sample_ids) if t is not None), "cpu")
    device = torch.device(device)
    scores = None if scores is None else scores.to(device).contiguous()
    ids = None if sample_ids is None else sample_ids.to(device, torch.int64).contiguous()
    step_tensor = step.to(device, torch.int64).reshape(1) if isinstance(step, Tensor) else None
    probe = torch.empty(0, device=device)
    reasons = {"triton": lambda: unsupported(n, probe), "native": lambda: mask_native.unsupported(device)}
    picked = choose("sample_mask", backend, reasons)
    if picked == "torch":
        ids = torch.arange(batch, device=device) if ids is None else ids
        step = step if step_tensor is None else step_tensor.view(1, 1)
        return sample_mask_ref(scores, batch, n, keep, n_decode, seed, step, stream, ids)
    signed_seed = (seed & (2**64 - 1)) - (2**64 if seed >> 63 & 1 else 0)  # the range of an operator's int
    step = 0 if step_tensor is not None else step
    draw = mask_native.draw if picked == "native" else _sample_mask_op
    return TokenPlan(*draw(scores, ids, step_tensor, device, batch, n, keep, n_decode, signed_seed, step, stream))

# Registration


def _call(view: ViewShape, inputs: Inputs, weighted: bool, part: bool) -> list[Tensor]:
    scores = inputs.floats(view.batch, view.n).exp() if weighted else None
    masked = view.n - view.keep
    ids = inputs.integers(10**6, view.batch, dtype=torch.int64)
    return list(sample_mask(
        scores, batch=view.batch, n=view.n, keep=view.keep, seed=0, sample_ids=ids,
        decode=round(masked / 4) if part else masked, backend="triton",
    ))  # fmt: skip


def _calls() -> Iterator[Call]:
    for (name, view), weighted, part in product(VIEW_SHAPES.items(), (False, True), (False, True)):
        variant = ("weighted" if weighted else "uniform") + ", a quarter decoded" * part
        yield Call(f"{name} {variant}", partial(_call, view, weighted=weighted, part=part))


def _small(inputs: Inputs, dtype: torch.dtype) -> list[Tensor]:
    """In float32, whatever the activations' dtype."""
    return [*_call(SMALL_VIEW, inputs, False, False), *_call(SMALL_VIEW, inputs, True, True)]


register(Operation(
    sample_mask,
    computes="exactly `keep` visible tokens a sample, uniform or weighted without replacement, from Philox words; one "
    "launch, no sort",
    unsupported={"triton": triton_unsupported, "native": lambda x: mask_native.unsupported(x.device)},
    launches=("sample_mask",),
    calls=_calls,
    small=_small,
    code=Code(False, False, False, "all in registers; a sample's weights and ids are a few KB"),
))  # fmt: skip
