"""A DINO model small enough to run in milliseconds, its crops, and the golden case."""

import json

import torch

import cinema_fast as cf

VIT = {"in_chans": 1, "embed_dim": 32, "depth": 2, "n_heads": 2, "patch_size": 4, "image_size": 16}


def dino_config(vit=None, **changes) -> cf.DINOConfig:
    fields = {"prototypes": 24, "head_hidden": 20, "bottleneck": 16, "n_local": 2, "local_size": 8}
    return cf.DINOConfig(vit=cf.ViTConfig(**VIT | (vit or {})), **fields | changes)


def shaken(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """The model with biases and norms of no special value, where 0 and 1 would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.2 if parameter.ndim == 1 else 0.1
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return model


def small_vit(seed: int = 0, *, drop_path: float = 0.0, **changes) -> cf.ViT:
    torch.manual_seed(seed)
    return shaken(cf.ViT(cf.ViTConfig(**VIT | changes), drop_path=drop_path), seed)


def small_dino(seed: int = 0, vit=None, **changes) -> cf.DINO:
    """Its teacher differs from its student."""
    torch.manual_seed(seed)
    return shaken(cf.DINO(dino_config(vit, **changes)), seed)


def make_crops(config: cf.DINOConfig, batch: int = 3, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = [config.vit.image_size] * 2 + [config.local_size] * config.n_local
    return [torch.rand(batch, config.vit.in_chans, size, size, generator=generator) for size in sizes]


def golden_dino(shared, device="cpu") -> tuple[dict, cf.DINOConfig, dict[str, torch.Tensor]]:
    """What the golden case was made with, its model's configuration, its tensors."""
    from safetensors.torch import load_file

    made = json.loads((shared / "golden" / "dino_tiny.json").read_text())
    tensors = load_file(shared / "golden" / "dino_tiny.safetensors", device=device)
    config = dino_config(
        {name: made[name] for name in VIT},
        student_temp=made["student_temp"], centre_momentum=made["center_momentum"],
        **{name: made[name] for name in
           ("prototypes", "head_hidden", "bottleneck", "norm_last_layer", "n_local", "local_size")},
    )  # fmt: skip
    return made, config, tensors
