"""The pixels of a DICOM file's images. Sizes are checked against the actual bytes before anything is decoded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .cine import MAX_BYTES, CineError
from .dicom_file import malformed, text, whole_number

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.uid import UID

# No codec compresses the image of a heart more than this; constant images are refused anyway.
MAX_COMPRESSION = 200
# A decoder needs kilobytes for each tile of a JPEG 2000 image, however small; scanners write one tile.
MAX_TILES = 64


def read_pixels(path: Path, dataset: Dataset) -> list[np.ndarray]:
    """The stored values of every image: (Rows, Columns), integers of the file's width in this machine's byte order.

    Raises:
        CineError: no pixels, fewer or more than the header says, colour, an unusual number of bits, a transfer syntax
            without an installed decoder, damaged compressed data.
    """
    with malformed(path):
        syntax = dataset.file_meta.TransferSyntaxUID
        rows, columns = whole_number(dataset, "Rows"), whole_number(dataset, "Columns")
        n, allocated = whole_number(dataset, "NumberOfFrames", 1), whole_number(dataset, "BitsAllocated")
        stored = whole_number(dataset, "BitsStored", allocated)
        high = whole_number(dataset, "HighBit", stored - 1)
        signed = whole_number(dataset, "PixelRepresentation", 0)
        colour = text(dataset, "PhotometricInterpretation") or "MONOCHROME2"
        if whole_number(dataset, "SamplesPerPixel", 1) != 1 or colour != "MONOCHROME2":
            raise CineError(path, f"pixels are {colour}, expected MONOCHROME2 with one sample a pixel")
        if allocated not in (8, 16, 32) or not 1 <= stored <= allocated or not stored - 1 <= high < allocated:
            raise CineError(path, f"{allocated} bits allocated, {stored} stored, high bit {high}: not those of a cine")
        if signed not in (0, 1) or rows < 1 or columns < 1:
            raise CineError(path, f"Rows {rows}, Columns {columns}, PixelRepresentation {signed}")
        data = dataset.get("PixelData")
        if not isinstance(data, bytes):
            raise CineError(path, "no pixels (PixelData)")
        n_bytes = rows * columns * allocated // 8
        claim = f"{n} images of {columns} x {rows} pixels of {allocated} bits"
        if syntax.is_encapsulated:
            if n * n_bytes > min(MAX_BYTES, MAX_COMPRESSION * len(data)):
                raise CineError(path, f"{claim} cannot be in {len(data)} bytes of compressed pixels")
            return _decode(path, dataset, syntax, data, n)
        if len(data) not in (n * n_bytes, n * n_bytes + n * n_bytes % 2):
            raise CineError(path, f"{len(data)} bytes of pixels, {claim} are {n * n_bytes}: truncated, or not its "
                                  f"header")
        dtype = np.dtype(f"{'<' if syntax.is_little_endian else '>'}{'i' if signed else 'u'}{allocated // 8}")
        images = np.frombuffer(data, dtype, n * rows * columns).reshape(n, rows, columns)
        if stored < allocated:  # the other bits may hold an overlay; the highest stored bit is the sign
            images = images.astype(dtype.newbyteorder("="))
            images = (images << (allocated - 1 - high)) >> (allocated - stored)
        return list(images)


def _decode(path: Path, dataset: Dataset, syntax: UID, data: bytes, n: int) -> list[np.ndarray]:
    from pydicom.encaps import encapsulate, generate_frames
    from pydicom.pixels import get_decoder

    try:
        decoder = get_decoder(syntax)
        missing = [] if decoder.is_available else decoder.missing_dependencies
    except NotImplementedError:
        decoder, missing = None, ["none is known"]
    if decoder is None or missing:
        raise CineError(path, f"compressed as {syntax.name}, for which no decoder is installed ({'; '.join(missing)}): "
                              f"pip install 'cinema-fast[dicom]'")
    rows, columns, images = int(dataset.Rows), int(dataset.Columns), []
    options = dict(
        rows=rows, columns=columns, number_of_frames=1, samples_per_pixel=1, photometric_interpretation="MONOCHROME2",
        bits_allocated=int(dataset.BitsAllocated), bits_stored=int(dataset.BitsStored),
        pixel_representation=int(dataset.get("PixelRepresentation") or 0), pixel_keyword="PixelData",
    )  # fmt: skip
    for frame in generate_frames(data, number_of_frames=n):
        size, components = _codestream_shape(frame)
        if components != 1:
            raise CineError(path, f"compressed image {len(images) + 1} of {n} has {components} components, expected 1")
        if size not in (None, (rows, columns)):
            raise CineError(path, f"compressed image {len(images) + 1} of {n} is {size[1]} x {size[0]}, the header "
                                  f"says {columns} x {rows}")
        if len(images) == n:
            raise CineError(path, f"more compressed images than the {n} of the header")
        image = decoder.as_array(encapsulate([frame], has_bot=False), index=0, **options)[0]
        if image.shape != (rows, columns):
            raise CineError(path, f"image {len(images) + 1} of {n} decodes to {image.shape}, expected {rows, columns}")
        images.append(image)
    if len(images) != n:
        raise CineError(path, f"{len(images)} compressed images, the header says {n} (NumberOfFrames)")
    return images


def _codestream_shape(frame: bytes) -> tuple[tuple[int, int] | None, int]:
    """(rows, columns) and components that a JPEG, JPEG-LS or JPEG 2000 stream decodes to; (None, 1) for run lengths.

    Raises ValueError for a stream that does not say: a decoder might allocate any size.
    """
    if frame[:4] == b"\xff\x4f\xff\x51":  # JPEG 2000: SIZ comes first
        x1, y1, x0, y0, tile_x, tile_y = (int.from_bytes(frame[at : at + 4]) for at in range(8, 32, 4))
        if not tile_x or not tile_y or -(-x1 // tile_x) * -(-y1 // tile_y) > MAX_TILES:
            raise ValueError(f"a JPEG 2000 stream of more than {MAX_TILES} tiles, {tile_x} x {tile_y} each")
        return (y1 - y0, x1 - x0), int.from_bytes(frame[40:42])
    if frame[:2] == b"\xff\xd8":  # JPEG and JPEG-LS: segments, one of which is a start of frame
        at = 2
        while at + 9 < len(frame) and frame[at] == 0xFF:
            marker, length = frame[at + 1], int.from_bytes(frame[at + 2 : at + 4])
            if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
                size = int.from_bytes(frame[at + 5 : at + 7]), int.from_bytes(frame[at + 7 : at + 9])
                return size, frame[at + 9]
            at += 1 if marker == 0xFF else 2 + length
        raise ValueError("a JPEG stream without a start of frame")
    if frame[:4] in (b"\x01\0\0\0", b"\x02\0\0\0", b"\x04\0\0\0"):  # run lengths, a segment per byte of a pixel
        return None, 1
    raise ValueError("compressed data of an unknown image format")
