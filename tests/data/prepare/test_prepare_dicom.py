"""From a folder of DICOM to a store: studies, series, views, and what was left out."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from cine_files import VIEWS, affine_of, ball_cine, write_cine
from cine_files import write_study as write_nifti

pytest.importorskip("pydicom", reason="the extra dicom is not installed")
from cine_files import forbid_listing
from dicom_files import set_pixels, write_enhanced, write_series, write_slice
from prepared import content, run

from cinema_fast.data.formats.nifti import read_cine
from cinema_fast.data.formats.view_rules import read_rules
from cinema_fast.data.prepare.dicom_sources import find_dicom_sources, study_id
from cinema_fast.data.prepare.prepare import PrepareConfig, prepare
from cinema_fast.data.store.store import CineStore

DESCRIPTIONS = {"sax": "cine_SAX_stack", "lax_2c": "LAX 2CH cine", "lax_4c": "tf2d 4-ch"}


def same_as_nifti(folder: Path, nifti: Path, study: str) -> None:
    """DICOM of a NIfTI study: its stack as a series per slice, a long axis as one enhanced file."""
    for number, view in enumerate(VIEWS, 1):
        cine = read_cine(nifti / f"{study}_{view}.nii.gz", stack=view == "sax")
        data = np.stack([cine.frame(t) for t in range(cine.n_frames)], axis=-1).astype(np.int16)
        options = {"study": f"1.2.{study[1:]}", "patient": study, "frame_ms": cine.frame_time_ms, "number": number,
                   "description": DESCRIPTIONS[view]}
        if view != "sax":
            write_enhanced(folder / f"{study} {view}/IM1", (data + 5) // 2, cine.affine, **options)
            continue
        for z in range(data.shape[2]):
            affine = cine.affine.copy()
            affine[:3, 3] += z * affine[:3, 2]
            write_series(folder / study / f"s{z}", data[:, :, z : z + 1], affine, **{**options, "number": 10 + z})


@pytest.fixture
def src(tmp_path):
    for n in range(2):
        write_nifti(tmp_path / "nifti", f"p{n}", seed=n)
        for view in VIEWS:  # even numbers less 5, which the enhanced file's slope 2 and intercept -5 can say
            cine = read_cine(tmp_path / f"nifti/p{n}_{view}.nii.gz", stack=view == "sax")
            data = np.stack([cine.frame(t) for t in range(cine.n_frames)], axis=-1).astype(np.int16) // 2 * 2 - 5
            write_cine(tmp_path / f"nifti/p{n}_{view}.nii.gz", data, cine.affine, cine.frame_time_ms)
        same_as_nifti(tmp_path / "dicom", tmp_path / "nifti", f"p{n}")
    return tmp_path / "dicom"


def test_the_store_is_that_of_the_same_nifti(src, tmp_path):
    report = run(src, tmp_path / "store")
    assert (report.prepared, report.failures, report.exit_code) == (2, [], 0)
    assert report.series == {("cine_SAX_stack", "sax", ""): 10, ("LAX 2CH cine", "lax_2c", ""): 2,
                             ("tf2d 4-ch", "lax_4c", ""): 2}
    assert "sax: 10 series 'cine_SAX_stack'" in str(report)
    run(tmp_path / "nifti", tmp_path / "other")
    store, other = CineStore(tmp_path / "store"), CineStore(tmp_path / "other")
    for n, study in enumerate(store.ids):
        assert study == study_id(f"1.2.{n}", f"p{n}") and study.startswith(f"p{n}_")
        assert store.views(study) == other.views(f"p{n}")
        for view in store.views(study):
            info, expected = store.info(study, view), other.info(f"p{n}", view)
            assert (info.shape, info.spacing_mm) == (expected.shape, expected.spacing_mm)
            assert info.frame_time_ms == pytest.approx(expected.frame_time_ms)
            np.testing.assert_allclose(info.affine, expected.affine, atol=1e-3)
            frames = [s.read_frames(i, view, range(4)).astype(int) for s, i in ((store, study), (other, f"p{n}"))]
            assert np.abs(frames[0] - frames[1]).max() <= 1  # affines rounded to the digits of DICOM
    again = run(src, tmp_path / "store")
    assert (again.prepared, again.unchanged) == (0, 2)


@pytest.mark.slow
def test_workers_write_the_same_bytes(src, tmp_path):
    for workers in (1, 2):
        assert run(src, tmp_path / f"store{workers}", workers=workers).prepared == 2
    assert content(tmp_path / "store1") == content(tmp_path / "store2")


SHAPE = (40, 36, 3)
AFFINE = affine_of((0.1, 0.2, 1.0), (1.5, 1.3, 8.0), (0, 0, 20), SHAPE)
DATA = ball_cine(SHAPE, AFFINE)


def test_what_is_no_cine_of_a_view_is_left_out_and_reported(tmp_path):
    src = tmp_path / "with space/ünï"
    write_series(src / "sax", DATA, AFFINE)
    write_series(src / "one", DATA[..., :1], AFFINE, description="cine SAX still", number=2)
    write_series(src / "lge", DATA, AFFINE, description="PSIR SAX", number=3)
    write_series(src / "x", DATA, AFFINE, description="mystery", number=4)

    def other_modality(dataset, z, t):
        dataset.Modality = "CT"

    write_series(src / "ct", DATA, AFFINE, number=5, description="SAX", change=other_modality)
    report = run(src, tmp_path / "store")
    assert report.series == {
        ("cine SAX", "sax", ""): 1, ("cine SAX still", None, "not a cine: one image of each of 3 planes"): 1,
        ("PSIR SAX", None, "late enhancement"): 1, ("mystery", None, "no rule fits its description"): 1,
        ("SAX", None, "modality CT"): 1}
    assert "left out (late enhancement): 1 series 'PSIR SAX'" in str(report) and report.exit_code == 0
    assert [CineStore(tmp_path / "store").views(study) for study in CineStore(tmp_path / "store").ids] == [("sax",)]


def test_copies_links_hidden_files_and_other_files(tmp_path):
    src = tmp_path / "src"
    paths = write_series(src / "a", DATA, AFFINE)
    (src / "b").symlink_to(src / "a")
    (src / "a/up").symlink_to(src)
    (src / ".hidden.dcm").write_bytes(paths[0].read_bytes())
    (src / "notes.txt").write_text("no DICOM")
    (src / "broken.dcm").write_bytes(paths[0].read_bytes()[:140] + b"\xff" * 300)
    (src / "bare.IMA").write_bytes(paths[0].read_bytes()[132:])
    (src / "dead").symlink_to(src / "nowhere")
    report = run(src, tmp_path / "store")
    assert [(f.study, f.view, f.file) for f in report.failures] == [("", None, "bare.IMA"), ("", None, "broken.dcm")]
    assert report.failures[0].reason == "not DICOM: no DICM at byte 128"
    assert report.prepared == 1 and report.exit_code == 1
    record = json.loads(next((tmp_path / "store/studies").glob("*/study.json")).read_text())["sax"]
    assert len(record["source"]["files"]) == 12 and record["source"]["file"].startswith("a/")


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    paths = write_series(tmp_path / "src", DATA, AFFINE)
    secret = paths[5].rename(tmp_path / "src/secret")
    plain_open = Path.open

    def guarded(path, *args, **kwargs):
        if path == secret:
            raise PermissionError(13, "Permission denied", str(path))
        return plain_open(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", guarded)
    report = run(tmp_path / "src", tmp_path / "store")
    first, second = report.failures
    assert first.file == "secret" and first.reason.startswith("cannot be read: Permission denied (views may lack it")
    assert second.file == "secret" and "frames are missing" in second.reason and report.exit_code == 3


def test_a_link_to_itself_and_a_folder_that_may_not_be_listed(tmp_path, monkeypatch):
    src = tmp_path / "src"
    write_series(src / "m", DATA, AFFINE)
    (src / "a").symlink_to(src / "a")
    (src / "x/deep").mkdir(parents=True)
    forbid_listing(monkeypatch, src / "x/deep")
    report = run(src, tmp_path / "store")
    assert report.prepared == 1 and report.exit_code == 1
    reasons = {failure.file: failure.reason for failure in report.failures}
    assert list(reasons) == ["a", "x/deep"] and reasons["x/deep"] == "cannot be read: Permission denied"
    assert reasons["a"].startswith("cannot be read: Too many levels of symbolic links")
    with pytest.raises(ValueError, match=r"no DICOM file .*byte 128; deep cannot be read: Permission denied\)"):
        find_dicom_sources(src / "x", read_rules())


def test_series_taken_more_than_once(tmp_path):
    src, rules = tmp_path / "src", tmp_path / "rules.yaml"
    write_series(src / "first", DATA, AFFINE, number=1)
    write_series(src / "again", DATA[:, :, 1:2, ::-1], AFFINE @ np.array(
        [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 1.0]]), number=2)
    for number in (3, 4):
        write_series(src / f"lax{number}", DATA[:, :, :1] + number, AFFINE, number=number, description="4CH")
    report = run(src, tmp_path / "store")
    assert [(f.view, f.reason) for f in report.failures] == [
        ("lax_4c", "taken more than once: the series 3 '4CH', 4 '4CH' are all lax_4c (rules of views: repeated: last)"),
        ("sax", "taken more than once: the series 1 'cine SAX', 2 'cine SAX' are all sax (rules of views: repeated: "
                "last)")]
    rules.write_text("repeated: last\nrules: [{match: sax, view: sax}, {match: 4ch, view: lax_4c}]")
    sources = find_dicom_sources(src, read_rules(rules))
    (views,) = sources.studies.values()
    assert sorted({path.parent.name for path in views["lax_4c"].files}) == ["lax4"]
    folders = [path.parent.name for path in views["sax"].files]
    assert (folders.count("first"), folders.count("again")) == (8, 4)
    assert run(src, tmp_path / "store", views_rules=rules).failures == []


def test_files_that_name_no_series_are_grouped_by_folder(tmp_path):
    """The number and the descriptions of a header tell series in one folder apart; the folder is the last resort."""
    def nameless(dataset, z, t):
        del dataset.SeriesInstanceUID, dataset.SeriesDescription, dataset.SeriesNumber

    def described(dataset, z, t):
        del dataset.SeriesInstanceUID

    for z in range(3):
        write_slice(tmp_path / f"src/p1/sax_{z}", DATA, AFFINE, z, change=nameless)
        write_slice(tmp_path / f"full/{z}", DATA, AFFINE, z)
    for number, description in ((1, "2CH"), (2, "4CH"), (3, "MOLLI 4CH")):
        write_series(tmp_path / "src/p1/sax", DATA[:, :, :1] + number, AFFINE, change=described, number=number,
                     description=description)  # fmt: skip
        write_series(tmp_path / f"full/{description}", DATA[:, :, :1] + number, AFFINE, description=description)
    report = run(tmp_path / "src", tmp_path / "store")
    assert report.series == {**{(f"sax_{z}", "sax", ""): 1 for z in range(3)}, ("2CH", "lax_2c", ""): 1,
                             ("4CH", "lax_4c", ""): 1, ("MOLLI 4CH", None, "mapping or anatomy"): 1}  # fmt: skip
    assert run(tmp_path / "full", tmp_path / "other").failures == report.failures == []
    store, other = CineStore(tmp_path / "store"), CineStore(tmp_path / "other")
    assert store.ids == other.ids and store.views(store.ids[0]) == ("sax", "lax_2c", "lax_4c")
    for view in store.views(store.ids[0]):
        frames = [s.read_frames(s.ids[0], view, range(4)) for s in (store, other)]
        np.testing.assert_array_equal(*frames)


@pytest.mark.parametrize("patient", ["", "ANON", "P 1"])
def test_files_that_name_no_study_are_refused(tmp_path, patient):
    """A folder may hold the files of several people, and so may an ID such as ANON."""
    def anonymous(dataset, z, t):
        del dataset.StudyInstanceUID

    write_series(tmp_path / "src/a", DATA, AFFINE, study="1.2")
    write_series(tmp_path / "src/a", DATA[:, :, :1], AFFINE, patient=patient, change=anonymous, description="4CH")
    report = run(tmp_path / "src", tmp_path / "store")
    assert report.prepared == 1 and len(report.failures) == 4 and report.exit_code == 1
    for failure in report.failures:
        assert failure.reason.startswith("the header names no study (StudyInstanceUID): whose heart it shows is "
                                         "unknown; give all files of a study one StudyInstanceUID")


def test_a_ragged_stack_by_the_rules(tmp_path):
    def change(dataset, z, t):
        if z == 4:
            set_pixels(dataset, [np.ones((30, 30), np.int16)])

    shape = (40, 36, 5)
    affine = affine_of((0.1, 0.2, 1.0), (1.5, 1.3, 8.0), (0, 0, 20), shape)
    data = ball_cine(shape, affine)
    write_series(tmp_path / "src/a", data[:, :, ::-1], affine, change=change, number=2)
    write_slice(tmp_path / "src/b", data, affine, 1, number=1)  # the earlier series: it does not count
    (failure,) = run(tmp_path / "src", tmp_path / "store").failures
    assert failure.reason.startswith("taken more than once")
    rules = tmp_path / "rules.yaml"
    rules.write_text("repeated: last\nragged: longest run\nrules: [{match: sax, view: sax}]")
    report = run(tmp_path / "src", tmp_path / "store", views_rules=rules)
    assert report.failures == [] and list(report.remarks) == [
        "of 5 slices the longest run of alike and evenly spaced ones is used, 4; left out: 1 of another size"]
    write_series(tmp_path / "plain", data[:, :, :0:-1], affine)
    run(tmp_path / "plain", tmp_path / "other")
    stores = CineStore(tmp_path / "store"), CineStore(tmp_path / "other")
    np.testing.assert_array_equal(*(store.read_frames(store.ids[0], "sax", range(4)) for store in stores))


def test_names_cannot_leave_the_store(tmp_path):
    hostile = ["../../../etc/x", "/root", "..", ".", "", "a/b\\c", "x" * 64, "\u202eabc", "con\u0000", "-rf"]
    for n, patient in enumerate(hostile):
        write_series(tmp_path / f"src/{n}", DATA[:, :, :1], AFFINE, patient=patient.replace("\u0000", " "),
                     study=f"1.{n}", description="4CH ../../../x")
    report = run(tmp_path / "src", tmp_path / "deep/er/store")
    assert (report.prepared, report.failures) == (len(hostile), [])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "src"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["er"]
    names = [path.name for path in (tmp_path / "deep/er/store/studies").iterdir()]
    assert len(names) == len(hostile)
    for name in names:
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") and name[0] != "-"
    assert study_id("1", "p") != study_id("2", "p")


def test_formats_are_distinguished(src, tmp_path, monkeypatch):
    write_cine(src / "q_sax.nii.gz", DATA, AFFINE)
    assert run(src, tmp_path / "a").prepared == 1  # where NIfTI is, that is meant
    assert run(src, tmp_path / "b", format="dicom").prepared == 2
    with pytest.raises(ValueError, match=r"no DICOM file in .*nifti"):
        run(tmp_path / "nifti", tmp_path / "c", format="dicom")
    with pytest.raises(ValueError, match=r"--aliases is for names of NIfTI files"):
        run(src, tmp_path / "c", format="dicom", aliases=("sax=stack",))
    with pytest.raises(ValueError, match=r"--views-rules is for DICOM"):
        run(tmp_path / "nifti", tmp_path / "c", views_rules=tmp_path / "rules.yaml")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ValueError, match=r"pip install 'cinema-fast\[dicom\]'"):
        run(src, tmp_path / "d", format="dicom")


@pytest.mark.parametrize(("content", "message"), [
    ("rules: [{match: 'sax(', view: sax}]", "rule 1, .* not a regular expression"),
    ("[", "the view rules cannot be read"),
    ("rules: [{match: sax, view: ../sax}]", "the view is a name of a-z"), ("rules: sax", "expected the keys rules"),
    ("rules: [{match: sax}]", "rule 1, .* expected"), ("repeated: first\nrules: []", "repeated is 'first', expected"),
    ("ragged: all\nrules: []", "ragged is 'all', expected refuse or longest run"),
    ("ragged: longest run\nrules: []", "the last of repeated slices counts; expected repeated: last, got refuse"),
])  # fmt: skip
def test_rules_that_cannot_serve(tmp_path, content, message):
    (tmp_path / "rules.yaml").write_text(content)
    with pytest.raises(ValueError, match=f"rules.yaml: .*{message}"):
        read_rules(tmp_path / "rules.yaml")
    with pytest.raises(ValueError, match=r"none\.yaml: the view rules cannot be read"):
        read_rules(tmp_path / "none.yaml")


@pytest.mark.parametrize(("description", "expected"), [
    ("cine_trufi_retro", "sax"), ("cine_trufi_retro 4CH", "lax_4c"), ("cine_trufi_retro 2CH", "lax_2c"),
    ("cine_trufi_retro RVOT", None), ("CINE_segmented_SAX_b12", "sax"), ("CINE_segmented_LAX_4Ch", "lax_4c"),
    ("CINE_segmented_LAX_3Ch", "lax_3c"), ("CINE_segmented_Ao_dist", None), ("SA stack", "sax"), ("FIESTA SA", "sax"),
    ("Short Axis bSSFP", "sax"), ("sBTFE_BH 2ch", "lax_2c"), ("LVOT", "lax_3c"), ("LGE_SAX", None), ("PSIR_4CH", None),
    ("MOLLI_T1 SAX", None), ("T2map_sax", None), ("localizer", None), ("scout", None), ("Perf_SAX", None),
    ("flow_250_tp_AoV", None), ("cine sa", "sax"), ("4 chamber", "lax_4c"), ("three_chamber", "lax_3c"),
    ("HLA", "lax_4c"), ("VLA cine", "lax_2c"), ("RV 2ch", None), ("sag t1", None), ("", None),
    ("stage 2 SAX", "sax"), ("perfect SAX", "sax"), ("SAX performed twice", "sax"), ("heritage 4CH", "lax_4c"),
    ("maple SAX", "sax"), ("Tagging_SAX", None), ("SAX tag 5mm", None), ("GridTag sax", None),
    ("cine_tagged_4ch", None), ("ep2d_perf_sax", None), ("SAX restperfusion", None), ("sax map", None),
    ("SAX T1_Mapping", None), ("PerfSR sax", None), ("sax_10", "sax"), ("2ch_21", "lax_2c"), ("4ch_14", "lax_4c"),
])  # fmt: skip
def test_default_rules(description, expected):
    assert read_rules().view_of(description, "")[0] == expected


def test_real_series(shared, tmp_path):
    config = PrepareConfig(shared / "data/cine/dicom_Se11_slim", tmp_path / "store", workers=1)
    report = prepare(config, progress=False)
    assert (report.prepared, report.exit_code) == (1, 0)
    info = CineStore(tmp_path / "store").info("patient1_da2e3a79", "sax")
    assert info.shape == (25, 192, 192, 1) and info.frame_time_ms == 34.52
