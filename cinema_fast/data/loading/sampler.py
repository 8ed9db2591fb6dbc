"""Draws the study, frame or clip, and augmentation of each sample: a pure function of (seed, step, rank, micro-batch).

Studies are grouped by the set of views they have, and a batch holds one group only, so that every shape in a step is
static. A group is an endless stream of draws: one random order of its studies after another. A batch is a slice of that
stream and may cross the end of an order. So, for any batch size and number of ranks, no study is lost, repeated or
padded within a pass over its group. Groups take turns in proportion to their sizes.

Every random word is Philox4x32-10 of (study, pass over the group, purpose). To resume, a run only needs its step
number. A global batch holds the same samples however it is split over ranks and micro-batches, and for any number of
worker threads.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from cinema_fast.kernels.philox import philox_numpy

from ...common.shares import cut
from ...common.views import plane_of
from .augmentation import AS_STORED, Augmentation, AugmentConfig

# Word 3 of the counter is the purpose of a word. Masks put the view's index there, so these values start far above.
FOR_ORDER, FOR_FRAME, FOR_ZOOM, FOR_REPLACEMENT = range(0x8000_0000, 0x8000_0004)
FOR_ROTATION, FOR_TRANSLATION, FOR_FLIP, FOR_GAMMA, FOR_NOISE, FOR_NOISE_KEY = range(0x8000_0004, 0x8000_000A)
UNIT = 2.0**-32  # a 32-bit word times this lies in [0, 1)


@dataclass(frozen=True)
class Draw:
    """The B samples that one rank reads for one micro-batch of one step.

    ids: study of each sample. views: the views all of them have. epoch (B,) int64: pass over the group.
    phase (B,) float64 in [0, 1): time in the cardiac cycle, the same for all views of a study; a clip starts there.
    augment: {view: augmentation of its images}, as numpy arrays.
    slot (B,) int64: index in the step's global batch; it makes the masks of a step differ.
    plane (B,) int64: the image plane of the study that a clip shows (`ClipStore.planes`); 0 for whole frames.
    """

    step: int
    ids: tuple[str, ...]
    views: tuple[str, ...]
    epoch: np.ndarray
    phase: np.ndarray
    augment: dict[str, Augmentation]
    slot: np.ndarray
    plane: np.ndarray


def frame_at(phase: float, n_frames: int) -> int:
    """The frame of a cine of n_frames that shows a phase in [0, 1) of the cycle."""
    return min(int(phase * n_frames), n_frames - 1)


def held_out(ids: Iterable[str], share: float) -> set[str]:
    """The share of the studies held out of training, by the rule of `shares.cut`.

    Raises ValueError for a share outside [0, 1) and where no study would be left to train on.
    """
    if not 0.0 <= share < 1.0:
        raise ValueError(f"holdout must lie in [0, 1), got {share}")
    held, training = cut(ids, share)
    if share and not training:
        raise ValueError(f"holdout {share} of {len(held)} studies leaves none to train on")
    return set(held)


class Sampler:
    """The endless order of samples of a set of studies.

    Args:
        views_of: {study id: views it has, in the store's order}; studies without any are left out.
        seed: random seed, 64 bits.
        batch_size: samples of a micro-batch on one rank. accumulate: micro-batches in a step. world: number of ranks.
        augment: options of the augmentation; None: the published recipe.
        planes: {study id: number of image planes from which its clips are drawn}; None where frames are read whole.

    Raises:
        ValueError: no study with a view, or sizes below 1.
    """

    def __init__(
        self,
        views_of: Mapping[str, tuple[str, ...]],
        *,
        seed: int,
        batch_size: int,
        accumulate: int = 1,
        world: int = 1,
        augment: AugmentConfig | None = None,
        planes: Mapping[str, int] | None = None,
    ):
        if min(batch_size, accumulate, world) < 1:
            raise ValueError(
                f"batch_size, accumulate and world must be at least 1, got {batch_size}, {accumulate}, {world}"
            )
        self.ids = sorted(study for study, views in views_of.items() if views)
        if not self.ids:
            raise ValueError("no study to draw from: none has any of the requested views")
        self.seed, self.batch_size, self.accumulate, self.world = seed, batch_size, accumulate, world
        self.augment = augment or AugmentConfig()
        self._planes = np.array([planes[study] if planes else 1 for study in self.ids])
        members: dict[tuple[str, ...], list[int]] = {}
        for index, study in enumerate(self.ids):
            members.setdefault(tuple(views_of[study]), []).append(index)
        self.groups = {views: np.array(members[views]) for views in sorted(members)}
        self._index = {study: index for index, study in enumerate(self.ids)}
        self._sets = list(self.groups)
        self._turns, self._turn_rank, self._weights = _turns([len(m) for m in self.groups.values()])
        self._remember_orders()

    def _remember_orders(self) -> None:
        self._order = lru_cache(maxsize=4 * len(self.groups))(self._order)

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "_order"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._remember_orders()

    @property
    def global_batch(self) -> int:
        """Samples in a step, over all ranks and micro-batches."""
        return self.batch_size * self.accumulate * self.world

    def draw(self, step: int, *, rank: int = 0, micro: int = 0) -> Draw:
        """The samples of a rank's micro-batch; every rank and micro-batch of a step gets the same set of views."""
        turn = step % len(self._turns)
        group = int(self._turns[turn])
        batches_before = step // len(self._turns) * self._weights[group] + int(self._turn_rank[turn])
        slot = (micro * self.world + rank) * self.batch_size + np.arange(self.batch_size, dtype=np.int64)
        position = batches_before * self.global_batch + slot
        n = len(self.groups[self._sets[group]])
        epoch = position // n
        study = np.empty_like(position)
        for e in np.unique(epoch):
            here = epoch == e
            study[here] = self._order(group, int(e))[position[here] % n]
        return self._describe(step, group, study, epoch, slot)

    def replacements(self, draw: Draw, sample: int) -> Iterator[Draw]:
        """One-sample draws in place of `draw.ids[sample]`, which cannot be read: each other study of its group once.

        Their order is a function of the seed, that study and the pass.
        """
        group, lost = self._sets.index(draw.views), self._index[draw.ids[sample]]
        epoch, slot = draw.epoch[sample : sample + 1], draw.slot[sample : sample + 1]
        members = self.groups[draw.views]
        others = members[members != lost]
        for study in self._shuffled(others, int(epoch[0]), lost, FOR_REPLACEMENT):
            yield self._describe(draw.step, group, np.array([study]), epoch, slot)

    def _order(self, group: int, epoch: int) -> np.ndarray:
        """The order of a group's studies in a pass over them."""
        return self._shuffled(self.groups[self._sets[group]], epoch, 0, FOR_ORDER)

    def _shuffled(self, studies: np.ndarray, epoch: int, number: int, purpose: int) -> np.ndarray:
        """Studies sorted by random 64-bit keys."""
        high, low, _, _ = philox_numpy(self.seed, studies, epoch, number, purpose).astype(np.uint64)
        return studies[np.argsort(high << np.uint64(32) | low, kind="stable")]

    def _describe(self, step: int, group: int, study: np.ndarray, epoch: np.ndarray, slot: np.ndarray) -> Draw:
        views = self._sets[group]
        phase, plane_word, _, _ = philox_numpy(self.seed, study, epoch, 0, FOR_FRAME) * UNIT
        plane = (plane_word * self._planes[study]).astype(np.int64)
        augment = self._augmentations(study, epoch, views)
        return Draw(step, tuple(self.ids[i] for i in study), views, epoch, phase, augment, slot, plane)

    def _augmentations(self, study: np.ndarray, epoch: np.ndarray, views: tuple[str, ...]) -> dict[str, Augmentation]:
        # the views of the short axis share their augmentation, and all others theirs, as in the reference's recipe
        long_axis = {view: int(plane_of(view) != "sax") for view in views}
        planes = {plane: self._augmentation(study, epoch, plane) for plane in set(long_axis.values())}
        augment = {view: planes[plane] for view, plane in long_axis.items()}
        if self.augment.noise and self.augment.noise_share:  # they share the noise level, but not the noise itself
            for number, view in enumerate(views):
                high, low, _, _ = philox_numpy(self.seed, study, epoch, number, FOR_NOISE_KEY).astype(np.uint64)
                augment[view] = augment[view]._replace(noise_key=(high << np.uint64(32) | low).view(np.int64))
        return augment

    def _augmentation(self, study: np.ndarray, epoch: np.ndarray, long_axis: int) -> Augmentation:
        """Augmentation of the studies' short-axis views (0), or of all other views (1)."""
        recipe, drawn = self.augment, {}

        def words(purpose: int) -> np.ndarray:
            return philox_numpy(self.seed, study, epoch, long_axis, purpose) * UNIT

        if recipe.zoom != (1.0, 1.0) and recipe.zoom_share:
            zoom_words = philox_numpy(self.seed, study, epoch, 0, FOR_ZOOM) * UNIT
            coin, word = zoom_words[2 * long_axis : 2 * long_axis + 2]
            drawn["zoom"] = _within(recipe.zoom, word, coin < recipe.zoom_share, 1.0)
        if recipe.rotation and recipe.rotation_share:
            coin, word, _, _ = words(FOR_ROTATION)
            # in float64, so that a quarter turn moves pixels onto pixels
            drawn["angle"] = np.where(coin < recipe.rotation_share, np.deg2rad(recipe.rotation) * (2 * word - 1), 0.0)
        if recipe.translation and recipe.translation_share:
            coin, *word, _ = words(FOR_TRANSLATION)
            most, shifted = recipe.translation, (coin < recipe.translation_share)[:, None]
            drawn["shift"] = _within((-most, most), np.stack(word, 1), shifted, 0.0)
        if recipe.flip:
            drawn["flip"] = np.stack(words(FOR_FLIP)[:2], 1) < recipe.flip
        if recipe.gamma != (1.0, 1.0) and recipe.gamma_share:
            coin, word, _, _ = words(FOR_GAMMA)
            drawn["gamma"] = _within(recipe.gamma, word, coin < recipe.gamma_share, 1.0)
        if recipe.noise and recipe.noise_share:
            coin, word, _, _ = words(FOR_NOISE)
            drawn["noise"] = _within((0.0, recipe.noise), word, coin < recipe.noise_share, 0.0)
        return Augmentation(**drawn)


def fixed_draw(
    ids: Sequence[str], views: tuple[str, ...], *, step: int, phase: Sequence[float], slot: Sequence[int],
    plane: Sequence[int],
) -> Draw:
    """A draw without augmentation, each study at its phase in [0, 1) and plane: for evaluation."""
    return Draw(
        step, tuple(ids), views, np.zeros(len(ids), np.int64), np.array(phase, np.float64),
        dict.fromkeys(views, AS_STORED), np.array(slot, np.int64), np.array(plane, np.int64),
    )  # fmt: skip


def exchanged(draw: Draw, sample: int, other: Draw, place: int = 0) -> Draw:
    """`draw` with one sample replaced by number `place` of another draw of the same views."""

    def put(into: np.ndarray, values: np.ndarray) -> np.ndarray:
        into = into.copy()
        into[sample] = values[place]
        return into

    return replace(
        draw,
        ids=(*draw.ids[:sample], other.ids[place], *draw.ids[sample + 1 :]),
        phase=put(draw.phase, other.phase),
        plane=put(draw.plane, other.plane),
        augment={view: drawn.map(put, other.augment[view]) for view, drawn in draw.augment.items()},
    )


def _within(bounds: tuple[float, float], word: np.ndarray, chosen: np.ndarray, otherwise: float) -> np.ndarray:
    """float32, uniform between the bounds by words in [0, 1) where `chosen`."""
    low, high = bounds
    return np.where(chosen, low + (high - low) * word, otherwise).astype(np.float32)


def _turns(sizes: list[int]) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """The order in which groups take turns over one period, in proportion to their sizes and evenly spaced.

    Returns the group of each turn, how many turns that group had before in the period, and its turns in all. The k-th
    turn of a group of n falls at (k + 1/2) / n of the period (Webster's apportionment, which spaces them best).
    """
    divisor = math.gcd(*sizes)
    weights = [n // divisor for n in sizes]
    group = np.repeat(np.arange(len(weights)), weights)
    rank = np.concatenate([np.arange(w) for w in weights])
    due = (rank + 0.5) / np.repeat(weights, weights)
    order = np.lexsort((group, due))
    return group[order], rank[order], weights
