"""Rescan: geometry and values of the pickles, labels, pairs, split."""

import pickle

import numpy as np
import pytest
from prepared import run
from published_files import drawn, reasons, rows_of, smooth, write_csv

from cinema_fast.data.formats.cine import CineError
from cinema_fast.data.formats.rescan_cine import read_rescan_cine
from cinema_fast.data.store.store import CineStore

X, Y, Z, T = 26, 24, 4, 5
SIZE = {"sax_size": (24, 24, 4), "lax_size": (24, 24), "sax_spacing": (0, 0, 0), "lax_spacing": (1, 1),
        "dataset": "rescan"}  # fmt: skip
ROW = np.array([0.8, 0.6, 0.0])  # LPS direction of increasing x
COLUMN = np.array([0.0, 0.0, -1.0])  # of increasing y
STEP = np.cross(ROW, COLUMN)
FIRST = np.array([10.0, -20.0, 30.0])  # of the slice that comes last in the file
SPACING = (1.5, 1.25, 8.0)  # between rows (y), columns (x), slices


def sax(seed=0, **changes) -> dict:
    """A stack; slice k of the file lies (Z - 1 - k) steps from FIRST."""
    voxels = smooth((Y, X, Z, T), seed).transpose(2, 3, 0, 1).astype(np.int16) * 3
    return {
        "image_voxels": voxels,
        "ImagePositionPatient": np.array([FIRST + STEP * SPACING[2] * (Z - 1 - k) for k in range(Z)]),
        "ImageOrientationPatient": np.r_[ROW, COLUMN],
        "PixelSpacing": [SPACING[0], SPACING[1]],
        "SliceSpacing": SPACING[2],
    } | changes  # fmt: skip


def lax(seed=1, **changes) -> dict:
    voxels = smooth((Y, X, 1, T), seed)[:, :, 0].transpose(2, 0, 1).astype(np.float32)
    return {
        "image_voxels": voxels,
        "ImagePositionPatient": tuple(FIRST),
        "ImageOrientationPatient": list(np.r_[ROW, COLUMN]),
        "PixelSpacing": np.float64([1.5, 1.5]),
    } | changes  # fmt: skip


def segmentation() -> dict:
    """(z, t, y, x), the left ventricle, 1, widest in frame 1 and narrowest in frame 3."""
    maps = [drawn((X, Y, Z), (3, 2, 1), grow) for grow in (1, 2, 1, 0, 1)]
    return {"image_segmentation": np.stack(maps, axis=3).transpose(2, 3, 1, 0)[::-1]}


def dump(path, content, protocol=4):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def write_study(folder, seed=0, labelled=True):
    for name, content in (("SAX", sax(seed)), ("2C", lax(seed + 1)), ("4C", lax(seed + 2))):
        dump(folder / f"{name}.pickle", content)
    if labelled:
        dump(folder / "SAX_segs.pickle", segmentation())


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_geometry(tmp_path, protocol):
    content = sax()
    cine = read_rescan_cine(dump(tmp_path / "SAX.pickle", content, protocol), stack=True)
    assert (cine.shape, cine.n_frames) == ((X, Y, Z), T)
    to_ras = np.array([-1, -1, 1])
    for x, y, z, t in ((0, 0, 0, 0), (5, 7, 1, 2), (25, 23, 3, 4)):
        in_file = Z - 1 - z
        assert cine.frame(t)[x, y, z] == content["image_voxels"][in_file, t, y, x]
        lps = content["ImagePositionPatient"][in_file] + ROW * SPACING[1] * x + COLUMN * SPACING[0] * y
        np.testing.assert_allclose((cine.affine @ [x, y, z, 1])[:3], lps * to_ras, atol=1e-9)
    content = lax()
    cine = read_rescan_cine(dump(tmp_path / "2C.pickle", content, protocol), stack=False)
    assert (cine.shape, cine.n_frames) == ((X, Y, 1), T)
    assert cine.frame(3)[4, 9, 0] == content["image_voxels"][3, 9, 4]
    np.testing.assert_allclose((cine.affine @ [2, 3, 0, 1])[:3], (FIRST + 3 * ROW + 4.5 * COLUMN) * to_ras, atol=1e-9)


@pytest.mark.parametrize(("changes", "reason"), [
    ({"image_voxels": np.zeros((T, Y, X), np.int16)}, "image_voxels is an array of the shape (5, 24, 26), expe"),
    ({"image_voxels": [1, 2]}, "image_voxels is no array, expected an array (z, t, y, x)"),
    ({"PixelSpacing": None}, "PixelSpacing is missing, or not 2 finite numbers"),
    ({"PixelSpacing": [1.5, np.nan]}, "PixelSpacing is missing, or not 2 finite numbers"),
    ({"PixelSpacing": np.ones(1_000_000)}, "PixelSpacing is missing, or not 2 finite numbers"),
    ({"ImageOrientationPatient": np.r_[ROW, 2 * COLUMN]}, "ImageOrientationPatient holds directions whose length"),
    ({"ImageOrientationPatient": np.r_[ROW, ROW]}, "ImagePositionPatient puts a slice 24 mm from"),
    ({"SliceSpacing": 12.0}, "ImagePositionPatient puts a slice 12 mm from where"),
    ({"ImagePositionPatient": sax()["ImagePositionPatient"][::-1]}, "ImagePositionPatient puts a slice 48 mm from"),
    ({"image_voxels": np.zeros((Z, T, Y, X), np.int16)}, "every frame of 5 holds one constant value"),
])  # fmt: skip
def test_faults_of_a_view(tmp_path, changes, reason):
    with pytest.raises(CineError) as raised:
        read_rescan_cine(dump(tmp_path / "SAX.pickle", sax(**changes)), stack=True)
    assert raised.value.reason.startswith(reason)


