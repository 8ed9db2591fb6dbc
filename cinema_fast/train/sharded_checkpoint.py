"""Checkpoints of a sharded model, by torch.distributed.checkpoint, in safetensors files.

A checkpoint is a folder and a file beside it:

    shards-00001000/            shard-*.safetensors of every rank, and state.pt (read with weights_only)
    shards-00001000.json        size and SHA-256 of each file, and of itself

The .json comes last; a checkpoint without it is ignored. Tensors are stored by name and offset, so that any number of
ranks can read them. Nothing is pickled: torch's own format describes the tensors in a pickle, which could run code.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..models.weights import load_torch
from .checkpoint import (
    VERSION,
    CheckpointError,
    file_sum,
    manifest_sum,
    newest_of_all,
    not_written,
    read_manifest,
    save_state,
    write_file,
)
from .ranks import Ranks

FORMAT = "cinema-fast sharded checkpoint"
OPTIMIZER = "optimizer."  # prefix of an optimiser state's kind and its parameter's name


class ShardedCheckpoints:
    """`checkpoint.WholeCheckpoints` for sharded models; written from a copy on the host while training continues."""

    def __init__(self, folder: Path, *, keep: int, ranks: Ranks):
        self._folder, self._keep, self._ranks = folder, keep, ranks
        self._writing: tuple[int, Future] | None = None
        self._newest = 0  # step of the last checkpoint that is known to be complete
        self._group = dist.new_group(backend="gloo")  # for writes that run beside a step

    def any(self) -> bool:
        """Whether a checkpoint was ever written, sound or not."""
        return bool(self._manifests())

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer, say: Callable[[str], None]) -> dict | None:
        """As `WholeCheckpoints.restore`; the checkpoint may be of any number of ranks."""
        from torch.distributed import checkpoint

        found = newest_of_all(self._manifests(), self._read, say, self._ranks)
        if found is None:
            return None
        state, reader, stored = found
        _begin_state(model, optimizer, stored)
        tensors = _tensors(model, optimizer)
        if differing := sorted(set(tensors) ^ set(stored)):
            raise CheckpointError(
                f"the checkpoint of step {state['step']} in {self._folder} is of another model: {len(differing)} names "
                f"differ, as {differing[0]}"
            )
        checkpoint.load(tensors, storage_reader=reader, process_group=self._group)
        self._newest = state["step"]
        return state

    def save(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict) -> None:
        """As `WholeCheckpoints.save`; all ranks call it."""
        from torch.distributed import checkpoint
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

        self.finish()
        folder = self._folder / f"shards-{step:08d}"
        with self._together(step):
            if self._ranks.main:
                folder.with_suffix(".json").unlink(missing_ok=True)
                for unfinished in self._folder.glob("shards-*/"):
                    if not unfinished.with_suffix(".json").exists():
                        shutil.rmtree(unfinished)
                folder.mkdir(parents=True)
                write_file(folder / "state.pt", lambda path: save_state(state | {"step": step}, path))
        writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
        tensors = _tensors(model, optimizer)
        self._writing = step, checkpoint.async_save(tensors, storage_writer=writer, process_group=self._group)

    def finish(self) -> None:
        """Wait for a running write, and write its manifest. Raises CheckpointError where it failed."""
        if self._writing is None:
            return
        (step, writing), self._writing = self._writing, None
        with self._together(step):
            writing.result()
            if self._ranks.main:
                self._count(step)
        self._newest = step

    def newest(self) -> int:
        """As `WholeCheckpoints.newest`."""
        with suppress(CheckpointError):
            self.finish()
        return self._newest

    def _count(self, step: int) -> None:
        """Write the manifest of the checkpoint, and drop the oldest checkpoints."""
        folder = self._folder / f"shards-{step:08d}"
        files = [file_sum(path) for path in sorted(folder.iterdir())]
        manifest = {"format": FORMAT, "version": VERSION, "step": step, "files": files}
        manifest["sha256"] = manifest_sum(manifest)
        path = folder.with_suffix(".json")
        write_file(path, lambda file: file.write_text(json.dumps(manifest, indent=1) + "\n"))
        self._drop(path)

    @contextmanager
    def _together(self, step: int) -> Iterator[None]:
        """Waits until all ranks have finished the block; raises CheckpointError on all ranks where one failed."""
        from torch.distributed.checkpoint.api import CheckpointException

        failure = None
        try:
            yield
        except (Exception, CheckpointException) as error:  # the latter, of what ranks met with, is no Exception
            met = next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error
            failure = not_written(step, self._folder, met)
            failure.__cause__ = error
        if self._ranks.most(int(failure is not None)):
            raise failure or not_written(step, self._folder, OSError("another rank could not write its part"))

    def _manifests(self) -> list[Path]:
        return sorted(self._folder.glob("shards-*.json"))

    def _read(self, path: Path, checksums: bool) -> tuple:
        """State, reader and tensor names of the checkpoint of a manifest; may raise anything."""
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

        if checksums:
            self._check(path)
        folder = path.with_suffix("")
        state = load_torch(folder / "state.pt")
        reader = HuggingFaceStorageReader(str(folder))
        return state, reader, reader.read_metadata().state_dict_metadata

    def _check(self, path: Path) -> None:
        """Raise CheckpointError where a file differs from what was written."""
        manifest = read_manifest(path, FORMAT)
        folder = path.with_suffix("")
        found = sorted(file.name for file in folder.iterdir())
        if found != [file["name"] for file in manifest["files"]]:
            raise CheckpointError(f"{folder.name} holds {found}, and not what was written")
        for file in manifest["files"]:
            if file_sum(folder / file["name"]) != file:
                raise CheckpointError(f"{folder.name}/{file['name']} was truncated or altered")

    def _drop(self, newest: Path) -> None:
        """Remove all but the newest checkpoints, and those after `newest`, which were damaged and skipped."""
        manifests = self._manifests()
        at = manifests.index(newest) + 1
        for path in manifests[: max(at - self._keep, 0)] + manifests[at:]:
            path.unlink()  # the manifest first, so that the checkpoint is ignored from then on
            shutil.rmtree(path.with_suffix(""), ignore_errors=True)


def _tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Parameters, and the optimiser's state of each, by name."""
    found = {name: parameter.detach() for name, parameter in model.named_parameters()}
    if strays := optimizer.state.keys() - set(model.parameters()):
        raise CheckpointError(f"{len(strays)} of {len(optimizer.state)} parameters are not in parts: reshard the model")
    for name, parameter in model.named_parameters():
        for kind, value in optimizer.state.get(parameter, {}).items():
            found[f"{OPTIMIZER}{kind}.{name}"] = value
    return found


def _begin_state(model: nn.Module, optimizer: torch.optim.Optimizer, stored: dict) -> None:
    """Allocate the optimiser's state for each parameter that has one stored (those that had a gradient)."""
    for name, parameter in model.named_parameters():
        if f"{OPTIMIZER}exp_avg.{name}" in stored:
            step = torch.zeros((), dtype=torch.float32, device=parameter.device)
            optimizer.state[parameter] = {
                "step": step, "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)
            }  # fmt: skip


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """The parameters of a sharded model, gathered on every rank."""
    return {
        name: value.full_tensor() if isinstance(value, dist.tensor.DTensor) else value.detach()
        for name, value in model.named_parameters()
    }
