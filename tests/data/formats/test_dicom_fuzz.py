"""DICOM and NIfTI files that lie: an error by name or a sound cine, and no allocation that the file cannot justify."""

import gzip
import tracemalloc
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from dicom_samples import AFFINE, DATA, SYNTAXES
from hypothesis import example, given, settings
from hypothesis import strategies as st
from machine import shared_path

pytest.importorskip("pydicom", reason="the extra dicom is not installed")
import pydicom
from dicom_files import write_enhanced
from dicom_jpeg import put_jpeg_ls
from pydicom.pixels import get_decoder
from pydicom.uid import (
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
)

from cinema_fast.data.formats.cine import CineError
from cinema_fast.data.formats.dicom_cine import read_dicom_cine
from cinema_fast.data.formats.nifti import read_cine
from cinema_fast.data.prepare.dicom_sources import read_files

JPEGS = (JPEGBaseline8Bit, JPEGLosslessSV1)
# pydicom keeps elements as objects and decoders have buffers of their own; a lie is of gigabytes.
OVERHEAD, FACTOR = 8 << 20, 20
PATIENT = timedelta(seconds=20)


def write(path: Path, syntax, change=lambda dataset: None) -> Path:
    """A file of two slices and three frames in a transfer syntax; skips the test where nothing here decodes it."""
    if syntax.is_encapsulated and not get_decoder(syntax).is_available:
        pytest.skip(f"no decoder of {syntax.name} is installed")
    if syntax == JPEGLSLossless:
        return write_enhanced(path, DATA, AFFINE, change=lambda dataset: (put_jpeg_ls(dataset), change(dataset)))
    data = (DATA * (255 / DATA.max())).astype(np.uint8) if syntax == JPEGBaseline8Bit else DATA
    return write_enhanced(path, data, AFFINE, syntax=syntax, change=change)


@pytest.fixture(scope="module", params=[*SYNTAXES, *JPEGS, JPEGLSLossless], ids=lambda syntax: syntax.name)
def original(request, tmp_path_factory):
    """The bytes of a sound file."""
    path = write(tmp_path_factory.mktemp("original") / "a.dcm", request.param)
    cine = read_dicom_cine([path], stack=True)
    assert cine.n_frames == 3
    if request.param not in (JPEGBaseline8Bit, JPEGLSLossless):  # others lose nothing
        for t in range(3):
            np.testing.assert_array_equal(cine.frame(t), DATA[..., t] * 2.0 - 5.0)
    return path.read_bytes()


@contextmanager
def bounded_memory(n_bytes: int):
    """Whatever becomes of files of so many bytes together, reading them takes the memory that they justify."""
    tracemalloc.start()
    try:
        yield
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < FACTOR * n_bytes + OVERHEAD


def read(folder: Path, content: bytes, stack: bool = True):
    """The cine, or None where it was refused as it should be; within the memory that the file justifies."""
    path = folder / "mutated.dcm"
    path.write_bytes(content)
    try:
        with bounded_memory(len(content)):
            (found,) = read_files([path])
            assert not isinstance(found, CineError) or (found.path == path and found.reason)
            cine = read_dicom_cine([path], stack=stack)
    except CineError as err:
        assert err.path == path and err.reason and "\n" not in err.reason
        return None
    assert_sound(cine)
    return cine


def assert_sound(cine):
    for t in range(cine.n_frames):
        frame = cine.frame(t)
        assert frame.shape == cine.shape and np.isfinite(frame).all() and frame.min() < frame.max()
    assert np.isfinite(cine.affine).all() and abs(np.linalg.det(cine.affine)) > 0


def mutated(content: bytes, changes: list[tuple[float, str, int]]) -> bytes:
    content = bytearray(content)
    for where, what, value in changes:
        at = int(where * (len(content) - 1))
        if what == "set":
            content[at] = value
        elif what == "length":  # of four bytes, as long as can be said
            content[at : at + 4] = b"\xf0\xff\xff\xff"
        elif what == "delimiter":
            content[at : at + 4] = b"\xfe\xff\xdd\xe0"
        elif what == "cut":
            del content[at : at + value]
        elif what == "double":
            content[at:at] = content[at : at + value]
    return bytes(content)


# Half of the places in the first tenth, where the header is.
PLACES = st.one_of(st.floats(0, 1), st.floats(0, 0.1))
CHANGES = st.lists(st.tuples(PLACES, st.sampled_from(["set", "length", "delimiter", "cut", "double"]),
                             st.integers(0, 255)), min_size=1, max_size=6)


