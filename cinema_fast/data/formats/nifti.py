"""A defensive reader of one cine from NIfTI files, which does not trust headers.

Research folders hold truncated downloads, headers that do not belong to their data, and label maps or single frames
named like a cine. `read_cine` returns a cine whose axes, geometry and values have been checked, or raises a CineError
that names the file and the reason. It never allocates more than the file can hold.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import stat
import zlib
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np

from .cine import MAX_BYTES, Cine, CineError, Volume, check_cine, check_time_axis, joined_sha256

# Deflate cannot expand data further than this (RFC 1951: 258 bytes from 2 bits), so a header that asks for more
# is refused before anything is decompressed.
MAX_DEFLATE_RATIO = 1032
# Headers round directions to 1e-6 or so.
ALONG_SCANNER = 1e-4
# Relative difference between the voxel sizes of a header's affine and of its pixdim, both float32 of the same numbers.
MAX_SIZE_DIFFERENCE = 0.01

# The codes of the header's xyzt_units: metre, mm, micron; second, ms, microsecond.
_MM_PER_UNIT = {1: 1000.0, 2: 1.0, 3: 0.001}
_MS_PER_UNIT = {8: 1000.0, 16: 1.0, 24: 0.001}


class _Hashed(io.RawIOBase):
    """Hashes a file's bytes while they are read, so that a source is read once."""

    def __init__(self, raw: io.RawIOBase) -> None:
        self.raw, self.sha256 = raw, hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        n = self.raw.readinto(buffer)
        self.sha256.update(memoryview(buffer)[:n])
        return n


def _read_up_to(stream: io.BufferedIOBase, n: int) -> bytearray:
    """At most `n` bytes; the buffer grows with the bytes of the file, not with the size that its header claims."""
    buffer = bytearray()
    while len(buffer) < n and (chunk := stream.read(min(n - len(buffer), 1 << 20))):
        buffer += chunk
    return buffer


def _parse_header(path: Path, stream: io.BufferedIOBase):
    """Shape, dtype, (size of the header, offset of the pixels), and the fields of a Volume before and after sha256."""
    import nibabel as nib
    from nibabel.spatialimages import HeaderDataError

    start = _read_up_to(stream, 348)
    if len(start) < 348:
        raise CineError(path, f"not NIfTI: {len(start)} bytes, a header has 348" if start else "the file is empty")
    sizes = {int.from_bytes(start[:4], order) for order in ("little", "big")}
    if 540 in sizes:
        start += _read_up_to(stream, 192)
    if not sizes & {348, 540} or len(start) not in (348, 540):
        raise CineError(path, "not NIfTI: the header's own size is neither 348 (NIfTI-1) nor 540 (NIfTI-2)")
    header = (nib.Nifti2Header if len(start) == 540 else nib.Nifti1Header)(bytes(start), check=False)
    if header["pixdim"][0] == 0:  # the standard reads 0 as 1
        header["pixdim"][0] = 1
    ndim = int(header["dim"][0])
    shape = tuple(int(n) for n in header["dim"][1 : max(ndim, 0) + 1])
    if bytes(header["magic"])[:3] not in (b"n+1", b"n+2"):
        raise CineError(path, "not a single-file NIfTI (its magic is neither n+1 nor n+2)")
    if not 1 <= ndim <= 7 or min(shape) < 1:
        raise CineError(path, f"the header claims {ndim} axes of the lengths {shape}")
    try:
        dtype = header.get_data_dtype()
        offset = int(header["vox_offset"])
        slope, inter = header.get_slope_inter()
        with np.errstate(all="ignore"):
            affine = np.array(header.get_best_affine(), np.float64)
    except KeyError:
        raise CineError(path, f"unreadable NIfTI header: pixels of the unknown datatype {int(header['datatype'])}") \
            from None
    except (HeaderDataError, ValueError, OverflowError) as err:
        raise CineError(path, f"unreadable NIfTI header: {err}") from err
    if dtype.fields or dtype.kind not in "iuf":
        raise CineError(path, f"pixels of type {dtype} (a cine has one real number a pixel)")
    if offset < len(start):
        raise CineError(path, f"the header puts the data at byte {offset}, inside the header")
    _check_sizes(path, shape, affine, header)
    remark = _sform_against_qform(header, shape)
    units = int(header["xyzt_units"])
    affine[:3] *= _MM_PER_UNIT.get(units & 0x07, 1.0)
    step = float(header["pixdim"][4]) * _MS_PER_UNIT.get(units & 0x38, math.nan)
    # writers that do not know the frame time leave "1 second"; no cine has such frames, so it means unknown
    frame_time_ms = float(f"{step:.6g}") if 1.0 <= step <= 500.0 else None
    scaling = (1.0, 0.0) if slope is None else (float(slope), float(inter))
    oriented = bool(header["sform_code"] > 0 or header["qform_code"] > 0) and not _along_scanner(affine)
    return shape, dtype, (len(start), offset), (*scaling, affine, frame_time_ms), (oriented, remark)


