"""A defensive reader of one DICOM file, which does not trust headers: the header, and the attributes of each image.

Files are parsed by pydicom from memory. A read there ends with the bytes that exist, so a false length in a header
allocates nothing. A deflated file is inflated here, up to a ratio. Every error that pydicom raises on a malformed file
becomes a `CineError` that names the file.
"""

from __future__ import annotations

import contextlib
import io
import math
import stat
import sys
import warnings
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .cine import MAX_BYTES, CineError

if TYPE_CHECKING:
    from pydicom import Dataset

# 12-bit pixels of a heart deflate to a half or a quarter. A larger ratio means a file of zeros.
MAX_INFLATION = 64
# A header of one image has a few thousand bytes.
HEADER_BYTES = 1 << 16
# Pixels of floats, doubles and integers, (7FE0,0008) to (7FE0,0010): elements are sorted by tag.
FIRST_PIXEL_TAG = 0x7FE00008
# A sequence item is 8 bytes in a file and 1.4 kB in memory; an enhanced file has ten or twenty for each image.
MAX_ITEMS = 100_000
# The values that are read are descriptions, or a few numbers of some 20 bytes each.
MAX_VALUE_BYTES = 4096
# No cine has so many images: 20 slices of 50 frames are 1000.
MAX_IMAGES = 10_000

_TAGS = (
    "SpecificCharacterSet", "ImageType", "ComplexImageComponent", "SOPInstanceUID", "Modality", "SeriesDescription",
    "ProtocolName", "PatientID", "PatientSex", "PatientAge", "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber",
    "AcquisitionNumber", "InstanceNumber", "TriggerTime", "NominalInterval", "FrameTime", "CardiacNumberOfImages",
    "TemporalPositionIdentifier", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness",
    "RescaleSlope", "RescaleIntercept", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
    "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "Rows", "Columns", "BitsAllocated", "BitsStored",
    "HighBit", "PixelRepresentation", "PixelData",
)  # fmt: skip

