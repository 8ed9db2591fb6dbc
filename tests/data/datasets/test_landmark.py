"""Landmark: frames scaled and mirrored with their landmarks, and the split by patients."""

import numpy as np
import pytest
from PIL import Image
from prepared import run
from published_files import reasons, rows_of

from cinema_fast.common.tables import read_landmarks
from cinema_fast.data.datasets.landmark import split_of
from cinema_fast.data.formats.cine import CineError
from cinema_fast.data.formats.landmark_png import read_png_cine
from cinema_fast.data.store.store import CineStore

X, Y = 160, 120
SIZE = {"lax_size": (40, 30), "dataset": "landmark"}
CLOCKWISE = ((40, 60), (100, 60), (70, 20))  # with Y up: to the right, then down and back
GREYS = (85, 170, 255)


def save(path, pixels):
    """pixels: (X, Y)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(pixels.T)).save(path)


def mask_of(points):
    mask = np.zeros((X, Y), np.uint8)
    for value, (x, y) in zip(GREYS, points):
        mask[x - 2 : x + 3, y - 2 : y + 3] = value
    return mask


def frame_of(points):
    """A linear slope with a bright disc at the first point."""
    x, y = np.ogrid[:X, :Y]
    image = 20 + 0.25 * x + 0.5 * y
    image[(x - points[0][0]) ** 2 + (y - points[0][1]) ** 2 < 100] = 250
    return image.astype(np.uint8)


def shifted(points, by):
    return tuple((x + by, y) for x, y in points)


def mirrored(points):
    return tuple((x, Y - 1 - y) for x, y in points)


def write_view(root, view, frames, lines=True):
    """frames: {uid: points}."""
    for uid, points in frames.items():
        save(root / view / f"images/{uid}.png", frame_of(points))
        save(root / view / f"masks/{uid}.png", mask_of(points))
    if lines:
        text = [f"barts,{uid},{view},{n + 1},{x}.5,{y}" for uid, points in frames.items()
                for n, (x, y) in enumerate(points)]  # fmt: skip
        (root / f"{view}.csv").write_text("\n".join(text) + "\n")


@pytest.fixture
def raw(tmp_path):
    root = tmp_path / "raw"
    frames = {"0001__10": shifted(CLOCKWISE, 8), "0001__02": CLOCKWISE, "0002__00": mirrored(CLOCKWISE)}
    write_view(root, "lax_2c", frames)
    write_view(root, "lax_4c", {"0001__00": mirrored(CLOCKWISE)})
    return root


def test_prepare(raw, tmp_path):
    report = run(tmp_path, tmp_path / "store", **SIZE)
    assert not report.failures
    assert "landmarks.csv" in report.tables
    store, landmarks = CineStore(tmp_path / "store"), read_landmarks(tmp_path / "store/landmarks.csv")
    assert {study: store.views(study) for study in store.ids} == {"0001": ("lax_2c", "lax_4c"), "0002": ("lax_2c",)}
    in_first = {"annulus_1": [10, 15, 0], "annulus_2": [25, 15, 0], "apex": [17, 5, 0]}
    assert {name: point.tolist() for name, point in landmarks["0001"]["lax_2c"][0].items()} == in_first
    assert landmarks["0001"]["lax_2c"][1]["annulus_1"].tolist() == [12, 15, 0]  # frame 10 follows frame 02
    # the second patient is mirrored, and then like the first
    assert {name: point.tolist() for name, point in landmarks["0002"]["lax_2c"][0].items()} == in_first
    # in four-chamber views the other direction is kept: y is 119 - 60 and 119 - 20
    assert [point.tolist() for point in landmarks["0001"]["lax_4c"][0].values()] == [
        [10, 14, 0], [25, 14, 0], [17, 24, 0]]  # fmt: skip
    one = store.info("0001", "lax_4c")  # a single frame of a cine
    assert (one.shape[0], one.sequence(0), one.plane) == (1, "cine", "lax_4c")
    for study, view, t in (("0001", "lax_2c", 0), ("0001", "lax_2c", 1), ("0002", "lax_2c", 0), ("0001", "lax_4c", 0)):
        frame = store.read_frame(study, view, t).astype(float)
        bright = np.argwhere(frame > 0.8 * frame.max()).mean(0)
        at = np.linalg.solve(np.array(store.info(study, view).affine), [*landmarks[study][view][t]["annulus_1"], 1])
        np.testing.assert_allclose(bright, at[:2], atol=1.0)
    assert rows_of(tmp_path / "store/table.csv")["0002"]["cohort"] == "barts"
    again = run(tmp_path, tmp_path / "store", **SIZE)
    assert (again.unchanged, again.prepared) == (2, 0)


def test_scaling(raw):
    """A slope keeps its values at the middle of each 4 x 4 pixels."""
    (path,) = (raw / "lax_2c/images").glob("0001__02.png")
    frame = read_png_cine([path], "lax_2c").frame(0)[..., 0]
    assert frame.shape == (40, 30)
    x, y = np.ogrid[:40, :30]
    expected = 20 + 0.25 * (4 * x + 1.5) + 0.5 * (4 * y + 1.5)
    far = np.hypot(x - 10, y - 15) > 7
    inside = far[3:-3, 3:-3]
    # the file and the scaled frame are each cut to whole levels
    np.testing.assert_allclose(frame[3:-3, 3:-3][inside], expected[3:-3, 3:-3][inside] - 0.75, atol=0.76)
    assert 240 <= frame[10, 15] <= 250


def test_anti_aliasing(raw):
    """A wave loses the share that a Gaussian of 1.5 pixels, then the mean of two neighbours, take from it."""
    path, length = raw / "lax_2c/images/0001__02.png", 20
    save(path, np.rint(128 + 100 * np.cos(2 * np.pi * np.arange(X) / length)).astype(np.uint8)[:, None].repeat(Y, 1))
    frame = read_png_cine([path], "lax_2c").frame(0)[3:-3, 3:-3, 0]
    left = np.exp(-2 * (np.pi * 1.5 / length) ** 2) * np.cos(np.pi / length)
    expected = 128 + 100 * left * np.cos(2 * np.pi * (4 * np.arange(3, 37) + 1.5) / length)
    np.testing.assert_allclose(frame + 0.5, expected[:, None].repeat(24, 1), atol=1)


def test_split(tmp_path):
    """Ten patients by both views, one by lax_2c alone: parts are those of lax_4c where it has the patient."""
    names = [f"{n:04d}" for n in range(10)]
    write_view(tmp_path, "lax_4c", {f"{name}__00": mirrored(CLOCKWISE) for name in names})
    write_view(tmp_path, "lax_2c", {f"{name}__00": CLOCKWISE for name in ("9000", *reversed(names))})
    run(tmp_path, tmp_path / "store", **SIZE)
    part_of = {study: row["split"] for study, row in rows_of(tmp_path / "store/split.csv").items()}
    shuffled = np.array(names, object)
    np.random.default_rng(0).shuffle(shuffled)
    assert [part_of[name] for name in shuffled] == ["train"] * 6 + ["val"] * 2 + ["test"] * 2
    assert part_of["9000"] == split_of(["9000", *reversed(names)])["9000"]


def test_faults(raw, tmp_path):
    table = raw / "lax_2c.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join([*lines, lines[0], "barts,0003__00,lax_2c,1,5,5", "barts,0003,lax_2c,1,5,5", "a,b"]))
    write_view(raw, "lax_2c", {"0004__00": CLOCKWISE}, lines=False)
    mask = mask_of(CLOCKWISE)
    mask[5, 5] = 12
    save(raw / "lax_2c/masks/0001__02.png", mask)
    (raw / "lax_4c/masks/0001__00.png").write_text("no image")
    found = reasons(run(tmp_path, tmp_path / "store", **SIZE))
    expected = {
        ("0001", "raw/lax_2c.csv"): "line 10: landmark 1 of 0001__10 is on line 1 already",
        ("", "raw/lax_2c.csv"): "line 13: 2 fields, expected cohort, uid, view, number, x, y",
        ("0003", "raw/lax_2c/images/0003__00.png"): "is missing: lax_2c.csv lists it",
        ("0004", "raw/lax_2c/images/0004__00.png"): "lax_2c.csv has no line of it: the frame is left out",
        ("0001", "raw/lax_2c/masks/0001__02.png"): "holds the grey values [12, 85, 170, 255], expected 85, 170, 255",
        ("0001", "raw/lax_4c/masks/0001__00.png"): "cannot be read: not a PNG image, or a damaged one: the frame is",
    }
    assert found.keys() == expected.keys()
    for key, reason in expected.items():
        assert found[key].startswith(reason)
    assert CineStore(tmp_path / "store").info("0001", "lax_2c").shape == (1, 40, 30)
    landmarks = read_landmarks(tmp_path / "store/landmarks.csv")
    assert landmarks["0001"].keys() == {"lax_2c"} and landmarks["0001"]["lax_2c"].keys() == {0}


def test_faults_of_frames(raw, tmp_path):
    folder = raw / "lax_2c"
    paths = [folder / f"images/0001__{n}.png" for n in ("02", "10")]
    write_view(raw, "lax_2c", {"0001__10": mirrored(CLOCKWISE)}, lines=False)
    save(folder / "masks/0001__02.png", mask_of(shifted(CLOCKWISE, 20)))
    found = reasons(run(tmp_path, tmp_path / "store", **SIZE))
    assert [reason[:47] for reason in found.values()] == ["its landmarks turn the other way than in the ot"]
    save(paths[1], np.zeros((X, Y - 1), np.uint8))
    with pytest.raises(CineError, match=r"0001__10.png: 160 x 119 pixels, expected 160 x 120 as in 0001__02.png"):
        read_png_cine(paths, "lax_2c")
    Image.new("RGB", (X, Y)).save(paths[1])
    with pytest.raises(CineError, match="pixels of the mode RGB, expected 8-bit grey"):
        read_png_cine(paths, "lax_2c")
    data = paths[0].read_bytes()
    paths[1].write_bytes(data[: len(data) // 2])
    with pytest.raises(CineError, match=r"0001__10.png: (cannot be read|not a usable)"):
        read_png_cine(paths, "lax_2c")


def test_a_patient_is_no_path(tmp_path):
    """A table cannot name a folder outside of the store."""
    write_view(tmp_path / "src", "lax_2c", {"0001__00": CLOCKWISE, "..__00": CLOCKWISE, ".__00": CLOCKWISE})
    table = tmp_path / "src/lax_2c.csv"
    table.write_text(table.read_text() + 'barts,"0002_\n_00",lax_2c,1,1,1\n')
    report = run(tmp_path / "src", tmp_path / "store", **SIZE)
    assert CineStore(tmp_path / "store").ids == ["0001"]
    assert any("lax_2c.csv lists it" in f.reason and f.study == "0002" for f in report.failures)
    assert any("line 4: the uid '..__00', expected PATIENT__FRAME" in f.reason for f in report.failures)
