"""Atomic checkpoints: each is complete or absent.

A checkpoint is three files of one folder:

    step-00001000.safetensors   the weights, under the published names
    step-00001000.pt            everything else a run needs to continue (read with weights_only, so nothing is executed)
    step-00001000.json          size and SHA-256 of both, and of itself

Each is written under a temporary name, forced to disk and renamed. The .json comes last; a checkpoint without it is
ignored. A kill or a full disk does not affect earlier checkpoints; a cut or altered file is detected by its checksum.
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
NONE_SOUND = -1  # sent to the other ranks in place of the mark of a manifest
T = TypeVar("T")


class CheckpointError(ValueError):
    """A checkpoint cannot be written, or no existing checkpoint can be read."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint with correct checksums: its step, its weights by name, and the state saved with them."""

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
        CheckpointError: it could not be written; earlier checkpoints still exist.
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
        with suppress(OSError):  # the next save tries again
            _clear(folder)
        raise not_written(step, folder, error) from error
    earlier = [path for path in _manifests(folder) if path <= paths["manifest"]]
    later = [path for path in _manifests(folder) if path > paths["manifest"]]  # damaged ones that were skipped
    for old in earlier[:-keep] + later:
        for suffix in reversed(_SUFFIX.values()):  # the manifest first, so that the checkpoint is ignored from then on
            old.with_suffix(suffix).unlink(missing_ok=True)
    return paths["weights"]


def has_checkpoint(folder: Path) -> bool:
    """Whether a checkpoint was ever written there, sound or not."""
    return bool(_manifests(folder))


def newest_checkpoint(folder: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest sound checkpoint, or None where there never was one; damaged ones are skipped with a warning.

    Raises CheckpointError where there are checkpoints and all are damaged.
    """
    return _newest_sound(_manifests(folder), _read, say)


def newest_weights(run: Path, say: Callable[[str], None], ranks: Ranks = ALONE) -> tuple[dict[str, Tensor], str]:
    """The newest sound weights of a run (for `finetune` the best), and their description, RUN and step. Damaged ones
    are skipped with a warning. All ranks call it and get the same weights.

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
    """The newest checkpoint that the main rank finds sound, read by all ranks; None where there never was one.

    read: reads the checkpoint of a manifest, and may raise anything. Its second argument is True on the main rank,
    which checks the checksums; the other ranks only check that they have the same manifest.

    Raises CheckpointError on all ranks where no checkpoint is sound, or a rank does not find that of the main rank.
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
        except Exception as error:  # damaged bytes make the readers raise anything
            if ran_out(error):  # out of memory: the file may be sound
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
    """A manifest of this form, version 1. Raises CheckpointError where it has another form or version, or was
    altered."""
    manifest = read_json(path)
    if manifest["sha256"] != manifest_sum(manifest):
        raise CheckpointError(f"{path.name} was altered: its SHA-256 does not match")
    if (manifest["format"], manifest["version"]) != (form, VERSION):
        raise CheckpointError(
            f"{path.name} is {manifest['format']!r} version {manifest['version']}, expected {form!r} version {VERSION}"
        )
    return manifest


class WholeCheckpoints:
    """Checkpoints of a model that is not sharded: the main rank writes, all ranks read.

    Args:
        folder: of the checkpoints. keep: how many are kept. ranks: their main rank writes.
        async_save: write from a copy on the host while training continues; `save` and `finish` wait for the previous
            write and raise its error.
    """

    def __init__(self, folder: Path, *, keep: int, ranks: Ranks, async_save: bool):
        self._folder, self._keep, self._ranks = folder, keep, ranks
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint") if async_save else None
        self._writing: tuple[int, Future] | None = None
        self._newest = 0  # step of the last checkpoint that is known to be complete

    def any(self) -> bool:
        """Whether a checkpoint was ever written, sound or not."""
        return has_checkpoint(self._folder)

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer, say: Callable[[str], None]) -> dict | None:
        """Restore weights and optimiser from the newest sound checkpoint; returns the state saved with it, or None.

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
        """Write weights, optimiser and `state`. Raises CheckpointError for this write, or with async_save for the
        previous one."""
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
        """Wait for a running write. Raises CheckpointError where it failed."""
        if self._writing is not None:
            (step, writing), self._writing = self._writing, None
            writing.result()
            self._newest = step

    def newest(self) -> int:
        """Step of the newest complete checkpoint, 0 where there is none; all ranks call it.

        Waits for a running write; if that fails, it is the checkpoint before.
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
    """Remove the temporary files of a killed write: those of safetensors, our own, and those of older versions."""
    for leftover in (*folder.glob("*.tmp"), *folder.glob(".tmp*")):
        leftover.unlink()


def _reason(error: BaseException) -> str:
    """The system's message of a failed write; torch.save hides it behind its own message."""
    link: BaseException | None = error
    while link is not None and not isinstance(link, OSError):
        link = link.__cause__ or link.__context__
    return str(link or error)


def save_state(state: dict, path: Path) -> None:
    """Nested dicts and lists of plain values and tensors, to be read by torch.load(weights_only=True)."""
    with path.open("wb") as file:
        torch.save(state, file)


def write_file(path: Path, writer: Callable[[Path], object]) -> dict:
    """Write a file by `writer`, force it to disk and rename it to `path`; returns its name, size and checksum."""
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
