"""Loads and saves weights. Names and shapes are those of the published checkpoints, which the models share."""

import os
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..common.views import view_like
from .cinema import CineMA

ENCODER_PARTS = ("enc_down_dict", "enc_fusion_dict", "encoder")
FIRST_CONVOLUTION = ".conv_blocks.0.patch_embed.conv.weight"


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors file, or of a torch file read without executing anything in it.

    Raises FileNotFoundError, or ValueError naming the file where it holds no state dict.
    """
    return state_dict_of(read_content(path), str(path))


def read_content(path: str | Path):
    """The content of a file, as `read_state_dict`, whatever a torch file holds."""
    path = Path(path)
    if path.is_dir():
        raise FileNotFoundError(f"no weights at {path}: it is a folder; give a file, of a run one of RUN/checkpoints/"
                                "step-*.safetensors")  # fmt: skip
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}: there is no such file")
    try:
        return load_safetensors(path) if path.suffix == ".safetensors" else load_torch(path)
    except Exception as error:
        clear = path.suffix == ".safetensors" or isinstance(error, OSError | UnsafeError)
        why = str(error) if clear else "not a torch file, or damaged"
        raise ValueError(f"{path} cannot be read as weights: {why}") from error


class UnsafeError(ValueError):
    """A torch file holds something other than tensors and plain values, which could run code."""


def load_torch(path: Path):
    """The content of a torch file, read without executing anything in it.

    Raises as torch.load, but a one-line UnsafeError where PyTorch would advise to let the file run code.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # for pickles of other protocols
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:
        if "weights_only" not in str(error):
            raise
        held = re.search(r"\bGLOBAL ([\w.]+)", str(error))
        why = f"it holds {held[1]}, and only tensors are accepted" if held else "not a torch file, or damaged"
        raise UnsafeError(why) from None


def load_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors file. The library only opens paths in UTF-8; for others it gets the bytes."""
    from safetensors.torch import load, load_file

    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        return load(path.read_bytes())
    return load_file(path)


def state_dict_of(state, source: str) -> dict[str, Tensor]:
    """The state dict: `state` itself, or its entry 'model'; ValueError where neither is one."""
    state = state.get("model", state) if isinstance(state, Mapping) else state
    if not isinstance(state, Mapping) or not all(isinstance(t, Tensor) for t in state.values()):
        raise ValueError(f"{source} holds no state dict (expected {{name: tensor}}, or that under 'model')")
    return dict(state)


def load_cinema_weights(model: nn.Module, source: str | Path | Mapping[str, Tensor]) -> str:
    """Load a published checkpoint, or one of this project, into `model`; returns a report of what was loaded.

    From a pre-trained checkpoint, ConvViT and ConvUNetR take the stems of their views, the encoder and (ConvViT) the
    fusions. Where their images have more channels, such as the frames of a cine, the first convolution is repeated
    over them. A view of another name, such as lge_sax, starts from the view of the same plane if the source lacks it.
    The model keeps its own position tables. Everything else has to fit, name by name.

    Args:
        model: CineMA, ConvViT or ConvUNetR; it may be compiled or wrapped for several devices.
        source: path (.safetensors, or a torch file) or state dict, of any such model.

    Raises:
        ValueError: names views that the checkpoint lacks, lists every missing, unexpected and differently shaped
            tensor and those of integers, or names one that is not finite; nothing has been loaded then.
        FileNotFoundError: no file at the path.
    """
    given = isinstance(source, Mapping)
    state, where = published(_read(source)), "" if given else f" in {source}"
    of_vit = any(name.endswith("blocks.0.attn.qkv.weight") for name in state) and not _parts(state)
    if of_vit and _parts(cinema_state_dict(model)):
        raise ValueError(f"the weights{where} are of a ViT by DINO, not of CineMA: load them into a cf.ViT by "
                         "cf.load_dino_weights")  # fmt: skip
    if not _is_pretrained(state) or _is_pretrained(cinema_state_dict(model)):
        load_fitting(model, state, where)
        return f"weights of {'the mapping given' if given else source}: all {len(state)} tensors"
    return f"weights of {'the mapping given' if given else source}: " + _load_encoder(model, state, where)


def load_starting_weights(
    model: nn.Module, source: str | Path | Mapping[str, Tensor], name: str = ""
) -> tuple[str, tuple[str, ...]]:
    """Load the initial weights of a ConvViT or ConvUNetR. Returns a report, and the parts among stem, encoder and
    fusion that the source lacks.

    As `load_cinema_weights`. In addition, from fine-tuned weights that do not fit as a whole, such as those of another
    task, the same parts are taken as from pre-trained ones. `log_variance`, the balance of several targets' losses, is
    not used. name: of a mapping, for messages.

    Raises as `load_cinema_weights`.
    """
    name = name or ("" if isinstance(source, Mapping) else str(source))
    state, where = published(_read(source)), f" in {name}" * bool(name)
    balance, own = state.pop("log_variance", None), cinema_state_dict(model)
    whole = state | {name: tensor for name, tensor in own.items() if name == "log_variance"}
    if not _is_pretrained(state) and not misfits(own, whole):
        load_fitting(model, whole, where)
        unused = "; not used from the file: log_variance" * (balance is not None)
        report, absent = f"all {len(state)} tensors{unused}", ()
    else:
        report = _load_encoder(model, state, where)
        absent = tuple(part for part in _parts(cinema_state_dict(model)) if part not in _parts(state))
    return report, absent


def _parts(state: Mapping[str, Tensor]) -> list[str]:
    """The parts of a state dict that tasks share."""
    return [part for part in ENCODER_PARTS if any(name.startswith(f"{part}.") for name in state)]


def _is_pretrained(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the names of a pre-trained CineMA, with its decoder."""
    return any(name.startswith(("dec_linear.", "dec_embed_dict.", "decoder.")) for name in state)


