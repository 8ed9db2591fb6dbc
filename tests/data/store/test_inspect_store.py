"""What `inspect` says and draws of a store, also of one that cannot be written."""

import io
import json
import os

import numpy as np
import pytest
from cine_files import write_study
from PIL import Image
from prepared import run

from cinema_fast.cli import main
from cinema_fast.data.store import inspect_store as module
from cinema_fast.data.store.check import check_store
from cinema_fast.data.store.inspect_store import contact_sheet, inspect_store, moving_study
from cinema_fast.data.store.store import CineStore, StoreError


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("with space é")
    for n in range(2):
        write_study(folder / "src", f"p{n}", seed=n)
    write_study(folder / "src", "p2", views=("sax",), n_frames=6)
    (folder / "src/p2_lax_2c.nii.gz").write_bytes(b"")
    run(folder / "src", folder / "store", motion=True)
    return folder / "store"


def test_numbers(store):
    lines = inspect_store(store).splitlines()
    n_bytes = sum(path.stat().st_size for path in (store / "studies").rglob("*.npy"))
    assert lines[:3] == [f"{store}: 3 studies, 7 cines, 30 frames, {n_bytes / 1e6:.1f} MB",
                         "  2 studies have sax, lax_2c, lax_4c", "  1 study has sax"]
    assert "  2D images: 56 cine in SAX, 8 cine in LAX 2C, 8 cine in LAX 4C" in lines  # SAX of 4, 4 and 6 frames
    at = lines.index("sax: 3 cines, SAX")
    assert lines[at + 1 : at + 5] == ["  size 32 x 32 x 4", "  spacing 1 x 1 x 10 mm", "  frames 4 to 6 (median 4)",
                                      "  ms from frame to frame 30"]
    assert lines[at + 5].startswith("  motion maps 3 of 3, up to ")
    assert lines[-2:] == ["failures when it was prepared: 1", "  p2_lax_2c.nii.gz: the file is empty"]


def test_times_that_are_unknown_and_failures_that_are_many(store, tmp_path):
    os.symlink(store / "studies", tmp_path / "studies")
    index = (store / "index.json").read_text().replace('"frame_time_ms": 30.0', '"frame_time_ms": null', 1)
    (tmp_path / "index.json").write_text(index)
    failure = json.dumps({"study": "x", "view": None, "file": "x_sax.nii", "reason": "torn"})
    (tmp_path / "failures.jsonl").write_text(f"{failure}\n" * 8)
    text = inspect_store(tmp_path)
    assert "  ms from frame to frame 30, 1 unknown" in text and "failures when it was prepared: 8" in text
    assert text.count("x_sax.nii: torn") == 5 and text.endswith("  and 3 more in failures.jsonl")
    (tmp_path / "failures.jsonl").write_text("{")
    assert "failures.jsonl cannot be read" in inspect_store(tmp_path)
    (tmp_path / "failures.jsonl").unlink()
    assert inspect_store(tmp_path).endswith("failures: no failures.jsonl")


def places(image: Image.Image, frame: np.ndarray) -> list[tuple[int, int]]:
    """(left, top) of every place where a picture shows exactly a frame (X, Y)."""
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(image), frame.shape[::-1])
    return [(int(x), int(y)) for y, x in np.argwhere((windows == frame.T).all(axis=(2, 3)))]


def test_pictures_show_the_stored_frames(store):
    cines = CineStore(store)
    sheet = contact_sheet(cines, ["p0", "p2"])
    sax, lax = cines.read_frame("p2", "sax", 0)[..., 2], cines.read_frame("p0", "lax_4c", 0)
    ((sax_left, sax_top),), ((lax_left, lax_top),) = places(sheet, sax), places(sheet, lax)
    assert sax_left == module.GAP and sax_top >= lax_top + lax.shape[1] + module.GAP + module.LINE
    # no larger than its images, two gaps and the lines of text: views are 32 and 40 pixels wide, their names less
    assert sheet.size == (4 * module.GAP + 32 + 40 + 40, 3 * module.LINE + 2 * module.GAP + 40 + 32)
    assert np.asarray(sheet)[sax_top + 20 :, lax_left:].max() == 0, "p2 has no lax_4c"
    pictures = moving_study(cines, "p0")
    assert len(pictures) == 4
    assert len(places(pictures[3], cines.read_frame("p0", "lax_2c", 3))) == 1


