"""Reading of one cine: correct files exactly, every other file refused by name and reason, cheaply."""

import gzip
import hashlib
import os
import struct
import tracemalloc

import nibabel as nib
import numpy as np
import pytest
from cine_files import affine_of, ball_cine, write_cine
from hypothesis import given, settings
from hypothesis import strategies as st

from cinema_fast.data.formats import nifti
from cinema_fast.data.formats.cine import CineError, file_sha256
from cinema_fast.data.formats.nifti import read_cine, read_nifti

SHAPE = (24, 20, 5)
AFFINE = affine_of((0.1, 0.2, 1.0), (1.5, 1.5, 8.0), (0, 0, 20), SHAPE)
DATA = ball_cine(SHAPE, AFFINE)


@pytest.fixture
def good(tmp_path):
    return write_cine(tmp_path / "good.nii.gz", DATA, AFFINE, 37.5)


def test_reads_values_geometry_time_and_checksum(good):
    cine = read_cine(good, stack=True)
    assert (cine.shape, cine.n_frames, cine.frame_time_ms) == (SHAPE, 4, 37.5)
    np.testing.assert_allclose(cine.affine, AFFINE, atol=1e-5)
    for t in range(4):
        np.testing.assert_array_equal(cine.frame(t), DATA[..., t])
        assert cine.frame(t).dtype == np.float32
    assert cine.sha256 == hashlib.sha256(good.read_bytes()).hexdigest() == file_sha256([good])


