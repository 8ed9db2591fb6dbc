"""DICOM series with one image of each plane: single volumes of views whose names say another sequence than cine."""

import numpy as np
import pytest
from cine_files import affine_of, ball_cine, write_cine

pytest.importorskip("pydicom", reason="the extra dicom is not installed")
from dicom_files import write_enhanced, write_series, write_slice
from prepared import run

from cinema_fast.data.formats.cine import CineError, IncompleteCine
from cinema_fast.data.formats.dicom_cine import read_dicom_cine
from cinema_fast.data.store.store import CineStore

SHAPE = (40, 36, 5)
AFFINE = affine_of((0.1, 0.2, 1.0), (1.5, 1.3, 8.0), (0, 0, 20), SHAPE)
DATA = ball_cine(SHAPE, AFFINE)
RULES = """
repeated: {repeated}
rules:
  - {{match: 'psir|lge', view: lge_sax}}
  - {{match: 't1.?map.*4ch', view: t1map_lax_4c}}
  - {{match: 't1.?map', view: t1map_sax}}
  - {{match: 'other', view: rvot}}
  - {{match: 'sax', view: sax}}
"""


def prepared(tmp_path, repeated="refuse"):
    rules = tmp_path / "rules.yaml"
    rules.write_text(RULES.format(repeated=repeated))
    report = run(tmp_path / "dicom", tmp_path / "store", views_rules=rules)
    return report, CineStore(tmp_path / "store")


def without_times(dataset, z, t):
    del dataset.TriggerTime


def negative_time(dataset, z, t):
    """As late enhancement has it: the delay is no time in a cycle of frames, and the header counts phases of a cine."""
    dataset.TriggerTime, dataset.CardiacNumberOfImages, dataset.NominalInterval = -120.0 - z, 25, 400.0


