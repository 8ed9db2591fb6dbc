"""The interface of a method, which the loop trains: MAE, DINO, or supervised training of any task."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..data.loading.batch import Batch
from ..data.loading.loader import Labels
from ..data.loading.sampler import Sampler
from ..data.store.clips import ClipStore
from ..data.store.store import CineStore
from ..models.precision import autocast
from .log import RunLog
from .optimizer import Group, adamw, groups_of, update
from .options import RunOptions
from .ranks import ALONE, Ranks
from .run_info import RunInfo


@dataclass(frozen=True)
class Place:
    """The device of a run, the dtype of its activations, and its ranks."""

    device: torch.device
    precision: torch.dtype = torch.float32
    ranks: Ranks = field(default=ALONE)

    def autocast(self) -> torch.autocast:
        """Context in which a model computes in `precision`."""
        return autocast(self.device, self.precision)


class Validation(NamedTuple):
    """Validations within a run, `every` so many steps and after the last step.

    The weights of the best score are saved in best/. Training ends after `patience` validations without a better one
    (0: never). warning_at_zero: a message for the end of a run whose best score is near 0 or below; "": none.
    """

    every: int
    patience: int
    warning_at_zero: str = ""


class Method:
    """A method that `loop.train` trains. The loop uses only the attributes and methods below.

    The constructor of a subclass sets the attributes, before a model is built, and raises ValueError where options do
    not fit. A subclass overrides `build`, `load_start` and `loss`, and any other method that it needs.

    Attributes:
        options: of the run. info: its RunInfo, for config.yaml. place: its device, precision and ranks.
        store: of its images. sampler: draws the images of a step. sizes: {view: image size}, to which they are padded.
        labels: read together with the images, or None. motion: read the stored motion maps too.
        validation: None where nothing is validated within the run.
        unused: not every parameter has a gradient in every step.
        memory: keyword arguments of `memory_advice`.
    """

    options: RunOptions
    info: RunInfo
    place: Place
    store: CineStore | ClipStore
    sampler: Sampler
    sizes: dict[str, tuple[int, ...]]
    labels: Labels | None = None
    motion = False
    validation: Validation | None = None
    unused = False
    memory: dict = {}  # noqa: RUF012 (never written to)

    def build(self) -> nn.Module:
        """The model with fresh weights, on the CPU; draws from PyTorch's generator, which is seeded."""
        raise NotImplementedError

    def load_start(self, model: nn.Module, say: Callable[[str], None]) -> None:
        """Load the weights of --init-from into the model and report what was taken. Raises ValueError."""
        raise NotImplementedError

    def loss(self, model: nn.Module, batch: Batch, step: Tensor) -> Tensor:
        """The loss () of a batch on the device, by a model that may be compiled.

        step: (1,) int64 on the device, the number of the step from 0. Random numbers are a function of the seed, `step`
        and the batch's slots, or come from PyTorch's generators, which are seeded for every batch. It is recorded into
        CUDA graphs, so it must not make tensors from Python numbers or read any back.
        """
        raise NotImplementedError

    def units(self, model: nn.Module) -> Sequence[nn.Module]:
        """The parts of a model that FSDP2 gathers separately."""
        return model.encoder.blocks

    def groups(self, model: nn.Module) -> list[Group]:
        """The trained parameters, grouped by weight decay and share of the learning rate."""
        return groups_of(model, weight_decay=self.options.weight_decay)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimiser of a model on its device. Its groups get the scheduled learning rate of each step as "lr"."""
        return adamw(self.groups(model), lr=self.options.lr)

    def update(
        self, optimizer: torch.optim.Optimizer, trained: Sequence[nn.Parameter], loss: Tensor, step: Tensor
    ) -> Tensor:
        """Update the `trained` parameters from their gradients and drop these; recorded like `loss`, whose `step` it
        gets. Returns (3,) float32 on the device, as the steps of `step.make_train_step`."""
        sharded = self.options.parallel == "fsdp"
        return update(optimizer, trained, loss, clip=self.options.clip_grad, sharded=sharded)

    def after_update(self, model: nn.Module, step: Tensor, made: Tensor) -> None:
        """Called after the update of each step, for instance to average a teacher. It is recorded like `loss`.

        model: as built. made (): 1, or 0 where the update was skipped; then values of the batch may not be finite.
        """

    def state(self) -> dict:
        """The state that checkpoints hold besides model and optimiser: plain values and tensors."""
        return {}

    def restore(self, state: dict) -> None:
        """Continue from a checkpoint's `state`."""

    def remarks(self, model: nn.Module) -> Iterator[str]:
        """Lines for run.log that describe the run, before its first step."""
        yield from ()

    def flops(self, batches: Sequence[Batch]) -> int:
        """Useful floating-point operations of a step; 0 where they are not counted."""
        return 0

    def seconds(self) -> dict[str, float]:
        """{name: seconds spent so far} on parts of the steps, whose shares go to metrics.jsonl."""
        return {}

    def figures(self, model: nn.Module, step: int, say: Callable[[str], None]) -> dict[str, float | None]:
        """The method's own figures for a line of metrics.jsonl after `step` steps. All ranks call it; those of the main
        rank are written.

        None: no value, such as a mean over steps whose updates were all skipped. model: as built, in train mode, to be
        left so. say: writes a line to run.log.
        """
        return {}

    def validate(self, model: nn.Module, say: Callable[[str], None]) -> dict[str, float]:
        """Figures of a validation, including `score` (higher is better); {} where there are no validation studies.

        model: as built, in eval mode. say: writes a line to run.log.
        """
        return {}

    def finish(self, model: nn.Module, log: RunLog) -> object:
        """Evaluate a finished and saved run and draw its pictures, on the main rank; returns `Outcome.evaluation`."""
        return None
