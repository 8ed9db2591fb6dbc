"""Clips: one image plane of a study, a slice of the short-axis stack or a long-axis view, over the cardiac cycle.

A clip has n frames, evenly spaced over the cycle, that begin at a starting phase and wrap around. In plane it is
cropped to a fixed size around the image's centre, where `prepare` puts the heart; a smaller image is padded with zeros.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ...common.naming import named
from ...common.views import CLIP
from .store import CineStore

MIN_FRAMES = 4  # a cine with fewer frames (ED and ES only) does not show how the heart moves, and gives no clips


class Plane(NamedTuple):
    """An image plane: a view and, for a stack, one of its slices."""

    view: str
    slice: int | None


class ClipStore:
    """A cine store whose studies have one view, `clip`, with a plane for each slice and each long-axis view.

    Every stored slice is an image of the scan (stacks are padded only when they are loaded), so each is a plane. A cine
    of fewer than `min_frames` frames shows no cycle and gives no plane, nor does a view of channels or of another
    sequence. If a cine has fewer frames than a clip, frames are repeated.

    Args:
        store: the store of the frames.
        views: the store's views that clips are drawn from; empty: all.
        min_frames: of a cine; 2 in runs of older versions.

    Raises:
        ValueError: no study has a cine of so many frames in these views.
    """

    def __init__(self, store: CineStore, views: Sequence[str] = (), *, min_frames: int = MIN_FRAMES):
        self.path, self._store, self.min_frames = store.path, store, min_frames
        self._planes: dict[str, tuple[Plane, ...]] = {}
        self._short: dict[str, dict[str, int]] = {}  # {study: {view: number of frames, too few}}
        for study in store.ids:
            infos = {view: store.info(study, view) for view in store.views(study) if not views or view in views}
            shapes = {view: info.shape for view, info in infos.items() if info.is_cine}
            self._planes[study] = tuple(
                Plane(view, at)
                for view, shape in shapes.items()
                if shape[0] >= min_frames
                for at in (range(shape[3]) if len(shape) == 4 else [None])
            )
            if short := {view: shape[0] for view, shape in shapes.items() if shape[0] < min_frames}:
                self._short[study] = short
        if not any(self._planes.values()):
            most = max((n for short in self._short.values() for n in short.values()), default=0)
            raise ValueError(
                f"{store.path}: clips show the cardiac cycle, but no cine of {', '.join(views) or 'any view'} there "
                f"has {min_frames} frames or more (the longest has {most}): prepare cines of the whole cycle, not ED "
                "and ES alone, or train on single frames with a cinema preset"
            )

    def remarks(self) -> list[str]:
        """A line on the cines with too few frames for clips, if there are any."""
        if not self._short:
            return []
        shorts = [f"{study} ({', '.join(f'{v}: {n}' for v, n in short.items())})"
                  for study, short in self._short.items()]  # fmt: skip
        without = sum(not self._planes[study] for study in self._short)
        return [f"no clips of cines with fewer than {self.min_frames} frames, in {len(self._short)} of {len(self.ids)} "
                f"studies, {without} of which are left out: {named(shorts, '; ')}"]

    @property
    def ids(self) -> list[str]:
        """The studies, sorted, including those without a clip."""
        return list(self._planes)

    def views(self, study: str) -> tuple[str, ...]:
        """(`clip`,), or nothing where the study has no cine."""
        return (CLIP,) if self._planes[study] else ()

    def planes(self, study: str) -> tuple[Plane, ...]:
        """The planes of a study, view by view in the store's order, slices ascending."""
        return self._planes[study]

    def read_clip(self, study: str, plane: int, phase: float, size: Sequence[int]) -> np.ndarray:
        """The clip of plane number `plane` from `phase` on: uint8 (n, X, Y) = `size`. Raises as `read_clips`."""
        view, at = self._planes[study][plane]
        return centre(self._read(study, view, phase, size[0])[at or 0], size[1:])

    def read_clips(self, study: str, view: str, phase: float, size: Sequence[int]) -> np.ndarray:
        """The clips of all planes of a view: uint8 (planes, n, X, Y), with (n, X, Y) = `size`.

        Raises:
            StoreError: the file is gone, unreadable, or not what the index says.
        """
        return centre(self._read(study, view, phase, size[0]), size[1:])

    def read_motion(self, study: str, plane: int, size: Sequence[int]) -> np.ndarray:
        """The motion map for a clip of plane number `plane`: uint8 (X, Y); size: of the clip, ([n,] X, Y).

        Raises:
            StoreError: the plane's view has no motion map, or it cannot be read.
        """
        view, at = self._planes[study][plane]
        motion = self._store.read_motion(study, view)
        return centre(motion if at is None else motion[..., at], size[-2:])

    def _read(self, study: str, view: str, phase: float, n: int) -> np.ndarray:
        """(planes, n, X, Y). The slices of a stack are interleaved pixel by pixel, so all are read even for one."""
        frames = self._store.read_frames(study, view, clip_frames(phase, n, self._store.n_frames(study, view)))
        return frames[None] if frames.ndim == 3 else frames.transpose(3, 0, 1, 2)


def clip_frames(phase: float, n: int, n_frames: int) -> np.ndarray:
    """(n,) frames of a cine of n_frames that show n phases spread evenly over the cycle, the first at `phase`."""
    return np.floor(phase * n_frames + np.arange(n) * n_frames / n).astype(np.int64) % n_frames


def centre(frames: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Frames (..., X, Y) cropped or zero-padded around their middle to (..., *size); an odd pixel goes to the end."""
    out = np.zeros((*frames.shape[:-2], *size), frames.dtype)
    source, target = [], []
    for have, want in zip(frames.shape[-2:], size):
        n = min(have, want)
        source.append(slice((have - n) // 2, (have - n) // 2 + n))
        target.append(slice((want - n) // 2, (want - n) // 2 + n))
    out[..., target[0], target[1]] = frames[..., source[0], source[1]]
    return out
