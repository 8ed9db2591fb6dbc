"""DINO as a method: self-distillation over single images of all views and sequences of a study."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from ..common.naming import count_studies, sizes_in_words
from ..data.loading.augmentation import AugmentConfig
from ..data.loading.batch import Batch
from ..data.loading.crops import CropRecipe, cut_crops
from ..data.loading.image_choice import choose_images
from ..data.loading.sampler import Sampler
from ..data.store.store import CineStore
from ..models.config import DINOConfig
from ..models.dino import DINO
from ..models.dino_optimizer import DINOOptimizer
from ..models.flops import dino_step_flops
from ..train.method import Method, Place
from ..train.setup import describe_run, largest_frames, unused_split
from .collapse import CollapseWatch
from .pretrain_config import PretrainConfig
from .registry import method_for
from .split import split_studies

AS_STORED = AugmentConfig(zoom=(1.0, 1.0))  # crops are cut from the stored images


@method_for(DINOConfig)
class SelfDistillation(Method):
    """The student's output for any crop of an image predicts the teacher's for its global crops (Caron et al., ICCV
    2021; Jacob et al., JCMR 2025)."""

    options: PretrainConfig

    def __init__(self, options: PretrainConfig, preset: DINOConfig, place: Place):
        if options.parallel == "fsdp":
            raise ValueError(f"--parallel fsdp: {options.preset} is small, replicate it: --parallel ddp")
        if preset.vit.in_chans != 1:
            raise ValueError(f"preset {options.preset!r} has {preset.vit.in_chans} channels, stored images have one")
        self.options, self.place, self.store = options, place, CineStore(options.data)
        self.model_config = preset if options.dino.centring else replace(preset, centre_momentum=1.0)
        self.sizes = {
            view: size for view, size in largest_frames(self.store, options.views).items()
            if not options.views or view in options.views
        }  # fmt: skip
        training, self.held_out, _ = split_studies(self.store, tuple(self.sizes), options)
        self.training = list(training)
        self.sampler = Sampler(
            training, seed=options.seed, batch_size=options.batch_size, accumulate=options.accumulate,
            world=place.ranks.world, augment=AS_STORED,
        )  # fmt: skip
        held_out = tuple(self.held_out) if options.split else None
        self.info = replace(describe_run(options, place, self.store, self.model_config, self.store), held_out=held_out)
        self._recipe = CropRecipe(
            global_size=preset.vit.image_size, local_size=preset.local_size, n_local=preset.n_local
        )
        steps, dino = options.steps, options.dino
        rising = round(dino.teacher_temp_warmup * steps)
        low, high = dino.teacher_temp
        self._temperature = self._schedule(np.minimum(np.arange(steps) / max(rising, 1), 1) * (high - low) + low)
        self._weight_decay = self._schedule(_half_cosine(options.weight_decay, dino.weight_decay_end, steps))
        self._momentum = self._schedule(_half_cosine(dino.momentum, 1.0, steps))
        self._frozen_steps = round(dino.freeze_last_layer * steps)
        # sums over the micro-batches of a step, and over the steps since the last line of metrics.jsonl
        self._teacher_mean = torch.zeros(1, preset.bottleneck, device=place.device)
        self._sums = torch.zeros(3, device=place.device)  # teacher entropy, KL to the mean, micro-batches
        self._watch = CollapseWatch(preset.prototypes)

    def _schedule(self, values: np.ndarray) -> Tensor:
        """A value for each step, on the device, so that a recorded step reads its own."""
        return torch.from_numpy(values.astype(np.float32)).to(self.place.device)

    def build(self) -> DINO:
        model = DINO(self.model_config)
        model.recompute(self.options.recompute)
        return model

    def loss(self, model: nn.Module, batch: Batch, step: Tensor) -> Tensor:
        options = self.options
        images = choose_images(
            batch.frames, batch.extent, batch.slot, step=step, seed=options.seed, per_study=options.dino.images
        )
        crops = cut_crops(images, self._recipe, step=step, seed=options.seed)
        with self.place.autocast():
            out = model(crops, self._temperature[step].squeeze(), update_centre=False)
        self._teacher_mean += out.teacher_mean
        self._sums += torch.stack([*out.metrics.values(), torch.ones_like(out.loss.detach())])
        return out.loss

    def units(self, model: DINO) -> Sequence[nn.Module]:
        return model.student.backbone.blocks

    def optimizer(self, model: DINO) -> DINOOptimizer:
        return model.optimizer()

    def update(
        self, optimizer: DINOOptimizer, trained: Sequence[nn.Parameter], loss: Tensor, step: Tensor
    ) -> Tensor:
        norm_made = optimizer.step(
            lr=optimizer.param_groups[0]["lr"], weight_decay=self._weight_decay[step].squeeze(),
            clip=self.options.clip_grad, freeze_last_layer=(step < self._frozen_steps).float().squeeze(), loss=loss,
        )  # fmt: skip
        optimizer.zero_grad(set_to_none=True)
        return torch.cat([loss.view(1), norm_made])

    def after_update(self, model: DINO, step: Tensor) -> None:
        mean = self.place.ranks.mean_(self._teacher_mean / self.options.accumulate)
        model.update_centre(mean)
        model.update_teacher(self._momentum[step].squeeze())
        self._teacher_mean.zero_()

    def state(self) -> dict:
        return {"sums": self._sums, "watch": self._watch.state()}

    def restore(self, state: dict) -> None:
        self._sums.copy_(state["sums"])
        self._watch.restore(state["watch"])

    def remarks(self, model: DINO) -> Iterator[str]:
        options, place = self.options, self.place
        parameters = sum(p.numel() for p in model.student.parameters())
        images = self.sampler.global_batch * options.dino.images
        yield (
            f"{options.preset} on {count_studies(len(self.sampler.ids))} ({len(self.held_out)} held out), images of "
            f"{sizes_in_words(self.sizes)}; {parameters / 1e6:.3g} M parameters"
        )
        yield (
            f"{images} images of {count_studies(self.sampler.global_batch)} a step, in {2 + self._recipe.n_local} "
            f"crops; lr {options.lr:g}, seed {options.seed}; {place.device.type}, {str(place.precision)[6:]}, "
            f"{options.mode}"
        )
        yield from unused_split(options.data, options.split)

    def flops(self, batches: Sequence[Batch]) -> int:
        images = sum(len(batch.draw.ids) for batch in batches) * self.options.dino.images
        return images * dino_step_flops(self.model_config)

    def figures(self, model: DINO, step: int, say: Callable[[str], None]) -> dict[str, float]:
        entropy, kl, count = self._sums.tolist()
        self._sums.zero_()
        figures = {"teacher_entropy": entropy / count, "kl_to_mean": kl / count}
        if warning := self._watch.add(step, **figures):
            say(warning)
        return figures


def _half_cosine(start: float, end: float, steps: int) -> np.ndarray:
    """(steps,): from `start` at the first step to `end` after the last, by half a cosine."""
    return end + (start - end) * 0.5 * (1 + np.cos(math.pi * np.arange(steps) / steps))
