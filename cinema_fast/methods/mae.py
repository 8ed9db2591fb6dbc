"""Masked autoencoders as a method: CineMA on single frames of all views, HeartMAE on clips."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from torch import Tensor, nn

from ..common.naming import count_studies, counted, named, sizes_in_words
from ..common.views import CLIP
from ..data.loading.batch import Batch
from ..data.loading.sampler import Sampler
from ..data.store.clips import ClipStore
from ..data.store.store import CineStore
from ..models.cinema import CineMA
from ..models.config import CineMAConfig
from ..models.flops import step_flops
from ..models.weights import load_shared_views
from ..train.log import RunLog
from ..train.method import Method, Place
from ..train.run_info import min_frames_of, read_run_info
from ..train.setup import describe_run, fit_to_store, unused_split
from .finishing import survived
from .guidance import Guidance, check_guidance, check_online, motion_views
from .initial_run import initial_run
from .mae_evaluation import Evaluation, evaluate, mean_patches
from .mae_report import write_report
from .masking import MaskedLoss, token_counts
from .pretrain_config import PretrainConfig
from .registry import method_for
from .split import split_studies


@method_for(CineMAConfig)
class MAE(Method):
    """Predicts masked patches from visible ones (Fu et al., "A versatile foundation model for cine CMR")."""

    options: PretrainConfig

    def __init__(self, options: PretrainConfig, preset: CineMAConfig, place: Place):
        cines = CineStore(options.data)
        self.options, self.place = options, place
        self.model_config = fit_to_store(preset, cines, options.views, options.preset)
        before = read_run_info(options.out) if options.resume else None
        clips = CLIP in self.model_config.views
        self.store = ClipStore(cines, options.views, min_frames=min_frames_of(before)) if clips else cines
        training, self.held_out, self.unseen = split_studies(self.store, self.model_config.views, options)
        self.sampler = Sampler(
            training,
            seed=options.seed,
            batch_size=options.batch_size,
            accumulate=options.accumulate,
            world=place.ranks.world,
            augment=options.augment,
            planes={study: len(self.store.planes(study)) for study in training} if clips else None,
        )
        self.sizes, self.unused = self.model_config.image_size, len(self.sampler.groups) > 1
        guided, self.motion = options.mask.guidance == "motion", False
        if guided and options.motion == "stored":
            self.motion = True
            studies = (*training, *self.held_out)
            check_guidance(cines, {s: motion_views(self.store, self.model_config.views, s) for s in studies})
        elif guided:
            check_online(place.device)
        self.guidance = (
            Guidance(options.mask, self.model_config, steps=options.steps, online=not self.motion, device=place.device)
            if guided else None
        )  # fmt: skip
        self._loss = MaskedLoss(
            self.model_config, place, mask_ratio=options.mask_ratio, decode_ratio=options.decode_ratio,
            seed=options.seed, guidance=self.guidance,
        )  # fmt: skip
        self._flops: dict[tuple[str, ...], int] = {}
        held_out = tuple(self.held_out) if options.split else None
        self.info = replace(describe_run(options, place, cines, self.model_config, self.store), held_out=held_out)

    def build(self) -> CineMA:
        model = CineMA(self.model_config)
        model.recompute(self.options.recompute)
        return model

    def load_start(self, model: CineMA, say: Callable[[str], None]) -> None:
        if not self.options.init_from.is_dir():
            say(load_shared_views(model, self.options.init_from))
            return
        weights, name, remarks = initial_run(self.options, self.info.store.orientation, self.place.ranks)
        for line in (load_shared_views(model, weights, name), *remarks):
            say(line)

    def loss(self, model: nn.Module, batch: Batch, step: Tensor) -> Tensor:
        return self._loss(model, batch, step)

    def units(self, model: CineMA) -> Sequence[nn.Module]:
        return *model.encoder.blocks, model.decoder  # all of the decoder: it projects for its blocks at once

    def remarks(self, model: nn.Module) -> Iterator[str]:
        options, place = self.options, self.place
        clips = f"clips of {', '.join(options.views) or 'every view'}"
        seen = clips if CLIP in self.model_config.views else f"views {', '.join(self.model_config.views)}"
        parameters = sum(p.numel() for p in model.parameters())
        yield (
            f"{options.preset} on {count_studies(len(self.sampler.ids))} ({len(self.held_out)} held out), {seen}; "
            f"{parameters / 1e6:.3g} M parameters, images of {sizes_in_words(self.sizes)}"
        )
        yield (
            f"{count_studies(self.sampler.global_batch)} a step, lr {options.lr:g}, mask ratio {options.mask_ratio:g}, "
            f"seed {options.seed}; {place.device.type}, {str(place.precision)[6:]}, {options.mode}"
        )
        if self.guidance:
            source = "the store's maps" if self.motion else "each clip's own frames"
            strength = f"strength {options.mask.strength:g}"
            yield f"motion guidance: {options.mask.mode} the patches that move, by {source}; {strength}"
        yield from unused_split(options.data, options.split)
        if self.unseen:
            yield f"no training study has {', '.join(self.unseen)}: held-out studies are evaluated without"

    def flops(self, batches: Sequence[Batch]) -> int:
        return sum(len(batch.draw.ids) * self._of_study(batch.draw.views) for batch in batches)

    def _of_study(self, views: tuple[str, ...]) -> int:
        if views not in self._flops:
            ratios = self.options.mask_ratio, self.options.decode_ratio
            counts = {view: token_counts(self.model_config, view, *ratios) for view in views}
            keep, decode = ({view: pair[i] for view, pair in counts.items()} for i in (0, 1))
            self._flops[views] = step_flops(self.model_config, keep, decode)
        return self._flops[views]

    def seconds(self) -> dict[str, float]:
        if self.guidance is None or self.options.mode == "graph":
            return {}
        return {"guidance": self.guidance.seconds()}

    def finish(self, model: CineMA, log: RunLog) -> Evaluation | None:
        """Evaluate the held-out studies on the views of the training studies, and draw the pictures. Raises LoaderError
        only with `strict`; other errors are logged, and the run counts as finished."""
        options, training = self.options, self.sampler.ids
        unreadable = None if options.strict else {}
        device, precision = self.place.device, self.place.precision
        common = {
            "mask_ratio": options.mask_ratio, "device": device, "precision": precision, "unreadable": unreadable,
        }  # fmt: skip
        evaluation = None
        with survived("the run is finished and saved, but its evaluation", log.say, strict=options.strict):
            if self.held_out:
                size = options.batch_size
                baseline = mean_patches(
                    self.store, self.model_config, training, batch_size=size, device=device, unreadable=unreadable
                )
                evaluation = evaluate(model, self.store, self.held_out, baseline, batch_size=size, **common)
                log.say(f"{counted(evaluation.studies, 'held-out study', 'held-out studies')}: {evaluation}")
        with survived("the run is finished and saved, but its report", log.say, strict=options.strict):
            pictures = write_report(
                options.out, model, self.store, self.held_out or training, evaluation=evaluation,
                guidance=self.guidance, **common,
            )  # fmt: skip
            log.say(f"pictures: {', '.join(str(path) for path in pictures)}")
        if unreadable:
            lines = named([f"{study}: {why}" for study, why in unreadable.items()], "\n  ")
            log.say(f"cannot be read, so neither evaluated nor drawn ({len(unreadable)}):\n  {lines}")
        return evaluation
