"""The records of a cine store: facts about one view of one study, from the index and from study.json."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...common.parsed_file import read_json
from ...common.sequences import sequences_of
from ...common.views import plane_of


class StoreError(ValueError):
    """A folder is not a usable cine store; the message names the file and what to do."""


class MotionInfo(NamedTuple):
    """The motion map of one view. path: the .npy file. sha256: of that file. max_px: mean motion between consecutive
    frames [pixels] of the value 255; 0 where nothing moves."""

    path: str
    sha256: str
    max_px: float


class LabelInfo(NamedTuple):
    """The label maps of one view. path: the .npy file, (len(frames), X, Y[, Z]). sha256: of that file. frames: the
    labelled frames of the cine, ascending. values: the labels in the maps, without 0, ascending; None in older
    stores."""

    path: str
    sha256: str
    frames: tuple[int, ...]
    values: tuple[int, ...] | None = None


class CineInfo(NamedTuple):
    """One view of one study.

    path: the .npy file. shape: (T, X, Y[, Z]). spacing_mm: mm per spatial axis. frame_time_ms: ms, None if unknown.
    sha256: of the .npy. source: name of its (first) source file. source_sha256: checksum of the source files. motion:
    the view's motion map, or None. labels: its label maps, or None. phases: the frames of ED and ES, or None where they
    are unknown. channels: names of the images along T where the view is no cine: single volumes on one grid, whose
    label map is that of frame 0; () for a cine.
    """

    path: str
    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    frame_time_ms: float | None
    sha256: str
    source: str
    source_sha256: str
    motion: MotionInfo | None = None
    labels: LabelInfo | None = None
    phases: tuple[int, int] | None = None
    channels: tuple[str, ...] = ()

    @property
    def view(self) -> str:
        """The view's name."""
        return self.path.rpartition("/")[2].removesuffix(".npy")

    @property
    def plane(self) -> str | None:
        """The view of VIEWS whose image plane this one shows, by its name; None where that names none."""
        return plane_of(self.view)

    @property
    def sequences(self) -> tuple[str | None, ...]:
        """The sequence, one of SEQUENCES or None where unknown, of each channel, or of all frames, (one,): by the names
        of channels and view (`sequences_of`)."""
        return sequences_of(self.view, self.channels)

    def sequence(self, t: int) -> str | None:
        """The sequence of frame or channel `t`; None where it is unknown."""
        return self.sequences[t if self.channels else 0]

    @property
    def is_cine(self) -> bool:
        """Whether its frames show the cardiac cycle."""
        return not self.channels and self.sequences == ("cine",)

    @property
    def paths(self) -> tuple[str, str | None, str | None]:
        """Paths of the cine, the motion map and the label maps; None where there is none."""
        return self.path, self.motion and self.motion.path, self.labels and self.labels.path

    @property
    def files(self) -> list[tuple[str, tuple[int, ...]]]:
        """(path, array shape) of the cine and, where there are any, of its motion and label maps."""
        files = [(self.path, self.shape)]
        if self.motion:
            files.append((self.motion.path, self.shape[1:]))
        if self.labels:
            files.append((self.labels.path, (len(self.labels.frames), *self.shape[1:])))
        return files

    @property
    def window(self) -> np.ndarray:
        """float32 (T, 2), raw intensities that became 0 and 255; read from study.json. Raises StoreError."""
        return self._detail("window", np.float32, (self.shape[0], 2))

    @property
    def affine(self) -> np.ndarray:
        """float64 (4, 4), stored voxel index -> scanner mm (RAS+); read from study.json. Raises StoreError."""
        return self._detail("affine", np.float64, (4, 4))

    @property
    def arrangement(self) -> tuple[int, int, int]:
        """The arrangement of its axes (`orientation.Arrangement`); (1, 2, 3): as stored, as in all stores of earlier
        versions. Read from study.json. Raises StoreError."""
        return tuple(self._detail("arrangement", np.int64, (3,), default=(1, 2, 3)).tolist())

    def _detail(self, key: str, dtype: type, shape: tuple[int, ...], default: tuple | None = None) -> np.ndarray:
        path = Path(self.path)
        file = path.with_name("study.json")
        try:
            record = read_json(file)[path.stem]
            if record["sha256"] != self.sha256:
                raise ValueError("it belongs to another preparation than the index")
            return np.array(record[key] if default is None else record.get(key, default), dtype).reshape(shape)
        except (OSError, ValueError, TypeError, KeyError) as err:
            raise StoreError(f"{file}: no {key} of {path.name} ({type(err).__name__}: {err}); "
                             f"run prepare again") from err


def make_info(root: str, record: dict) -> CineInfo:
    """One view from its record. Raises KeyError, TypeError, ValueError or AttributeError."""
    shape = _shape(tuple(record["shape"]))
    motion = labels = None
    if "motion" in record:
        found = record["motion"]
        motion = MotionInfo(f"{root}/{found['file']}", found["sha256"], float(found["max_px"]))
    if "labels" in record:
        found = record["labels"]
        values = _values(tuple(found["values"])) if "values" in found else None
        frames = _frames(tuple(found["frames"]), shape[0])
        labels = LabelInfo(f"{root}/{found['file']}", found["sha256"], frames, values)
    return CineInfo(
        path=f"{root}/{record['file']}",
        shape=shape,
        spacing_mm=_spacing(tuple(record["spacing_mm"])),
        frame_time_ms=record["frame_time_ms"],
        sha256=record["sha256"],
        source=record["source"]["file"],
        source_sha256=record["source"]["sha256"],
        motion=motion,
        labels=labels,
        phases=_phases((found["ed"], found["es"]), shape[0]) if (found := record.get("phases")) else None,
        channels=_channels(tuple(record.get("channels", ())), shape[0]),
    )


# A store has few different shapes and spacings, so its many thousands of records share their tuples.
@lru_cache
def _shape(values: tuple) -> tuple[int, ...]:
    shape = tuple(int(n) for n in values)
    if len(shape) not in (3, 4) or min(shape) < 1:
        raise ValueError(f"the shape {shape}, expected (T, X, Y[, Z])")
    return shape


@lru_cache
def _frames(values: tuple, n_frames: int) -> tuple[int, ...]:
    frames = tuple(int(t) for t in values)
    if not frames or list(frames) != sorted(set(frames)) or not 0 <= frames[0] <= frames[-1] < n_frames:
        raise ValueError(f"the labelled frames {frames} of {n_frames}, expected some of them, ascending")
    return frames


@lru_cache
def _phases(values: tuple, n_frames: int) -> tuple[int, int]:
    ed, es = (int(t) for t in values)
    if not (0 <= ed < n_frames and 0 <= es < n_frames):
        raise ValueError(f"ED and ES are frames {ed} and {es} of {n_frames}")
    return ed, es


@lru_cache
def _channels(names: tuple, n_frames: int) -> tuple[str, ...]:
    if names and (len(names) != n_frames or not all(isinstance(name, str) for name in names)):
        raise ValueError(f"the channels {names} of {n_frames} images, expected a name for each")
    return names


@lru_cache
def _values(values: tuple) -> tuple[int, ...]:
    labels = tuple(int(label) for label in values)
    if list(labels) != sorted(set(labels)) or not all(0 < label < 256 for label in labels):
        raise ValueError(f"the labels {labels}, expected numbers from 1 to 255, ascending")
    return labels


@lru_cache
def _spacing(values: tuple) -> tuple[float, ...]:
    return tuple(float(mm) for mm in values)
