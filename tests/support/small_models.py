"""A CineMA model small enough to run in milliseconds, with images and plans for it."""

import torch

import cinema_fast as cf
from cinema_fast.kernels import TokenPlan

VIEWS = ("sax", "lax_2c", "lax_4c")


def small_config(**changes) -> cf.CineMAConfig:
    """Non-square grids, two stages, a view of two channels; `changes` override fields."""
    fields = {
        "views": VIEWS,
        "image_size": {"sax": (16, 24, 3), "lax_2c": (16, 32), "lax_4c": (24, 16)},
        "in_chans": {"sax": 1, "lax_2c": 1, "lax_4c": 2},
        "patch_size": {"sax": (2, 2, 1), "lax_2c": (2, 2), "lax_4c": (2, 2)},
        "scale_factor": {"sax": (2, 2, 1), "lax_2c": (2, 2), "lax_4c": (2, 2)},
        "enc_conv_chans": (4, 6),
        "enc_conv_n_blocks": 1,
        "enc_embed_dim": 16,
        "enc_depth": 2,
        "enc_n_heads": 2,
        "dec_embed_dim": 24,
        "dec_depth": 2,
        "dec_n_heads": 3,
    }
    return cf.CineMAConfig(**{**fields, **changes})


def small_model(seed: int = 0, **changes) -> cf.CineMA:
    """The model with fixed weights; biases and tokens are not left at zero, where they would hide mistakes."""
    torch.manual_seed(seed)
    model = cf.CineMA(small_config(**changes))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape))
            elif name.endswith("_token"):
                parameter.normal_()
    return model


def make_images(config: cf.CineMAConfig, batch: int = 2, seed: int = 0, sizes: dict | None = None) -> dict:
    """{view: (B, C, *size) float32 in [0, 1]}"""
    generator = torch.Generator().manual_seed(seed)
    sizes = {**config.image_size, **(sizes or {})}
    return {v: torch.rand(batch, config.in_chans[v], *sizes[v], generator=generator) for v in config.views}


def make_plan(config: cf.CineMAConfig, images: dict, decode_ratio: float = 1.0, ratio: float = 0.75) -> dict:
    """{view: TokenPlan} for the images, whatever their size."""
    plan = {}
    for stream, view in enumerate(config.views):
        if view in images:
            n = 1
            for size, token in zip(images[view].shape[2:], config.token_size(view)):
                n *= size // token
            keep = int(n * (1 - ratio))
            decode = int((n - keep) * decode_ratio)
            plan[view] = cf.sample_mask(batch=len(images[view]), n=n, keep=keep, seed=5, stream=stream, decode=decode)
    return plan


def masked_pixels(plan: TokenPlan, grid: tuple[int, ...], token: tuple[int, ...]) -> torch.Tensor:
    """(B, 1, *size) boolean: pixels of the tokens that are not visible."""
    hidden = (plan.slot < 0).view(-1, 1, *grid)
    for axis, size in enumerate(token):
        hidden = hidden.repeat_interleave(size, 2 + axis)
    return hidden


def double(images: dict) -> dict:
    """The same images in float64."""
    return {view: image.double() for view, image in images.items()}
