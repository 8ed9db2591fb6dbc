"""Runs of self-distillation small enough for tests."""

from dataclasses import replace

from cinema_fast.methods.pretrain_config import DistillConfig, PretrainConfig
from cinema_fast.models import config as presets
from cinema_fast.models.config import DINOConfig, ViTConfig

TINY = DINOConfig(
    vit=ViTConfig(embed_dim=16, depth=2, n_heads=2, image_size=16), prototypes=24, head_hidden=16, bottleneck=8,
    n_local=2, local_size=8,
)  # fmt: skip
DROPPING = replace(TINY, drop_path=0.5)
presets._PRESETS |= {"cmrfm-tiny": TINY, "cmrfm-dropping": DROPPING}
IN_A_PROCESS = "import tiny_dino"  # makes the presets known in a process of `forked`


def config_of(store, out, **changes) -> PretrainConfig:
    """A run whose schedules all move, held-out studies among it."""
    options = {
        "data": store, "out": out, "steps": 8, "preset": "cmrfm-tiny", "batch_size": 4, "seed": 5, "log_every": 1,
        "checkpoint_every": 3, "device": "cpu", "precision": "fp32", "lr": 2e-3,
        "dino": DistillConfig(images=2, momentum=0.9, freeze_last_layer=0.25),
    }  # fmt: skip
    return PretrainConfig(**options | changes)


def words(config: PretrainConfig) -> list[str]:
    """The same options on the command line, but for --data and --out."""
    dino = {f"dino.{name}": getattr(config.dino, name) for name in ("images", "momentum", "freeze_last_layer")}
    names = ("steps", "preset", "batch_size", "seed", "log_every", "checkpoint_every", "device", "precision", "lr")
    options = {name: getattr(config, name) for name in names} | dino
    return [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
