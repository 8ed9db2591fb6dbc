"""One training step: batch in, parameters out, nothing read back by the host."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import torch._functorch.config
import torch._inductor.config
from torch import Tensor, nn

from .. import kernels
from ..data.loading.augment import batch_input
from ..data.loading.loader import Batch
from ..kernels import TokenPlan, sample_mask
from ..methods.guidance import Guidance
from ..models.cinema import CineMA
from ..models.config import CineMAConfig
from .graph import Capture, GraphedStep
from .ranks import ALONE, Ranks, sum_later

BETAS = (0.9, 0.95)
VIEW_SETS = 64  # more than there are sets of views: each is compiled by itself


def adamw(model: nn.Module, *, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW of the reference's recipe: betas 0.9 and 0.95, no weight decay on 1-D parameters.

    Fused, so that the update can be scaled and skipped by tensors on the device.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=BETAS, fused=True)


def token_counts(config: CineMAConfig, view: str, mask_ratio: float, decode_ratio: float) -> tuple[int, int]:
    """How many tokens of a view stay visible, and how many of the others are decoded; see `draw_plan`."""
    n = config.n_tokens(view)
    keep = min(max(int(n * (1 - mask_ratio)), 1), n - 1)
    return keep, n - keep if decode_ratio == 1 else max(round(decode_ratio * (n - keep)), 1)


def draw_plan(
    config: CineMAConfig,
    views: Sequence[str],
    sample_ids: Tensor,
    *,
    mask_ratio: float,
    decode_ratio: float = 1.0,
    seed: int,
    step: int | Tensor,
    weights: Mapping[str, Tensor] | None = None,
) -> dict[str, TokenPlan]:
    """Masks of a batch: floor(N (1 - mask_ratio)) tokens of each view stay visible, at least one.

    sample_ids (B,) int64 on the device. decode_ratio: share of the masked tokens that is decoded, at least one.
    weights: {view: (B, N)} of being masked; None: all are as likely.
    """
    plan = {}
    for view in views:
        keep, decode = token_counts(config, view, mask_ratio, decode_ratio)
        plan[view] = sample_mask(
            weights[view] if weights else None,
            batch=len(sample_ids),
            n=config.n_tokens(view),
            keep=keep,
            seed=seed,
            step=step,
            stream=config.views.index(view),
            sample_ids=sample_ids,
            decode=decode,
        )
    return plan


def make_train_step(
    model: CineMA,
    optimizer: torch.optim.Optimizer,
    *,
    device: torch.device,
    precision: torch.dtype,
    mask_ratio: float,
    decode_ratio: float,
    seed: int,
    clip: float,
    guidance: Guidance | None = None,
    ranks: Ranks = ALONE,
    sharded: bool = False,
    view_sets: int = 1,
    compiled: bool = False,
    capture: Capture | None = None,
) -> Callable[[Sequence[Batch], int, float], Tensor]:
    """The training step as a function of (micro-batches, step, learning rate).

    guidance: what weighs the masks, for batches that hold what it reads; None: masks are drawn uniformly.
    ranks: who trains together, on the parts of a step that each reads. sharded: `model` is (`ranks.shard_model`).
    view_sets: different sets of views among the studies.
    compiled: run the model through torch.compile, as one graph of fixed shapes for each set of views.
    capture: record the whole step by it, a `graph.CudaCapture`, and replay it.
    It returns a (3,) float32 tensor on the device: loss (the mean over all ranks), gradient norm before clipping, and 1
    where the update was made or 0 where loss or norm is not finite: then parameters and optimiser are left exactly as
    they were. Clipping and skipping are tensors that the fused optimiser takes, so the host waits for nothing.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == torch.bfloat16)
    called = compile_model(model) if compiled else model
    called = called if sharded else ranks.average_gradients(called, view_sets=view_sets)
    number = torch.zeros(1, dtype=torch.int64, device=device)
    # what a GPU's fused AdamW reads; on a CPU the bits of a Python number
    rate = torch.zeros((), dtype=torch.float32 if device.type == "cuda" else torch.float64, device=device)

    def work(batches: Sequence[Batch]) -> Tensor:
        total = torch.zeros((), device=device)
        for micro, batch in enumerate(batches):
            images, intensity = batch_input(batch, as_stored=not (guidance and guidance.online))
            plan = draw_plan(
                model.config,
                batch.draw.views,
                batch.slot,
                mask_ratio=mask_ratio,
                decode_ratio=decode_ratio,
                seed=seed,
                step=number,
                weights=guidance.weights(batch, images, number) if guidance else None,
            )
            with sum_later(called, last=micro == len(batches) - 1):
                with autocast:
                    loss = called(images, plan, intensity).loss / len(batches)
                loss.backward()
            total += loss.detach()
        ranks.mean_(total)
        return update(optimizer, trained, total, clip=clip, sharded=sharded)

    for group in optimizer.param_groups:  # also those of a checkpoint of another mode
        group["lr"], group["capturable"] = rate, device.type == "cuda"
    if capture:
        work = GraphedStep(work, capture)

    def train_step(batches: Sequence[Batch], step: int, lr: float) -> Tensor:
        number.fill_(step)
        rate.fill_(lr)
        return work([batch.to(device) for batch in batches])

    return train_step


def update(
    optimizer: torch.optim.Optimizer,
    trained: Sequence[nn.Parameter],
    loss: Tensor,
    *,
    clip: float,
    sharded: bool = False,
) -> Tensor:
    """Clip the gradients, make the update unless loss or norm is not finite, and drop them; for fused optimisers.

    Returns (3,) float32 on the device, as `make_train_step`'s steps. sharded: `trained` are parts of parameters.
    """
    norm = nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
    norm = norm.full_tensor() if sharded else norm
    made = (loss.isfinite() & norm.isfinite()).float()
    optimizer.grad_scale = (norm / clip).clamp(min=1.0)
    optimizer.found_inf = 1.0 - made
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return torch.stack([loss, norm, made])


def compile_model(model: nn.Module, backend: str = "inductor") -> nn.Module:
    """The model as one compiled graph for each set of views, its shapes fixed; `backend` as torch.compile takes it."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VIEW_SETS)
    _keep_compiled_code()
    return torch.compile(model, fullgraph=True, dynamic=False, backend=backend)


def _keep_compiled_code() -> None:
    """PyTorch's cache on disk also keeps these graphs, forward and backward: a later process only traces them.

    By default it passes over graphs with autograd functions or autocast blocks. Here the traced graph, which is the
    key, holds all that they do. Backward passes of the custom operations it does not hold, so the key gets a digest of
    their sources: a backward that was changed is never answered by an older one's code.
    """
    torch._functorch.config.autograd_cache_allow_custom_autograd_functions = True
    blocks = ("_enter_autocast", "_exit_autocast")
    torch._inductor.config.unsafe_marked_cacheable_functions |= {f"torch.amp.autocast_mode.{b}": "1" for b in blocks}
    digest = source_digest(Path(kernels.__file__).parent)
    if digest not in torch.compiler.config.cache_key_tag:
        torch.compiler.config.cache_key_tag += digest


def source_digest(folder: Path) -> str:
    """SHA-256, in hex, of names and contents of the Python files in a folder and in those below it."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder).as_posix()}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