def _load_encoder(model: nn.Module, state: Mapping[str, Tensor], where: str) -> str:
    """Load the parts that a model shares with the source, as `load_cinema_weights` describes; returns the report."""
    own, config = cinema_state_dict(model), _inner(model).config
    parts = [part for part in _parts(own) if part in _parts(state)]
    state, borrowed = _with_borrowed(own, state)
    views, stored = _stem_views(own), _stem_views(state)
    if missing := [view for view in views if view not in stored]:
        raise ValueError(f"the weights{where} have no view {missing[0]!r}, which the model needs (views: "
                         f"{', '.join(stored) or 'none'})")  # fmt: skip
    shared = {n: t for n, t in state.items() if n.partition(".")[0] in parts and _view_of(n) in (None, *views)}
    refuse(integers(own, shared), where)  # before any arithmetic on them
    taken, repeated, other_tables = {}, "", []
    for name, tensor in shared.items():
        want = own[name].shape if name in own else tensor.shape
        if name.endswith(".pos_embed"):
            if want != tensor.shape or not torch.allclose(tensor.to(own[name]), own[name]):
                other_tables.append(_view_of(name))
            continue
        if name.endswith(FIRST_CONVOLUTION) and want[1] != tensor.shape[1]:
            channels = tensor.shape[1] if _is_pretrained(state) else config.in_chans[_view_of(name)]
            tensor, repeated = _over_frames(tensor, channels, want[1])
        taken[name] = tensor
    kept = {n: t for n, t in own.items() if n.partition(".")[0] not in parts or n.endswith(".pos_embed")}
    load_fitting(model, {**kept, **taken}, where)
    fresh = sorted({name.partition(".")[0] for name in kept} - set(parts))
    left = sorted({name.partition(".")[0] for name in state} - set(parts))
    report = [f"{len(taken)} tensors of {', '.join(parts)}, views {', '.join(views)}"]
    report += [f"{view} starts from {like}, which the weights have in its place" for view, like in borrowed.items()]
    report += [f"first convolutions {repeated}"] * bool(repeated)
    resized = ", ".join(other_tables)
    report += [f"position embeddings recomputed (another image size): {resized}"] * bool(resized)
    report += [f"from random weights: {', '.join(fresh)}", f"not used from the file: {', '.join(left)}"]
    return "; ".join(report)


def _over_frames(weight: Tensor, channels: int, want: int) -> tuple[Tensor, str]:
    """A first convolution (out, in, *kernel), for frames of `channels` each, adapted to `want` input channels; and a
    description of the change.

    The mean over frames undoes an earlier repetition, so that a single frame gives the same output as before.
    """
    changes, frames, times = [], weight.shape[1] // channels, want // channels
    if want % channels or weight.shape[1] % channels:
        return weight, ""
    if frames > 1:
        weight = weight.unflatten(1, (frames, channels)).mean(1)
        changes.append(f"averaged over {frames} frames")
    if times > 1:
        weight = weight.repeat(1, times, *[1] * (weight.ndim - 2))
        changes.append(f"repeated {times} times")
    return weight, " and ".join(changes)


