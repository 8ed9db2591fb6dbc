"""Small DICOM files that ask for gigabytes, each in a way of its own, are refused before they get them."""

import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pydicom", reason="the extra dicom is not installed")
import pydicom
from dicom_files import write_series
from dicom_samples import AFFINE, DATA, SYNTAXES
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless

from cinema_fast.data.formats.cine import CineError
from cinema_fast.data.formats.dicom_cine import read_dicom_cine
from cinema_fast.data.formats.dicom_file import read_dataset
from cinema_fast.data.formats.dicom_pixels import read_pixels
from cinema_fast.data.prepare.dicom_sources import read_files

# Prints why a file was refused and the kB by which the process's peak grew while its pixels were read.
PEAK = """
import sys
from pathlib import Path
from cinema_fast.data.formats.dicom_file import read_dataset
from cinema_fast.data.formats.dicom_pixels import read_pixels

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
path = Path(sys.argv[1])
dataset = read_dataset(path, path.read_bytes())
before = peak()
try:
    read_pixels(path, dataset)
except ValueError as err:
    print(err)
print(peak() - before)
"""


def test_one_image_that_claims_gigabytes_allocates_nothing(tmp_path):
    def change(dataset, z, t):
        dataset.Rows = dataset.Columns = 65535

    for syntax in SYNTAXES:
        path = write_series(tmp_path / syntax, DATA[:, :, :1, :1], AFFINE, syntax=syntax, change=change)[0]
        tracemalloc.start()
        with pytest.raises(CineError, match=r"65535 x 65535 pixels of 16 bits (are|cannot be in)"):
            read_dicom_cine([path], stack=True)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4 << 20


def test_compressed_stream_that_claims_another_size_than_the_header(tmp_path):
    """A decoder would go by the stream: 60000 x 60000 pixels that a header of 40 x 36 does not speak of."""
    pytest.importorskip("openjpeg", reason="pylibjpeg-openjpeg is not installed")
    path = write_series(tmp_path, DATA[:, :, :1, :1], AFFINE, syntax=JPEG2000Lossless)[0]
    content = path.read_bytes()
    at = content.index(b"\xff\x4f\xff\x51") + 8  # size, origin, size of a tile
    path.write_bytes(content[:at] + (60000).to_bytes(4) * 2 + bytes(8) + (60000).to_bytes(4) * 2 + content[at + 24 :])
    with pytest.raises(CineError, match="compressed image 1 of 1 is 60000 x 60000, the header says 40 x 36"):
        read_dicom_cine([path], stack=True)
    jpeg = b"\xff\xd8\xff\xe0\0\4ab\xff\xc3\0\x0b\x10\xea\x60\xea\x60\1\1\x11\0" + bytes(200)
    for stream, reason in ((jpeg, "60000 x 60000, the header says"), (jpeg[:8] + bytes(200), "without a start of"),
                           (b"nonsense", "of an unknown image format")):
        dataset = read_dataset(path, content)
        dataset.PixelData = encapsulate([stream])
        with pytest.raises(CineError, match=reason):
            read_pixels(path, dataset)


