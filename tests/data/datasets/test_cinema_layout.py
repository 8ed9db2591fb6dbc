"""Processed folders of the CineMA reference: values, split, frames and pixels are those of the files."""

import json

import numpy as np
import pytest
from prepared import run
from published_files import drawn, reasons, rows_of, save, smooth, write_csv

from cinema_fast.data.prepare.dataset import dataset_of
from cinema_fast.data.prepare.prepare_config import PrepareConfig
from cinema_fast.data.store.store import CineStore

SHAPE = (24, 24, 3)
SIZE = {"sax_size": (24, 24, 4), "lax_size": (24, 24), "dataset": "cinema"}


def write_two(folder, study, view="sax", shape=SHAPE, seed=0):
    """ED and ES with label maps; returns the images."""
    images = {}
    for n, phase in enumerate(("ed", "es")):
        images[phase] = smooth(shape, 10 * seed + n)
        save(folder / study / f"{study}_{view}_{phase}.nii.gz", images[phase])
        save(folder / study / f"{study}_{view}_{phase}_gt.nii.gz", drawn(shape, grow=1 - n))
    return images


def acdc_row(study, **values):
    return {"pid": study, "pathology": "DCM", "height": 1.8, "weight": 81.0, "bmi": 25.0, "n_frames": 5,
            "original_sax_spacing_x": 1.5, "n_slices": 3, "lv_edv": 99.5, "lv_ef": 41.25, **values}  # fmt: skip


def stored_as(file_values, store, study, view, t):
    """The levels that the file's values have in the window of the store."""
    low, high = store.info(study, view).window[t]
    return np.rint((np.clip(file_values.astype(np.float32), low, high) - low) / (high - low) * 255)


@pytest.fixture
def acdc(tmp_path):
    """6 training patients and one for testing; a cine of five frames whose frames 1 and 3 are ED and ES."""
    root = tmp_path / "processed"
    rows = []
    for n in range(6):
        write_two(root / "train", f"patient{n:03d}", seed=n)
        rows.append(acdc_row(f"patient{n:03d}", pathology=("DCM", "NOR")[n % 2]))
    images = write_two(root / "test", "patient101", seed=20)
    cine = smooth((*SHAPE, 5), 99)
    cine[..., 1], cine[..., 3] = images["ed"], images["es"]
    save(root / "test/patient101/patient101_sax_t.nii.gz", cine)
    write_csv(root / "train_metadata.csv", rows)
    write_csv(root / "test_metadata.csv", [acdc_row("patient101")])
    return root, cine


def test_acdc(acdc, tmp_path):
    root, cine = acdc
    report = run(root, tmp_path / "store", **SIZE)
    assert not report.failures
    store = CineStore(tmp_path / "store")
    info = store.info("patient101", "sax")
    assert (info.phases, info.labels.frames, info.shape) == ((1, 3), (1, 3), (5, *SHAPE))
    for t in range(5):
        stored = store.read_frame("patient101", "sax", t)
        np.testing.assert_array_equal(stored, stored_as(cine[..., t], store, "patient101", "sax", t))
    np.testing.assert_array_equal(store.read_labels("patient101", "sax", 1), drawn(SHAPE, grow=1))
    table = rows_of(tmp_path / "store/table.csv")
    line = table["patient101"]
    assert {name: float(line[name]) for name in ("height", "weight", "bmi", "lv_edv_ml", "lv_ef", "ed", "es")} == {
        "height": 180, "weight": 81, "bmi": 25, "lv_edv_ml": 99.5, "lv_ef": 41.25, "ed": 1, "es": 3}  # fmt: skip
    assert line["pathology"] == "DCM"
    assert not {"n_slices", "n_frames", "original_sax_spacing_x", "pid"} & line.keys()
    # what the label maps measure stands where the table has no such column
    assert float(table["patient000"]["lv_esv_ml"]) == pytest.approx(10 * 6 * 3 * 10 / 1000)