def _with_borrowed(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """`state` with the tensors of the views that only the model has, each those of the view most like it; and {view:
    the one that it borrows from}."""
    axes = {view: state[first].ndim - 2 for view in _stem_views(state)
            if (first := f"enc_down_dict.{view}{FIRST_CONVOLUTION}") in state}  # fmt: skip
    borrowed = {}
    for view in (view for view in _stem_views(own) if view not in _stem_views(state)):
        first = own.get(f"enc_down_dict.{view}{FIRST_CONVOLUTION}")
        if first is not None and (like := view_like(view, first.ndim - 2, axes)):
            borrowed[view] = like
    copies = {name.replace(f".{like}.", f".{view}.", 1): tensor for view, like in borrowed.items()
              for name, tensor in state.items() if _view_of(name) == like}  # fmt: skip
    return dict(state) | copies, borrowed


def _stem_views(state: Mapping[str, Tensor]) -> list[str]:
    """The views whose stems are in a state dict, in its order."""
    return list(dict.fromkeys(_view_of(name) for name in state if name.startswith("enc_down_dict.")))


def load_shared_views(model: CineMA, source: str | Path | Mapping[str, Tensor], name: str = "") -> str:
    """Load the shared views of a checkpoint and `model`; returns a report of views taken, initialised and not used.

    Tensors of views that only the model has are not changed, those of views that only the checkpoint has are not used;
    everything else has to fit. name: of a mapping, for messages.

    Raises as `load_cinema_weights`, and ValueError where no view is shared.
    """
    name = name or ("the mapping given" if isinstance(source, Mapping) else str(source))
    state, views = published(_read(source)), model.config.views
    stored = sorted({view for key in state if (view := _view_of(key))})
    taken = [view for view in views if view in stored]
    if not taken:
        has = f"weights of the views {', '.join(stored)}" if stored else "no weights of CineMA or HeartMAE"
        raise ValueError(f"{name} has {has}, expected one or more of {', '.join(views)}")
    fresh = [view for view in views if view not in stored]
    left = [view for view in stored if view not in views]
    state = {key: tensor for key, tensor in state.items() if _view_of(key) not in left}
    state |= {key: tensor for key, tensor in model.state_dict().items() if _view_of(key) in fresh}
    load_fitting(model, state, f" in {name}")
    more = f"; from random weights: {', '.join(fresh)}" * bool(fresh) + f"; not used: {', '.join(left)}" * bool(left)
    return f"weights of {name}: views taken: {', '.join(taken)}{more}"


def _inner(model: nn.Module) -> nn.Module:
    """The model inside a compiled model or a wrapper for several devices."""
    while not hasattr(model, "config"):
        model = model.module
    return model


def cinema_state_dict(model: nn.Module, grad: bool = False) -> dict[str, Tensor]:
    """The model's tensors, detached, under the published names; with `grad` the gradients of those that have one."""
    if not grad:
        return {name: t.detach() for name, t in published(model.state_dict()).items()}
    return published({name: p.grad for name, p in model.named_parameters() if p.grad is not None})


def _read(source: str | Path | Mapping[str, Tensor]) -> dict[str, Tensor]:
    return state_dict_of(source, "the mapping given") if isinstance(source, Mapping) else read_state_dict(source)


def published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, without the prefixes that torch.compile and wrappers for several devices add to names."""
    return renamed(state, _plain)


def renamed(state: Mapping[str, Tensor], rename: Callable[[str], str]) -> dict[str, Tensor]:
    """The same tensors under other names. ValueError where two would get one name."""
    plain = {rename(name): tensor for name, tensor in state.items()}
    if len(plain) < len(state):
        raise ValueError("the state dict holds tensors of one name twice, with and without a wrapper's prefix")
    return plain


def _plain(name: str) -> str:
    parts = [part for part in name.split(".") if part != "_orig_mod"]
    while len(parts) > 1 and parts[0] == "module":
        del parts[0]
    return ".".join(parts)


def _view_of(name: str) -> str | None:
    """The view that a tensor belongs to, by its published name: enc_down_dict.VIEW.... and the like."""
    part, _, rest = name.partition(".")
    return rest.partition(".")[0] if part.endswith("_dict") else None


def load_fitting(model: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Load tensors that all fit by their published names; else ValueError, as in `load_cinema_weights`.

    where: " in FILE", or "", for messages."""
    check_fit(cinema_state_dict(model), state, where)
    names = {_plain(name): name for name in model.state_dict()}  # published -> the model's own
    model.load_state_dict({names[name]: tensor for name, tensor in state.items()})


def check_fit(own: Mapping[str, Tensor], state: Mapping[str, Tensor], where: str) -> None:
    """Raise ValueError unless a model with the tensors `own` can load `state`, as in `load_cinema_weights`."""
    refuse(misfits(own, state), where)
    if bad := [name for name, tensor in state.items() if not tensor.to(own[name].dtype).isfinite().all()]:
        raise ValueError(f"{len(bad)} of {len(state)} tensors{where} hold numbers that are not finite, {bad[0]} among "
                         "them: start from other weights")


def misfits(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """Messages about the tensors of `state` that do not fit a model with the tensors `own`: missing, unexpected, of
    another shape, or integers."""
    problems = [f"missing {name} {tuple(t.shape)}" for name, t in own.items() if name not in state]
    problems += [f"unexpected {name} {tuple(t.shape)}" for name, t in state.items() if name not in own]
    problems += [
        f"{name}: expected {tuple(own[name].shape)}, got {tuple(t.shape)}"
        for name, t in state.items()
        if name in own and own[name].shape != t.shape
    ]
    return problems + integers(own, state)


def integers(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """The tensors of `state` that are integers where those of `own` are not."""
    return [
        f"{name}: expected floating-point numbers, got {t.dtype}"
        for name, t in state.items()
        if name in own and own[name].is_floating_point() and not t.is_floating_point()
    ]


def refuse(problems: list[str], where: str) -> None:
    """Raise ValueError with these messages, if there are any."""
    if problems:
        raise ValueError(f"{len(problems)} tensors{where} do not fit this model:\n  " + "\n  ".join(problems))
