"""Weights in and out under the names and shapes of the published CineMA checkpoints, which are this model's own."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors file, or of a torch file read without executing anything in it.

    Raises FileNotFoundError, or ValueError naming the file where it holds no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} cannot be read as weights: {error}") from error
    return _checked(state, str(path))


def _checked(state, source: str) -> dict[str, Tensor]:
    """The {name: tensor} itself, or what lies under 'model' in it; ValueError where it is neither."""
    state = state.get("model", state) if isinstance(state, Mapping) else state
    if not isinstance(state, Mapping) or not all(isinstance(t, Tensor) for t in state.values()):
        raise ValueError(f"{source} holds no state dict (want {{name: tensor}}, or that under 'model')")
    return dict(state)


def load_cinema_weights(model: nn.Module, source: str | Path | Mapping[str, Tensor]) -> None:
    """Load a published checkpoint, or one of this project, into `model`.

    Args:
        model: CineMA built from the same configuration.
        source: path (.safetensors, or a torch file) or state dict.

    Raises:
        ValueError: lists every missing, unexpected and differently shaped tensor; nothing has been loaded then.
        FileNotFoundError: no file at the path.
    """
    state = _checked(source, "the mapping given") if isinstance(source, Mapping) else read_state_dict(source)
    own = model.state_dict()
    problems = [f"missing {name} {tuple(t.shape)}" for name, t in own.items() if name not in state]
    problems += [f"unexpected {name} {tuple(t.shape)}" for name, t in state.items() if name not in own]
    problems += [
        f"{name}: want {tuple(own[name].shape)}, got {tuple(t.shape)}"
        for name, t in state.items()
        if name in own and own[name].shape != t.shape
    ]
    if problems:
        where = "" if isinstance(source, Mapping) else f" in {source}"
        raise ValueError(f"{len(problems)} tensors{where} do not fit this model:\n  " + "\n  ".join(problems))
    model.load_state_dict(state)


def cinema_state_dict(model: nn.Module, grad: bool = False) -> dict[str, Tensor]:
    """The model's tensors, detached, under the published names; with `grad` the gradients of those that have one."""
    if not grad:
        return {name: t.detach() for name, t in model.state_dict().items()}
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
