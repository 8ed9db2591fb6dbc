"""Checkpoints that are whole or absent.

A checkpoint is three files of one folder:

    step-00001000.safetensors   the weights, under the published names
    step-00001000.pt            everything else a run needs to go on (read with weights_only, so nothing is executed)
    step-00001000.json          size and SHA-256 of both, and of itself

Each is written to a temporary name, forced to disk and renamed; the .json comes last and makes the checkpoint count.
A kill or a full disk leaves the earlier ones as they were; a cut or altered file is found by its checksum.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ..common.atomic import whole_file
from ..common.parsed_file import read_json
from ..common.regular_file import open_regular, read_regular
from ..models.weights import cinema_state_dict, load_cinema_weights, load_safetensors, load_torch
from .memory import ran_out
from .ranks import ALONE, Ranks

FORMAT, VERSION = "cinema-fast checkpoint", 1
NONE_SOUND = -1  # sent to the other ranks in place of a mark
T = TypeVar("T")


class CheckpointError(ValueError):
    """A checkpoint cannot be written, or none that was written can be read."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose checksums are right: its step, its weights by name, and the state saved with them."""

    step: int
    weights: dict[str, Tensor]
    state: dict


def save_checkpoint(folder: Path, step: int, weights: dict[str, Tensor], state: dict, *, keep: int) -> Path:
    """Write a checkpoint and drop all but the newest `keep`.

    Args:
        weights: tensors on any device. state: nested dicts and lists of plain values and tensors.

    Returns:
        Path of the weights.

    Raises:
        CheckpointError: it could not be written; what was there before still is.
    """
    from safetensors.torch import save_file

    paths = {kind: folder / f"step-{step:08d}{suffix}" for kind, suffix in _SUFFIX.items()}
    weights = {name: t.detach().cpu().contiguous() for name, t in weights.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _clear(folder)
        files = {
            "weights": write_file(paths["weights"], lambda path: save_file(weights, path)),
            "state": write_file(paths["state"], lambda path: save_state(state, path)),
        }
        manifest = {"format": FORMAT, "version": VERSION, "step": step, "files": files}
        manifest["sha256"] = manifest_sum(manifest)
        write_file(paths["manifest"], lambda path: path.write_text(json.dumps(manifest, indent=1) + "\n"))
    except Exception as error:  # the writers raise OSError, RuntimeError or an error of their own for a full disk
        with suppress(OSError):  # what cannot be removed now is removed by the next save
            _clear(folder)
        raise not_written(step, folder, error) from error
    earlier = [path for path in _manifests(folder) if path <= paths["manifest"]]
    later = [path for path in _manifests(folder) if path > paths["manifest"]]  # damaged ones that were skipped
    for old in earlier[:-keep] + later:
        for suffix in reversed(_SUFFIX.values()):  # the manifest first: from then on it does not count
            old.with_suffix(suffix).unlink(missing_ok=True)
    return paths["weights"]


def has_checkpoint(folder: Path) -> bool:
    """Whether one was ever written there, sound or not."""
    return bool(_manifests(folder))


def newest_checkpoint(folder: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest sound checkpoint, or None where there has never been one; warns of the damaged ones that it skips.

    Raises CheckpointError where there are checkpoints and all are damaged.
    """
    return _newest_sound(_manifests(folder), _read, say)


def newest_weights(run: Path, say: Callable[[str], None], ranks: Ranks = ALONE) -> tuple[dict[str, Tensor], str]:
    """The newest sound weights in a run's folder, of a run of `finetune` the best, and what to call them, RUN and step;
    warns of the damaged ones that it skips. All ranks call it, and have the same.

    Raises ValueError where the run has none yet, CheckpointError where all are damaged or the ranks find different
    ones.
    """
    best = run / "best"
    folder = best if best.exists() else run / "checkpoints"
    checkpoint = newest_of_all(_manifests(folder), _read, say, ranks)
    if checkpoint is None:
        raise ValueError(f"--init-from {run}: this run has no checkpoint yet")
    return checkpoint.weights, f"{run}, step {checkpoint.step}"


def newest_of_all(
    manifests: Sequence[Path], read: Callable[[Path, bool], T], say: Callable[[str], None], ranks: Ranks
) -> T | None:
    """What all ranks read of the newest checkpoint that the main one finds sound, None where there has never been one.

    read: opens the checkpoint of a manifest, raising whatever it likes; True: after its checksums are found right,
    which only the main rank does. The others see to it that they have the same manifest.

    Raises CheckpointError on all ranks where none is sound, or one of them does not find the main rank's.
    """
    if ranks.main:
        try:
            found = _newest_sound(manifests, lambda path: (path, read(path, True)), say)
        except Exception:
            ranks.most(NONE_SOUND)
            raise
        mark = ranks.most(_mark(found[0]) if found else 0)
        path, content = found or (None, None)
    else:
        mark = ranks.most(NONE_SOUND)
        if mark == NONE_SOUND:
            raise CheckpointError("rank 0 found no intact checkpoint; see its message")
        path, content = next((path for path in manifests if _mark(path) == mark), None), None
    if ranks.most(int(bool(mark) and path is None)):
        found = f"sees {path.stem}, others do not" if path else "does not see the checkpoint of rank 0"
        raise CheckpointError(
            f"rank {ranks.rank} {found}: put --out (and --init-from) on storage that all machines share, then repeat "
            "the command with --resume"
        )
    if ranks.main or path is None:
        return content
    try:
        return read(path, False)
    except Exception as error:
        if ran_out(error):
            raise
        raise CheckpointError(f"rank {ranks.rank} cannot read {path.stem}, which rank 0 could: {error}") from error


def _newest_sound(manifests: Sequence[Path], read: Callable[[Path], T], say: Callable[[str], None]) -> T | None:
    for path in reversed(manifests):
        try:
            return read(path)
        except Exception as error:  # whatever the readers make of damaged bytes
            if ran_out(error):  # the file may be sound
                raise
            say(f"checkpoint {path.stem} is damaged and is skipped: {error}")
    if manifests:
        raise CheckpointError(f"every checkpoint in {manifests[0].parent} is damaged; start again with another --out")
    return None


def _mark(manifest: Path) -> int:
    """A number above 0 that identifies a manifest by its bytes."""
    return 1 + int(hashlib.sha256(read_regular(manifest)).hexdigest()[:15], 16)


def not_written(step: int, folder: Path, error: BaseException) -> CheckpointError:
    """The error of a checkpoint that could not be written."""
    return CheckpointError(
        f"the checkpoint of step {step} could not be written to {folder}: {_reason(error)}; earlier checkpoints are "
        "untouched. Fix this (free some space?), then continue with --resume"
    )


def read_manifest(path: Path, form: str) -> dict:
    """A manifest of this form, version 1. Raises CheckpointError where it is another or was altered."""
    manifest = read_json(path)
    if manifest["sha256"] != manifest_sum(manifest):
        raise CheckpointError(f"{path.name} was altered: its SHA-256 does not match")
    if (manifest["format"], manifest["version"]) != (form, VERSION):
        raise CheckpointError(
            f"{path.name} is {manifest['format']!r} version {manifest['version']}, expected {form!r} version {VERSION}"
        )
    return manifest


class WholeCheckpoints:
    """Checkpoints of a model that every rank has whole: the main one writes, all read.

    Args:
        folder: where. keep: how many. ranks: whose main one writes.
        async_save: write while training goes on, from a copy on the host; `save` and `finish` wait for the last one,
            and raise what went wrong with it.
    """

    def __init__(self, folder: Path, *, keep: int, ranks: Ranks, async_save: bool):
        self._folder, self._keep, self._ranks = folder, keep, ranks
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint") if async_save else None
        self._writing: tuple[int, Future] | None = None
        self._newest = 0  # step of the last one that is known to be whole

    def any(self) -> bool:
        """Whether one was ever written, sound or not."""
        return has_checkpoint(self._folder)

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer, say: Callable[[str], None]) -> dict | None:
        """Put weights and optimiser back to the newest sound checkpoint; returns the state saved beside, or None.

        Raises CheckpointError where there are checkpoints and all are damaged, or the ranks find different ones.
        """
        checkpoint = newest_of_all(_manifests(self._folder), _read, say, self._ranks)
        if checkpoint is None:
            return None
        self._newest = checkpoint.step
        load_cinema_weights(model, checkpoint.weights)
        optimizer.load_state_dict(checkpoint.state["optimizer"])
        return checkpoint.state | {"step": checkpoint.step}

    def save(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict) -> None:
        """Write weights, optimiser and `state`. Raises CheckpointError: of this one, or, async, of the last."""
        self.finish()
        if not self._ranks.main:
            return
        weights, state = cinema_state_dict(model), state | {"optimizer": optimizer.state_dict()}
        if self._writer is None:
            save_checkpoint(self._folder, step, weights, state, keep=self._keep)
            self._newest = step
            return
        weights, state = tree_map_only(Tensor, lambda x: x.detach().to("cpu", copy=True), (weights, state))
        writing = self._writer.submit(save_checkpoint, self._folder, step, weights, state, keep=self._keep)
        self._writing = step, writing

    def finish(self) -> None:
        """Wait for what is being written. Raises CheckpointError where it could not be."""
        if self._writing is not None:
            (step, writing), self._writing = self._writing, None
            writing.result()
            self._newest = step

    def newest(self) -> int:
        """Step of the newest checkpoint that is whole, 0 where there is none; all ranks call it.

        Waits for what is being written; if that cannot be, it is the one before.
        """
        with suppress(CheckpointError):
            self.finish()
        return self._ranks.most(self._newest)


_SUFFIX = {"weights": ".safetensors", "state": ".pt", "manifest": ".json"}


def _manifests(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.json"))


def manifest_sum(manifest: dict) -> str:
    """SHA-256 of a manifest without its own checksum."""
    rest = {name: value for name, value in manifest.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def file_sum(path: Path) -> dict:
    """Name, size and SHA-256 of a file."""
    with open_regular(path) as file:
        return {
            "name": path.name,
            "bytes": path.stat().st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def _clear(folder: Path) -> None:
    """Remove what a killed write left: temporary files of safetensors, of ours and of older versions."""
    for leftover in (*folder.glob("*.tmp"), *folder.glob(".tmp*")):
        leftover.unlink()


def _reason(error: BaseException) -> str:
    """The system's message of a failed write, which torch.save hides behind its own."""
    link: BaseException | None = error
    while link is not None and not isinstance(link, OSError):
        link = link.__cause__ or link.__context__
    return str(link or error)


def save_state(state: dict, path: Path) -> None:
    """Nested dicts and lists of plain values and tensors, to be read by torch.load(weights_only=True)."""
    with path.open("wb") as file:
        torch.save(state, file)


def write_file(path: Path, writer: Callable[[Path], object]) -> dict:
    """Write a file through `writer`, force it to disk and give it its name; returns its size and sum."""
    with whole_file(path, durable=True) as temporary:
        writer(temporary)
        return file_sum(temporary) | {"name": path.name}


def _read(path: Path, checksums: bool = True) -> Checkpoint:
    manifest = read_manifest(path, FORMAT)
    for expected in manifest["files"].values():
        file = path.with_name(expected["name"])
        if not file.is_file():
            raise CheckpointError(f"{file.name} is missing")
        if checksums and file_sum(file) != expected:
            raise CheckpointError(
                f"{file.name} was truncated or altered: {file.stat().st_size} bytes, written {expected['bytes']}, "
                "or another SHA-256"
            )
    state = load_torch(path.with_suffix(_SUFFIX["state"]))
    return Checkpoint(manifest["step"], load_safetensors(path.with_suffix(_SUFFIX["weights"])), state)
