"""Reads a cine from DICOM files: the images of one view are sorted into slices and frames by their headers.

Slices are ordered by their position along the normal, frames by trigger time. The first frame is the one at the R wave;
frames from before it are moved to the end of the cycle. Phase, real and imaginary images are left out. X runs along a
row of pixels and Y down a column (as in SimpleITK; dcm2niix mirrors Y), Z along row x column. The affine maps voxel
indices to NIfTI's scanner coordinates (mm, RAS+).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .cine import MAX_BYTES, Cine, CineError, IncompleteCine, Volume, check_cine, joined_sha256
from .dicom_file import image_headers, read_dataset, series_of
from .dicom_pixels import read_pixels
from .dicom_ragged import LONGEST_RUN_FILLED, REFUSE, longest_run
from .dicom_slices import CLOCKS, LONG_STEP, Image, affine_of, by_place, check_places, difference

# Difference between the heart's cycle and the time of all frames where they fill it, relative to the cycle.
MAX_UNFILLED = 0.1


def read_dicom_cine(
    paths: Sequence[Path], *, stack: bool | None, ragged: str = REFUSE, single: bool = False
) -> Cine:  # fmt: skip
    """Read and check one view of one study.

    Args:
        paths: its DICOM files in any order, single-frame or enhanced multi-frame, of one or several series. For a
            ragged stack the order tells which of repeated slices is the last one.
        stack: whether the view is a stack of slices (SAX) or a single slice (LAX); None: either.
        ragged: what to do where slices differ, are repeated, or miss a frame: a rule of `dicom_ragged.py`.
        single: whether the view is a single volume, one image of each slice, rather than a cine.

    Raises:
        CineError: a file that is malformed, truncated or without a decoder; images of differing size, orientation or
            spacing; missing or repeated slices or frames; anything that `cine.check_cine` refuses.
    """
    images, digests = [], []
    for path in paths:
        found, digest = _read_file(Path(path), series=ragged != REFUSE)
        images += found
        digests.append(digest)
    images = [image for image in images if image.header.magnitude]
    if not images:
        raise CineError(paths[0], "no magnitude images: all of them are phase, real or imaginary")
    remarks = []
    if ragged == REFUSE:
        for image in images:
            _check_alike(images[0], image)
        slices = by_place(images)
        _check_counts(slices)
    else:
        slices, remarks = longest_run(images, stack=stack, fill=ragged == LONGEST_RUN_FILLED)
    first = slices[0][0]
    slices, remark = (slices, "") if single else _by_time(slices)
    if single and len(slices[0]) > 1:
        raise CineError(first.path, f"not a single volume: {len(slices[0])} images of each of {len(slices)} slices")
    if not single and len(slices[0]) < 2:
        raise IncompleteCine(first.path, f"not a cine: one image of each of {len(slices)} slices, expected 2 frames or "
                                         f"more")
    affine = affine_of(slices)
    check_places(slices, affine)
    volumes = tuple(_volume([images[t] for images in slices], affine, digests[0]) for t in range(len(slices[0])))
    shape = (*first.pixels.shape[::-1], len(slices))
    remark = "; ".join([*remarks, *([remark] if remark else [])])
    frame_time_ms = None if single else _frame_time(slices)
    cine = Cine(volumes, shape, len(volumes), affine, frame_time_ms, joined_sha256(digests), remark=remark)
    check_cine(cine, first.path, stack=stack)
    return cine


def _read_file(path: Path, *, series: bool) -> tuple[list[Image], str]:
    """The images of a file, with their series where asked for, which takes a twentieth of the time; and its SHA-256."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise CineError(path, f"{path.stat().st_size} bytes: larger than any cine")
        content = path.read_bytes()
    except OSError as err:
        raise CineError(path, f"cannot be read: {err.strerror or err}") from err
    dataset = read_dataset(path, content)
    headers, name = image_headers(path, dataset), series_of(path, dataset) if series else ""
    images = [Image(path, name, header, pixels)
              for header, pixels in zip(headers, read_pixels(path, dataset), strict=True)]  # fmt: skip
    return images, hashlib.sha256(content).hexdigest()


def _check_alike(first: Image, image: Image) -> None:
    what = difference(first, image)
    if what == "size":
        found, expected = ("{1} x {0} pixels".format(*one.pixels.shape) for one in (image, first))
        raise CineError(image.path, f"sizes differ: {found}, in {first.path.name} {expected}")
    if what:
        found, expected = getattr(image.header, what), getattr(first.header, what)
        raise CineError(image.path, f"the {what} {list(found)} differs from {list(expected)} in {first.path.name}")


def _check_counts(slices: list[list[Image]]) -> None:
    counts = [len(images) for images in slices]
    if len(set(counts)) > 1:
        usual = max(set(counts), key=counts.count)
        k = next(k for k, count in enumerate(counts) if count != usual)
        what = "frames are missing" if counts[k] < usual else "one slice was taken more than once"
        raise IncompleteCine(slices[k][0].path, f"{what}: slice {k + 1} of {len(slices)} has {counts[k]} images, "
                                                f"most have {usual}")


