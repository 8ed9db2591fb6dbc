"""JPEG streams for tests: baseline by Pillow, lossless by a few lines of ours, JPEG-LS as pydicom brings it."""

import io
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image
from pydicom.encaps import encapsulate, generate_frames


def baseline(image: np.ndarray) -> bytes:
    """uint8 (Rows, Columns) -> a stream of 8 bits, with losses."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def lossless(image: np.ndarray) -> bytes:
    """uint16 (Rows, Columns) -> process 14, selection value 1 (ITU-T T.81, H.1.2): each pixel less its neighbour."""
    x = image.astype(np.int64)
    predicted = np.roll(x, 1, axis=1)
    predicted[1:, 0], predicted[0, 0] = x[:-1, 0], 1 << 15
    bits = []
    for difference in (x - predicted).flat:
        difference = (int(difference) + 32767) % 65536 - 32767
        size = abs(difference).bit_length()
        bits.append(f"{size:05b}")  # 17 sizes, each with a code of 5 bits
        if 0 < size < 16:
            bits.append(f"{difference if difference > 0 else difference + (1 << size) - 1:0{size}b}")
    text = "".join(bits)
    text += "1" * (-len(text) % 8)
    scan = int(text, 2).to_bytes(len(text) // 8).replace(b"\xff", b"\xff\0")
    rows, columns = (n.to_bytes(2) for n in image.shape)
    return b"".join([
        b"\xff\xd8",
        b"\xff\xc3\0\x0b\x10", rows, columns, b"\1\1\x11\0",
        b"\xff\xc4\0\x24\0", bytes([0, 0, 0, 0, 17, *[0] * 11]), bytes(range(17)),
        b"\xff\xda\0\x08\1\1\0\1\0\0", scan, b"\xff\xd9",
    ])  # fmt: skip


def put_jpeg_ls(dataset) -> None:
    """Make every image of a dataset the one that pydicom brings in JPEG-LS; FileNotFoundError where it does not."""
    sample = pydicom.dcmread(Path(pydicom.data.__file__).parent / "test_files/MR_small_jpeg_ls_lossless.dcm")
    (stream,) = generate_frames(sample.PixelData, number_of_frames=1)
    for name in ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"):
        setattr(dataset, name, getattr(sample, name))
    dataset.PixelData = encapsulate([stream] * int(dataset.NumberOfFrames))
    dataset["PixelData"].VR = "OB"
    dataset.file_meta.TransferSyntaxUID = sample.file_meta.TransferSyntaxUID
