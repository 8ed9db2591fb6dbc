"""What commands write: refused before the work where it cannot be, gone after an error, begun anew after a kill."""

import errno
import os
import re

import numpy as np
import pytest
from embedding_files import write_embeddings
from tiny_runs import write_store

from cinema_fast.cli import main
from cinema_fast.common import output
from cinema_fast.common.lock import hold_folder
from cinema_fast.common.output import OutputError, folder_for, new_folder, output_errors, parts_folder
from cinema_fast.phantom import cohort as phantom

FULL = OSError(errno.ENOSPC, "No space left on device")
WRITTEN = ("*.csv", "studies")


def used(out, fail: BaseException | None = None, **options) -> None:
    """A command that writes a table and a folder, and fails then."""
    with new_folder(out, "measure", {"run": "r", "workers": 2} | options, WRITTEN):
        (out / "a.csv").write_text("whole" if fail is None else "half")
        (out / "studies" / "p").mkdir(parents=True)
        if fail:
            raise fail


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("make", [None, "empty", "deep"])
def test_whole_or_not_there(tmp_path, make):
    out = tmp_path / "x" / "y" / "out" if make == "deep" else tmp_path / "out"
    if make == "empty":
        out.mkdir()
    for fail, told in ((FULL, rf"{out}: the disk is full; no half-written files remain: free some space and run the"),
                       (ValueError("odd"), "odd"), (PermissionError(13, "Permission denied", "/a/scan"), "/a/scan")):
        with pytest.raises((OSError, ValueError), match=told):
            used(out, fail)
        assert names(out) == [] if make == "empty" else not out.exists()
    used(out)
    assert names(out) == ["a.csv", "studies"]
    with pytest.raises(FileExistsError, match="out is not empty: choose another folder to write"):
        used(out)


def test_a_killed_command_begins_anew(tmp_path, capsys):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):  # nothing is cleared away then, as after a kill
        used(out, KeyboardInterrupt())
    assert names(out) == [".lock", ".unfinished", "a.csv", "studies"]
    with pytest.raises(OutputError, match=r"with other options:\n  run: was r, now s\ngive the old values, remove the"):
        used(out, run="s")
    (out / "thesis.tex").write_text("mine")
    with pytest.raises(OutputError, match=r"`cinema-fast measure`, and 'thesis\.tex', which does"):
        used(out)
    (out / "thesis.tex").unlink()
    with hold_folder(out, "written", "", ValueError, print), pytest.raises(OutputError, match=r"pid \d+.*wait for it"):
        used(out)
    assert (out / "a.csv").read_text() == "half"
    used(out, workers=1)
    assert names(out) == ["a.csv", "studies"] and (out / "a.csv").read_text() == "whole"
    assert "out: leftovers of an unfinished `cinema-fast measure` are removed" in capsys.readouterr().err


def test_a_command_that_an_older_version_began_goes_on_under_the_new_names(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt), new_folder(out, "cluster", {"most": 10}, WRITTEN):
        raise KeyboardInterrupt
    with new_folder(out, "cluster", {"max_clusters": 10}, WRITTEN):
        (out / "a.csv").touch()
    assert names(out) == ["a.csv"]


def test_only_what_the_command_writes_is_ever_removed(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(OutputError, match="disk is full"), new_folder(out, "measure", {}, WRITTEN):
        (out / "a.csv").touch()
        (out / "notes.txt").touch()  # somebody else's, meanwhile
        raise FULL
    assert names(out) == ["notes.txt"]


def test_what_is_no_folder_to_write_is_refused_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "lost").symlink_to("nowhere")
    for out in (tmp_path / "file", tmp_path / "file" / "a" / "out"):
        with pytest.raises(OutputError, match=r"/file is a file; expected a folder to write"), folder_for(out):
            pytest.fail("the work has begun")
    with pytest.raises(OutputError, match="lost is a file"), folder_for(tmp_path / "lost"):
        pytest.fail("the work has begun")

    def refuse(**_):
        raise PermissionError(13, "Permission denied", "/somewhere/tmp1")

    monkeypatch.setattr(output, "TemporaryFile", refuse)
    told = r"out cannot be written \(Permission denied\); nothing was written: fix this, or choose another folder"
    with pytest.raises(OutputError, match=told), folder_for(tmp_path / "out"):
        pytest.fail("the work has begun")
    assert names(tmp_path) == ["file", "lost"]


