"""Loads weights of DINO: backbones and whole checkpoints of the public code, and weights of this project's runs."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .dino import DINO
from .position import resize_learned_table
from .weights import (
    ENCODER_PARTS,
    check_fit,
    cinema_state_dict,
    integers,
    load_fitting,
    misfits,
    published,
    read_content,
    refuse,
    renamed,
    state_dict_of,
)  # fmt: skip

PATCHES, TABLE = "patch_embed.proj.weight", "pos_embed"
COLOURS = 3


class _Unread:
    """Stands for an object in a torch file that is neither a tensor nor a plain value; keeps nothing of it."""

    def __init__(self, *_):
        pass

    def __setstate__(self, _):
        pass


# checkpoints of the public code hold its options, too, and in the optimiser's state numbers of NumPy
IN_CHECKPOINTS = ("argparse.Namespace", "numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")


class Found(NamedTuple):
    """What a source holds.

    teacher, student: tensors of a branch under `backbone.` and `head.`; a single backbone is the teacher's. centre: of
    the teacher's logits. rest: names of what else there is.
    """

    teacher: dict[str, Tensor]
    student: dict[str, Tensor] | None = None
    centre: Tensor | None = None
    rest: tuple[str, ...] = ()


def load_dino_weights(vit: nn.Module, source: str | Path | Mapping) -> str:
    """Load the backbone of a DINO model into `vit`; returns a report of what was loaded.

    Of a checkpoint with student and teacher the teacher's backbone is taken; heads are not used. A patch embedding of
    three channels is summed over them where the model has one, which equals showing it the image in each channel.
    Positions of another square grid are interpolated as the model does it (`position.resize_learned_table`). Everything
    else has to fit, name by name.

    Args:
        vit: ViT; it may be compiled or wrapped for several devices.
        source: path (.safetensors, or a torch file, of which nothing is executed), or its content: a backbone under the
            public code's names, with or without "backbone." and "module."; a checkpoint of the public code; the weights
            in a checkpoint of this project's runs.

    Raises:
        ValueError: another model than a ViT; lists every missing, unexpected and differently shaped tensor and those of
            integers, or names one that is not finite; nothing has been loaded then.
        FileNotFoundError: no file at the path.
    """
    own = cinema_state_dict(vit)
    if "cls_token" not in own:
        raise ValueError(f"load_dino_weights: expected a ViT, got {type(vit).__name__}; build the backbone of a run by "
                         "cf.ViT(cf.preset(...).vit), and load CineMA's weights by cf.load_cinema_weights")  # fmt: skip
    found, (name, where) = _find(source), _named(source)
    backbone, changes = _adapted(own, found.teacher, where)
    load_fitting(vit, backbone, where)
    whose = "the backbone" if found.student is None else "the teacher's backbone"
    unused = ["head"] * (len(backbone) < len(found.teacher)) + ["student"] * (found.student is not None)
    unused += ["centre"] * (found.centre is not None) + list(found.rest)
    return _report(name, [f"all {len(backbone)} tensors of {whose}", *changes], unused)


def load_dino_start(model: DINO, source: str | Path | Mapping, name: str = "") -> str:
    """Load the initial weights of student and teacher; returns a report of what was taken.

    A source with both gives both backbones, and both heads and the centre where the heads fit; a single backbone
    becomes that of both. Heads that are not taken keep their random weights. name: of a mapping, for messages.

    Sources, changes and errors are those of `load_dino_weights`.
    """
    found, (name, where) = _find(source), _named(source, name)
    own = cinema_state_dict(model)
    branches = {"student": found.student or found.teacher, "teacher": found.teacher}
    taken, unused = {}, list(found.rest)
    for which, state in branches.items():
        backbone, changes = _adapted(_part(own, f"{which}.backbone."), state, where)
        taken |= {f"{which}.backbone.{key}": tensor for key, tensor in backbone.items()}
    heads = {f"{which}.{key}": t for which, state in branches.items() for key, t in state.items() if _in_head(key)}
    problems = misfits({key: t for key, t in own.items() if _in_head(key.partition(".")[2])}, heads)
    if found.student is None:
        report = ["student and teacher start from its backbone, heads from random weights"]
        unused += ["head"] * bool(heads)
    elif problems:
        report = [f"student and teacher; heads from random weights, as those in the file do not fit ({problems[0]})"]
        unused += ["heads"] * bool(heads) + ["centre"] * (found.centre is not None)
    else:
        taken |= heads | ({} if found.centre is None else {"centre": found.centre})
        report = ["student and teacher with their heads" + (", and the centre" if "centre" in taken else "")]
    load_fitting(model, own | taken, where)
    return _report(name, report + changes, unused)


def _named(source: str | Path | Mapping, name: str = "") -> tuple[str, str]:
    """The name of a source in reports, and " in NAME" for errors ("" for a mapping without a name)."""
    name = name or ("" if isinstance(source, Mapping) else str(source))
    return name or "the mapping given", f" in {name}" * bool(name)


def _report(name: str, parts: list[str], unused: list[str]) -> str:
    return "; ".join([f"weights of {name}: {parts[0]}", *parts[1:], *[f"not used: {', '.join(unused)}"] * bool(unused)])


def _in_head(name: str) -> bool:
    return name.startswith("head.")


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _find(source: str | Path | Mapping) -> Found:
    """What a source holds. Raises ValueError where that is no state dict, and FileNotFoundError."""
    content, name = source, _named(source)[0]
    if not isinstance(source, Mapping):
        with torch.serialization.safe_globals([(_Unread, unread) for unread in IN_CHECKPOINTS]):
            content = read_content(source)
    if isinstance(content, Mapping) and isinstance(content.get("teacher"), Mapping):
        teacher, student = (
            _branch(state_dict_of(content[which], f"{name}, {which}")) if content.get(which) else None
            for which in ("teacher", "student")
        )  # fmt: skip
        loss = content.get("dino_loss")
        centre = loss.get("center") if isinstance(loss, Mapping) else None
        return Found(teacher, student, centre, tuple(sorted(set(content) - {"teacher", "student", "dino_loss"})))
    state = published(state_dict_of(content, name))
    if not any(key.startswith("teacher.backbone.") for key in state):
        return Found(_branch(state))
    known = ("teacher.", "student.", "centre")
    others = {key: tensor for key, tensor in state.items() if not key.startswith(known)}  # will not fit
    return Found(_part(state, "teacher.") | others, _part(state, "student."), state.get("centre"))


def _branch(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A branch's tensors under `backbone.` and `head.`, from a state dict with or without these."""
    state = published(state)
    if any(name.startswith("backbone.") for name in state):
        return state
    return {name if _in_head(name) else f"backbone.{name}": tensor for name, tensor in state.items()}