# Attributes that a single-frame file holds at the top level are in functional groups of an enhanced file, shared or one
# per image, some with another name.
_GROUPS = {
    "ImagePositionPatient": ("PlanePositionSequence", "ImagePositionPatient"),
    "ImageOrientationPatient": ("PlaneOrientationSequence", "ImageOrientationPatient"),
    "PixelSpacing": ("PixelMeasuresSequence", "PixelSpacing"),
    "SliceThickness": ("PixelMeasuresSequence", "SliceThickness"),
    "RescaleSlope": ("PixelValueTransformationSequence", "RescaleSlope"),
    "RescaleIntercept": ("PixelValueTransformationSequence", "RescaleIntercept"),
    "TriggerTime": ("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),
    "NominalInterval": ("CardiacSynchronizationSequence", "RRIntervalTimeNominal"),
    "TemporalPositionIdentifier": ("FrameContentSequence", "TemporalPositionIndex"),
    "AcquisitionNumber": ("FrameContentSequence", "FrameAcquisitionNumber"),
}


# Values of ComplexImageComponent, or of ImageType from its third value on, that mean pixels other than magnitudes.
_NO_MAGNITUDE = {
    "P", "PHASE", "PHASE MAP", "PHASE_MAP", "VELOCITY", "VELOCITY MAP", "VELOCITY_MAP", "R", "REAL", "I", "IMAGINARY",
}
# Storage classes of MR images: single-frame, enhanced, and legacy converted enhanced.
_MR_IMAGES = {f"1.2.840.10008.5.1.4.1.1.{n}" for n in ("4", "4.1", "4.4")}


class ImageHeader(NamedTuple):
    """One image of a file.

    position: (3,) mm of the middle of its first pixel. orientation: (6,) unit vectors along a row and down a column;
    both in the patient's coordinates of DICOM (LPS+). spacing: (2,) mm between rows and between columns. thickness: mm,
    None if unknown. Time, each None where the file does not say: trigger_ms after the R wave, temporal (index),
    instance and acquisition (numbers), rr_ms (length of the heart's cycle), frame_ms, n_phases (images in a cycle).
    Values are `pixel * slope + inter`; magnitude: whether they are magnitudes, which is assumed where the file does not
    say.
    """

    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing: tuple[float, ...]
    thickness: float | None
    trigger_ms: float | None
    temporal: float | None
    instance: float | None
    acquisition: float | None
    rr_ms: float | None
    frame_ms: float | None
    n_phases: float | None
    slope: float
    inter: float
    magnitude: bool

    @property
    def normal(self) -> np.ndarray:
        """(3,) unit vector, LPS+: along a row x down a column."""
        return np.cross(self.orientation[:3], self.orientation[3:])


def require_pydicom() -> None:
    """Raise ValueError where pydicom is not installed."""
    try:
        import pydicom  # noqa: F401
    except ImportError as err:
        raise ValueError("DICOM needs pydicom and its decoders, which are not installed: "
                         "pip install 'cinema-fast[dicom]'") from err


def is_dicom(path: Path) -> bool:
    """Whether a file's name or the mark at byte 128 says that it is DICOM, or the file cannot be read."""
    if path.suffix.lower() in (".dcm", ".ima"):
        return True
    try:
        with path.open("rb", buffering=0) as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return True  # the reader says why not


@contextlib.contextmanager
def malformed(path: Path) -> Iterator[None]:
    """Turns any error of pydicom and numpy on malformed content into a CineError of `path`, and mutes warnings."""
    import pydicom

    try:
        with warnings.catch_warnings(), pydicom.config.disable_value_validation():
            warnings.simplefilter("ignore")
            yield
    except CineError:
        raise
    except OSError as err:
        raise CineError(path, f"cannot be read: {err.strerror or err}") from err
    except Exception as err:  # malformed files make pydicom raise nearly every kind of error
        what = " ".join(str(err).split())[:200]
        raise CineError(path, f"malformed DICOM ({type(err).__name__}: {what})") from err


def read_header(path: Path) -> Dataset:
    """The header of a file, with the attributes that this package uses.

    Raises CineError, also for an MR image that is cut short before the UID of its series.
    """
    with malformed(path):
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):
            raise CineError(path, "not a regular file")
        with path.open("rb", buffering=0) as raw:
            content = b""
            while True:  # few headers are longer than the first part
                part = raw.read(min(HEADER_BYTES + 15 * len(content), info.st_size - len(content)))
                content += part
                try:
                    dataset, ended = _parse(path, content, pixels=False)
                    if ended:
                        return dataset
                except Exception:
                    if part and len(content) < info.st_size:
                        continue
                    raise
                if not part or len(content) >= info.st_size:
                    if is_mr_image(dataset) and not any(element.tag > _series_tag() for element in dataset):
                        raise CineError(path, "truncated: the file ends in its header")
                    return dataset


def read_dataset(path: Path, content: bytes) -> Dataset:
    """Header and pixels of a file with that content. Raises CineError."""
    with malformed(path):
        return _parse(path, content, pixels=True)[0]


def _parse(path: Path, content: bytes, *, pixels: bool) -> tuple[Dataset, bool]:
    """The attributes of a file; and, where `pixels` are not read, whether pixel data follow."""
    from pydicom.filereader import read_dataset

    stream = io.BytesIO(content)
    if stream.read(132)[128:] != b"DICM":
        raise CineError(path, "not DICOM: no DICM at byte 128")
    meta = read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
    syntax = meta.get("TransferSyntaxUID")
    if syntax is None:
        raise CineError(path, "the header names no transfer syntax")
    if not syntax.is_transfer_syntax:
        raise CineError(path, f"the transfer syntax {syntax} is not one of DICOM's")
    if syntax.is_deflated:
        content = _inflate(path, stream.read())
        stream = io.BytesIO(content)
    if content.count(b"\xfe\xff\x00\xe0" if syntax.is_little_endian else b"\xff\xfe\xe0\x00") > MAX_ITEMS:
        raise CineError(path, f"more than {MAX_ITEMS} items of sequences")
    ended = False

    def at_pixels(tag: int, vr: str | None, length: int) -> bool:
        nonlocal ended
        ended = int.__ge__(tag, FIRST_PIXEL_TAG)  # the tag's own comparison is as slow as its parsing
        return ended

    dataset = read_dataset(
        stream, syntax.is_implicit_VR, syntax.is_little_endian, stop_when=None if pixels else at_pixels,
        specific_tags=_tags(),
    )
    dataset.file_meta = meta
    return dataset, ended