@pytest.mark.parametrize("many", ["components", "tiles"])
def test_compressed_stream_of_many_parts(tmp_path, many):
    """The decoder has buffers of its own, which tracemalloc does not see: the peak is the process's."""
    pytest.importorskip("openjpeg", reason="pylibjpeg-openjpeg is not installed")
    noise = np.random.default_rng(0).integers(0, 4096, (255, 255, 1, 1)).astype(np.uint16)
    path = write_series(tmp_path, noise, AFFINE, syntax=JPEG2000Lossless)[0]
    dataset = read_dataset(path, path.read_bytes())
    stream = next(generate_frames(dataset.PixelData, number_of_frames=1))
    if many == "components":
        n, end = 2000, 4 + int.from_bytes(stream[4:6])
        head, reason = stream[6:40] + n.to_bytes(2) + stream[42:45] * n, f"has {n} components, expected 1"
        stream = stream[:4] + (len(head) + 2).to_bytes(2) + head + stream[end:]
    else:
        stream, reason = stream[:24] + (1).to_bytes(4) * 2 + stream[32:], "more than 64 tiles, 1 x 1 each"
    dataset = pydicom.dcmread(path)
    dataset.PixelData = encapsulate([stream])
    dataset.save_as(path)
    ended = subprocess.run([sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0 and reason in ended.stdout, ended.stdout + ended.stderr
    assert int(ended.stdout.splitlines()[-1]) < 16 << 10


def test_colour_jpeg(tmp_path):
    path = write_series(tmp_path, DATA[:, :, :1, :1], AFFINE, syntax=JPEG2000Lossless)[0]
    dataset = read_dataset(path, path.read_bytes())
    for marker in (b"\xc3", b"\xf7"):
        size = dataset.Rows.to_bytes(2) + dataset.Columns.to_bytes(2)
        dataset.PixelData = encapsulate([b"\xff\xd8\xff" + marker + b"\0\x11\x10" + size + b"\3" + bytes(2000)])
        with pytest.raises(CineError, match="compressed image 1 of 1 has 3 components, expected 1"):
            read_pixels(path, dataset)


def test_deflated_zeros_are_not_inflated(tmp_path):
    path = write_series(tmp_path, DATA[:, :, :1, :1], AFFINE, syntax=DeflatedExplicitVRLittleEndian)[0]
    content = path.read_bytes()
    start = 132 + 12 + int.from_bytes(content[140:144], "little")  # after the group of meta information
    packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(256)) + packer.flush()
    path.write_bytes(content[:start] + bomb)
    for reader in (lambda: read_dicom_cine([path], stack=True), lambda: _raise(read_files([path])[0])):
        tracemalloc.start()
        with pytest.raises(CineError, match="deflated content grows more than 64-fold"):
            reader()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 100 * len(bomb) < 64 << 20


@pytest.mark.parametrize(("many", "reason"), [
    (b"\x09\0\1\x10SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\0\xe0\0\0\0\0" * 300_000 + b"\xfe\xff\xdd\xe0\0\0\0\0",
     "more than 100000 items of sequences"),
    (b"\x09\0\1\x10SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff" * 100_000, "RecursionError"),
    (b"\x18\0\x60\x10UT\0\0\x00\x00\x40\x00" + b"1\\" * (1 << 21), "TriggerTime has 4194304 bytes"),
], ids=["items", "depth", "values"])  # fmt: skip
def test_headers_that_would_fill_the_memory_as_objects(tmp_path, many, reason):
    def without_time(dataset, z, t):
        del dataset.TriggerTime

    path = write_series(tmp_path, DATA[:, :, :1, :1], AFFINE, change=without_time)[0]
    content = path.read_bytes()
    at = content.index(b"\x18\0\x50\0DS") + 8  # after the slice's thickness
    at += int.from_bytes(content[at - 2 : at], "little")
    path.write_bytes(content[:at] + many + content[at:])
    tracemalloc.start()
    with pytest.raises(CineError, match=reason):
        read_dicom_cine([path], stack=True)
    read_files([path])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * len(many)


def _raise(error):
    raise error


@pytest.mark.parametrize("name", ["MR_small_jpeg_ls_lossless", "MR_small_jp2klossless", "MR_small_RLE",
                                  "MR_small_bigendian", "MR_small_implicit"])
def test_real_images_of_every_coder(name):
    """pydicom brings one image in several codings: all are the same pixels."""
    folder = Path(pydicom.data.__file__).parent / "test_files"
    images = []
    for path in (folder / "MR_small.dcm", folder / f"{name}.dcm"):
        if not path.exists():
            pytest.skip(f"this pydicom does not bring {path.name}")
        try:
            images += read_pixels(path, read_dataset(path, path.read_bytes()))
        except CineError as err:
            pytest.skip(err.reason) if "no decoder is installed" in err.reason else pytest.fail(str(err))
    np.testing.assert_array_equal(*images)