def _along_scanner(affine: np.ndarray) -> bool:
    """Whether the axes are those of the scanner, X and Y in any order. Programs write these axes where they do not know
    the patient's orientation; planes planned on a heart are never this close to them."""
    with np.errstate(all="ignore"):
        directions = np.abs(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0))
    along = (np.eye(3), np.eye(3)[[1, 0, 2]])
    return any(np.abs(directions - axes).max() < ALONG_SCANNER for axes in along)


def _check_sizes(path: Path, shape: tuple[int, ...], affine: np.ndarray, header) -> None:
    """Refuse a header whose affine and pixdim give different voxel sizes, along axes with more than one voxel: one of
    them is wrong, and volumes would be off by their ratio. A pixdim of 0 is not set and is ignored."""
    if header["sform_code"] <= 0 and (np.array(header["pixdim"][1:4]) < 0).any():
        raise CineError(path, f"voxels of {' x '.join(f'{size:.4g}' for size in header['pixdim'][1:4])} by its pixdim: "
                              f"sizes must be above 0; write the file again")
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    by_pixdim = np.abs(np.array(header["pixdim"][1:4], np.float64))
    compared = np.array([n > 1 for n in (*shape, 1, 1)[:3]]) & np.isfinite(by_pixdim) & (by_pixdim > 0) & (sizes > 0)
    if (np.abs(sizes - by_pixdim) > MAX_SIZE_DIFFERENCE * np.maximum(sizes, by_pixdim))[compared].any():
        here, there = (" x ".join(f"{size:.4g}" for size in one) for one in (sizes, by_pixdim))
        which = "sform" if header["sform_code"] > 0 else "qform"
        raise CineError(path, f"the header contradicts itself: voxels of {here} by its {which}, of {there} by its "
                              f"pixdim; write the file again with the right one of the two")


def _sform_against_qform(header, shape: tuple[int, ...]) -> str:
    """A remark on which of the two is used, where both are set and put a corner half a pixel or more apart; else ""."""
    if header["sform_code"] <= 0 or header["qform_code"] <= 0:
        return ""
    from nibabel.spatialimages import HeaderDataError

    try:
        with np.errstate(all="ignore"):
            sform, qform = header.get_sform(), header.get_qform()
            corners = np.array([(*corner, 1) for corner in product(*((0, n - 1) for n in (*shape, 1, 1)[:3]))])
            apart = float(np.linalg.norm(corners @ (sform - qform).T, axis=1).max())
            pixel = float(np.linalg.norm(sform[:3, :2], axis=0).min())
    except (HeaderDataError, ValueError):  # no unit quaternion, say
        return "its qform cannot be read: its sform is used"
    if apart < pixel / 2:
        return ""
    return f"its sform and qform differ, by up to {apart / pixel:.3g} pixels: its sform is used"