def test_volumes_beside_a_cine(tmp_path):
    """A series of many slices, a series for each slice, and an enhanced file; each as the same NIfTI volume."""
    still, one = DATA[..., :1], DATA[:, :, 2:3, :1]
    at_slice = AFFINE.copy()
    at_slice[:3, 3] += 2 * AFFINE[:3, 2]
    write_series(tmp_path / "dicom/cine", DATA, AFFINE, description="cine SAX")
    write_series(tmp_path / "dicom/lge", still, AFFINE, description="PSIR SAX", number=2, change=negative_time)
    for z in range(SHAPE[2]):
        write_slice(tmp_path / "dicom/t1", still, AFFINE, z, description="T1 Map", number=10 + z, change=without_times)
    write_enhanced(tmp_path / "dicom/t1 4ch", (one + 5) // 2, at_slice, description="T1 Map 4CH", number=30)
    report, store = prepared(tmp_path)
    assert (report.failures, report.exit_code) == ([], 0)
    assert report.series == {("cine SAX", "sax", ""): 1, ("PSIR SAX", "lge_sax", ""): 1, ("T1 Map", "t1map_sax", ""): 5,
                             ("T1 Map 4CH", "t1map_lax_4c", ""): 1}  # fmt: skip
    (study,) = store.ids
    for view, data, affine in (("lge_sax", still, AFFINE), ("t1map_sax", still, AFFINE),
                               ("t1map_lax_4c", (one + 5) // 2 * 2 - 5, at_slice)):  # fmt: skip
        write_cine(tmp_path / f"nifti/p_{view}.nii.gz", data[..., 0], affine)
    write_cine(tmp_path / "nifti/p_sax.nii.gz", DATA, AFFINE, 40.0)  # where the planes meet is the centre of all views
    names = ("lge_sax", "t1map_sax", "t1map_lax_4c")
    run(tmp_path / "nifti", tmp_path / "other", single=names, aliases=tuple(f"{name}={name}" for name in names))
    other = CineStore(tmp_path / "other")
    for view in names:
        info, expected = store.info(study, view), other.info("p", view)
        assert (info.channels, info.shape, info.frame_time_ms) == ((view,), expected.shape, None)
        assert info.sequences == ("lge" if view == "lge_sax" else "t1map",) and info.plane == expected.plane
        np.testing.assert_allclose(info.affine, expected.affine, atol=1e-3)
        images = [s.read_frame(i, view, 0).astype(int) for s, i in ((store, study), (other, "p"))]
        assert images[0].max() == 255 and np.abs(images[0] - images[1]).max() <= 1
    assert store.info(study, "sax").sequences == ("cine",) and not store.info(study, "sax").channels
    rules = tmp_path / "rules.yaml"
    assert run(tmp_path / "dicom", tmp_path / "store", views_rules=rules).unchanged == 1


def test_other_names_are_still_cines(tmp_path):
    for number, description in enumerate(("cine SAX", "SAX still", "other"), 1):
        n = 4 if number == 1 else 1
        write_series(tmp_path / "dicom", DATA[..., :n], AFFINE, description=description, number=number)
    report, store = prepared(tmp_path)
    assert report.series == {("cine SAX", "sax", ""): 1,
                             ("SAX still", None, "not a cine: one image of each of 5 planes"): 1,
                             ("other", None, "not a cine: one image of each of 5 planes"): 1}  # fmt: skip
    assert store.views(store.ids[0]) == ("sax",)


@pytest.mark.parametrize("step", [0.6, 0.9])
def test_thin_slices_are_planes_of_their_own(tmp_path, step):
    """Of a 3D volume, closer than a millimetre."""
    affine = affine_of((0.1, 0.2, 1.0), (1.0, 1.0, step), (0, 0, 20), SHAPE)
    write_series(tmp_path / "dicom", ball_cine(SHAPE, affine)[..., :1], affine, description="LGE 3D")
    report, store = prepared(tmp_path)
    assert report.failures == [] and store.info(store.ids[0], "lge_sax").channels == ("lge_sax",)


def test_several_images_of_a_plane(tmp_path):
    """Over time they are frames, of the sequence that the view's name says; a slice too many is a fault; a volume that
    was taken twice is refused, or the last one counts."""
    write_series(tmp_path / "dicom", DATA[..., :3], AFFINE, description="T1 maps")
    report, store = prepared(tmp_path)
    info = store.info(store.ids[0], "t1map_sax")
    assert (info.shape[0], info.channels, info.sequence(2)) == (3, (), "t1map")
    volume = {"description": "LGE", "study": "1.9", "patient": "P 9"}
    write_series(tmp_path / "dicom/first", DATA[..., :1], AFFINE, number=4, **volume)
    write_series(tmp_path / "dicom/second", DATA[..., 1:2], AFFINE, number=5, **volume)
    report, store = prepared(tmp_path)
    assert len(store.ids) == 1 and "taken more than once: the series 4 'LGE', 5 'LGE'" in report.failures[0].reason
    report, store = prepared(tmp_path, "last")
    assert report.failures == [] and store.info(store.ids[1], "lge_sax").channels == ("lge_sax",)
    record = store.info(store.ids[1], "lge_sax")
    assert record.source.startswith("second/")


def test_the_reader_of_a_single_volume(tmp_path):
    paths = write_series(tmp_path, DATA[..., :1], AFFINE)
    cine = read_dicom_cine(paths, stack=True, single=True)
    assert (cine.n_frames, cine.shape, cine.frame_time_ms) == (1, SHAPE, None)
    np.testing.assert_array_equal(cine.frame(0), DATA[..., 0])
    with pytest.raises(IncompleteCine, match="not a cine: one image of each of 5 slices, expected 2 frames or more"):
        read_dicom_cine(paths, stack=True)
    with pytest.raises(IncompleteCine, match="slices are missing or unevenly spaced"):
        read_dicom_cine([paths[0], *paths[2:]], stack=True, single=True)
    twice = write_series(tmp_path / "twice", DATA[..., :2], AFFINE)
    with pytest.raises(CineError, match="not a single volume: 2 images of each of 5 slices"):
        read_dicom_cine(twice, stack=True, single=True)
    with pytest.raises(IncompleteCine, match="one slice was taken more than once: slice 1 of 5 has 2 images"):
        read_dicom_cine([*paths, twice[0]], stack=True, single=True)
