"""sample_mask: draw which tokens of a view are masked, exactly as many as asked, without replacement.

With weights w (B, N) the masked set is the top M = N - keep of  log max(w, 1e-6) + g,  g = -log(-log u)  Gumbel noise
(Kool et al., "Stochastic beams and where to find them", ICML 2019: that is a draw without replacement with
probabilities proportional to w). Without weights it is the top M of the random words themselves. Ties go to the lower
position. The decoded subset is the top `decode` of a second random word among the masked, hence uniform whatever w is.

Random words: Philox4x32-10 with key = seed and counter = (token, sample id, step, stream); word 0 draws the mask,
word 1 the decoded subset. Two views, steps or samples never share a mask, and any split of a batch draws the same.
"""

import torch
from torch import Tensor

from .philox import philox4x32
from .token_plan import TokenPlan

MAX_TOKENS = 8192
WEIGHT_FLOOR = 1e-6


def _gumbel(words: Tensor) -> Tensor:
    """Gumbel noise from 32-bit words: 23 bits and a half make u in (0, 1) exact in float32, never 0 or 1."""
    uniform = ((words >> 9).float() + 0.5) * 2.0**-23
    return -torch.log(-torch.log(uniform))


def sample_mask_torch(scores, batch, n, n_keep, n_decode, seed, step, stream, sample_ids) -> TokenPlan:
    """The plan in plain PyTorch; arguments as `sample_mask` has checked them, sample_ids (B,) int64."""
    device = sample_ids.device
    token = torch.arange(n, device=device)
    mask_word, decode_word, _, _ = philox4x32(seed, token.view(1, n), sample_ids.view(batch, 1), step, stream)
    if scores is None:
        # position in the low bits: no two priorities are equal, and of equal words the lower position comes first
        priority = mask_word * MAX_TOKENS + (MAX_TOKENS - 1 - token)
    else:
        weights = torch.where(scores > WEIGHT_FLOOR, scores.float(), WEIGHT_FLOOR)  # NaN counts as no weight
        priority = torch.log(weights) + _gumbel(mask_word)
    order = priority.argsort(dim=1, descending=True, stable=True)
    n_masked = n - n_keep
    masked, keep = order[:, :n_masked], order[:, n_masked:].sort(dim=1).values
    if n_decode < n_masked:
        second = decode_word.expand(batch, n).gather(1, masked) * MAX_TOKENS + (MAX_TOKENS - 1 - masked)
        masked = masked.gather(1, second.topk(n_decode, dim=1).indices)
    return TokenPlan.from_ids(keep.int(), masked.sort(dim=1).values.int(), n)


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
) -> TokenPlan:
    """Draw the visible and the masked tokens of a batch: a pure function of its arguments.

    Args:
        scores (B, N) floating: weights of being masked, floored at 1e-6; None draws uniformly.
        batch, n, keep: samples B, tokens N of the view's grid, tokens that stay visible.
        seed: 64-bit key.
        step: training step, an int or a one-element integer tensor on the device.
        stream: the view's index, so that views draw apart.
        sample_ids (B,) integer: which samples these are; 0..B-1 where None.
        decode: how many of the N - keep masked tokens to decode, a uniform subset; None: all of them.
        device: where the plan is made; that of `scores` or `sample_ids` where None.

    Returns:
        TokenPlan with keep (B, keep), masked (B, decode or N - keep), slot (B, N).

    Raises:
        ValueError: counts, ranks or shapes that do not fit together.
    """
    if not (0 < n <= MAX_TOKENS and batch > 0):
        raise ValueError(f"sample_mask: want batch >= 1 and 1 <= n <= {MAX_TOKENS}, got batch {batch}, n {n}")
    if not 0 <= keep <= n:
        raise ValueError(f"sample_mask: keep must lie in 0..{n} (n), got {keep}")
    n_decode = n - keep if decode is None else decode
    if not 0 <= n_decode <= n - keep:
        raise ValueError(f"sample_mask: decode must lie in 0..{n - keep} (the masked tokens), got {n_decode}")
    if scores is not None and (scores.shape != (batch, n) or not scores.is_floating_point()):
        raise ValueError(
            f"sample_mask: scores must be floating ({batch}, {n}), got {scores.dtype} {tuple(scores.shape)}"
        )
    if sample_ids is not None and (sample_ids.shape != (batch,) or sample_ids.is_floating_point()):
        raise ValueError(
            f"sample_mask: sample_ids must be integer ({batch},), got {sample_ids.dtype} {tuple(sample_ids.shape)}"
        )
    if device is None:
        device = next((t.device for t in (scores, sample_ids) if t is not None), torch.device("cpu"))
    ids = torch.arange(batch, device=device) if sample_ids is None else sample_ids.to(device, torch.int64)
    if isinstance(step, Tensor):
        step = step.to(device, torch.int64).reshape(1, 1)
    scores = None if scores is None else scores.to(device)
    return sample_mask_torch(scores, batch, n, keep, n_decode, seed, step, stream, ids)
