"""The command `phantom` with sequences, second scans, atria and vendors, and the picture of the sequences."""

import csv
import json

import nibabel
import numpy as np
import pytest
from command_line import called

from cinema_fast.phantom.layouts.write_layout import write_layout
from cinema_fast.phantom.scanner import SCANNERS
from cinema_fast.phantom.sequence_figure import draw_sequences
from cinema_fast.phantom.sequences import PROTOCOLS
from cinema_fast.phantom.study import make_study

TINY = ("--n-frames", 2, "--n-slices", 4, "--in-plane-mm", 6)


def test_everything_at_once(capfd, tmp_path):
    out = tmp_path / "hearts"
    status, printed, _ = called(
        capfd, "phantom", out, "--n", 3, *TINY, "--sequences", "all", "--rescan", "--atria", "--vendor", "any"
    )
    assert status == 0 and printed.startswith(f"{out}: 6 studies, heart-000000 to heart-000002-rescan;")
    n_views = sum(len(sequence.planes) for sequence in PROTOCOLS.values())
    assert len(list(out.glob("*.nii.gz"))) == len(list((out / "labels").iterdir())) == 6 * n_views
    rows = list(csv.DictReader((out / "truth.csv").open(newline="")))
    assert all(row["vendor"] in SCANNERS for row in rows) and len({row["vendor"] for row in rows}) > 1
    options = json.loads((out / "truth.json").read_text())["options"]
    assert options["sequences"] == list(PROTOCOLS) and options["atria"] is True and options["vendor"] == "any"
    labels = np.asanyarray(nibabel.load(out / "labels" / "heart-000000_lax_4c.nii.gz").dataobj)
    assert {7, 8} <= set(np.unique(labels))
    study = make_study((0, 2), n_frames=2, n_slices=4, in_plane_mm=6.0, sequences=tuple(PROTOCOLS), atria=True,
                       vendor="any", scan=1)  # fmt: skip
    for view in ("sax", "t2map_sax", "t1w_lax_4c"):
        written = np.asanyarray(nibabel.load(out / f"heart-000002-rescan_{view}.nii.gz").dataobj)
        np.testing.assert_array_equal(written.reshape(study.images[view].shape), study.images[view])


def test_two_sequences_without_cines(capfd, tmp_path):
    status, _, _ = called(capfd, "phantom", tmp_path / "a", "--n", 1, *TINY, "--sequences", "t1w", "lge")
    assert status == 0
    names = {path.name[13:-7] for path in (tmp_path / "a").glob("*.nii.gz")}
    assert names == {"lge_sax", "lge_lax_2c", "lge_lax_3c", "lge_lax_4c", "t1w_sax", "t1w_lax_4c"}


@pytest.mark.parametrize(
    ("options", "name"),
    [(["--rescan"], "--rescan"), (["--atria"], "--atria"), (["--vendor", "ge"], "--vendor"),
     (["--sequences", "cine", "lge"], "--sequences")],
)  # fmt: skip
def test_a_layout_decides_by_itself(capfd, tmp_path, options, name):
    status, _, err = called(capfd, "phantom", tmp_path / "a", "--n", 1, *TINY, *options, "--layout", "acdc")
    assert status == 1 and err.startswith(f"cinema-fast: {name} cannot be chosen with --layout")
    assert not (tmp_path / "a").exists()


def test_a_layout_takes_no_sequences_atria_or_scan_from_python(tmp_path):
    for options in ({"sequences": ("lge",)}, {"atria": True}, {"scan": 1}):
        with pytest.raises(TypeError, match=next(iter(options))):
            write_layout(tmp_path / "a", "acdc", 1, 0, n_frames=2, n_slices=2, in_plane_mm=6.0, **options)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [(["--sequences", "dwi"], 2, "dwi"), (["--vendor", "acme"], 2, "acme"),
     (["--sequences"], 1, "sequences must name"), (["--sequences", "lge", "--atria"], 1, "atria is for label maps"),
     (["--seed", "-1"], 1, "seed must be at least 0, got -1")],
)  # fmt: skip
def test_mistakes(capfd, tmp_path, options, status, words):
    found, _, err = called(capfd, "phantom", tmp_path / "a", "--n", 1, *TINY, *options)
    assert found == status and words in err
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("n_slices", [1, 8])
def test_picture_of_the_sequences(tmp_path, n_slices):
    """Six rows: each shows the heart, and in the last columns its labels in colour over grey."""
    from PIL import Image

    study = make_study(27, disease="infarct", n_frames=2, in_plane_mm=4, n_slices=n_slices, sequences=tuple(PROTOCOLS))
    draw_sequences(study, tmp_path / "sequences.png")
    with Image.open(tmp_path / "sequences.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert pixels.shape[1] > 900
    rows = np.array_split(pixels[40:-50], len(PROTOCOLS))
    for row in rows:
        grey, colourful = row[:, 100 : row.shape[1] // 2], row[:, 3 * row.shape[1] // 4 :]
        assert grey.max() > 150 and np.ptp(colourful, axis=-1).max() > 50
