"""The options of fine-tuning besides those of every run: the one source of their defaults and checks."""

from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from ..common.checks import check, check_at_least, check_phases, check_seeds
from ..data.loading.augmentation import AugmentConfig
from ..models.config import CineMAConfig, preset
from ..train.options import RunOptions
from .registry import TASKS, task_class
from .structures import GIVEN, names_of

TaskName = Literal[tuple(TASKS)]

# the reference's recipe of fine-tuning: each change to half of the images
RECIPE = AugmentConfig(
    zoom=(0.8, 1.2), rotation=180.0, rotation_share=0.5, translation=60.0, translation_share=0.5,
    gamma=(0.5, 1.5), gamma_share=0.5, noise=0.1, noise_share=0.5,
)  # fmt: skip

NOT_YET = (
    "fine-tuning DINO's models (cmrfm-*) is not supported yet, only CineMA's and HeartMAE's (cinema-*, heartmae-*)"
)


@dataclass(frozen=True)
class FinetuneConfig(RunOptions):
    """Fine-tune on labelled studies: segmentation, regression, classification, landmarks, or several at once.

    Starts from a pre-training run, from a published checkpoint, or from random weights. Segmentation reads the label
    maps of a store that was prepared with --labels; landmarks a CSV of points (study, view, frame, landmark, x_mm,
    y_mm, z_mm); all else columns of a CSV with one line per study.
    """

    FREE = RunOptions.FREE | {"table", "split"}
    LATER: ClassVar = {**RunOptions.LATER, "frames": [], "classes_unknown": "refuse"}

    # optimiser steps of the whole run; early stopping (--patience) may end it sooner
    steps: int
    # task to learn
    task: TaskName
    _: KW_ONLY
    # CSV with the labels: one line per study; for landmarks one line per point
    table: Path | None = None
    # columns of the table to predict, for instance ef disease: numbers are regressed, words classified
    targets: tuple[str, ...] = ()
    # target columns whose numbers are classes, not quantities
    classes: tuple[str, ...] = ()
    # what to do with classes that no training study in use has: refuse them, or leave out the validation and test
    # studies that have them
    classes_unknown: Literal["refuse", "drop"] = "refuse"
    # names of the labels 1, 2, ... of the label maps; - for a label that no study has, which is never predicted. Unless
    # given, a store of a public data set (`prepare --dataset`) has the names of its own labels
    structures: tuple[str, ...] = GIVEN
    # how landmarks are predicted: as heatmap maxima or as coordinates
    landmarks: Literal["heatmap", "coordinates"] = "heatmap"
    # views to use; if not given: all that have labels
    views: tuple[str, ...] = ()
    # frames over the cardiac cycle given to the model together, as channels; not for segmentation and landmarks
    n_frames: int = 4
    # ed es: give the model the frames of end-diastole and end-systole in place of --n-frames, both scaled by their
    # common range; studies whose ED and ES are unknown are left out
    frames: tuple[Literal["ed", "es"], ...] = ()
    # name of the model configuration, where --init-from is no run; `cinema-fast info` lists them
    preset: str = "cinema-base"
    # initial weights: the folder of a pre-training or fine-tuning run, or a .safetensors or torch file
    init_from: Path | None = None
    # freeze stem and encoder, and train the head or decoder alone
    freeze: bool = False
    # cinema: the pre-trainable encoder; baseline: a U-Net or ResNet of MONAI, from random weights, to compare with
    network: Literal["cinema", "baseline"] = "cinema"
    # channels of the decoder of segmentation and heatmaps, from full resolution down
    decoder_channels: tuple[int, ...] = (32, 64, 128, 256, 512)
    # heads averaged into the prediction: of the class token (cls), of each view's patch tokens (patch), or all
    reduce: Literal["all", "patch", "cls"] = "all"
    # weighting of several targets' losses: learned uncertainty (Kendall et al. 2018), or fixed --loss-weights
    balance: Literal["uncertainty", "fixed"] = "uncertainty"
    # weight of each target's loss, in the order of --targets; if not given: 1 each
    loss_weights: tuple[float, ...] = ()
    # studies per micro-batch, on each rank under torchrun
    batch_size: int = 4
    # random seed of the training; the data split does not depend on it
    seed: int = 0
    # share of the studies for validation: early stopping, and the choice of the best weights
    val: float = 0.15
    # share of the studies held out for testing; the same ones as `pretrain --holdout` of the same share
    test: float = 0.2
    # CSV with the columns study and split (train, val or test), in place of --val and --test
    split: Path | None = None
    # share of the labelled training studies to use
    label_fraction: float = 1.0
    # number of labelled training studies to use; for a single classification target: of each class
    shots: int | None = None
    # random seed of the choice by --label-fraction and --shots
    subset_seed: int = 0
    # data augmentation
    augment: AugmentConfig = field(default_factory=lambda: RECIPE)
    # cutout: in half of the images a box is set to zero; its side as a share of the image's side; 0: off
    cutout: float = 0.2
    # learning rate at the last step, where the cosine decay ends
    min_lr: float = 1e-5
    # layer-wise decay: a layer's learning rate is this factor times that of the layer after it; 1: the same for all
    layer_decay: float = 0.75
    # share of the steps used for linear warm-up of the learning rate
    warmup: float = 0.0125
    # dropout rate of the decoder's channels
    dropout: float = 0.1
    # stochastic depth: drop rate of the last encoder block, less in earlier ones
    drop_path: float = 0.1
    # steps between validations; each saves a checkpoint
    validate_every: int = 100
    # early stopping: validations without improvement before training ends; 0: never
    patience: int = 5

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(preset(self.preset), CineMAConfig):
            raise ValueError(f"--preset {self.preset}: {NOT_YET}")
        check_at_least(self, 1, "n_frames", "validate_every")
        check_at_least(self, 0, "patience")
        check_seeds(self, "subset_seed")
        check_phases(self.frames)
        if self.frames and self.n_frames != FinetuneConfig.n_frames:
            raise ValueError(f"--n-frames {self.n_frames} is for frames over the cycle: leave it out beside --frames")
        if min(self.decoder_channels, default=0) < 1:
            given = " ".join(map(str, self.decoder_channels)) or "none"
            raise ValueError(f"--decoder-channels needs one number or more, each at least 1, got {given}")
        shares = "val", "test", "cutout", "dropout", "drop_path"
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
        if self.loss_weights and (self.balance != "fixed" or len(self.loss_weights) != len(self.targets)):
            raise ValueError(
                f"--loss-weights need --balance fixed, one for each of --targets; got {len(self.loss_weights)} with "
                f"--balance {self.balance} and {len(self.targets)} targets"
            )
        if any(not 0 < weight < float("inf") for weight in self.loss_weights):
            raise ValueError(f"--loss-weights must be above 0, got {' '.join(map(str, self.loss_weights))}")
        if self.network == "baseline" and (self.init_from or self.freeze):
            raise ValueError("--network baseline starts from random weights: it takes no --init-from and no --freeze")
        if self.network == "baseline" and (self.reduce == "cls" or self.recompute != "none"):
            raise ValueError("--network baseline takes no --reduce cls and no --recompute: it has neither")
        if self.network == "baseline" and self.parallel == "fsdp":
            raise ValueError("--parallel fsdp is for transformers: with --network baseline use ddp")
        if self.freeze and not self.init_from and not self.resume:
            raise ValueError("--freeze needs --init-from: a frozen encoder with random weights is useless")
        named = list(names_of(self.structures).values())
        if not named or len(set(named)) < len(named):
            raise ValueError(f"--structures needs different names of the labels 1, 2, ..., got {self.structures}")

    def to_dict(self) -> dict:
        """As in `RunOptions`; paths of files that are read again are absolute."""
        values = super().to_dict()
        for name in ("data", "table", "split", "init_from"):
            if values[name] is not None:
                values[name] = str(Path(values[name]).absolute())
        return values
