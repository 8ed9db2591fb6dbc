"""What the loop trains: a method. MAE is one, and every task that learns from labels."""

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
from .optimizer import Group, groups_of
from .options import RunOptions
from .ranks import ALONE, Ranks
from .run_info import RunInfo


@dataclass(frozen=True)
class Place:
    """Where a run computes: its device, the dtype of its activations, and its place among the ranks."""

    device: torch.device
    precision: torch.dtype = torch.float32
    ranks: Ranks = field(default=ALONE)

    def autocast(self) -> torch.autocast:
        """The block in which a model computes in `precision`."""
        return autocast(self.device, self.precision)


class Validation(NamedTuple):
    """Validations within a run: `every` so many steps, and after the last one.

    The weights of the best score are kept in best/; training ends after `patience` validations without a better one
    (0: never). warning_at_zero: what the run says at its end where the best score is near 0 or below; "": nothing.
    """

    every: int
    patience: int
    warning_at_zero: str = ""


class Method:
    """What `loop.train` trains. The loop calls the methods below and knows nothing else of it.

    The constructor of a subclass sets the attributes below, all before a model is built, and raises ValueError for
    what does not fit. It overrides `build`, `load_start` and `loss`, and of the others what it needs.

    Attributes:
        options: of the run. info: what it is made of, for config.yaml. place: where it computes.
        store: where its images are. sampler: which of them a step takes. sizes: {view: image size} to pad them to.
        labels: what is read beside the images. motion: read the stored motion maps too.
        validation: None where nothing is validated within the run.
        unused: not every parameter has a gradient in every step.
        memory: what the advice says where memory runs out; keywords of `memory_advice`.
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
        """Put the weights of --init-from into the model and say what was taken. Raises ValueError."""
        raise NotImplementedError

    def loss(self, model: nn.Module, batch: Batch, step: Tensor) -> Tensor:
        """The loss () of a batch on the device, by a model that may be compiled.

        step: (1,) int64 on the device, the number of the step from 0. What is random is a function of the seed, `step`
        and the batch's slots, or is drawn from PyTorch's generators, which start anew with every batch.
        Makes no tensor from Python numbers and reads none back: it is recorded into CUDA graphs.
        """
        raise NotImplementedError

    def units(self, model: nn.Module) -> Sequence[nn.Module]:
        """The parts of a model that FSDP2 gathers one by one."""
        return model.encoder.blocks

    def groups(self, model: nn.Module) -> list[Group]:
        """The trained parameters by weight decay and share of the learning rate."""
        return groups_of(model, weight_decay=self.options.weight_decay)

    def after_update(self, model: nn.Module, step: Tensor) -> None:
        """What follows the update of a step, as the average of a teacher. As `loss` it is recorded. model: as built."""

    def state(self) -> dict:
        """What checkpoints keep beside model and optimiser: plain values and tensors."""
        return {}

    def restore(self, state: dict) -> None:
        """Go on from a checkpoint's `state`."""

    def remarks(self, model: nn.Module) -> Iterator[str]:
        """Lines of run.log that say what the run is, before its first step."""
        yield from ()

    def flops(self, batches: Sequence[Batch]) -> int:
        """Useful floating-point operations of a step; 0 where they are not counted."""
        return 0

    def seconds(self) -> dict[str, float]:
        """{name: seconds spent so far} on parts of the steps that metrics.jsonl is to have the shares of."""
        return {}

    def validate(self, model: nn.Module, say: Callable[[str], None]) -> dict[str, float]:
        """Figures of a validation, `score` (higher is better) among them; {} where no study is for it.

        model: as built, in eval mode. say: takes what is worth a line of run.log.
        """
        return {}

    def finish(self, model: nn.Module, log: RunLog) -> object:
        """Judge and draw a finished and saved run, on the main rank; what it returns is `Outcome.evaluation`."""
        return None