def test_titles_touch_no_image_and_no_other_title(tmp_path):
    """Of long names and small images; and cells are as large as the images, which may differ."""
    def image(*size):
        return np.full(size, 100, np.uint8)

    names = ["a" * 30 + "_1", "x" * 200 + "_end", "short"]
    rows = [(names[0], [image(20, 30), None]), (names[1], [image(12, 10), image(50, 8)]),
            (names[2], [None, image(9, 9)])]
    sheet = np.asarray(module._grid(["sax", "another_view"], rows))
    blank = np.asarray(module._grid(["sax", "another_view"], [("", row) for _, row in rows]))
    assert sheet.shape[1] <= module.MAX_TITLE + 2 * module.GAP and (sheet == 100).sum() >= (blank == 100).sum()
    top = module.LINE  # below the names of the columns
    for (_, frames), height in zip(rows, (30, 10, 9)):
        line, images = sheet[top : top + module.LINE], sheet[top + module.LINE : top + module.LINE + height]
        assert line[1:].any() and not line[0].any() and not line[:, -module.GAP :].any()
        shown = [frame for frame in frames if frame is not None]
        assert (images == 100).sum() >= sum(frame.size for frame in shown)
        top += module.LINE + height + module.GAP
    assert sheet.shape[0] == top
    measure = len
    assert module._shortened("abcdefgh_1", 10, measure) == "abcdefgh_1"
    assert module._shortened("abcdefgh_12", 10, measure) == "abc...h_12"


def test_views_of_unlike_length_beat_together(store, monkeypatch):
    cines = CineStore(store)
    monkeypatch.setattr(cines, "views", lambda study: ("sax", "lax_2c"))
    monkeypatch.setattr(cines, "n_frames", lambda study, view: {"sax": 2, "lax_2c": 4}[view])
    pictures = moving_study(cines, "p0")
    for t, at in enumerate((0, 0, 1, 1)):
        frame = cines.read_frame("p0", "sax", at)[..., 2]
        assert len(places(pictures[t], frame)) == 1


def test_on_the_command_line(store, tmp_path, capfd):
    assert main(["inspect", str(store), "--out", str(tmp_path / "new folder/é")]) == 0
    out = capfd.readouterr().out
    assert "3 studies, 7 cines" in out and "study.gif: p0" in out
    with Image.open(tmp_path / "new folder/é/contact_sheet.png") as sheet:
        assert sheet.width == 4 * module.GAP + 32 + 40 + 40
    with Image.open(tmp_path / "new folder/é/study.gif") as moving:
        assert moving.n_frames == 4 and moving.info["duration"] == 30 and moving.info["loop"] == 0
    assert main(["inspect", str(tmp_path)]) == 1
    assert "is not a cine store" in capfd.readouterr().err


def test_a_store_on_a_read_only_disk_is_read(store, monkeypatch):
    """Nothing that reads a store opens a file to write; a symbolic link to it is as good."""
    opened, plain_open, plain_os = [], io.open, os.open

    def text_open(file, mode="r", *args, **kwargs):
        opened.append(file)
        if set(mode) & set("wax+"):
            raise OSError(30, "Read-only file system", str(file))
        return plain_open(file, mode, *args, **kwargs)

    def os_open(file, flags, *args, **kwargs):
        opened.append(file)
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(30, "Read-only file system", str(file))
        return plain_os(file, flags, *args, **kwargs)

    link = store.parent / "link to it"
    link.symlink_to(store)
    monkeypatch.setattr(io, "open", text_open)
    monkeypatch.setattr("builtins.open", text_open)
    monkeypatch.setattr(os, "open", os_open)
    cines = CineStore(link)
    assert cines.read_frame("p0", "sax", 1).shape == (32, 32, 4)
    assert cines.read_motion("p0", "sax").shape == (32, 32, 4)
    assert check_store(link, workers=1, progress=False).exit_code == 0
    assert "3 studies" in inspect_store(link)
    assert len(opened) > 10
    with pytest.raises(OSError, match="Read-only file system"):
        run(store.parent / "src", link)
    with pytest.raises(StoreError, match="does not exist"):
        inspect_store(store / "nothing")
