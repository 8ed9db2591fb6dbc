"""Frames of a long-axis view as grey PNG files, and the landmarks that masks beside them mark.

As the CineMA reference prepares them (cinema/data/landmark): landmarks are numbered in one direction, with Y up
clockwise in lax_2c and counter-clockwise in lax_4c; where they are not, the frames are mirrored along Y. Then frames
are scaled by 0.25, and a pixel counts as 1 mm. Scaling is that of scikit-image's `rescale` with anti-aliasing, by the
functions of scipy that it calls: a Gaussian filter of (factor - 1) / 2 pixels, then linear interpolation at the middle
of each new pixel.
"""

import hashlib
import io
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...common.regular_file import read_regular
from .cine import Cine, CineError, Volume, check_cine, joined_sha256

SCALE = 0.25
LANDMARKS = {85: "annulus_1", 170: "annulus_2", 255: "apex"}  # grey value of its pixels in a mask
CLOCKWISE = {"lax_2c": True, "lax_4c": False}


def mask_of(image: Path) -> Path:
    """VIEW/masks/NAME.png of VIEW/images/NAME.png."""
    return image.parent.parent / "masks" / image.name


def read_landmarks_of_mask(path: Path) -> tuple[np.ndarray, tuple[int, int]]:
    """float64 (3, 2), x and y of LANDMARKS: the mean of the pixels of a value; and the size (X, Y) of the mask.

    Raises:
        CineError: as `_read_grey`; another value than 0 and those of LANDMARKS, or a landmark that is not there.
    """
    mask = _read_grey(path)[0]
    there = set(np.unique(mask).tolist()) - {0}
    if there != set(LANDMARKS):
        raise CineError(path, f"holds the grey values {sorted(there)[:6]}, expected {', '.join(map(str, LANDMARKS))} "
                              "for the three landmarks, and 0 elsewhere")  # fmt: skip
    return np.array([np.argwhere(mask == value).mean(0) for value in LANDMARKS]), mask.shape


def turns_clockwise(points: np.ndarray) -> float:
    """Above 0 where three points (3, 2) turn clockwise, with Y up, below 0 where counter-clockwise."""
    (x1, y1), (x2, y2), (x3, y3) = np.trunc(points)
    return (y2 - y1) * (x3 - x2) - (x2 - x1) * (y3 - y2)


def is_mirrored(frames: Sequence[np.ndarray], view: str) -> bool:
    """Whether landmarks, (3, 2) of each frame of a cine, turn the other way than in other cines of the view, by the sum
    over its frames."""
    turn = sum(turns_clockwise(points) for points in frames)
    return not (turn > 0 if CLOCKWISE[view] else turn < 0)


def scaled(points: np.ndarray, height: int, mirrored: bool) -> np.ndarray:
    """Landmarks (3, 2) of a mask of this size along Y, as whole pixels of the scaled frame; fractions are cut off."""
    points = points.copy()
    if mirrored:
        points[:, 1] = height - 1 - points[:, 1]
    return np.trunc(np.trunc(points) * SCALE)


def read_png_cine(paths: Sequence[Path], view: str) -> Cine:
    """Read and check the frames of a view, in the order of time, with their masks: (X, Y, 1), 1 mm, uint8.

    Raises:
        CineError: as `read_landmarks_of_mask` and `check_cine`; frames, or masks, of different sizes.
    """
    frames, digests, marked = [], [], []
    for path in paths:
        frame, sha256 = _read_grey(path)
        points, size = read_landmarks_of_mask(mask_of(path))
        for file, found in ((path, frame.shape), (mask_of(path), size)):
            if found != (expected := (frames or [frame])[0].shape):
                raise CineError(file, f"{found[0]} x {found[1]} pixels, expected {expected[0]} x {expected[1]} as in "
                                      f"{paths[0].name}")  # fmt: skip
        frames.append(frame)
        digests.append(sha256)
        marked.append(points)
    mirrored = is_mirrored(marked, view)
    data = np.stack([_scaled_frame(frame)[:, ::-1] if mirrored else _scaled_frame(frame) for frame in frames], axis=-1)
    affine, sha256 = np.eye(4), joined_sha256(digests)
    volume = Volume(np.asfortranarray(data[:, :, None]), 1.0, 0.0, affine, None, sha256, oriented=False)
    cine = Cine((volume,), volume.data.shape[:3], len(frames), affine, None, sha256, oriented=False)
    check_cine(cine, paths[0], stack=False)
    return cine


def _scaled_frame(frame: np.ndarray) -> np.ndarray:
    from scipy import ndimage

    size = np.maximum(np.round(np.array(frame.shape) * SCALE), 1)
    factors = np.array(frame.shape) / size
    smooth = ndimage.gaussian_filter(frame.astype(np.float64), np.maximum((factors - 1) / 2, 0), mode="mirror")
    return ndimage.zoom(smooth, 1 / factors, order=1, mode="mirror", grid_mode=True).clip(0, 255).astype(np.uint8)


def _read_grey(path: Path) -> tuple[np.ndarray, str]:
    """uint8 (X, Y) of a PNG, and the SHA-256 of the file. Raises CineError where it is none, or not of 8-bit grey."""
    from PIL import Image

    try:
        data = read_regular(path)
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
                if image.mode != "L":
                    raise CineError(path, f"pixels of the mode {image.mode}, expected 8-bit grey (L)")
                pixels = np.array(image)
    except CineError:
        raise
    except OSError as err:
        raise CineError(path, f"cannot be read: {err.strerror or 'not a PNG image, or a damaged one'}") from None
    except (ValueError, SyntaxError, Image.DecompressionBombWarning, Image.DecompressionBombError) as err:
        raise CineError(path, f"not a usable PNG image: {err}") from None
    return pixels.T, hashlib.sha256(data).hexdigest()
