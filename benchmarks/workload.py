"""What every benchmark of the whole model runs: the model, its inputs and masks, forward and backward, the gate."""

import math

import checkout  # noqa: F401
import torch
from torch import Tensor, nn

import cinema_fast as cf
from cinema_fast.kernels.shapes import ViewShape
from cinema_fast.models.flops import step_flops
from cinema_fast.models.precision import autocast

MASK_RATIO = 0.75
TOY = cf.CineMAConfig(  # runs a step within milliseconds: for tests of the benchmarks, never for a timing
    views=("sax", "lax_2c"), image_size={"sax": (64, 64, 4), "lax_2c": (64, 64)}, in_chans={"sax": 1, "lax_2c": 1},
    patch_size={"sax": (2, 2, 1), "lax_2c": (2, 2)}, scale_factor={"sax": (2, 2, 1), "lax_2c": (2, 2)},
    enc_conv_chans=(8, 16), enc_conv_n_blocks=2, enc_embed_dim=24, enc_depth=2, enc_n_heads=3,
    dec_embed_dim=16, dec_depth=2, dec_n_heads=2,
)  # fmt: skip
LOSS_BUDGET = {torch.float32: 1e-5, torch.bfloat16: 1e-2}  # relative, of a loss in that dtype against the oracle's
PREDICTION_BUDGET = 5e-5  # of the largest: float32 products of other shapes, which a GPU may add in another order
GPU_IMAGE_SHAPES = (
    "cinema-base-sax-b64",
    "cinema-base-sax-b16",
    "cinema-base-lax-b64",
    "heartmae-clip-b16",
    "vit-small8-b64",
)
CPU_IMAGE_SHAPES = ("cinema-base-sax-b16", "heartmae-clip-b16")


def config_of(name: str) -> cf.CineMAConfig:
    """A preset, or "toy"."""
    return TOY if name == "toy" else cf.preset(name)


def random_images(config: cf.CineMAConfig, batch: int, device: str = "cpu", seed: int = 0) -> dict[str, Tensor]:
    """{view: (B, C, *size) float32 in [0, 1)}: noise, since the time of a step does not depend on what it sees."""
    generator = torch.Generator().manual_seed(seed)
    return {
        v: torch.rand(batch, config.in_chans[v], *config.image_size[v], generator=generator).to(device)
        for v in config.views
    }


def stored_images(shape: ViewShape, device: str) -> tuple[Tensor, Tensor, cf.TokenPlan]:
    """A batch as the store holds it: uint8 image (B, C, *size), intensity (B, 2) of offset and scale, and a plan."""
    torch.manual_seed(0)
    image = torch.randint(0, 256, (shape.batch, shape.channels, *shape.size), dtype=torch.uint8, device=device)
    intensity = torch.tensor([[3.0, 1 / 250]], device=device).repeat(shape.batch, 1)
    return image, intensity, cf.sample_mask(batch=shape.batch, n=shape.n, keep=shape.keep, seed=0, device=device)


def smooth_images(config: cf.CineMAConfig, batch: int, device: str = "cpu", seed: int = 0) -> dict[str, Tensor]:
    """Like `random_images`, but there is something to learn: hidden patches follow from their neighbours."""
    generator = torch.Generator().manual_seed(seed)
    images = {}
    for v in config.views:
        size = config.image_size[v]
        coarse = torch.rand(batch, config.in_chans[v], *(max(n // 32, 2) for n in size), generator=generator)
        mode = "bilinear" if len(size) == 2 else "trilinear"
        images[v] = nn.functional.interpolate(coarse.to(device), size=size, mode=mode, align_corners=True)
    return images


def draw_plan(
    config: cf.CineMAConfig, batch: int, *, decode_ratio: float = 1.0, step: int | Tensor = 0, device: str = "cpu"
) -> dict[str, cf.TokenPlan]:
    """The masks of a step; with `decode_ratio` < 1 the same masks with a part of the masked tokens decoded."""
    plan = {}
    for stream, view in enumerate(config.views):
        n = config.n_tokens(view)
        keep = int(n * (1 - MASK_RATIO))
        plan[view] = cf.sample_mask(
            batch=batch, n=n, keep=keep, seed=0, step=step, stream=stream,
            decode=round(decode_ratio * (n - keep)), device=device,
        )  # fmt: skip
    return plan


def patchify(image: Tensor, patch: tuple[int, ...]) -> Tensor:
    """image (B, C, *size) -> (B, N, prod(patch) * C): every patch by one copy, as peers make them."""
    split = [n for s, p in zip(image.shape[2:], patch) for n in (s // p, p)]
    axes = range(2, 2 + 2 * len(patch))
    blocks = image.reshape(*image.shape[:2], *split).permute(0, *axes[::2], *axes[1::2], 1)
    return blocks.reshape(len(image), -1, math.prod(patch) * image.shape[1])


def masks_of(plan: dict[str, cf.TokenPlan]) -> dict[str, Tensor]:
    """{view: (B, N) bool}, True where masked: what the reference takes."""
    return {v: p.slot < 0 for v, p in plan.items()}


def plan_step_flops(config: cf.CineMAConfig, plan: dict[str, cf.TokenPlan]) -> int:
    """Useful FLOPs of one study's training step."""
    return step_flops(
        config, {v: p.keep.shape[1] for v, p in plan.items()}, {v: p.masked.shape[1] for v, p in plan.items()}
    )


def forward_backward(model: nn.Module, loss_of, dtype: torch.dtype) -> Tensor:
    """Gradients from none: `loss_of()` under autocast, then backward. Returns the detached loss, not read back."""
    model.zero_grad(set_to_none=True)
    with autocast(next(model.parameters()).device, dtype):
        loss = loss_of()
    loss.backward()
    return loss.detach()


class GateError(RuntimeError):
    """What was about to be timed does not compute what it should."""


def gate(what: str, actual: float, expected: float, budget: float) -> None:
    """Raises GateError where `actual` is further than `budget` (relative) from `expected`, or not a number."""
    error = abs(actual - expected) / abs(expected)
    if not error <= budget:
        raise GateError(f"{what}: {actual:.8g}, expected {expected:.8g} within {budget:g}, off by {error:.2g}")


def gate_partial(
    model: cf.CineMA, images: dict[str, Tensor], plan: dict[str, cf.TokenPlan], part: dict[str, cf.TokenPlan]
) -> None:
    """Raises GateError unless decoding `part` predicts what decoding all of `plan` does at the same tokens."""
    with torch.no_grad():
        everything, some = model(images, plan).pred, model(images, part).pred
    for view, pred in some.items():
        rows = torch.searchsorted(plan[view].masked, part[view].masked)
        expected = everything[view].gather(1, rows.unsqueeze(-1).expand_as(pred))
        error = float((pred - expected).abs().max() / expected.abs().max())
        if not error <= PREDICTION_BUDGET:
            raise GateError(f"predictions of {view} with a part decoded are off by {error:.2g}")
