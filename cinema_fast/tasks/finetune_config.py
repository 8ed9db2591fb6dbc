"""The options of fine-tuning beside those that every run has: the one source of their defaults and checks."""

from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Literal

from ..common.checks import check, check_at_least, check_seeds
from ..data.loading.augmentation import AugmentConfig
from ..train.options import RunOptions
from .registry import TASKS, task_class

TaskName = Literal[tuple(TASKS)]

# the reference's recipe of fine-tuning: each change to half of the images
RECIPE = AugmentConfig(
    zoom=(0.8, 1.2), rotation=180.0, rotation_share=0.5, translation=60.0, translation_share=0.5,
    gamma=(0.5, 1.5), gamma_share=0.5, noise=0.1, noise_share=0.5,
)  # fmt: skip


@dataclass(frozen=True)
class FinetuneConfig(RunOptions):
    """Fine-tune on labelled studies: segmentation, regression, classification, landmarks, or several at once.

    Starts from a pre-training run, from a published checkpoint, or from random weights. Segmentation reads the label
    maps of a store that was prepared with --labels; landmarks a CSV of points (study, view, frame, landmark, x_mm,
    y_mm, z_mm); all else columns of a CSV with one line per study.
    """

    FREE = RunOptions.FREE | {"table", "split"}

    # optimiser steps of the whole run, which early stopping may end before
    steps: int
    # what is learnt
    task: TaskName
    _: KW_ONLY
    # CSV with the labels: a line per study, or for landmarks a line per point
    table: Path | None = None
    # columns of the table to learn, for instance ef disease; a column of numbers is regressed, one of words classified
    targets: tuple[str, ...] = ()
    # columns of numbers that are classes, not quantities
    classes: tuple[str, ...] = ()
    # names of the labels 1, 2, ... in the label maps
    structures: tuple[str, ...] = ("RV", "MYO", "LV")
    # how landmarks are found: as maxima of heatmaps, or as coordinates
    landmarks: Literal["heatmap", "coordinates"] = "heatmap"
    # views to read; all that have labels when none is named
    views: tuple[str, ...] = ()
    # frames spread over the cycle that are read together, as channels; not for segmentation and landmarks
    n_frames: int = 4
    # size of a model that starts from random weights, or from a file of weights
    preset: str = "cinema-base"
    # weights to start from: the folder of a run, pre-training or fine-tuned, or a .safetensors or torch file
    init_from: Path | None = None
    # leave stem and encoder as they are, and train what is on top
    frozen: bool = False
    # the encoder of this project, or a network that starts from nothing, to compare with: a U-Net or a ResNet of MONAI
    network: Literal["cinema", "baseline"] = "cinema"
    # channels of the segmentation decoder, from the image's resolution down
    decoder_channels: tuple[int, ...] = (32, 64, 128, 256, 512)
    # what a prediction is made of: the mean over the heads of views and class token, or one kind of them
    reduce: Literal["all", "patch", "cls"] = "all"
    # how the losses of several targets are balanced: by learned uncertainty (Kendall et al. 2018), or by --weights
    balance: Literal["uncertainty", "fixed"] = "uncertainty"
    # weight of each target's loss, in their order; 1 where none is given
    weights: tuple[float, ...] = ()
    # studies a step takes at once; under torchrun, each rank
    batch_size: int = 4
    # random seed of everything but which studies are training, validation and test ones
    seed: int = 0
    # share of the studies by which training is stopped and the best weights chosen
    val: float = 0.15
    # share of the studies that training never sees; those that `pretrain --holdout` of the same share keeps away
    test: float = 0.2
    # CSV with the columns study and split (train, val or test), in place of both shares
    split: Path | None = None
    # share of the labelled training studies that is used
    label_fraction: float = 1.0
    # number of labelled training studies that is used, of a single classified target for each class
    shots: int | None = None
    # random seed of which studies these are
    subset_seed: int = 0
    # how the images are changed at random
    augment: AugmentConfig = field(default_factory=lambda: RECIPE)
    # largest side of a box that is blanked in an image, as a share of the image's; half of the images have one
    blank: float = 0.2
    # learning rate at the last step
    min_lr: float = 1e-5
    # factor of the learning rate from a layer to the one before
    layer_decay: float = 0.75
    # share of the steps in which the learning rate rises
    warmup: float = 0.0125
    # share of the channels dropped in the segmentation decoder
    dropout: float = 0.1
    # share of the residual branches of the last encoder block that is dropped, fewer in those before
    drop_path: float = 0.1
    # steps between validations, each of which saves a checkpoint
    validate_every: int = 100
    # validations without a better one after which training stops; 0: never
    patience: int = 5

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, 1, "n_frames", "validate_every")
        check_at_least(self, 0, "patience")
        check_seeds(self, "subset_seed")
        if min(self.decoder_channels, default=0) < 1:
            given = " ".join(map(str, self.decoder_channels)) or "none"
            raise ValueError(f"--decoder-channels wants one number or more, each at least 1, got {given}")
        shares = "val", "test", "blank", "dropout", "drop_path"
        check(self, *shares, valid=lambda x: 0 <= x < 1, must="is a share, at least 0 and below 1")
        if self.val + self.test >= 1:
            raise ValueError(f"--val {self.val:g} and --test {self.test:g} leave no study to train on")
        check(self, "label_fraction", "layer_decay", valid=lambda x: 0 < x <= 1, must="must be above 0 and at most 1")
        if self.shots is not None and (self.shots < 1 or self.label_fraction != 1):
            raise ValueError(f"--shots takes a number of studies, without --label-fraction; got {self.shots}")
        self._check_task()

    def _check_task(self):
        task_class(self.task).check(self)
        if unknown := sorted(set(self.classes) - set(self.targets)):
            raise ValueError(f"--classes {unknown[0]}: not among --targets")
        if len(set(self.targets)) < len(self.targets):
            raise ValueError("--targets names a column twice")
        if self.weights and (self.balance != "fixed" or len(self.weights) != len(self.targets)):
            raise ValueError(
                f"--weights are of --balance fixed, one for each of --targets; got {len(self.weights)} with --balance "
                f"{self.balance} and {len(self.targets)} targets"
            )
        if any(not 0 < weight < float("inf") for weight in self.weights):
            raise ValueError(f"--weights must be above 0, got {' '.join(map(str, self.weights))}")
        if self.network == "baseline" and (self.init_from or self.frozen):
            raise ValueError("--network baseline starts from random weights: it takes no --init-from and no --frozen")
        if self.network == "baseline" and (self.reduce == "cls" or self.recompute != "none"):
            raise ValueError("--network baseline takes no --reduce cls and no --recompute: it has neither")
        if self.network == "baseline" and self.parallel == "fsdp":
            raise ValueError("--parallel fsdp is for transformers: with --network baseline use ddp")
        if self.frozen and not self.init_from and not self.resume:
            raise ValueError("--frozen wants --init-from: random weights are of no use as they are")
        if not self.structures or len(set(self.structures)) < len(self.structures):
            raise ValueError(f"--structures wants different names of the labels 1, 2, ..., got {self.structures}")

    def to_dict(self) -> dict:
        """As of `RunOptions`; what is read again from another folder has its whole path."""
        values = super().to_dict()
        for name in ("data", "table", "split", "init_from"):
            if values[name] is not None:
                values[name] = str(Path(values[name]).absolute())
        return values
