"""Files named in Latin-1, whose bytes are no UTF-8: prepared, verified, shown, trained on and named, all the same."""

import json
import os
import shutil
from hashlib import sha256

import pyarrow.parquet as pq
import pytest
from cine_files import write_study
from forked import run

from cinema_fast.data.loading.sampler import held_out
from cinema_fast.data.store.store import CineStore
from cinema_fast.train.run_info import read_run_info

NAME = os.fsdecode(b"M\xfcller")
SIZES = ("--sax-size", 32, 32, 2, "--lax-size", 32, 32, "--sax-spacing", 3, 3, 20, "--lax-spacing", 3, 3)


@pytest.fixture
def folder(tmp_path):
    """A folder of such a name, with studies of such names and one damaged file in SRC; ASCII elsewhere."""
    folder = tmp_path / os.fsdecode(b"Herz\xe4")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system takes no names that are not UTF-8")
    write_study(folder / "src", "a")
    for view in ("sax", "lax_2c"):
        for name in (NAME, f"{NAME}2"):
            shutil.copy(folder / f"src/a_{view}.nii.gz", folder / f"src/{name}_{view}.nii.gz")
    (folder / f"src/{NAME}_lax_4c.nii.gz").write_bytes(b"nothing")
    return folder


@pytest.mark.slow
def test_names_that_are_no_text(folder):
    store, out = folder / "store", folder / "run"
    prepared = run("prepare", folder / "src", store, *SIZES, "--workers", 1)
    assert prepared.returncode == 1 and "Traceback" not in prepared.stderr
    assert "3 studies prepared, 0 unchanged, 1 failure" in prepared.stdout
    assert "failed: M\\udcfcller_lax_4c.nii.gz: " in prepared.stdout
    assert CineStore(store).ids == [NAME, f"{NAME}2", "a"]
    (failure,) = map(json.loads, (store / "failures.jsonl").read_text("ascii").splitlines())
    assert failure["file"] == f"{NAME}_lax_4c.nii.gz"  # the name itself, by which the file can be opened
    assert run("prepare", folder / "src", store, *SIZES).stdout.startswith("1 study prepared, 2 unchanged")

    shown = run("inspect", store, "--out", folder / "pictures")
    assert shown.returncode == 0 and "Herz\\udce4/store: 3 studies" in shown.stdout

    options = ("--data", store, "--out", out, "--steps", 1, "--preset", "cinema-demo", "--batch-size", 2, "--views",
               "sax", "--holdout", 0.34)
    trained = run("pretrain", *options)
    assert trained.returncode == 0, trained.stderr
    assert (out / "report" / "reconstruction.png").exists()
    assert read_run_info(out).options["data"] == str(store) and list((out / "checkpoints").glob("*.safetensors"))

    (folder / "labels.csv").write_text("study,ef\na,50\nM\\udcfcller,60\n")
    embedded = run("embed", out, store, folder / "v.parquet", "--labels", folder / "labels.csv")
    assert embedded.returncode == 0, embedded.stderr
    with (folder / "v.parquet").open("rb") as file:
        assert pq.read_table(file)["study"].to_pylist() == ["M\\udcfcller", "M\\udcfcller2", "a"]
    assert (folder / "v.png").stat().st_size > 1000
    assert run("embed", out, store, folder / "v.parquet", "--resume").stdout.startswith("3 studies embedded")

    cine = store / "studies" / NAME / "sax.npy"
    content = bytearray(cine.read_bytes())
    content[-1] ^= 1
    cine.write_bytes(content)
    verified = run("verify", store)
    assert verified.returncode == 1 and "studies/M\\udcfcller/sax.npy: altered" in verified.stdout
    cine.write_bytes(bytes(20) + content[20:])
    again = run("pretrain", *options[:2], "--out", folder / "again", *options[4:])
    assert again.returncode == 0 and "  M\\udcfcller: " in again.stderr
    assert "  M\\udcfcller: " in (folder / "again" / "run.log").read_text("utf-8")


def test_the_holdout_knows_names_by_their_bytes():
    """By the SHA-256 of the bytes on the disk, as `sha256sum` gives it."""
    names = [b"M\xfcller", b"M\xc3\xbcller", b"a", b"b"]
    order = sorted(names, key=lambda name: sha256(name).digest())
    assert held_out(map(os.fsdecode, names), 0.5) == set(map(os.fsdecode, order[:2]))
