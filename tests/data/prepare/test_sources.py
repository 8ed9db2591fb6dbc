"""Which files are which view of which study."""

from pathlib import Path

import pytest
from cine_files import forbid_listing

from cinema_fast.data.prepare.prepare import PrepareReport
from cinema_fast.data.prepare.sources import find_sources, holds_nifti, unmatched_line
from cinema_fast.prediction.predict import PredictReport


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def found(sources) -> dict:
    return {study: {view: [path.name for path in source.files] for view, source in views.items()}
            for study, views in sources.studies.items()}


def test_default_pattern_splits_id_and_view(tmp_path):
    touch(tmp_path, "a_b_lax_2c.nii.gz", "a_b_sax.nii.gz", "Müller 7_sax.nii.gz", "a_b_label.nii.gz", ".b_sax.nii.gz",
          "notes.txt", "labels/a_b_sax.nii.gz")
    sources = find_sources(tmp_path, "{id}_{view}.nii.gz")
    assert found(sources) == {
        "a_b": {"sax": ["a_b_sax.nii.gz"], "lax_2c": ["a_b_lax_2c.nii.gz"]},
        "Müller 7": {"sax": ["Müller 7_sax.nii.gz"]},
    }
    assert [path.name for path in sources.unmatched] == ["a_b_label.nii.gz"]


def test_what_was_found_and_what_has_no_place_is_reported(tmp_path):
    touch(tmp_path, *(f"{n}_sa_{t}.nii" for n in range(3) for t in range(2)), "3_sax_1.nii", "3_lax_2c_1.nii")
    touch(tmp_path, *(f"other{n}.nii" for n in range(7)))
    sources = find_sources(tmp_path, "{id}_{view}_{frame}.nii", ("sax=sa",))
    assert sources.found() == {("sax", "sa"): (3, 6), ("sax", "sax"): (1, 1), ("lax_2c", "lax_2c"): (1, 1)}
    names = sources.unmatched_names(tmp_path)
    assert unmatched_line(names) == ("7 NIfTI files ignored, not matching --pattern: other0.nii, "
                                     "other1.nii, other2.nii, other3.nii, other4.nii, ...")
    lines = str(PrepareReport(files=sources.found(), unmatched_files=names)).splitlines()
    assert lines[1:4] == ["lax_2c: 1 file from 1 study (in file names: 'lax_2c')",
                          "sax: 6 files from 3 studies (in file names: 'sa')",
                          "sax: 1 file from 1 study (in file names: 'sax')"] and lines[4] == unmatched_line(names)
    assert unmatched_line(names) in str(PredictReport(tmp_path, unmatched_files=names))


def test_folders_wildcards_links_and_repeated_id(tmp_path):
    src = touch(tmp_path / "src", "p1/x7_p1_sax.nii", "p1/x8_p2_sax.nii", "p2/x9_p2_lax_4c.nii", "p2/deep/a_p2_sax.nii")
    (src / "p3").symlink_to(touch(tmp_path / "elsewhere", "q_p3_sax.nii"))
    (src / "loop").symlink_to(src)
    sources = find_sources(src, "{id}/*_{id}_{view}.nii")
    assert found(sources) == {"p1": {"sax": ["x7_p1_sax.nii"]}, "p2": {"lax_4c": ["x9_p2_lax_4c.nii"]},
                              "p3": {"sax": ["q_p3_sax.nii"]}}


def test_a_folder_that_may_not_be_listed_is_refused_and_the_others_are_found(tmp_path, monkeypatch):
    src = touch(tmp_path, "p1/sax.nii", "p2/sax.nii", "p3/sax.nii")
    forbid_listing(monkeypatch, src / "p2")
    sources = find_sources(src, "{id}/{view}.nii")
    assert found(sources) == {"p1": {"sax": ["sax.nii"]}, "p3": {"sax": ["sax.nii"]}}
    assert sources.refused == [("", None, "p2", "cannot be read: Permission denied")]
    assert holds_nifti(src, "{id}/{view}.nii")
    forbid_listing(monkeypatch, src)
    with pytest.raises(PermissionError, match=str(src)):
        find_sources(src, "{id}/{view}.nii")