@pytest.fixture
def rescan(tmp_path):
    root = tmp_path / "rescan/pickle"
    for n, (group, name) in enumerate((("A", "s_0000"), ("A", "s_0001"), ("B", "s_0002"), ("B", "s_0003"))):
        write_study(root / "train" / group / name, 10 * n)
    for n, scan in enumerate(("scan_00_A", "scan_00_B")):
        write_study(root / "test" / scan, 50 + 10 * n)
    for n in (1027, 1153, 1154):
        write_study(root / "test_retest_100" / str(n), n, labelled=False)
    write_csv(root / "test_retest_100/labels.csv", [{
        "A": 1027, "B1": 1153, "B2": "1154.0", "EDV_A": 120, "ESV_A": 60, "EDV_B1": 118, "EDV_B2": 122,
        "ESV_B1": 50, "ESV_B2": 58}])  # fmt: skip
    return root


def test_prepare(rescan, tmp_path):
    report = run(rescan.parent, tmp_path / "store", **SIZE)
    assert not report.failures
    store = CineStore(tmp_path / "store")
    assert store.ids == [
        "1027", "1153", "1154", "A_s_0000", "A_s_0001", "B_s_0002", "B_s_0003", "scan_00_A", "scan_00_B"]  # fmt: skip
    info = store.info("A_s_0000", "sax")
    assert (info.phases, info.labels.frames, info.labels.values) == ((1, 3), (0, 1, 2, 3, 4), (1, 2, 3))
    maps = store.read_labels("A_s_0000", "sax", 1)
    assert [int((maps == label).sum()) for label in (1, 2, 3)] == [40, 40, 14 * 6 * 4]
    split = {study: row["split"] for study, row in rows_of(tmp_path / "store/split.csv").items()}
    assert [study for study, part in split.items() if part == "val"] == ["A_s_0000", "B_s_0002"]
    assert [study for study, part in split.items() if part == "train"] == ["A_s_0001", "B_s_0003"]
    rows = rows_of(tmp_path / "store/table.csv")
    assert {study: row["heart"] for study, row in rows.items() if row["heart"]} == {
        "scan_00_A": "scan_00", "scan_00_B": "scan_00", "1027": "retest_00", "1153": "retest_00"}
    volumes = [[float(rows[n][name]) for name in ("lv_edv_ml", "lv_esv_ml", "lv_ef")] for n in ("1027", "1153", "1154")]
    assert volumes == [[120, 60, 50], [120, 54, 55], [120, 54, 55]]
    ml = float(np.prod(SPACING)) / 1000
    assert float(rows["scan_00_A"]["lv_edv_ml"]) == pytest.approx(14 * 6 * 4 * ml)
    assert float(rows["scan_00_A"]["lv_esv_ml"]) == pytest.approx(10 * 6 * 4 * ml)


def test_faults(rescan, tmp_path):
    first = rescan / "train/A/s_0000"
    dump(first / "4C.pickle", {})
    (rescan / "train/B/s_0003/2C.pickle").unlink()
    dump(rescan / "train/B/s_0002/SAX_segs.pickle", {"image_segmentation": segmentation()["image_segmentation"] + 4})
    table = rescan / "test_retest_100/labels.csv"
    table.write_text(table.read_text() + "2000,1153,,100,50,100,,50,\n")
    found = reasons(run(rescan, tmp_path / "store", **SIZE))
    expected = {
        ("A_s_0000", "train/A/s_0000/4C.pickle"): "is empty, it was not exported: the study is prepared without the",
        ("B_s_0003", "train/B/s_0003/2C.pickle"): "is missing: the study is prepared without the view",
        ("B_s_0002", "train/B/s_0002/SAX_segs.pickle"): "holds the value 4, which is outside of the label map",
        ("2000", "test_retest_100/labels.csv"): "line 3: the scan A of the pair, 2000, has no folder",
        ("1153", "test_retest_100/labels.csv"): "line 3: the scan 1153 is in line 2 already",
    }
    assert found.keys() == expected.keys()
    for key, reason in expected.items():
        assert found[key].startswith(reason)
    split = {study: row["split"] for study, row in rows_of(tmp_path / "store/split.csv").items()}
    assert [study for study, part in split.items() if part == "val"] == ["A_s_0001", "B_s_0002"]
    assert list(CineStore(tmp_path / "store").views("A_s_0000")) == ["sax", "lax_2c"]
