"""Kaggle's DICOM (Second Annual Data Science Bowl) becomes the store that full headers give, and faults are said."""

import csv
import json

import numpy as np
import pytest
from cine_files import BALL, VIEWS, affine_of, ball_cine

pytest.importorskip("pydicom", reason="the extra dicom is not installed")
from dicom_files import set_pixels, write_series, write_slice
from prepared import run

from cinema_fast.data.datasets import kaggle
from cinema_fast.data.datasets.kaggle import find
from cinema_fast.data.prepare.dicom_sources import study_id
from cinema_fast.data.prepare.prepare_config import PrepareConfig
from cinema_fast.data.store.store import CineStore

PREFIX = {"sax": "sax", "lax_2c": "2ch", "lax_4c": "4ch"}
SPACING = {"sax_spacing": (1.5, 1.5, 8.0), "lax_spacing": (1.4, 1.4)}


def view_of(view, n_frames, seed):
    """Pixels and affine of a view whose plane passes through the ball."""
    shape, spacing, normal, offset = VIEWS[view]
    unit = np.asarray(normal) / np.linalg.norm(normal)
    affine = affine_of(normal, spacing, BALL + np.asarray(offset) - unit * (unit @ offset), shape)
    return ball_cine(shape, affine, n_frames, seed), affine


def write_patient(folder, number, *, frames=(4, 4, 3), full=False, change=lambda dataset, z, t: None):
    """Folders of a patient as published, without UIDs; or with them. Folders' numbers say nothing of places."""
    def changed(z):
        def anonymous(dataset, _, t):
            dataset.PatientAge, dataset.PatientSex = "025Y", "F"
            dataset.CardiacNumberOfImages = None if full else n_frames
            if not full:
                del dataset.SeriesInstanceUID, dataset.StudyInstanceUID
                dataset.SeriesDescription = PREFIX[view]
            change(dataset, z, t)
        return anonymous

    options = {"study": f"1.2.{number}", "patient": f"p{number}"}
    for n_frames, view in zip(frames, VIEWS):
        data, affine = view_of(view, n_frames, number)
        for z in range(data.shape[2]):
            write_slice(folder / f"study/{PREFIX[view]}_{5 + 7 * z % 11}", data, affine, z, change=changed(z),
                        number=z, description=f"cine {PREFIX[view]}", **options)  # fmt: skip