def test_validation_of_acdc(tmp_path):
    """As pandas draws it from the published table: groupby("pathology").sample(n=2, random_state=0)."""
    groups = ("DCM", "HCM", "MINF", "NOR", "RV")
    patients = [f"patient{n:03d}" for n in range(1, 101)]
    for study in patients:
        path = tmp_path / f"train/{study}/{study}_sax_ed.nii.gz"
        path.parent.mkdir(parents=True)
        path.touch()
    write_csv(tmp_path / "train.csv", [acdc_row(study, pathology=groups[n // 20]) for n, study in enumerate(patients)])
    config = PrepareConfig(tmp_path, tmp_path / "store", dataset="cinema")
    split = dataset_of("cinema", tmp_path).find(config, False).split
    assert split.keys() == set(patients)
    assert sorted(int(study[-3:]) for study, part in split.items() if part == "val") == [
        2, 19, 22, 32, 54, 56, 61, 79, 82, 88]  # fmt: skip


def test_frames_by_the_table_and_faults(acdc, tmp_path):
    root, _ = acdc
    folder = root / "test/patient101"
    write_csv(root / "test_metadata.csv", [acdc_row("patient101", ed_frame=1, es_frame=5), acdc_row("patient150"),
                                           acdc_row("patient101", weight=1)])  # fmt: skip
    (root / "train/patient003/patient003_sax_es_gt.nii.gz").unlink()
    save(root / "train/patient004/patient004_sax_ed_gt.nii.gz", drawn(SHAPE, labels=(1, 7, 3)))
    (root / "train/patient005/patient005_sax_ed.nii.gz").unlink()
    (root / "validate").mkdir()
    write_two(root / "validate", "patient200")
    found = reasons(run(root, tmp_path / "store", **SIZE))
    assert CineStore(tmp_path / "store").info("patient101", "sax").phases == (0, 4)
    expected = {
        ("patient150", "test_metadata.csv"): "line 3: the study patient150 has no folder",
        ("patient101", "test_metadata.csv"): "line 4: the study 'patient101' is in test_metadata.csv, line 2 already",
        ("patient003", "train/patient003/patient003_sax_es_gt.nii.gz"): "is missing: its frame is prepared without a",
        ("patient004", "train/patient004/patient004_sax_ed_gt.nii.gz"): "holds the value 7, which is outside of the",
        ("patient005", "train/patient005/patient005_sax_ed.nii.gz"): "is missing: the view is prepared without this",
        ("", "validate"): "is not a part of the data split: expected train, val, test",
    }
    assert found.keys() == expected.keys()
    for key, reason in expected.items():
        assert found[key].startswith(reason)
    write_csv(root / "test_metadata.csv", [acdc_row("patient101")])
    other = smooth(SHAPE, 55)
    save(folder / "patient101_sax_es.nii.gz", other)
    found = reasons(run(root, tmp_path / "again", **SIZE))
    es = "test/patient101/patient101_sax_es"
    assert found["patient101", f"{es}.nii.gz"].startswith("it is no frame of patient101_sax_t.nii.gz: the nearest")
    assert "is unknown" in found["patient101", f"{es}_gt.nii.gz"]
    info = CineStore(tmp_path / "again").info("patient101", "sax")
    assert (info.phases, info.labels.frames) == (None, (1,))


def test_two_views_and_three_folders(tmp_path):
    """As M&Ms-2: names of digits, a validation folder."""
    root = tmp_path / "processed"
    images = {}
    for n, part in enumerate(("train", "val", "test")):
        study = f"{n + 1:03d}"
        images[study] = write_two(root / part, study, "lax_4c", (24, 24, 1), seed=n)
        write_two(root / part, study, seed=n + 5)
        write_csv(root / f"{part}_metadata.csv", [{"pid": study, "pathology": "LV", "vendor": "SIEMENS",
                                                  "orig_lax_4c_spacing_x": 1.2}])  # fmt: skip
    report = run(root, tmp_path / "store", **SIZE)
    assert not report.failures
    split = {study: row["split"] for study, row in rows_of(tmp_path / "store/split.csv").items()}
    assert split == {"001": "train", "002": "val", "003": "test"}
    store = CineStore(tmp_path / "store")
    assert store.info("002", "lax_4c").phases == (0, 1)
    for t, phase in enumerate(("ed", "es")):
        np.testing.assert_array_equal(
            store.read_frame("002", "lax_4c", t), stored_as(images["002"][phase][..., 0], store, "002", "lax_4c", t))
    assert rows_of(tmp_path / "store/table.csv")["003"]["vendor"] == "SIEMENS"


def test_kaggle(tmp_path):
    root = tmp_path / "processed"
    for view, shape in (("sax", SHAPE), ("lax_2c", (24, 24, 1)), ("lax_4c", (24, 24, 1))):
        save(root / f"val/501/501_{view}_t.nii.gz", smooth((*shape, 4), len(view)))
    write_csv(root / "val_metadata.csv", [{"pid": 501, "n_frames": 4, "systole_volume": 60.5, "diastole_volume": 121,
                                           "ef": 50}])  # fmt: skip
    report = run(root, tmp_path / "store", **SIZE)
    assert not report.failures
    line = rows_of(tmp_path / "store/table.csv")["501"]
    assert [float(line[name]) for name in ("lv_esv_ml", "lv_edv_ml", "lv_ef")] == [60.5, 121, 50]
    assert list(CineStore(tmp_path / "store").views("501")) == ["sax", "lax_2c", "lax_4c"]


def test_emidec(tmp_path):
    """All studies in train/, three tables; 1.458 mm; labels become those of the reader of EMIDEC."""
    root, affine = tmp_path / "processed", np.diag([1.458, 1.458, 10, 1])
    volumes = {}
    for part, study in (("train", "N001"), ("val", "P002"), ("test", "P003")):
        volumes[study] = smooth(SHAPE, int(study[1:]))
        save(root / f"train/{study}/{study}.nii.gz", volumes[study], affine)
        save(root / f"train/{study}/{study}_gt.nii.gz", drawn(SHAPE, (3, 4, 2, 1)), affine)
        row = {"pid": study, "pathology": study[0], "sex": "F", "age": 61, "ef": 45, "ecg": "Y"}
        write_csv(root / f"{part}_metadata.csv", [row])
    report = run(root, tmp_path / "store", **SIZE)
    assert not report.failures
    store = CineStore(tmp_path / "store")
    assert store.info("P002", "sax").channels == ("LGE",) and store.info("P002", "sax").sequences == ("lge",)
    np.testing.assert_array_equal(store.read_labels("P002", "sax", 0), drawn(SHAPE, (4, 5, 2, 3)))
    stored = store.read_frame("P002", "sax", 0)
    np.testing.assert_array_equal(stored, stored_as(volumes["P002"], store, "P002", "sax", 0))
    split = {study: row["split"] for study, row in rows_of(tmp_path / "store/split.csv").items()}
    assert split == {"N001": "train", "P002": "val", "P003": "test"}
    line = rows_of(tmp_path / "store/table.csv")["N001"]
    assert (line["echo_ef"], line["ecg_st"], line["sex"], line["lv_ef"]) == ("45", "Y", "F", "")
    options = json.loads((tmp_path / "store/index.json").read_text())["prepare"]
    assert options["label_map"] == {"1": 3, "2": 2, "3": 4, "4": 5}


def test_myops2020(tmp_path):
    root, affine = tmp_path / "processed", np.diag([0.75, 0.75, 12, 1])
    for part, numbers in (("train", range(101, 126)), ("test", (201,))):
        for n in numbers:
            for k, channel in enumerate(("c0", "de", "t2")):
                save(root / f"{part}/{n}/{n}_{channel}.nii.gz", smooth(SHAPE, 3 * n + k), affine)
            if part == "train":
                save(root / f"{part}/{n}/{n}_gt.nii.gz", drawn(SHAPE, (1, 3, 4, 5, 2)), affine)
        write_csv(root / f"{part}_metadata.csv", [{"pid": n, "n_slices": 3, "crop_lower_x": 9} for n in numbers])
    (root / "train/125/125_t2.nii.gz").unlink()
    report = run(root, tmp_path / "store", **SIZE)
    assert reasons(report) == {
        ("125", "train/125/125_t2.nii.gz"): "is missing: a study needs c0, de and t2",
        ("125", "train_metadata.csv"): "line 26: the study 125 has no folder or no images",
    }
    store = CineStore(tmp_path / "store")
    assert store.info("101", "sax").channels == ("C0", "DE", "T2")
    assert store.info("101", "sax").sequences == ("cine", "lge", "t2w")
    np.testing.assert_array_equal(store.read_labels("101", "sax", 0), drawn(SHAPE, (1, 2, 6, 4, 3)))
    for t in range(3):
        stored = store.read_frame("201", "sax", t)
        np.testing.assert_array_equal(stored, stored_as(smooth(SHAPE, 3 * 201 + t), store, "201", "sax", t))
    # by pandas: sample(n=5, random_state=0) of 101 to 125
    val = {study for study, row in rows_of(tmp_path / "store/split.csv").items() if row["split"] == "val"}
    assert val == {"103", "106", "112", "117", "120"}


def test_another_folder_is_refused(tmp_path):
    (tmp_path / "training").mkdir()
    with pytest.raises(ValueError, match="is not a processed folder of CineMA as unpacked: expected train_metadata"):
        run(tmp_path, tmp_path / "store", **SIZE)