def _adapted(
    own: Mapping[str, Tensor], branch: Mapping[str, Tensor], where: str
) -> tuple[dict[str, Tensor], list[str]]:
    """The backbone of a branch for a ViT with the tensors `own`, all of which fit, and the changes made to it in words.
    Raises ValueError as `load_dino_weights`."""
    state = renamed({name: tensor for name, tensor in branch.items() if not _in_head(name)},
                    lambda name: name.removeprefix("backbone."))  # fmt: skip
    if not own.keys() & state.keys():
        parts = sorted({name.partition(".")[0] for name in state})
        of = "CineMA or HeartMAE" if set(parts) & set(ENCODER_PARTS) else "another model"
        raise ValueError(f"the weights{where} are of {of} ({', '.join(parts)}); expected those of a ViT by DINO, such "
                         "as blocks.0.attn.qkv.weight, with or without the prefix backbone")  # fmt: skip
    refuse(integers(own, state), where)  # before any arithmetic on them
    changes = []
    weight, table = state.get(PATCHES), state.get(TABLE)
    if weight is not None and weight.ndim == 4 and (weight.shape[1], own[PATCHES].shape[1]) == (COLOURS, 1):
        state[PATCHES] = weight.to(own[PATCHES].dtype).sum(1, keepdim=True)
        changes.append(f"patch embedding summed over its {COLOURS} channels")
    if table is not None and table.ndim == 3 and table.shape[1] > 1 and table.shape[1] != own[TABLE].shape[1]:
        side, new = (math.isqrt(tokens - 1) for tokens in (table.shape[1], own[TABLE].shape[1]))
        if side**2 == table.shape[1] - 1:
            state[TABLE] = resize_learned_table(table.to(own[TABLE].dtype), side, (new, new))
            changes.append(f"positions interpolated from {side} x {side} to {new} x {new}")
    sizes = [_size(tensors) for tensors in (state, own)]
    differ = all(sizes) and sizes[0] != sizes[1]
    check_fit(own, state, where + f", of a ViT of {sizes[0]}, not {sizes[1]}," * differ)
    return state, changes


def _size(backbone: Mapping[str, Tensor]) -> str:
    """Width and depth in words; "" of what has no class token."""
    token, blocks = backbone.get("cls_token"), {name.split(".")[1] for name in backbone if name.startswith("blocks.")}
    return "" if token is None else f"width {token.shape[-1]} and {len(blocks)} blocks"