def is_mr_image(dataset: Dataset) -> bool:
    """Whether the first attributes of a file say that it is an MR image, which has pixels."""
    return dataset.file_meta.get("MediaStorageSOPClassUID") in _MR_IMAGES


@lru_cache
def _series_tag() -> int:
    from pydicom.tag import Tag

    return Tag("SeriesInstanceUID")


@lru_cache
def _tags() -> list[int]:
    from pydicom.tag import Tag

    return [Tag(name) for name in _TAGS]


def _inflate(path: Path, packed: bytes) -> bytes:
    limit = min(MAX_BYTES, MAX_INFLATION * len(packed) + 4096)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    out = bytearray()
    while packed and not inflater.eof:
        out += inflater.decompress(packed, 1 << 20)
        packed = inflater.unconsumed_tail
        if len(out) > limit:
            raise CineError(path, f"its deflated content grows more than {MAX_INFLATION}-fold: no heart image does")
    if not inflater.eof:
        raise CineError(path, "truncated: the deflated content ends early")
    return bytes(out)


def value_of(dataset: Dataset, keyword: str) -> object:
    """An attribute's value, or None. Raises ValueError for a value too long to be converted."""
    if keyword not in dataset:
        return None
    raw = dataset.get_item(keyword).value
    if isinstance(raw, bytes) and len(raw) > MAX_VALUE_BYTES:
        raise ValueError(f"{keyword} has {len(raw)} bytes")
    return dataset.get(keyword)


def text(dataset: Dataset, keyword: str) -> str:
    """An attribute as one line of printable characters; empty where it is missing or cannot be read."""
    try:
        value = str(value_of(dataset, keyword) or "")
    except Exception:  # an unknown character set, or a value of another type: no description
        return ""
    # interned, because thousands of files have the same few values
    return sys.intern(" ".join("".join(c if c.isprintable() else " " for c in value).split()))


def series_of(path: Path, dataset: Dataset) -> str:
    """The series of a file: its SeriesInstanceUID; where the header has none, the folder with the number and the
    descriptions that the header gives, since some archives are anonymised to one folder a series."""
    described = (text(dataset, name) for name in ("SeriesNumber", "SeriesDescription", "ProtocolName"))
    return text(dataset, "SeriesInstanceUID") or "\n".join((str(path.parent), *described))


def whole_number(dataset: Dataset, keyword: str, default: int | None = None) -> int:
    """An integer attribute. Raises ValueError where it is missing (without a default) or not an integer."""
    value = value_of(dataset, keyword)
    value = default if value is None or value == "" else value
    if value is None:
        raise ValueError(f"no {keyword}")
    if float(value) != int(value):
        raise ValueError(f"{keyword} is {value}")
    return int(value)


def image_headers(path: Path, dataset: Dataset) -> list[ImageHeader]:
    """The header of each image in a file. Raises CineError."""
    with malformed(path):
        images = _groups(path, dataset)
        return [_image_header(path, dataset, groups, k, len(images)) for k, groups in enumerate(images)]


def magnitudes(path: Path, dataset: Dataset) -> list[bool]:
    """For each image of a file whether it shows magnitudes (True where the file does not say). Raises CineError."""
    with malformed(path):
        return [_is_magnitude(dataset, groups) for groups in _groups(path, dataset)]


