"""Segmentation: a label of every pixel, by ConvUNetR or a U-Net, learnt from the label maps in the store."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..data.loading.batch import Batch
from ..data.loading.sampler import frame_at
from ..data.store.store import CineStore, StoreError
from ..models.config import CineMAConfig
from .augment_targets import blank_boxes, move_labels
from .finetune_config import FinetuneConfig
from .losses import segmentation_loss


class SegmentationLabels:
    """The label maps of a store. views_of: {study: views that have any}."""

    def __init__(self, store: CineStore, views: Sequence[str], structures: Sequence[str]):
        self._store, self._structures = store, structures
        labelled = {
            study: tuple(v for v in store.views(study) if v in views and store.info(study, v).labels)
            for study in store.ids
        }
        self.views_of = {study: has for study, has in labelled.items() if has}

    def frames_of(self, study: str, view: str, phase: float) -> tuple[int, ...]:
        """The labelled frame at a phase in [0, 1) of all labelled frames."""
        frames = self._store.info(study, view).labels.frames
        return (frames[frame_at(phase, len(frames))],)

    def target_of(self, study: str, shown: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
        """{view: (*size) uint8} of the frame that is shown. Raises StoreError for a label that has no name."""
        found = {view: self._store.read_labels(study, view, frames[0]) for view, frames in shown.items()}
        for view, labels in found.items():
            self._check_named(view, int(labels.max()))
        return found

    def _check_named(self, view: str, label: int) -> None:
        if label > len(self._structures):
            raise StoreError(
                f"its {view} label maps hold the label {label}, and the structures are {len(self._structures)}: "
                f"{', '.join(self._structures)} (1 to {len(self._structures)})"
            )

    def sha256(self) -> str:
        """SHA-256 of which frames are labelled, and how."""
        plain = [
            [study, view, maps.sha256, maps.frames]
            for study, views in self.views_of.items()
            for view in views
            if (maps := self._store.info(study, view).labels)
        ]
        return hashlib.sha256(json.dumps(plain).encode()).hexdigest()

    def values_of(self, studies: Sequence[str], workers: int) -> dict[str, set[int]]:
        """{study: the labels in its maps}, of labelled studies, from the index.

        An older store does not tell them: there two maps of every view are looked at, the first and the middle one.
        Raises ValueError for a label that has no name.
        """

        def look(study: str) -> set[int]:
            found = set()
            try:
                for view in self.views_of[study]:
                    values = self._store.info(study, view).labels.values
                    if values is None:
                        maps = [self.target_of(study, {view: self.frames_of(study, view, at)}) for at in (0.0, 0.5)]
                        values = np.unique(np.stack([one[view] for one in maps])).tolist()
                    self._check_named(view, max(values, default=0))
                    found.update(values)
            except StoreError as error:
                raise ValueError(f"study {study}: {error}") from error
            return found

        with ThreadPoolExecutor(workers) as pool:
            return dict(zip(studies, pool.map(look, studies)))

    def check(self, used: Sequence[str], workers: int) -> None:
        """Raise ValueError for a label that has no name, and for a structure that none of the studies `used` has."""
        values_of = self.values_of(tuple(self.views_of), workers)
        seen = set().union(*(values_of[study] for study in used))
        for label, name in enumerate(self._structures, start=1):
            if label not in seen:
                raise ValueError(
                    f"none of the {len(used)} training studies whose labels are used has the label {label} ({name}) in "
                    "its label maps: name by --structures what there is to learn, or take other studies (--split, "
                    "--label-fraction, --shots)"
                )


@dataclass(frozen=True)
class Segmentation:
    """structures: names of the labels 1, 2, ...; views: those with label maps, in the model's order.

    labels_sha256: of the label maps, so that a run is not resumed with others.
    """

    structures: tuple[str, ...]
    views: tuple[str, ...]
    labels_sha256: str

    kind = "segmentation"
    n_frames = 1
    validation_phases = (0.0, 0.25, 0.5, 0.75)  # among the labelled frames of a study: the first and the middle of two

    @classmethod
    def settle(cls, config: FinetuneConfig, store: CineStore) -> tuple["Segmentation", SegmentationLabels]:
        """The task, and its labels. Raises ValueError where a view has none."""
        views = tuple(dict.fromkeys(view for study in store.ids for view in store.views(study)))
        labels = SegmentationLabels(store, config.views or views, config.structures)
        found = {view for has in labels.views_of.values() for view in has}
        if missing := [view for view in config.views if view not in found]:
            if missing[0] not in views:
                raise ValueError(f"--views {missing[0]}: {store.path} has no such view; it has {', '.join(views)}")
            raise ValueError(f"--task segmentation: {store.path} has no label maps of {missing[0]}: {_PREPARE}")
        if not found:
            raise ValueError(f"--task segmentation: {store.path} holds no label maps: {_PREPARE}")
        return cls(config.structures, tuple(v for v in views if v in found), labels.sha256()), labels

    def to_dict(self) -> dict:
        """Plain values."""
        return {
            "kind": self.kind, "structures": list(self.structures), "views": list(self.views),
            "labels_sha256": self.labels_sha256,
        }  # fmt: skip

    def build(self, shape: CineMAConfig, config: FinetuneConfig) -> nn.Module:
        """A network of (images) -> {view: logits (B, 1 + structures, *size)}."""
        return unet_of(shape, 1 + len(self.structures), config)

    def loss(self, model: nn.Module, batch: Batch, blank: float) -> Tensor:
        """Mean over the views of soft Dice plus cross-entropy."""
        images = {view: blank_boxes(image, blank) for view, image in batch.images().items()}
        n_classes = 1 + len(self.structures)
        losses = []
        for view, logits in model(images).items():
            labels = move_labels(batch.target[view], batch.extent[view], batch.augment[view], n_classes)
            losses.append(segmentation_loss(logits, labels))
        return torch.stack(losses).mean()

    def predict(self, model: nn.Module, images: dict[str, Tensor]) -> dict[str, Tensor]:
        """{view: (B, 1 + structures, *size) float32 probabilities}."""
        return {view: logits.float().softmax(1) for view, logits in model(images).items()}

    def validate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """score: mean Dice over structures and label maps; a structure that is in neither map counts for nothing."""
        found = []
        for batch in batches:
            for view, probability in self.predict(model, batch.images()).items():
                labels, predicted = batch.target[view], probability.argmax(1)
                for value in range(1, 1 + len(self.structures)):
                    of_labels, of_prediction = (labels == value).flatten(1), (predicted == value).flatten(1)
                    total = of_labels.sum(1) + of_prediction.sum(1)
                    dice = 2 * (of_labels & of_prediction).sum(1) / total.clamp(min=1)
                    found.append(torch.stack([dice * (total > 0), (total > 0).float()], 1))
        dice, counted = torch.cat(found).sum(0).tolist()
        return {"score": dice / max(counted, 1.0), "val_dice": dice / max(counted, 1.0)}


_PREPARE = "store them by `cinema-fast prepare SRC STORE --labels PATTERN`"


def unet_of(shape: CineMAConfig, out_channels: int, config: FinetuneConfig) -> nn.Module:
    """ConvUNetR, or the baseline's U-Net. Raises ValueError for a decoder that does not fit the images."""
    if config.network == "baseline":
        from ..models.baselines import unet

        return unet(shape, out_channels)
    from ..models.conv_unetr import ConvUNetR

    channels = f"--decoder-channels {' '.join(map(str, config.decoder_channels))}"
    try:
        model = ConvUNetR(
            shape,
            out_channels,
            dec_channels=config.decoder_channels,
            dropout=config.dropout,
            drop_path=0.0 if config.frozen else config.drop_path,
        )
    except ValueError as error:
        fewest = next((n for n in range(1, 9) if _has_levels(shape, n)), None)
        hint = f"; this model takes {fewest} channels or more, one a level" if fewest else ""
        raise ValueError(f"{channels}: {error}{hint}") from error
    for view, size in shape.image_size.items():
        if any(n % pixels for n, pixels in zip(size, model.coarsest[view])):
            image, position = (" x ".join(map(str, pixels)) for pixels in (size, model.coarsest[view]))
            raise ValueError(
                f"{channels}: {view} images of {image} voxels do not divide into positions of {position}, those of the "
                f"coarsest of {len(config.decoder_channels)} levels: name fewer, or prepare the store at another size"
            )
    return model


def _has_levels(shape: CineMAConfig, n: int) -> bool:
    """Whether a decoder of n levels meets the stem's."""
    from ..models.conv_unetr import ConvUNetR

    try:
        with torch.device("meta"):
            ConvUNetR(shape, 1, dec_channels=(8,) * n)
    except ValueError:
        return False
    return True