def write_tables(folder, train="1,40,120.5", validate="501,60,100", test="701_Diastole,80\n701_Systole,20"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.csv").write_text(f"Id,Systole,Diastole\n{train}\n")
    (folder / "validate.csv").write_text(f"Id,Systole,Diastole\n{validate}\n")
    (folder / "solution.csv").write_text("Id,Volume,Usage\n" + "".join(f"{line},Public\n" for line in test.split("\n")))


def records_of(store, study):
    return json.loads((store / f"studies/{study}/study.json").read_text())


def test_the_store_is_that_of_full_headers(tmp_path):
    src = tmp_path / "second-annual-data-science-bowl"
    for number, part in ((1, "train/train"), (501, "validate/validate"), (701, "test/test")):
        write_patient(src / part / str(number), number)
        write_patient(tmp_path / f"full/{number}", number, full=True)
    data, affine = view_of("lax_2c", 4, 99)
    write_series(src / "train/train/1/study/2ch_21", data, affine)  # the first by number is 2ch_5
    write_tables(src)
    report = run(src, tmp_path / "store", dataset="kaggle", **SPACING)
    assert (report.prepared, report.failures, report.exit_code, report.remarks) == (3, [], 0, {})
    assert report.series == {("sax_*", "sax", ""): 15, ("2ch_*", "lax_2c", ""): 3, ("4ch_*", "lax_4c", ""): 3,
                             ("2ch_*", None, "not the first of its study"): 1}  # fmt: skip
    assert run(tmp_path / "full", tmp_path / "other", **SPACING).failures == []
    store, other = CineStore(tmp_path / "store"), CineStore(tmp_path / "other")
    assert store.ids == ["1", "501", "701"]
    for study in store.ids:
        same = study_id(f"1.2.{study}", f"p{study}")
        assert store.views(study) == tuple(VIEWS)
        for view, n_frames in zip(VIEWS, (4, 4, 3)):
            info, expected = store.info(study, view), other.info(same, view)
            assert info.shape == expected.shape and info.shape[0] == n_frames
            assert info.frame_time_ms == expected.frame_time_ms == 40.0
            np.testing.assert_array_equal(info.affine, expected.affine)
            for t in range(n_frames):
                np.testing.assert_array_equal(store.read_frame(study, view, t), other.read_frame(same, view, t))
    rows = list(csv.DictReader((tmp_path / "store/table.csv").open()))
    found = [tuple(row[name] for name in ("study", "lv_edv_ml", "lv_esv_ml", "lv_ef", "age", "sex")) for row in rows]
    assert found == [("1", "120.5", "40", f"{100 * 80.5 / 120.5:.7g}", "25", "F"),
                     ("501", "100", "60", "40", "25", "F"), ("701", "80", "20", "75", "25", "F")]  # fmt: skip
    assert (tmp_path / "store/split.csv").read_text().split() == ["study,split", "1,train", "501,val", "701,test"]
    assert run(src, tmp_path / "store", dataset="kaggle", **SPACING).unchanged == 3


def test_ragged_and_black_studies(tmp_path):
    """A slice of another size, a missing frame, a slice taken again, and study 761, which is black."""
    def change(dataset, z, t):
        if z == 0 and dataset.SeriesDescription == "sax":
            set_pixels(dataset, [np.ones((44, 42), np.int16)])

    def black(dataset, z, t):
        set_pixels(dataset, [np.zeros((dataset.Rows, dataset.Columns), np.int16)])

    write_patient(tmp_path / "src/train/2", 2, change=change)
    folder = tmp_path / "src/train/2/study"
    lacking = sorted((folder / f"sax_{5 + 7 * 3 % 11}").iterdir())
    lacking[-1].unlink()
    data, affine = view_of("sax", 4, 50)
    write_slice(folder / "sax_90", data, affine, 4)
    write_patient(tmp_path / "src/test/test/761", 761, change=black)
    write_tables(tmp_path / "src", train="2,40,120", test="761_Diastole,80\n761_Systole,20")
    report = run(tmp_path / "src", tmp_path / "store", dataset="kaggle", **SPACING)
    assert report.prepared == 1 and report.exit_code == 1
    assert [(f.study, f.view, f.reason) for f in report.failures] == [
        ("761", view, f"every frame of {n} holds one constant value")
        for view, n in (("lax_2c", 4), ("lax_4c", 3), ("sax", 4))]
    (remark,) = report.remarks
    assert remark == (
        "of 5 slices the longest run of alike and evenly spaced ones is used, 4; left out: 1 of another size; 1 slice "
        "left out, taken again later (the last one counts); a frame is missing in 1 slice: the frame before stands in")
    info = CineStore(tmp_path / "store").info("2", "sax")
    assert info.shape[:1] + info.shape[3:] == (4, 4) and report.remarks[remark] == ["2 sax"]
    record = records_of(tmp_path / "store", "2")["sax"]
    assert len(record["source"]["files"]) == 5 * 4 - 1 + 4
    assert [line.split(",")[0] for line in (tmp_path / "store/table.csv").read_text().split()] == ["study", "2"]


def touch(folder, *names):
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "IM-1-0001.dcm").write_bytes(b"")


def found(src, **options):
    return find(PrepareConfig(src, src / "store", dataset="kaggle", **options), False)


