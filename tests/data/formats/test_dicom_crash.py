"""A decoder that ends its process takes one study with it, and not the run."""

import json

import pytest
from cine_files import affine_of, ball_cine
from forked import run

pytest.importorskip("pydicom", reason="the extra dicom is not installed")
from dicom_files import write_series

from cinema_fast.data.store.store import CineStore

AFFINE = affine_of((0.1, 0.2, 1.0), (1.5, 1.3, 8.0), (0, 0, 20), (40, 36, 1))
DATA = ball_cine((40, 36, 1), AFFINE)
# Python runs a module of this name before anything else, in the processes that it starts too.
STAND_IN = """
import os
import signal

from cinema_fast.data.formats import dicom_pixels

decode = dicom_pixels.read_pixels

def read_pixels(path, dataset):
    if dataset.PatientID == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    return decode(path, dataset)

dicom_pixels.read_pixels = read_pixels
"""


def test_a_decoder_that_crashes(tmp_path, monkeypatch):
    """With one worker too, which would be this process."""
    (tmp_path / "path").mkdir()
    (tmp_path / "path/sitecustomize.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    for patient in ("a", "crash", "z"):
        write_series(tmp_path / "src" / patient, DATA, AFFINE, study=f"1.{ord(patient[0])}", patient=patient)
    done = run("prepare", tmp_path / "src", tmp_path / "store", "--workers", 1)
    assert done.returncode == 1 and "2 studies prepared, 0 unchanged, 1 failure" in done.stdout, done.stderr
    assert [study.split("_")[0] for study in CineStore(tmp_path / "store").ids] == ["a", "z"]
    (failure,) = map(json.loads, (tmp_path / "store/failures.jsonl").read_text().splitlines())
    assert failure["study"].startswith("crash_") and failure["file"].startswith("crash/")
    assert "terminated abruptly" in failure["reason"]