@pytest.mark.parametrize(("error", "told"), [
    (OSError(errno.EDQUOT, "Disk quota exceeded"), "^/o: the disk is full; it stays: free"),
    (OSError(errno.ENOSPC, "No space", "/o/a/b"), "^/o/a/b: the disk is full"),
    (OSError(errno.EROFS, "Read-only", "/o/a"), r"^/o/a cannot be written \(Read-only\); it stays: fix this"),
    (OSError(errno.EFBIG, "File too large"), r"^/o cannot be written \(File too large\)"),
    (OSError(errno.EACCES, "Denied", "/other/o"), r"^\[Errno 13\] Denied: '/other/o'$"),
    (OSError("an image that cannot be read"), "^an image that"),
])  # fmt: skip
def test_errors_of_the_output_and_no_others_become_output_errors(error, told):
    with pytest.raises(OSError, match=told), output_errors(output.Path("/o"), "it stays"):
        raise error


def test_parts_stay(tmp_path):
    folder = tmp_path / "x.parts"
    with pytest.raises(OutputError, match="full; complete parts are kept"), parts_folder(folder):
        raise FULL
    assert not folder.exists()
    with pytest.raises(OutputError), parts_folder(folder):
        (folder / "part").touch()
        raise FULL
    assert names(folder) == [".lock", ".unfinished", "part"]
    with parts_folder(folder):
        pass
    assert names(folder) == ["part"]


def arguments_of(command: str, folder) -> list:
    """Of a command that would do its work, its folder to write left out."""
    if command == "inspect":
        return [write_store(folder / "store", {"s0": ("lax_2c",)}), "--out"]
    if command == "compare":
        for name in "ab":
            (folder / name).mkdir()
            (folder / name / "config.yaml").write_text("{run: {steps: 3}, model: {}, store: {studies: 1, sha256: ab}}")
            (folder / name / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
        return [folder / "a", folder / "b", "--out"]
    pytest.importorskip("sklearn")
    studies = write_embeddings(folder / "e.parquet", np.random.default_rng(0).standard_normal((40, 4)))
    if command == "cluster":
        return [folder / "e.parquet", "--clusters", 2, "--resamples", 20, "--out"]
    (folder / "t.csv").write_text("study,ef\n" + "".join(f"{study},{n}\n" for n, study in enumerate(studies)))
    return [folder / "e.parquet", "--table", folder / "t.csv", "--targets", "ef", "--out"]


LAST = {"compare": "comparison.md", "inspect": "study.gif", "phantom": "truth.json"}


@pytest.mark.parametrize("command", ["cluster", "compare", "inspect", "phantom", "probe"])
def test_a_disk_that_fills_up_under_a_command(tmp_path, monkeypatch, capsys, command):
    """With one of its last files."""
    arguments = [] if command == "phantom" else arguments_of(command, tmp_path)
    before, out = names(tmp_path), tmp_path / "out"

    def full(plain):
        def act(first, *rest, **options):
            if str((first, *rest)).count(LAST.get(command, "results.json")):
                raise FULL
            return plain(first, *rest, **options)

        return act

    monkeypatch.setattr(output.os, "replace", full(os.replace))
    monkeypatch.setattr(output.Path, "write_text", full(output.Path.write_text))
    monkeypatch.setattr(phantom, "_write_study", lambda dst, *_: (dst / "heart-000000_sax.nii.gz").touch() or {})
    assert main([command, *map(str, arguments), str(out)]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(rf"cinema-fast: {out}: the disk is full; no half-written files remain: .* again", said)
    left = {"compare": ["comparison.png"], "inspect": ["contact_sheet.png"]}.get(command)  # whole, as a file
    assert names(out) == left if left else names(tmp_path) == before


def test_ctrl_c_says_what_is_left_and_another_command_what_it_is_of(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt, match=rf"stopped; {out} is unfinished: the same command starts over"):
        used(out, KeyboardInterrupt())
    with (pytest.raises(OutputError, match="leftovers of an unfinished `cinema-fast measure`: remove the folder"),
          new_folder(out, "another", {}, WRITTEN)):
        pass
    used(out)
    assert (out / "a.csv").read_text() == "whole"