@pytest.mark.parametrize(("tables", "file", "reason"), [
    ({"train": "1,40,120\n1,41,121"}, "train.csv", "line 3: the study '1' is in train.csv, line 2 already"),
    ({"train": "1,forty,120"}, "train.csv", "line 2: Systole of the study 1 is 'forty', expected a volume in ml"),
    ({"train": "1,40,0"}, "train.csv", "line 2: Diastole of the study 1 is '0', expected a volume in ml"),
    ({"train": "1,130,120"}, "train.csv", "line 2: of the study 1 Systole 130 is larger than Diastole 120"),
    ({"train": "1,40,120\n77,40,120"}, "train.csv", "line 3: the study 77 has no folder or no images"),
    ({"validate": "502,40,120"}, "validate.csv", "has no line of the study 501: its values stay unknown"),
    ({"test": "701_Diastole,80\n701_Middle,20\n701_Systole,20"}, "solution.csv", "line 3: Id is '701_Middle'"),
    ({"test": "701_Diastole,80"}, "solution.csv", "line 2: Systole of the study 701 is missing"),
])  # fmt: skip
def test_a_fault_of_a_table_is_said_and_the_rest_goes_on(tmp_path, tables, file, reason):
    touch(tmp_path, "train/1/study/sax_5", "validate/501/study/sax_5", "test/701/study/sax_5")
    write_tables(tmp_path, **tables)
    sources = found(tmp_path)
    assert [f for *_, f, why in sources.refused if why.startswith(reason)] == [file]
    assert {f for *_, f, _ in sources.refused} == {file}
    assert sources.split == {"1": "train", "501": "val", "701": "test"}
    whole = {study for study, row in sources.table.items() if "lv_ef" in row}
    assert whole >= {"1", "501", "701"} - {{"train.csv": "1", "validate.csv": "501", "solution.csv": "701"}[file]}


def test_missing_and_unreadable_tables(tmp_path):
    touch(tmp_path, "train/1/study/sax_5", "validate/501/study/sax_5", "test/701/study/sax_5")
    write_tables(tmp_path)
    (tmp_path / "solution.csv").unlink()
    (tmp_path / "train.csv").write_text("Id;Systole;Diastole\n1;2;3\n")
    refused = {file: reason for *_, file, reason in found(tmp_path).refused}
    assert refused["train.csv"].startswith("fields are separated by semicolons")
    assert refused["solution.csv"].startswith("there is no such table") and len(refused) == 2


def test_folders_that_are_no_patient(tmp_path, monkeypatch):
    touch(tmp_path, "train/train/1/study/sax_10", "train/train/1/study/sax_9", "train/train/1/study/3ch_1",
          "train/train/1/study/2ch_10", "train/train/1/study/2ch_9", "train/train/notes/study/sax_5")  # fmt: skip
    touch(tmp_path, "test/701/study/4ch_5", "test/001/study/2ch_5")
    (tmp_path / "test/702/study/sax_4").mkdir(parents=True)
    write_tables(tmp_path, test="701_Diastole,80\n701_Systole,20")
    sources = found(tmp_path)
    assert [path.parent.name for path in sources.studies["1"]["sax"].files] == ["sax_9", "sax_10"]
    assert [path.parent.name for path in sources.studies["1"]["lax_2c"].files] == ["2ch_9"]
    assert sources.series["3ch_1", None, "no view of Kaggle"] == 1
    refused = {file: reason for *_, file, reason in sources.refused}
    assert refused == {
        "test/001": "a second folder of the study 1, which is in the part train already: it is left out",
        "test/701": "no study/sax_* folder with .dcm files: the stack is missing",
        "test/702": "no study/sax_* folder with .dcm files: the stack is missing",
        "test/702/study/sax_4": "holds no .dcm file: its slice is missing"}
    assert sources.studies.keys() == {"1", "701"} and list(sources.studies["701"]) == ["lax_4c"]
    monkeypatch.setattr(kaggle, "read_header", None)  # a shard reads no headers
    assert found(tmp_path, shard="1/2").studies == sources.studies
    with pytest.raises(ValueError, match=r"is not Kaggle as unpacked: expected train/train/1/study/sax_10/\*\.dcm"):
        found(tmp_path / "test/701/study")


@pytest.mark.filterwarnings("ignore:Invalid value for VR AS")
@pytest.mark.parametrize(("age", "years"), [("025Y", 25.0), ("006M", 0.5), ("", None), ("old", None)])
def test_age(tmp_path, age, years):
    def change(dataset, z, t):
        dataset.PatientAge, dataset.PatientSex = age, "M"

    data, affine = view_of("sax", 2, 0)
    write_slice(tmp_path / "train/1/study/sax_1", data, affine, 0, change=change)
    row = found(tmp_path).table["1"]
    assert (row.get("age"), row["sex"]) == (years, "M")