def test_aliases_and_a_folder_that_is_one_study(tmp_path):
    src = touch(tmp_path / "case 3", "Se8_2ch.nii.gz", "stack.nii.gz", "Se10.rvot.nii.gz", "Se8.nii.gz")
    aliases = ("lax_2c=Se8_2ch", "sax=stack", "rvot=Se10.rvot")
    assert found(find_sources(src, "{view}.nii.gz", aliases)) == {
        "case 3": {"lax_2c": ["Se8_2ch.nii.gz"], "sax": ["stack.nii.gz"], "rvot": ["Se10.rvot.nii.gz"]}}


def test_a_name_that_is_no_folder_of_its_own_is_refused(tmp_path):
    touch(tmp_path, "x.._sax.nii.gz", "x._sax.nii.gz", "xa_sax.nii.gz")
    sources = find_sources(tmp_path, "x{id}_{view}.nii.gz")
    assert list(sources.studies) == ["a"]
    assert [(r.file, r.reason) for r in sources.refused] == [
        ("x._sax.nii.gz", "a study cannot have the name '.'"), ("x.._sax.nii.gz", "a study cannot have the name '..'")
    ]


def test_frames_are_in_the_order_of_time(tmp_path):
    touch(tmp_path, "a_sax_es.nii.gz", "a_sax_ed.nii.gz", "a_sax_ed_gt.nii.gz",
          *(f"b_lax_4c_f{t}.nii.gz" for t in (0, 2, 10, 1)))
    sources = find_sources(tmp_path, "{id}_{view}_{frame}.nii.gz")
    assert found(sources) == {"a": {"sax": ["a_sax_ed.nii.gz", "a_sax_es.nii.gz"]},
                              "b": {"lax_4c": [f"b_lax_4c_f{t}.nii.gz" for t in (0, 1, 2, 10)]}}
    assert sources.studies["a"]["sax"].frames == ("ed", "es")


def test_two_files_for_one_view_are_not_guessed_between(tmp_path):
    touch(tmp_path, "a_2ch.nii", "a_lax_2c.nii", "a_sax.nii")
    sources = find_sources(tmp_path, "{id}_{view}.nii", ("lax_2c=2ch",))
    assert found(sources) == {"a": {"sax": ["a_sax.nii"]}}
    assert sources.refused == [
        ("a", "lax_2c", "a_2ch.nii, a_lax_2c.nii", "more than one file for lax_2c of 'a'")]
    frames = touch(tmp_path / "frames", "a_2ch_ed.nii", "a_lax_2c_es.nii")
    assert len(find_sources(frames, "{id}_{view}_{frame}.nii", ("lax_2c=2ch",)).refused) == 1


@pytest.mark.parametrize(("pattern", "aliases", "message"), [
    ("{id}.nii", (), r"has no \{view\}"),
    ("{id}_{view}_{phase}.nii", (), r"unknown placeholder \{phase\}; there are \{id\}, \{view\}, \{frame\}"),
    ("{id}_{view}.nii", ("Se8_2ch",), "alias 'Se8_2ch' is not VIEW=SPELLING"),
    ("{id}_{view}.nii", ("2 c=x",), "is not VIEW=SPELLING"),
    ("{id}-{view}.nii", (), r"no file in .* matches the pattern '\{id\}-\{view\}.nii' \(found there: a_sax.nii\)"),
    ("{id}/{view}.nii", (), r"\(found there: no .nii or .nii.gz at that depth\)"),
])  # fmt: skip
def test_pattern_that_cannot_serve(tmp_path, pattern, aliases, message):
    touch(tmp_path, "a_sax.nii")
    with pytest.raises(ValueError, match=message):
        find_sources(tmp_path, pattern, aliases)
    with pytest.raises(ValueError, match="is not a folder"):
        find_sources(tmp_path / "a_sax.nii", "{id}_{view}.nii")
