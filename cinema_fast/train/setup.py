"""Decisions before the first step of a run: model configuration, device, precision; and its RunInfo."""

import dataclasses
import difflib
import hashlib
import json
import platform
import random
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ..common.views import CLIP, view_like
from ..data.store.clips import ClipStore
from ..data.store.orientation import orientation_of
from ..data.store.store import CineStore
from ..models.config import CineMAConfig, DINOConfig
from .method import Place
from .options import RunOptions
from .ranks import Ranks
from .run_info import LabelInfo, RunInfo, StoreInfo


def fit_to_store(
    base: CineMAConfig, store: CineStore, views: Sequence[str], preset: str, *, named: Sequence[str] | None = None
) -> CineMAConfig:
    """The configuration `base` with the views trained on (all of the store where none is named) and the store's sizes.

    A size is rounded up to whole tokens; frames are padded to it. A preset over clips is not changed: any view gives
    clips of its size. preset: its name, for messages. named: the views that the user named, if not `views`: one of them
    that the preset lacks, such as lge_sax, has the tokens and channels of the preset's view in the same plane (else of
    its first view with as many axes).

    Raises ValueError naming a view that the store or the preset lacks.
    """
    stored = largest_frames(store, views)
    if base.views == (CLIP,):
        return base
    wanted = set(views or stored)
    axes_of, like = {view: len(size) for view, size in base.image_size.items()}, dict(zip(base.views, base.views))
    for view in sorted(wanted - set(base.views)):
        near = view_like(view, len(stored[view]), axes_of)
        if near is None or view not in (views if named is None else named):
            others = " ".join(v for v in base.views if v in stored)
            cures = [f"on others with --views {others}"] * bool(others)
            cures += [f"on this one by naming it: --views {view}"] * (near is not None)
            cure = f"train {', or '.join(cures)}" if cures else f"its views are {', '.join(base.views)}"
            raise ValueError(f"preset {preset!r} has no view {view!r}, which {store.path} holds; {cure}")
        like[view] = near
    shown = tuple(view for view in like if view in wanted)
    image_size = {}
    for view in shown:
        token, largest = base.token_size(like[view]), stored[view]
        if len(token) != len(largest):
            raise ValueError(
                f"{store.path}: {view} frames have {len(largest)} axes, preset {preset!r} needs {len(token)}"
            )
        prepared = store.prepare.get("sax_size" if len(largest) == 3 else "lax_size", largest)
        image_size[view] = tuple(-(-n // t) * t for n, t in zip(prepared, token))
    shapes = {
        name: {view: getattr(base, name)[like[view]] for view in shown}
        for name in ("in_chans", "patch_size", "scale_factor")
    }
    return dataclasses.replace(base, views=shown, image_size=image_size, **shapes)


def largest_frames(store: CineStore, views: Sequence[str] = ()) -> dict[str, tuple[int, ...]]:
    """{view: largest size along each axis} of a store's frames. Raises ValueError where it lacks one of `views`."""
    stored: dict[str, tuple[int, ...]] = {}
    for study in store.ids:
        for view in store.views(study):
            size = store.info(study, view).shape[1:]
            stored[view] = tuple(max(pair) for pair in zip(size, stored.get(view, size)))
    for view in views:
        if view not in stored:
            near = difflib.get_close_matches(view, stored, n=1)
            hint = "; separate views by spaces" if "," in view else f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"--views: {store.path} has no view {view!r}{hint} (it has {', '.join(stored)})")
    return stored


def pick_device(name: str) -> torch.device:
    """The device of --device. Raises ValueError where cuda is requested and there is no GPU."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ValueError("--device cuda: this PyTorch sees no GPU; use --device cpu, or see `cinema-fast info`")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and available) else "cpu")


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype of activations. auto is bf16 on a GPU, and on a CPU with AMX or, if it is AMD's, AVX512-BF16.

    With AVX512-BF16 and no AMX, a step of cinema-base in bf16 took 0.62 times as long as in fp32 on an AMD EPYC, and
    1.75 times as long on an Intel Xeon (docs/reference/results.md).
    """
    if name != "auto":
        return torch.bfloat16 if name == "bf16" else torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    has = getattr(torch.cpu, "get_capabilities", dict)()  # newer PyTorch only; with an older one fp32 is used
    amd = has.get("cpu_name", "").startswith("AMD")
    return torch.bfloat16 if has.get("amx_bf16") or (amd and has.get("avx512_bf16")) else torch.float32


def check_mode(config: RunOptions, device: torch.device, ranks: Ranks) -> None:
    """Raise ValueError where steps cannot run in the requested mode, or with the requested kind of parallelism."""
    if config.mode == "graph" and device.type != "cuda":
        raise ValueError(f"--mode graph replays CUDA graphs, and this run is on {device.type}: use --mode compile")
    if config.mode == "graph" and ranks.hosts:
        raise ValueError("--mode graph is for one GPU: under torchrun use --mode compile")
    if config.mode != "eager" and config.parallel == "fsdp":
        raise ValueError(f"--mode {config.mode} is for whole models, not for --parallel fsdp: use --mode eager")
    if config.parallel == "fsdp" and not ranks.hosts:
        raise ValueError(
            "--parallel fsdp distributes a model over processes: start them by torchrun --nproc-per-node N, see "
            "docs/how-to/scaling.md"
        )


def store_fingerprint(store: CineStore) -> str:
    """SHA-256 of the studies, their views and contents: with another value, other frames would be drawn."""
    content = [[study, view, store.info(study, view).sha256] for study in store.ids for view in store.views(study)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def versions() -> dict[str, str]:
    """The versions that a run is computed with: this package and its commit, Python, PyTorch."""
    from .. import __version__

    found = {"cinema_fast": __version__, "python": platform.python_version(), "torch": str(torch.__version__)}
    here = Path(__file__).parent
    try:
        answer = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--match="],
            capture_output=True, text=True, timeout=5, check=True,
        )  # fmt: skip
        found["commit"] = answer.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        found["commit"] = "unknown"  # installed without its history
    return found


def rng_state() -> dict:
    """The state of every random generator that a library might use; this project's own draws need none."""
    version, words, gauss = random.getstate()
    name, keys, at, has_gauss, cached = np.random.get_state()  # noqa: NPY002
    return {
        "python": [version, list(words), gauss],
        "numpy": [name, keys.tolist(), at, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_rng(state: dict) -> None:
    """Restore the state of every generator from `rng_state`."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, at, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), at, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def unused_split(store: Path, split: Path | None) -> list[str]:
    """A warning where the store of a public data set has a data split, and --split is not given."""
    official = store / "split.csv"
    return [f"warning: {official}, the split of the data set, is not used: give --split {official}"] * (
        split is None and official.is_file())  # fmt: skip


def describe_run(
    options: RunOptions,
    place: Place,
    cines: CineStore,
    model_config: CineMAConfig | DINOConfig,
    store: CineStore | ClipStore,
    labels: LabelInfo | None = None,
) -> RunInfo:
    """The RunInfo of a run, for config.yaml. store: `cines`, or the ClipStore over them, from which images are read."""
    return RunInfo(
        options=options.to_dict() | {"ranks": place.ranks.world},
        model=json.loads(json.dumps(dataclasses.asdict(model_config))),
        store=StoreInfo(
            len(cines.ids), store_fingerprint(cines), orientation_of(cines.prepare),
            prepare=dict(cines.prepare) if labels else None,
        ),
        versions=versions(),
        min_frames=store.min_frames if isinstance(store, ClipStore) else None,
        labels=labels,
    )