@settings(max_examples=40, deadline=PATIENT)
@given(changes=CHANGES)
def test_mutated_files(original, tmp_path_factory, changes):
    read(tmp_path_factory.mktemp("fuzz"), mutated(original, changes))


@pytest.mark.parametrize("at", ["1\n", "1\x1b["])
def test_an_error_stays_in_its_line(tmp_path, at):
    """Whatever the header holds: here a transfer syntax that starts like this."""
    content = write(tmp_path / "a.dcm", SYNTAXES[0]).read_bytes()
    syntax = SYNTAXES[0].encode()
    assert content.count(syntax) == 1
    (tmp_path / "a.dcm").write_bytes(content.replace(syntax, at.encode() + syntax[len(at) :]))
    with pytest.raises(CineError, match="transfer syntax") as refused:
        read_dicom_cine([tmp_path / "a.dcm"], stack=True)
    assert ascii(at)[1:-1] in refused.value.reason and refused.value.reason.isprintable()


@pytest.mark.slow
@settings(max_examples=25, deadline=PATIENT)
@given(changes=CHANGES)
def test_mutated_real_dicom(tmp_path_factory, changes):
    paths = sorted(shared_path("data/cine/dicom_Se11_slim").iterdir())
    folder = tmp_path_factory.mktemp("real")
    copy = folder / "mutated.dcm"
    copy.write_bytes(mutated(paths[7].read_bytes(), changes))
    files = [*paths[:7], copy, *paths[8:]]
    try:
        with bounded_memory(sum(path.stat().st_size for path in files)):
            cine = read_dicom_cine(files, stack=True)
    except CineError as err:
        assert err.reason
        return
    assert_sound(cine)
    assert (cine.shape, cine.n_frames) == ((256, 208, 1), 25)


@settings(max_examples=15, deadline=PATIENT)
@given(changes=CHANGES, compressed=st.booleans())
@example(changes=[(43.5 / 351, "set", 100)], compressed=False)  # the first axis, a hundredfold
def test_mutated_real_nifti(tmp_path_factory, changes, compressed):
    """The header and some of the first frames' bytes of a real file, changed before or after compression."""
    packed = shared_path("data/cine/Se8_2ch.nii.gz").read_bytes()
    header = gzip.decompress(packed)[:352]
    path = tmp_path_factory.mktemp("real") / "cine.nii.gz"
    if compressed:
        path.write_bytes(mutated(packed[:1000], changes) + packed[1000:])
    else:
        path.write_bytes(mutated(header, changes) + gzip.decompress(packed)[352:])
    try:
        with bounded_memory(path.stat().st_size):
            cine = read_cine(path, stack=False)
        assert_sound(cine)
    except CineError as err:
        assert err.path == path and err.reason


LIES = {
    "Rows": st.integers(0, 65535), "Columns": st.integers(0, 65535), "BitsAllocated": st.integers(0, 255),
    "BitsStored": st.integers(0, 64), "HighBit": st.integers(0, 64), "PixelRepresentation": st.integers(0, 9),
    "SamplesPerPixel": st.integers(0, 65535), "NumberOfFrames": st.integers(-(2**31), 2**31 - 1),
}


@settings(max_examples=40, deadline=PATIENT)
@given(syntax=st.sampled_from(SYNTAXES + JPEGS), lies=st.fixed_dictionaries({}, optional=LIES), keep=st.floats(0, 1.5))
def test_lies_about_the_pixels(tmp_path_factory, syntax, lies, keep):
    def change(dataset):
        for name, value in lies.items():
            setattr(dataset, name, value)
        if not dataset.file_meta.TransferSyntaxUID.is_encapsulated:
            n = 2 * int(len(dataset.PixelData) * keep / 2)
            dataset.PixelData = (dataset.PixelData * 2)[:n]

    folder = tmp_path_factory.mktemp("lies")
    content = write(folder / "a.dcm", syntax, change).read_bytes()
    cine = read(folder, content)
    if cine is not None:  # what it says is what it has
        dataset = pydicom.dcmread(folder / "a.dcm")
        assert cine.shape == (dataset.Columns, dataset.Rows, 2) and cine.n_frames == 3
        assert dataset.Rows * dataset.Columns == 36 * 40 or dataset.BitsAllocated != 16
