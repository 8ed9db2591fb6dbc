"""A `predict` that does not end: killed, it begins anew by the same command; on a full disk, nothing of it stays."""

import errno

import pytest
from prediction_cases import oblique, predict_as, segmenter, tree, write_heart

from cinema_fast.common.output import OutputError
from cinema_fast.prediction import predict


@pytest.fixture
def src(tmp_path):
    for name in "ab":
        write_heart(tmp_path / "src", oblique(), name=f"{name}_sax.nii.gz")
    return tmp_path / "src"


def ending(monkeypatch, by: BaseException) -> None:
    """The writing of the second study ends so, with half of its files there."""
    plain = predict._write_study

    def write(out, study, made, writers):
        if study == "b":
            (out / "studies" / "b").mkdir()
            (out / "studies" / "b" / "half").touch()
            raise by
        plain(out, study, made, writers)

    monkeypatch.setattr(predict, "_write_study", write)


def test_killed_it_begins_anew(monkeypatch, tmp_path, src, capsys):
    out = tmp_path / "out"
    assert predict_as(monkeypatch, segmenter(), src, tmp_path / "usual").studies == 2
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # which clears nothing away but .preparing
        ending(patch, KeyboardInterrupt())
        predict_as(patch, segmenter(), src, out)
    (out / ".preparing" / "0").mkdir(parents=True)
    assert {".unfinished", "studies.csv", "studies/a", "studies/b/half"} <= tree(out)
    with pytest.raises(OutputError, match=r"with other options:\n  pattern: was \{id\}_\{view\}\.nii\.gz, now \{id"):
        predict_as(monkeypatch, segmenter(), src, out, pattern="{id}_{view}.nii*")
    assert predict_as(monkeypatch, segmenter(), src, out).studies == 2
    assert "leftovers of an unfinished `cinema-fast predict` are removed" in capsys.readouterr().err
    assert tree(out) == tree(tmp_path / "usual")
    for file in tree(out):
        if (out / file).is_file():
            assert (out / file).read_bytes() == (tmp_path / "usual" / file).read_bytes(), file


def test_a_full_disk(monkeypatch, tmp_path, src):
    ending(monkeypatch, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(OutputError, match=r"out: the disk is full; no half-written files remain: free some space"):
        predict_as(monkeypatch, segmenter(), src, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_taken_is_refused_before_weights_are_read(monkeypatch, tmp_path, src):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    with pytest.raises(OutputError, match="is not empty"):
        predict_as(monkeypatch, None, src, tmp_path / "out")
