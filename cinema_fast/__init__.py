"""cinema-fast: fast self-supervised pre-training and fine-tuning on cardiac MRI."""

import importlib

__version__ = "0.1.0"

# Loaded at first use, because worker processes and the command line's help do not need torch.
_HOME = {
    "CineMA": "models.cinema",
    "CineMAConfig": "models.config",
    "ConvUNetR": "models.conv_unetr",
    "ConvViT": "models.conv_vit",
    "DINO": "models.dino",
    "DINOConfig": "models.config",
    "DINOOptimizer": "models.dino_optimizer",
    "DINOOutput": "models.dino",
    "MAEOutput": "models.cinema",
    "TokenPlan": "kernels",
    "ViT": "models.vit",
    "ViTConfig": "models.config",
    "cinema_state_dict": "models.weights",
    "load_cinema_weights": "models.weights",
    "load_dino_weights": "models.dino_weights",
    "preset": "models.config",
    "presets": "models.config",
    "sample_mask": "kernels",
    "sliding_window": "models.sliding_window",
}
_PACKAGES = (
    "cohort", "data", "evaluation", "kernels", "methods", "metrics", "models", "phantom", "prediction", "tasks",
    "train",
)  # fmt: skip
__all__ = list(_HOME)


def __getattr__(name: str):
    if name in _PACKAGES:
        return importlib.import_module(f".{name}", __name__)
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted([*globals(), *_HOME])
