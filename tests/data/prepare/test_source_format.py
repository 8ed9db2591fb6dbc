"""A file format is two files: what this one defines is prepared, found by `auto`, and predicted as others are."""

import hashlib
import json

import nibabel as nib
import numpy as np
import pytest
from labelled_discs import SPACING, drawn

from cinema_fast.cli import main
from cinema_fast.data.formats.cine import Cine, CineError, Volume
from cinema_fast.data.prepare.source_format import FORMATS, SourceFormat
from cinema_fast.data.prepare.sources import Source, Sources
from cinema_fast.data.store.store import CineStore
from cinema_fast.tasks.finetune import finetune

AFFINE = np.diag([*SPACING["sax"], 1.0])


def files_of(config) -> list:
    return sorted(config.src.glob("*.cine.npy"))


def find(config, progress) -> Sources:
    """Cines named STUDY.VIEW.cine.npy, (X, Y, Z, T) uint8."""
    found = Sources()
    for path in files_of(config):
        study, view, *_ = path.name.split(".")
        found.studies.setdefault(study, {})[view] = Source((path,), view, format="array")
    return found


def read(source, stack) -> Cine:
    (path,) = source.files
    try:
        data = np.asfortranarray(np.load(path))
    except ValueError as error:
        raise CineError(path, str(error)) from None
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    volume = Volume(data, 1.0, 0.0, AFFINE, 30.0, digest)
    return Cine((volume,), data.shape[:3], data.shape[3], AFFINE, 30.0, digest)


ARRAY = SourceFormat(holds=lambda config: config.src.is_dir() and bool(files_of(config)), find=find, read=read)


@pytest.fixture
def arrays(tmp_path, monkeypatch):
    """A folder of two studies, and one whose file is damaged."""
    monkeypatch.setitem(FORMATS, "array", "test_source_format:ARRAY")
    folder = tmp_path / "arrays"
    folder.mkdir()
    for number in range(2):
        np.save(folder / f"p{number}.sax.cine.npy", np.moveaxis(drawn(number, "sax")[0], 0, -1))
    (folder / "p2.sax.cine.npy").write_text("no array")
    return folder


def test_it_is_prepared(arrays, tmp_path, capsys):
    size = ["--sax-size", "32", "32", "4", "--sax-spacing", *map(str, SPACING["sax"]), "--workers", "1",
            "--orientation", "stored"]  # fmt: skip
    assert main(["prepare", str(arrays), str(tmp_path / "store"), *size]) == 1
    assert "p2.sax.cine.npy" in capsys.readouterr().out
    store = CineStore(tmp_path / "store")
    assert store.ids == ["p0", "p1"] and store.info("p0", "sax").shape == (4, 32, 32, 3)
    seen, cine = store.read_frame("p0", "sax", 2), drawn(0, "sax")[0][2]
    assert np.corrcoef(seen.ravel(), cine.ravel())[0, 1] > 0.99  # but for the window
    assert main(["verify", str(tmp_path / "store")]) == 0


def test_it_is_predicted(discs, arrays, tmp_path):
    """Label maps lie on the grid of the arrays, with their affine."""
    finetune(discs.config(tmp_path / "run", "segmentation", steps=1, validate_every=1, views=("sax",)))
    (arrays / "p2.sax.cine.npy").unlink()
    assert main(["predict", str(tmp_path / "run"), str(arrays), str(tmp_path / "out"), "--workers", "1"]) == 0
    assert set(json.loads((tmp_path / "out" / "results.json").read_text())["studies"]) == {"p0", "p1"}
    maps = nib.load(tmp_path / "out" / "studies" / "p0" / "sax_labels.nii.gz")
    assert maps.shape == (32, 32, 3, 4) and np.allclose(maps.affine, AFFINE)