@pytest.mark.parametrize("dtype", ["u1", "<i2", ">i2", "u2", "i4", "<f4", ">f4", "f8"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_every_pixel_type_byte_order_and_slope(tmp_path, dtype, kind):
    raw = (DATA // 4).astype(dtype)
    header = kind.header_class(endianness=">" if dtype.startswith(">") else "<")
    image = kind(raw, AFFINE, header, dtype=np.dtype(dtype))
    path = tmp_path / "cine.nii"
    nib.save(image, path)
    at = 112 if kind is nib.Nifti1Image else 176
    order = ">" if dtype.startswith(">") else "<"
    content = bytearray(path.read_bytes())
    content[at : at + (8 if at == 112 else 16)] = struct.pack(order + ("ff" if at == 112 else "dd"), 0.25, -3.0)
    path.write_bytes(content)
    cine = read_cine(path, stack=True)
    np.testing.assert_allclose(cine.frame(2), raw[..., 2] * 0.25 - 3.0, rtol=1e-6)
    np.testing.assert_allclose(cine.frame(2), nib.load(path).get_fdata()[..., 2], rtol=1e-6)


def test_compression_is_detected_by_content(good, tmp_path):
    plain, packed = tmp_path / "p.nii.gz", tmp_path / "c.nii"
    plain.write_bytes(gzip.decompress(good.read_bytes()))
    packed.write_bytes(good.read_bytes())
    for path in (plain, packed):
        np.testing.assert_array_equal(read_cine(path, stack=True).frame(1), DATA[..., 1])


@pytest.mark.parametrize(("units", "step", "expected"), [
    ("sec", 0.04, 40.0), ("msec", 40.0, 40.0), ("usec", 40_000.0, 40.0), ("unknown", 40.0, None), ("sec", 1.0, None),
    ("sec", 0.0, None), ("msec", -5.0, None), ("sec", np.nan, None),
])  # fmt: skip
def test_frame_time_in_the_units_of_the_header(tmp_path, units, step, expected):
    image = nib.Nifti1Image(DATA, AFFINE)
    image.header.set_xyzt_units("mm", units)
    image.header["pixdim"][4] = step
    nib.save(image, tmp_path / "cine.nii")
    assert read_cine(tmp_path / "cine.nii", stack=True).frame_time_ms == expected


def test_single_frames_are_stacked(tmp_path):
    paths = [write_cine(tmp_path / f"{t}.nii.gz", DATA[..., t], AFFINE) for t in (3, 0)]
    cine = read_cine(paths, stack=True)
    assert cine.n_frames == 2 and cine.sha256 == file_sha256(paths)
    np.testing.assert_array_equal(cine.frame(0), DATA[..., 3])
    other = write_cine(tmp_path / "other.nii.gz", DATA[:, :, :4, 0], AFFINE)
    with pytest.raises(CineError, match=r"other\.nii\.gz.*differs from that of 3"):
        read_cine([*paths, other], stack=True)


def _patched(path, at, fmt, *values):
    content = bytearray(gzip.decompress(path.read_bytes()))
    struct.pack_into(fmt, content, at, *values)
    path.write_bytes(gzip.compress(bytes(content)))


def _bad_value(frames, value):
    data = DATA.astype(np.float32)
    data[..., frames] = value
    return data


BAD = {
    "empty": (lambda p: p.write_bytes(b""), "the file is empty"),
    "tiny": (lambda p: p.write_bytes(b"abc"), "not NIfTI: 3 bytes"),
    "text": (lambda p: p.write_bytes(b"x" * 5000), "not NIfTI"),
    "truncated gzip": (lambda p: p.write_bytes(p.read_bytes()[:-3000]), "truncated"),
    "corrupt gzip": (lambda p: p.write_bytes(p.read_bytes()[:9000] + b"\0" * 50 + p.read_bytes()[9050:]), "corrupt"),
    "checksum": (lambda p: p.write_bytes(p.read_bytes()[:-8] + b"\1\2\3\4" + p.read_bytes()[-4:]), "corrupt: CRC"),
    "truncated": (lambda p: p.write_bytes(gzip.decompress(p.read_bytes())[:-1]), "cannot hold them: truncated"),
    "too long": (lambda p: p.write_bytes(gzip.decompress(p.read_bytes()) + b"\0" * 9), "9 bytes more"),
    "huge header": (lambda p: _patched(p, 40, "<5h", 4, 32767, 32767, 32767, 32767), "cannot hold them"),
    "larger header": (lambda p: _patched(p, 48, "<h", 9), "truncated: the header's shape"),
    "negative axis": (lambda p: _patched(p, 42, "<h", -24), "header claims"),
    "no axes": (lambda p: _patched(p, 40, "<h", 0), "header claims 0 axes"),
    "data type": (lambda p: _patched(p, 70, "<h", 777), "unreadable NIfTI header"),
    "rgb": (lambda p: _patched(p, 70, "<h", 128), "pixels of type"),
    "data offset": (lambda p: _patched(p, 108, "<f", 12.0), "inside the header"),
    "data offset nan": (lambda p: _patched(p, 108, "<f", np.nan), "unreadable NIfTI header"),
    "magic": (lambda p: _patched(p, 344, "4s", b"ni1\0"), "single-file"),
    "3D": (lambda p: write_cine(p, DATA[..., 0], AFFINE), r"not a cine: shape \(24, 20, 5\)"),
    "one frame": (lambda p: write_cine(p, DATA[..., :1], AFFINE), "at least 2 frames"),
    "5D": (lambda p: write_cine(p, DATA[:, :, :, None], AFFINE), "not a cine"),
    "constant": (lambda p: write_cine(p, DATA * 0 + 7, AFFINE), "every frame of 4 holds one constant value"),
    "constant frames": (lambda p: write_cine(p, _bad_value([1, 3], 5), AFFINE), "frame 1, 3 of 4 holds one constant"),
    "nan": (lambda p: write_cine(p, _bad_value([0, 1, 2, 3], np.nan), AFFINE), "every frame of 4 .* not finite"),
    "inf": (lambda p: write_cine(p, _bad_value(2, np.inf), AFFINE), "frame 2 of 4 holds values that are not finite"),
    "time first": (lambda p: write_cine(p, np.moveaxis(DATA, 3, 0), AFFINE), "axes in the wrong order"),
    "slices first": (lambda p: write_cine(p, np.moveaxis(DATA, 2, 0), AFFINE), "axes in the wrong order"),
    "slices first, true spacing": (
        lambda p: write_cine(p, np.moveaxis(DATA, 2, 0), AFFINE[:, [2, 0, 1, 3]]), "axes in the wrong order"),
    "time third": (lambda p: write_cine(p, np.moveaxis(DATA, 3, 2), AFFINE), "time axis is not last"),
    "singular": (lambda p: write_cine(p, DATA, AFFINE[:, [0, 1, 1, 3]]), "affine is singular"),
    "affine nan": (lambda p: write_cine(p, DATA, AFFINE) and _patched(p, 280, "<f", np.nan), "not finite"),
    "microscope": (lambda p: write_cine(p, DATA, np.diag([1e-3, 1e-3, 8e-3, 1])), "not those of a cine"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_bad_file_is_refused_by_name_and_reason(good, kind):
    spoil, reason = BAD[kind]
    spoil(good)
    with pytest.raises(CineError, match=reason) as caught:
        read_cine(good, stack=True)
    assert str(caught.value).startswith(str(good)) and caught.value.path == good


def test_long_axis_view_must_have_one_slice(good, tmp_path):
    with pytest.raises(CineError, match=r"one slice.*this one has 5 \(shape \(24, 20, 5, 4\)\)"):
        read_cine(good, stack=False)
    lax = write_cine(tmp_path / "lax.nii.gz", DATA[:, :, 2:3], AFFINE)
    assert read_cine(lax, stack=False).shape == (24, 20, 1)


def test_slices_that_are_alike_are_no_swapped_time_axis(tmp_path):
    still = np.repeat(DATA[:, :, 2:3], 5, axis=2)
    assert read_cine(write_cine(tmp_path / "a.nii", still, AFFINE), stack=True).n_frames == 4


def test_files_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.nii")
    for path, reason in (("missing.nii", "No such file"), ("pipe.nii", "not a regular file"), (".", "not a regular")):
        with pytest.raises(CineError, match=reason):
            read_nifti(tmp_path / path)


def test_lies_about_size_allocate_nothing(good):
    _patched(good, 40, "<5h", 4, 3000, 3000, 200, 4)
    tracemalloc.start()
    with pytest.raises(CineError, match="cannot hold them"):
        read_nifti(good)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_a_header_within_the_compression_bound_allocates_what_the_file_holds(good):
    """20 MB would be possible for a file of this size, were it all zeros: the buffer grows with the data instead."""
    n = 1000 * good.stat().st_size // (24 * 20 * 5 * 2)
    _patched(good, 48, "<h", n)
    tracemalloc.start()
    with pytest.raises(CineError, match="truncated"):
        read_nifti(good)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 << 20


def test_compressed_zeros_are_capped(tmp_path, monkeypatch):
    monkeypatch.setattr(nifti, "MAX_BYTES", 1 << 20)
    path = write_cine(tmp_path / "zeros.nii.gz", np.zeros((128, 128, 10, 8), np.int16), AFFINE)
    with pytest.raises(CineError, match="cannot hold them"):
        read_nifti(path)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 351), st.integers(0, 255)), min_size=1, max_size=6), st.booleans())
def test_mutated_headers_give_an_error_or_a_sound_cine(tmp_path_factory, changes, compress):
    folder = tmp_path_factory.mktemp("fuzz")
    path = write_cine(folder / "cine.nii", DATA, AFFINE)
    content = bytearray(path.read_bytes())
    for at, value in changes:
        content[at] = value
    path.write_bytes(gzip.compress(bytes(content), 1) if compress else content)
    tracemalloc.start()
    try:
        cine = read_cine(path, stack=True)
    except CineError as err:
        assert err.path == path and err.reason
        return
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 8 * len(content) + (4 << 20)
    for t in range(cine.n_frames):
        frame = cine.frame(t)
        assert frame.shape == cine.shape and np.isfinite(frame).all() and frame.min() < frame.max()
    assert np.isfinite(cine.affine).all() and abs(np.linalg.det(cine.affine)) > 0
    assert sum(volume.data.nbytes for volume in cine.volumes) <= len(content)