def image_places(path: Path, dataset: Dataset) -> list[tuple[tuple[float, ...], float]]:
    """For each magnitude image of a file its normal (3,), LPS+, and its position along the normal in mm.

    Raises CineError.
    """
    places = []
    with malformed(path):
        for groups in _groups(path, dataset):
            if not _is_magnitude(dataset, groups):
                continue
            position = _numbers(path, dataset, groups, "ImagePositionPatient", 3)
            orientation = _numbers(path, dataset, groups, "ImageOrientationPatient", 6)
            if position is None or orientation is None:
                raise CineError(path, "an image without position or orientation")
            (a, b, c), (d, e, f) = orientation[:3], orientation[3:]
            normal = b * f - c * e, c * d - a * f, a * e - b * d
            places.append((normal, sum(n * p for n, p in zip(normal, position))))
    return places


def _groups(path: Path, dataset: Dataset) -> list[list[Dataset]]:
    """For each image of a file the functional groups that hold its attributes, besides the top level."""
    n = whole_number(dataset, "NumberOfFrames", 1)
    if not 1 <= n <= MAX_IMAGES:
        raise CineError(path, f"the header claims {n} images (NumberOfFrames)")
    per_image = dataset.get("PerFrameFunctionalGroupsSequence") or []
    if per_image and len(per_image) != n:
        raise CineError(path, f"the header claims {n} images (NumberOfFrames) and describes {len(per_image)}")
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    return [[*per_image[k : k + 1], *shared[:1]] for k in range(n)]


def _is_magnitude(dataset: Dataset, groups: list[Dataset]) -> bool:
    frame_type = [group["MRImageFrameTypeSequence"][0] for group in groups if group.get("MRImageFrameTypeSequence")]
    for level in (*frame_type, dataset):
        component = text(level, "ComplexImageComponent").upper()
        if component in _NO_MAGNITUDE or component == "MAGNITUDE":
            return component == "MAGNITUDE"
        for keyword in ("FrameType", "ImageType"):
            values = value_of(level, keyword)
            if values and not isinstance(values, str):
                return not any(str(value).strip().upper() in _NO_MAGNITUDE for value in values[2:])
    return True


def _numbers(path: Path, dataset: Dataset, groups: list[Dataset], keyword: str, n: int) -> tuple[float, ...] | None:
    """`n` finite numbers of an attribute, None where it is absent. Raises CineError for any other value."""
    sequence, name = _GROUPS.get(keyword, (None, None))
    value = None
    for group in groups:
        if value is None and sequence and group.get(sequence):
            value = value_of(group[sequence][0], name)
    value = value_of(dataset, keyword) if value is None else value
    if value is None or value == "":
        return None
    values = tuple(float(v) for v in (value if n > 1 else [value]))
    if len(values) != n or not all(map(math.isfinite, values)):
        raise CineError(path, f"{keyword} is {value}, expected {n} finite numbers")
    return values


def _image_header(path: Path, dataset: Dataset, groups: list[Dataset], k: int, n: int) -> ImageHeader:
    def number(keyword: str) -> float | None:
        found = _numbers(path, dataset, groups, keyword, 1)
        return found[0] if found else None

    where = [_numbers(path, dataset, groups, name, count) for name, count in
             (("ImagePositionPatient", 3), ("ImageOrientationPatient", 6), ("PixelSpacing", 2))]
    if None in where:
        raise CineError(path, "no position, orientation or pixel spacing"
                              + (f" of image {k + 1} of {n}" if n > 1 else ""))
    row, column = np.reshape(where[1], (2, 3))
    if max(abs(row @ row - 1), abs(column @ column - 1), abs(row @ column)) > 1e-2:
        raise CineError(path, f"ImageOrientationPatient {list(where[1])} is not a pair of orthogonal unit vectors")
    if min(where[2]) <= 0:
        raise CineError(path, f"PixelSpacing is {list(where[2])}")
    # in a file of many images without functional groups, only their order in the file tells them apart
    instance = number("InstanceNumber") if n == 1 else float(k)
    slope, inter = number("RescaleSlope"), number("RescaleIntercept")
    return ImageHeader(
        *where, number("SliceThickness"), number("TriggerTime"), number("TemporalPositionIdentifier"), instance,
        number("AcquisitionNumber"), number("NominalInterval"), number("FrameTime"), number("CardiacNumberOfImages"),
        1.0 if slope is None else slope, inter or 0.0, _is_magnitude(dataset, groups),
    )  # fmt: skip