def _by_time(slices: list[list[Image]]) -> tuple[list[list[Image]], str]:
    """Each slice's images ordered by the first time attribute (clock) that all of them have; and a remark, or ""."""
    n = len(slices[0])
    phases = {image.header.n_phases for images in slices for image in images} - {None}
    if len(phases) == 1 and n < max(phases):
        raise IncompleteCine(slices[0][0].path, f"frames are missing: {n} images a slice, the header says "
                                                f"{max(phases):g} (CardiacNumberOfImages)")
    for clock in CLOCKS:
        times = [[getattr(image.header, clock) for image in images] for images in slices]
        known = [time for one in times for time in one if time is not None]
        if len(known) < n * len(slices) or (n > 1 and any(len(set(one)) == 1 for one in times)):
            continue  # absent, or the same in all images
        for images, one in zip(slices, times):
            if len(set(one)) < n:
                twice = next(time for time in one if one.count(time) > 1)
                raise CineError(images[0].path, f"a slice was taken more than once: two of its images have the "
                                                f"{clock.removesuffix('_ms')} {twice:g}")
        slices = [sorted(images, key=lambda image: getattr(image.header, clock)) for images in slices]
        if clock == "trigger_ms":
            _check_steps(slices)
            return _from_r_wave(slices)
        return slices, ""
    raise CineError(slices[0][0].path, "the order of the frames is unknown: no trigger times, and no numbers that "
                                       "differ")


def _check_steps(slices: list[list[Image]]) -> None:
    for images in slices:
        steps = np.diff([image.header.trigger_ms for image in images])
        if len(steps) > 2 and steps.max() > LONG_STEP * np.median(steps):
            after = images[int(steps.argmax())]
            raise IncompleteCine(after.path, f"frames are missing: {steps.max():g} ms pass after trigger time "
                                             f"{after.header.trigger_ms:g} ms, {np.median(steps):g} between others")


def _from_r_wave(slices: list[list[Image]]) -> tuple[list[list[Image]], str]:
    """Frames in the order of trigger times, beginning with the frame at the R wave; and a remark on them, or "".

    A negative time is before the R wave; less than half a step is rounding. Frames from earlier than that belong to the
    end of the cycle, if the frames fill it. They are moved there in all slices alike, by the median of their times, so
    that slices stay aligned.

    Raises:
        CineError: the times may count backwards, or the frames may not be of one cycle.
    """
    times = np.array([[image.header.trigger_ms for image in images] for images in slices])  # (Z, T)
    if times.min() >= 0:
        return slices, ""
    first, n = slices[int(times.min(axis=1).argmin())][0], times.shape[1]
    if times.max(axis=1).min() <= 0:
        raise CineError(first.path, f"trigger times from {times.min():g} ms and none above 0: no frame of a slice "
                                    f"after its R wave, so their meaning is unknown")
    for clock in ("temporal", "instance"):
        numbers = np.array([[getattr(image.header, clock) for image in images] for images in slices], float)
        if not np.isnan(numbers).any() and all(len(set(one)) == n for one in numbers):
            turns = (numbers > np.roll(numbers, -1, axis=1)).sum(axis=1)  # 1 where the numbers only wrap around once
            if turns.max() > 1:
                raise CineError(first.path, f"the trigger times begin at {times.min():g} ms and do not run as the "
                                            f"{clock} numbers do: the order of the frames is unknown")
            break
    step = np.median(np.diff(times, axis=1))
    before = int((np.median(times, axis=0) < -step / 2).sum())
    if not before:
        return slices, ""
    cycles = [image.header.rr_ms for images in slices for image in images if image.header.rr_ms]
    if not cycles or abs(n * step - np.median(cycles)) > MAX_UNFILLED * np.median(cycles):
        raise CineError(first.path, f"{before} of {n} frames lie before the R wave (trigger times from "
                                    f"{times.min():g} ms), and the header does not say that the frames fill the "
                                    f"heart's cycle (NominalInterval): they may not be of one beat")
    remark = f"{before} of {n} frames lie before the R wave and were moved to the end of the cycle"
    return [images[before:] + images[:before] for images in slices], remark


def _volume(images: list[Image], affine: np.ndarray, sha256: str) -> Volume:
    """One frame: slices (Rows, Columns) -> (X, Y, Z); float32 where the slices' value scaling differs."""
    scalings = {(image.header.slope, image.header.inter) for image in images}
    alike = len(scalings) == 1
    dtype = np.result_type(*(image.pixels.dtype for image in images)) if alike else np.dtype(np.float32)
    data = np.empty((*images[0].pixels.shape[::-1], len(images)), dtype.newbyteorder("="), order="F")
    with np.errstate(over="ignore"):
        for z, image in enumerate(images):
            pixels = image.pixels.T
            data[..., z] = pixels if alike else pixels * image.header.slope + image.header.inter
    slope, inter = scalings.pop() if alike else (1.0, 0.0)
    return Volume(data, slope, inter, affine, None, sha256)


def _frame_time(slices: list[list[Image]]) -> float | None:
    """ms between frames: from trigger times, else the heart's cycle divided by the frames, else FrameTime."""
    n = len(slices[0])
    triggers = [[image.header.trigger_ms for image in images] for images in slices]
    if n > 1 and all(time is not None for one in triggers for time in one):
        steps = np.median([np.median(np.diff(sorted(one))) for one in triggers])
        if steps > 0:
            return _plausible(steps)
    headers = [image.header for images in slices for image in images]
    cycles = [header.rr_ms for header in headers if header.rr_ms]
    if cycles:
        return _plausible(np.median(cycles) / n)
    steps = [header.frame_ms for header in headers if header.frame_ms]
    return _plausible(np.median(steps)) if steps else None


def _plausible(ms: float) -> float | None:
    return float(f"{ms:.6g}") if 1.0 <= ms <= 500.0 else None
