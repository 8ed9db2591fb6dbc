"""DINO as a method: self-distillation over single images of all views and sequences of a study."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace

import numpy as np
import torch
from torch import Tensor, nn

from ..common.naming import count_studies, counted, named, sizes_in_words
from ..data.loading.augmentation import AugmentConfig
from ..data.loading.batch import Batch
from ..data.loading.crops import CropRecipe, cut_crops, standardised
from ..data.loading.image_choice import choose_images
from ..data.loading.sampler import Sampler
from ..data.store.store import CineStore
from ..models.config import DINOConfig
from ..models.dino import DINO
from ..models.dino_optimizer import DINOOptimizer
from ..models.dino_weights import load_dino_start
from ..models.flops import dino_step_flops
from ..train.log import RunLog
from ..train.method import Method, Place
from ..train.setup import describe_run, largest_frames, unused_split
from .collapse import CollapseWatch
from .dino_evaluation import Evaluation, evaluate
from .dino_report import write_report
from .finishing import survived
from .initial_run import initial_run
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
        if preset.vit.in_chans != 1:
            raise ValueError(f"preset {options.preset!r} has {preset.vit.in_chans} channels, stored images have one")
        self.options, self.place, self.store = options, place, CineStore(options.data)
        self.model_config = preset if options.dino.centring == "on" else replace(preset, centre_momentum=1.0)
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
            **vars(options.crop), global_size=preset.vit.image_size, local_size=preset.local_size,
            n_local=preset.n_local,
        )  # fmt: skip
        steps, dino = options.steps, options.dino
        rising = round(dino.teacher_temp_warmup * steps)
        low, high = dino.teacher_temp
        self._temperature = self._schedule(np.minimum(np.arange(steps) / max(rising, 1), 1) * (high - low) + low)
        self._weight_decay = self._schedule(_half_cosine(options.weight_decay, dino.weight_decay_end, steps))
        self._momentum = self._schedule(_half_cosine(dino.momentum, 1.0, steps))
        self._frozen_steps = round(dino.freeze_last_layer * steps)
        # the teacher's mean output, entropy and KL to the mean, summed over the micro-batches of a step
        self._of_step = torch.zeros(preset.bottleneck + 2, device=place.device)
        # entropy, KL and 1, summed over the updates made since the last line of metrics.jsonl
        self._sums = torch.zeros(3, device=place.device)
        self._watch = CollapseWatch(preset.prototypes, centring=options.dino.centring == "on")
        self._unreadable: dict[str, str] = {}
        self._evaluation: Evaluation | None = None  # the last one of this process
        fewer = f"fewer --dino.images (now {dino.images}), or " * (dino.images > 1)
        self.memory = {"smaller": f"with {fewer}a smaller --preset"}

    def _schedule(self, values: np.ndarray) -> Tensor:
        """A value for each step, on the device, so that a recorded step reads its own."""
        return torch.from_numpy(values.astype(np.float32)).to(self.place.device)

    def build(self) -> DINO:
        model = DINO(self.model_config)
        model.recompute(self.options.recompute)
        return model

    def load_start(self, model: DINO, say: Callable[[str], None]) -> None:
        start, remarks, name = self.options.init_from, [], ""
        if start.is_dir():
            start, name, remarks = initial_run(self.options, self.info.store.orientation, self.place.ranks)
        for line in (load_dino_start(model, start, name), *remarks):
            say(line)

    def loss(self, model: nn.Module, batch: Batch, step: Tensor) -> Tensor:
        options = self.options
        images = choose_images(
            batch.frames, batch.extent, batch.slot, step=step, seed=options.seed, per_study=options.dino.images
        )
        crops = [standardised(crop) for crop in cut_crops(images, self._recipe, step=step, seed=options.seed)]
        with self.place.autocast():
            out = model(crops, self._temperature[step].squeeze(), update_centre=False)
        self._of_step += torch.cat([out.teacher_mean.flatten(), torch.stack(list(out.metrics.values()))])
        return out.loss

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

    def after_update(self, model: DINO, step: Tensor, made: Tensor) -> None:
        """A skipped update leaves teacher, centre and figures as they are."""
        mean = self.place.ranks.mean_(self._of_step / self.options.accumulate)
        teacher_mean, figures = mean.split([len(mean) - 2, 2])
        centre = model.centre.clone()
        model.update_centre(teacher_mean.unsqueeze(0))
        model.centre.copy_(torch.where(made > 0, model.centre, centre))
        model.update_teacher(1 - made * (1 - self._momentum[step].squeeze()))
        summed = self._sums + torch.cat([figures, made.view(1)])
        self._sums.copy_(torch.where(made > 0, summed, self._sums))
        self._of_step.zero_()

    def state(self) -> dict:
        return {"sums": self._sums, "watch": self._watch.state()}

    def restore(self, state: dict) -> None:
        self._sums.copy_(state["sums"])
        self._watch.restore(state["watch"])

    def remarks(self, model: DINO) -> Iterator[str]:
        options, place = self.options, self.place
        parameters = sum(p.numel() for p in model.student.parameters())
        images, recipe = self.sampler.global_batch * options.dino.images, self._recipe
        size = self.model_config.vit.image_size
        local = f" and {recipe.n_local} of {recipe.local_size} x {recipe.local_size}" * bool(recipe.n_local)
        yield (
            f"{options.preset} on {count_studies(len(self.sampler.ids))} ({len(self.held_out)} held out), images of "
            f"{sizes_in_words(self.sizes)}; {parameters / 1e6:.3g} M parameters"
        )
        yield (
            f"{images} images of {count_studies(self.sampler.global_batch)} a step, in 2 crops of {size} x {size}"
            f"{local}; lr {options.lr:g}, seed {options.seed}; {place.device.type}, {str(place.precision)[6:]}, "
            f"{options.mode}"
        )
        yield from unused_split(options.data, options.split)

    def flops(self, batches: Sequence[Batch]) -> int:
        images = sum(len(batch.draw.ids) for batch in batches) * self.options.dino.images
        return images * dino_step_flops(self.model_config)

    def figures(self, model: DINO, step: int, say: Callable[[str], None]) -> dict[str, float | None]:
        """"teacher_entropy" and "kl_to_mean" [nats], means over the updates made since the last line, micro-batches and
        ranks. In the first line after each `dino.knn_every` steps and in the last one, where studies are held out, also
        the numbers of an `Evaluation`."""
        *sums, made = self._sums.tolist()
        self._sums.zero_()
        figures = {name: total / made if made else None for name, total in zip(("teacher_entropy", "kl_to_mean"), sums)}
        if made and (warning := self._watch.add(step, **figures)):
            say(warning)
        due = step == self.options.steps or step % self.options.dino.knn_every < self.options.log_every
        if due and self.held_out and self.place.ranks.main:
            with survived(f"step {step}: the evaluation of the held-out studies", say, strict=self.options.strict):
                if found := self._evaluate(model, say):
                    figures |= {name: value for name, value in asdict(found).items() if name != "studies"}
        return figures

    def _evaluate(self, model: DINO, say: Callable[[str], None]) -> Evaluation | None:
        """Evaluate the teacher on the held-out studies. Studies that cannot be read are named the first time, or with
        `strict` raise LoaderError."""
        place, unreadable = self.place, None if self.options.strict else {}
        self._evaluation = evaluate(
            model.teacher.backbone, self.store, tuple(self.sizes), self.training, self.held_out, device=place.device,
            precision=place.precision, unreadable=unreadable,
        )  # fmt: skip
        self._name(unreadable or {}, say)
        return self._evaluation

    def _name(self, unreadable: dict[str, str], say: Callable[[str], None]) -> None:
        """Say which studies cannot be read, and were not named before."""
        fresh = [f"{study}: {why}" for study, why in unreadable.items() if study not in self._unreadable]
        self._unreadable |= unreadable
        if fresh:
            say(f"cannot be read, so neither evaluated nor drawn ({len(fresh)}):\n  " + named(fresh, "\n  "))

    def finish(self, model: DINO, log: RunLog) -> Evaluation | None:
        """Say what the evaluation after the last step found, and draw the pictures. Raises LoaderError only with
        `strict`; other errors are logged, and the run counts as finished."""
        options, place = self.options, self.place
        with survived("the run is finished and saved, but its evaluation", log.say, strict=options.strict):
            if self.held_out and (found := self._evaluation or self._evaluate(model, log.say)):
                log.say(f"{counted(found.studies, 'held-out study', 'held-out studies')}: {found}")
        unreadable = None if options.strict else {}
        with survived("the run is finished and saved, but its report", log.say, strict=options.strict):
            pictures = write_report(
                options.out, model.teacher.backbone.eval(), self.store, tuple(self.sizes),
                self.held_out or self.training, self._recipe, step=options.steps - 1, seed=options.seed,
                device=place.device, precision=place.precision, evaluation=self._evaluation, unreadable=unreadable,
            )  # fmt: skip
            log.say(f"pictures: {', '.join(map(str, pictures))}")
        self._name(unreadable or {}, log.say)
        return self._evaluation


def _half_cosine(start: float, end: float, steps: int) -> np.ndarray:
    """(steps,): from `start` at the first step to `end` after the last, by half a cosine."""
    return end + (start - end) * 0.5 * (1 + np.cos(math.pi * np.arange(steps) / steps))