def read_nifti(path: Path | str) -> Volume:
    """Read one NIfTI-1 or NIfTI-2 file, gzip-compressed or not (by its content, not by its name).

    Raises:
        CineError: unreadable, corrupt, truncated, longer than its header says, or not a real-valued NIfTI.
    """
    path = Path(path)
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):
            raise CineError(path, "not a regular file")
        with path.open("rb", buffering=0) as raw:
            hashed = _Hashed(raw)
            stream = io.BufferedReader(hashed, 1 << 20)
            compressed = stream.peek(2)[:2] == b"\x1f\x8b"
            if compressed:
                stream = gzip.GzipFile(fileobj=stream)
            shape, dtype, (start, offset), geometry, about = _parse_header(path, stream)
            n_bytes = math.prod(shape) * dtype.itemsize
            limit = min(MAX_BYTES, info.st_size * (MAX_DEFLATE_RATIO if compressed else 1))
            if offset + n_bytes > limit:
                raise CineError(path, f"the header's shape {shape} needs {n_bytes} bytes, "
                                      f"a file of {info.st_size} bytes cannot hold them: truncated or not its header")
            gap = len(_read_up_to(stream, offset - start))
            data = _read_up_to(stream, n_bytes)
            if gap < offset - start or len(data) < n_bytes:
                raise CineError(path, f"truncated: the header's shape {shape} needs {n_bytes} bytes of pixels")
            # reading to the end makes gzip check its checksum
            if surplus := len(stream.read(1)):
                while chunk := stream.read(1 << 20):
                    surplus += len(chunk)
                raise CineError(path, f"{surplus} bytes more than the header's shape {shape} accounts for")
    except EOFError as err:
        raise CineError(path, "truncated: the compressed data ends early") from err
    except gzip.BadGzipFile as err:
        if str(err).startswith("Not a gzipped file"):  # the file begins as gzip, but other data follow
            raise CineError(path, "data that is not gzip follows the compressed data: the file was joined or "
                                  "overwritten; decompress and compress it again") from err
        raise CineError(path, f"corrupt: {err}") from err
    except zlib.error as err:
        raise CineError(path, f"corrupt: {err}") from err
    except OSError as err:
        raise CineError(path, f"cannot be read: {err.strerror or err}") from err
    pixels = np.frombuffer(data, dtype).reshape(shape, order="F")
    return Volume(pixels, *geometry, hashed.sha256.hexdigest(), *about)


def is_volume(path: Path) -> bool:
    """Whether the header of a file has one frame: (X, Y, Z) or (X, Y, Z, 1). True too where it cannot be read: reading
    the file says why."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return True
        with path.open("rb") as raw:
            compressed = raw.peek(2)[:2] == b"\x1f\x8b"
            shape, *_ = _parse_header(path, gzip.GzipFile(fileobj=raw) if compressed else raw)
    except (CineError, OSError, EOFError, zlib.error):
        return True
    return len(shape) <= 3 or shape[3] == 1


def read_cine(paths: Path | str | Sequence[Path], *, stack: bool | None) -> Cine:
    """Read and check one view of one study.

    Args:
        paths: a 4D file (X, Y, Z, T), time last, of at least two frames; or a sequence of 3D files (X, Y, Z), one per
            frame, in the order of time, or one per channel. Long-axis views have Z = 1.
        stack: whether the view is a stack of slices (SAX) or a single slice (LAX); None: either.

    Raises:
        CineError: as `read_nifti`; not 4D; time or slice axis in the wrong place, judged by shape, spacing and
            smoothness (in a cine of mostly noise, exchanged time and slices are not found; exchanged X and Y never
            are); a singular, sheared or non-finite affine; spacing that no scanner makes; non-finite values; constant
            frames.
    """
    single = isinstance(paths, (str, Path))
    paths = [Path(paths)] if single else [Path(p) for p in paths]
    volumes = tuple(read_nifti(path) for path in paths)
    first = volumes[0]
    shapes = [volume.data.shape for volume in volumes]
    if single:
        if len(shapes[0]) != 4 or shapes[0][3] < 2:
            volume = len(shapes[0]) == 3 or shapes[0][3:] == (1,)
            single_volume = ("; a view of single volumes has a name that says its sequence, such as lge_sax "
                             "(--aliases), or is named by --single") * volume  # fmt: skip
            raise CineError(paths[0], f"not a cine: shape {shapes[0]}, expected (X, Y, Z, T) with at least 2 frames"
                                      f"{single_volume}")
    else:
        shapes = [(*shape, 1)[:3] if len(shape) < 4 or shape[3:] == (1,) else shape for shape in shapes]
        for path, shape, volume in zip(paths, shapes, volumes):
            if len(shape) != 3:
                raise CineError(path, f"not a single frame: shape {shape}, expected (X, Y, Z)")
            if shape != shapes[0] or not np.allclose(volume.affine, first.affine, atol=1e-2):
                raise CineError(path, f"shape {shape} or affine differs from that of {paths[0].name}")
    sha256 = joined_sha256([volume.sha256 for volume in volumes])
    n_frames = shapes[0][3] if single else len(paths)
    about = first.oriented, next((volume.remark for volume in volumes if volume.remark), "")
    cine = Cine(volumes, shapes[0][:3], n_frames, first.affine, first.frame_time_ms, sha256, *about)
    check_cine(cine, paths[0], stack=stack)
    if single:
        try:
            check_time_axis(cine)
        except ValueError as err:
            raise CineError(paths[0], str(err)) from None
    return cine
