"""Supervised training as a method: any task, with a pre-trained encoder or from random weights."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from ..common.naming import count_studies, sizes_in_words
from ..common.views import CLIP
from ..data.loading.batch import Batch
from ..data.loading.loader import LabelError, LoaderError, read_batch
from ..data.loading.sampler import Draw, Sampler, fixed_draw
from ..data.loading.validation import validation_draws
from ..data.store.orientation import orientation_remarks
from ..data.store.store import CineStore
from ..models.config import CineMAConfig, config_class, config_from_dict, preset
from ..models.conv_vit import layer_of
from ..models.weights import load_starting_weights
from ..train.checkpoint import newest_weights
from ..train.method import Method, Place, Validation
from ..train.optimizer import Group, groups_of
from ..train.run_info import LabelInfo, RunInfo, min_frames_of, read_run_info
from ..train.setup import describe_run, unused_split
from .finetune_config import NOT_YET, FinetuneConfig
from .registry import task_class
from .seen import seen_by, seen_remarks
from .split import split_studies


class Supervised(Method):
    """options: from `starting_options`. before: the RunInfo of the run that is resumed, None for a new run."""

    options: FinetuneConfig

    def __init__(self, options: FinetuneConfig, before: RunInfo | None, place: Place):
        self.options, self.place = options, place
        cines = CineStore(options.data)
        split = split_studies(cines.ids, val=options.val, test=options.test, path=options.split)
        base, task = _base_config(options, before), task_class(options.task)
        setup = task.set_up(options, cines, base, split, min_frames=min_frames_of(before))
        self.setup, self.task, self.store = setup, setup.task, setup.store
        self.model_config = setup.model_config
        self.labels, self.sizes = setup.labels, self.model_config.image_size
        self.sampler = Sampler(
            {study: setup.labels.views_of[study] for study in setup.used},
            seed=options.seed,
            batch_size=options.batch_size,
            accumulate=options.accumulate,
            world=place.ranks.world,
            augment=options.augment,
            planes=setup.planes,
        )
        self.unused = len(self.sampler.groups) > 1 or options.reduce != "all"  # absent views, unused heads
        warning = task.warning_at_zero if setup.split.val else ""
        self.validation = Validation(options.validate_every, options.patience, warning)
        self._unreadable: set[str] = set()
        self._read = partial(read_batch, self.store, sizes=self.sizes, labels=self.labels)
        labels = LabelInfo(
            task=setup.task.to_dict(),
            split={part: list(studies) for part, studies in setup.split._asdict().items()},
            used=list(setup.used),
            view_sets=[{"views": list(views), "studies": n} for views, n in setup.view_sets.items()],
            fewest_slices=setup.fewest_slices,
            seen=(before and before.labels and before.labels.seen) or self._seen(cines),
        )
        self.info = describe_run(options, place, cines, self.model_config, self.store, labels)
        size = "another network" if options.init_from else "a smaller --preset"
        views = self.model_config.views
        fewer_views = f", or with fewer --views than {', '.join(views)}" * (len(views) > 1)
        self.memory = {
            "model": f"{self.task.kind} with {self._origin()}",
            "recomputes": options.network != "baseline",
            "smaller": f"with {size}{fewer_views}",
        }

    def _seen(self, cines: CineStore) -> dict:
        """The studies that this run and the runs before it were trained on, and why there may be others."""
        start = self.options.init_from
        seen, unknown = seen_by(start, cines) if start else (set(), [])
        return {"studies": sorted(seen.union(self.setup.used, self.setup.split.val)), "unknown": unknown}

    def _origin(self) -> str:
        if self.options.network == "baseline":
            return "the baseline's network"
        return f"the model of {self.options.init_from}" if self.options.init_from else self.options.preset

    def build(self) -> nn.Module:
        model = self.task.network(self.model_config, self.options)
        for block in self.units(model):
            block.recompute = self.options.recompute
        if self.options.freeze:
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(parameter.requires_grad and not name.startswith(("enc_", "encoder.")))
        return model

    def load_start(self, model: nn.Module, say: Callable[[str], None]) -> None:
        options, start = self.options, self.options.init_from
        source, name = start, str(start)
        if start.is_dir():
            source, name = newest_weights(start, say, self.place.ranks)
        try:
            report, absent = load_starting_weights(model, source, name)
        except FileNotFoundError as error:
            raise ValueError(f"--init-from: {error}") from None
        if options.freeze and absent:
            raise ValueError(f"--freeze: {start} has no {', '.join(absent)} to freeze: start without --freeze, "
                             "or from other weights")  # fmt: skip
        say(f"weights of {name}: {report}")
        if start.is_dir():
            say(f"the model is configured as in {start} ({options.preset})")
            for remark in orientation_remarks(start, run_of(start).store.orientation, self.info.store.orientation):
                say(remark)
        hold_out = f"--split {options.split}" if options.split else f"--holdout {options.test:g}"
        for remark in seen_remarks(start, **self.info.labels.seen, test=self.setup.split.test, hold_out=hold_out):
            say(remark)

    def loss(self, model: nn.Module, batch: Batch, step: Tensor) -> Tensor:
        with self.place.autocast():
            return self.task.loss(model, batch, self.options.cutout)

    def units(self, model: nn.Module) -> Sequence[nn.Module]:
        return model.encoder.blocks if hasattr(model, "encoder") else ()

    def groups(self, model: nn.Module) -> list[Group]:
        """A layer's learning rate is `layer_decay` times that of the next layer, as in the reference's recipe."""
        depth, decay = len(self.units(model)), self.options.layer_decay
        layered = (lambda name: decay ** (depth + 1 - layer_of(name, depth))) if depth else lambda _: 1.0
        return groups_of(model, weight_decay=self.options.weight_decay, scale_of=layered)

    def remarks(self, model: nn.Module) -> Iterator[str]:
        options, split, place = self.options, self.setup.split, self.place
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        yield (
            f"{options.task} on {len(self.setup.used)} of {len(split.train)} labelled training studies, "
            f"{len(split.val)} for validation, {len(split.test)} for testing; "
            f"views {', '.join(self.model_config.views)}"
        )
        yield (
            f"{type(model).__name__}, {trained / 1e6:.3g} M parameters trained{', encoder frozen' * options.freeze}; "
            f"images of {sizes_in_words(self.sizes)}"
        )
        yield (
            f"{count_studies(self.sampler.global_batch)} a step, lr {options.lr:g}, seed {options.seed}; "
            f"{place.device.type}, {str(place.precision)[6:]}, {options.mode}"
        )
        yield from self.setup.remarks
        for view, size in self.model_config.image_size.items():
            side = min(size[1:] if view == CLIP else size[:2])
            if 2 * options.augment.translation > side and options.augment.translation_share:
                yield (
                    f"warning: --augment.translation {options.augment.translation:g} (pixels) moves many {view} "
                    f"images, {side} pixels wide, out of view: use less than {side / 2:g}"
                )
        yield from unused_split(options.data, options.split)
        if not split.val:
            yield "no validation studies: the last weights are kept as the best"
        if not split.test:
            yield "no labelled test studies: give `evaluate` a store of others (--data), or another --part"

    @torch.no_grad()
    def validate(self, model: nn.Module, say: Callable[[str], None]) -> dict[str, float]:
        if not self.setup.split.val:
            return {}
        with self.place.autocast():
            return self.task.validate(model, self._validation_batches(say))

    def _validation_batches(self, say: Callable[[str], None]) -> Iterator[Batch]:
        """The validation studies on the device; unless `strict`, one that cannot be read is left out."""
        draws = validation_draws(
            {study: self.labels.views_of[study] for study in self.setup.split.val},
            self.task.validation_phases,
            batch_size=self.options.batch_size,
            frames_of=self.labels.frames_of,
            planes=self.setup.planes,
        )
        found = 0
        for draw in draws:
            batches = [self._read_by_all(draw)]
            if not batches[0]:
                batches = [self._read_by_all(one, say) for one in _each(draw)]
            for batch in filter(None, batches):
                found += 1
                yield batch.to(self.place.device)
        if not found:
            raise LoaderError("no validation study can be read")

    def _read_by_all(self, draw: Draw, say: Callable[[str], None] | None = None) -> Batch | None:
        """A batch, or None on all ranks where one of them cannot read it, which `say` reports; so all ranks make the
        same forward passes."""
        batch, error = None, LoaderError("another rank cannot read a validation study")
        try:
            batch = self._read(draw)
        except LabelError:
            raise
        except LoaderError as own:
            error = own
        if not self.place.ranks.most(int(batch is None)):
            return batch
        if self.options.strict:
            raise error
        if say and not self._unreadable.issuperset(draw.ids):
            say(f"validation is without {str(error).removeprefix('study ')}")
            self._unreadable.update(draw.ids)
        return None


def _each(draw: Draw) -> Iterator[Draw]:
    """The samples of a draw, as draws of one sample."""
    for sample, study in enumerate(draw.ids):
        phase, plane = draw.phase[[sample]], draw.plane[[sample]]
        yield fixed_draw([study], draw.views, step=draw.step, phase=phase, slot=[0], plane=plane)


def starting_options(options: FinetuneConfig, before: RunInfo | None) -> FinetuneConfig:
    """The options, with the initial weights of a resumed run, and with the preset of the run that the weights come
    from."""
    if before and before.labels and (start := before.options["init_from"]):
        options = dataclasses.replace(options, init_from=options.init_from or Path(start))
        if options.to_dict()["init_from"] == start:
            return dataclasses.replace(options, preset=before.options["preset"])
    if options.init_from and options.init_from.is_dir():
        return dataclasses.replace(options, preset=run_of(options.init_from).options["preset"])
    return options


def run_of(folder: Path) -> RunInfo:
    """The RunInfo of the run that weights come from. Raises ValueError where there is none that can be fine-tuned."""
    info = read_run_info(folder)
    if info is None:
        raise ValueError(f"--init-from {folder}: no run in this folder (no config.yaml)")
    if config_class(info.model) is not CineMAConfig:
        raise ValueError(f"--init-from {folder}, a run of --preset {info.options['preset']}: {NOT_YET}")
    return info


def _base_config(options: FinetuneConfig, before: RunInfo | None) -> CineMAConfig:
    """The model's configuration: of the resumed run, of the run that the weights come from, or of the preset."""
    if before:
        return config_from_dict(before.model)
    if options.init_from and options.init_from.is_dir():
        return config_from_dict(run_of(options.init_from).model)
    return preset(options.preset)
