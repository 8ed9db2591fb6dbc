"""Raw data sets of nnU-Net: labels by name, channels, and the split of its first fold."""

import json

import numpy as np
import pytest
from prepared import run
from published_files import drawn, reasons, rows_of, save, smooth

from cinema_fast.data.datasets.nnunet import patient_of, validation_of
from cinema_fast.data.datasets.nnunet_labels import label_map_of
from cinema_fast.data.store.store import CineStore

SHAPE = (24, 24, 3)
SIZE = {"sax_size": (24, 24, 4), "dataset": "nnunet"}
V2 = {"channel_names": {"0": "bSSFP", "1": "LGE"}, "labels": {"background": 0, "LVC": 1, "Myocardium": 2, "RV": 3,
      "LA": 4}, "file_ending": ".nii.gz"}  # fmt: skip


def write_case(root, case, folder="imagesTr", channels=2, seed=0, labels=(3, 2, 4, 1), ending=".nii.gz"):
    images = [smooth(SHAPE, 10 * seed + n) for n in range(channels)]
    for n, one in enumerate(images):
        save(root / folder / f"{case}_{n:04d}{ending}", one)
    if labels:
        save(root / folder.replace("images", "labels") / f"{case}{ending}", drawn(SHAPE, labels))
    return images


def describe(root, **entries):
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset.json").write_text(json.dumps(V2 | entries))


def split_of(store) -> dict[str, str]:
    return {study: row["split"] for study, row in rows_of(store / "split.csv").items()}


def test_version_2(tmp_path):
    root = tmp_path / "nnUNet_raw" / "Dataset027_Heart"
    describe(root)
    images = {case: write_case(root, case, seed=n) for n, case in enumerate(("h1", "h2"))}
    write_case(root, "t1", "imagesTs", seed=5, labels=())
    write_case(root, "h3", seed=6, ending=".nii")
    report = run(tmp_path / "nnUNet_raw", tmp_path / "store", **SIZE)
    assert not report.failures
    store = CineStore(tmp_path / "store")
    assert store.info("h1", "sax").channels == ("bSSFP", "LGE")
    assert store.info("h1", "sax").sequences == ("cine", "lge")
    np.testing.assert_array_equal(store.read_labels("h3", "sax", 0), drawn(SHAPE, (1, 2, 7, 3)))
    for t, image in enumerate(images["h2"]):
        low, high = store.info("h2", "sax").window[t]
        levels = np.rint((np.clip(image.astype(np.float32), low, high) - low) / (high - low) * 255)
        np.testing.assert_array_equal(store.read_frame("h2", "sax", t), levels)
    assert split_of(tmp_path / "store") == {"h1": "train", "h2": "train", "h3": "train", "t1": "test"}
    options = json.loads((tmp_path / "store/index.json").read_text())["prepare"]
    assert options["label_map"] == {"1": 3, "2": 2, "3": 1, "4": 7}
    assert options["structures"] == {"1": "RV", "2": "MYO", "3": "LV", "7": "LA"}
    assert run(tmp_path / "nnUNet_raw", tmp_path / "store", **SIZE).unchanged == 4


def test_labels_by_name():
    def labels(entries):
        return label_map_of("dataset.json", entries)[0]

    assert labels({"0": "background", "1": "right ventricle", "2": "MLV", "3": "LV"}) == {1: 1, 2: 2, 3: 3}
    assert labels({"background": 0, "LV": 1, "MYO": 2, "RV": 3, "Scar": 5, "no-reflow": 4, "OEDEMA": 500}) == {
        1: 3, 2: 2, 3: 1, 5: 4, 4: 5, 500: 6}  # fmt: skip
    assert labels({"background": 0, "LV": 1, "RV": 2, "LA": 3, "RA": 4, "Myocardium": 5}) == {
        1: 3, 2: 1, 3: 7, 4: 8, 5: 2}  # fmt: skip
    # other structures keep their number where it is not of this project, else they take the smallest free one after
    entries = {"background": 0, "aorta": 1, "LV": 2, "vein": 9, "fat": 300}
    assert label_map_of("dataset.json", entries) == ({1: 10, 2: 3, 9: 9, 300: 11}, {
        9: "vein", 10: "aorta", 11: "fat"})  # fmt: skip
    # region-based training: values of a longer list have no name of their own
    assert labels({"background": 0, "heart": [1, 2, 3], "MYO": [2], "LV": 3}) == {1: 9, 2: 2, 3: 3}
    assert labels({"background": 0, "LV": 1, "ignore": 2}) == {1: 3}


@pytest.mark.parametrize(("labels", "reason"), [
    (["background", "LV"], "expected names and values"),
    ({"background": 0, "LV": "one"}, "expected a name and a whole number from 0"),
    ({"background": 0, "LV": 1, "RV": 1}, "the label 1 has two names, 'LV' and 'RV'"),
    ({"background": 0, "LV": 1, "LVC": 2}, "two labels are one structure, 'LV' and 'LVC'"),
    ({"0": "background", "1": "vessel", "2": "vessel"}, "two labels have the name 'vessel'"),
    ({"background": 0}, "labels names 0 structures, expected 1 to 246"),
    ({"background": 0, "LV": 70000}, "with values to 65535"),
])  # fmt: skip
def test_labels_that_are_refused(labels, reason):
    with pytest.raises(ValueError, match=reason):
        label_map_of("dataset.json", labels)


@pytest.mark.parametrize(("entries", "reason"), [
    ({"file_ending": ".nrrd"}, r"file_ending is '.nrrd', expected .nii.gz or .nii: convert the images"),
    ({"channel_names": {"1": "MR"}}, "expected names by number"),
    ({"channel_names": ["MR"]}, "expected names by number"),
])  # fmt: skip
def test_descriptions_that_are_refused(entries, reason, tmp_path):
    describe(tmp_path, **entries)
    with pytest.raises(ValueError, match=reason):
        run(tmp_path, tmp_path / "store", **SIZE)


def test_broken_descriptions(tmp_path):
    for text in ("{", "[1]", "[" * 100_000):
        (tmp_path / "dataset.json").write_text(text)
        with pytest.raises(ValueError, match=r"dataset\.json"):
            run(tmp_path, tmp_path / "store", **SIZE)
    (tmp_path / "dataset.json").unlink()
    with pytest.raises(ValueError, match="is not a raw data set of nnU-Net"):
        run(tmp_path, tmp_path / "store", **SIZE)


def test_version_1_and_faults(tmp_path):
    described = {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "LV", "2": "MYO"}, "numTraining": 5}
    (tmp_path / "dataset.json").write_text(json.dumps(described))
    for n in range(4):
        write_case(tmp_path, f"case{n}", channels=1, seed=n, labels=(2, 1))
    write_case(tmp_path, "two", channels=2, labels=(2, 1))
    write_case(tmp_path, "ignored", channels=1, labels=(2, 255, 1))
    (tmp_path / "labelsTr/case1.nii.gz").unlink()
    (tmp_path / "imagesTr/case2_0000.nii.gz").unlink()
    (tmp_path / "imagesTr/case3_0000.nii.gz").rename(tmp_path / "imagesTr/case3.nii.gz")
    found = reasons(run(tmp_path, tmp_path / "store", **SIZE))
    expected = {
        ("case1", "labelsTr/case1.nii.gz"): "is missing: the case is prepared without a label map",
        ("case2", "labelsTr/case2.nii.gz"): "is a label map without images: imagesTr has no case2_0000",
        ("case3", "labelsTr/case3.nii.gz"): "is a label map without images",
        ("", "imagesTr/case3.nii.gz"): "is not named CASE_0000.nii.gz",
        ("two", "imagesTr/two_0001.nii.gz"): "is not read: dataset.json names 1 channels",
        ("ignored", "labelsTr/ignored.nii.gz"): "holds the value 255, which is outside of the label map 1=3 2=2",
    }
    assert found.keys() == expected.keys()
    for key, reason in expected.items():
        assert found[key].startswith(reason)
    assert CineStore(tmp_path / "store").ids == ["case0", "case1", "ignored", "two"]
    describe(tmp_path)
    found = reasons(run(tmp_path, tmp_path / "other", **SIZE))
    assert found["case0", "imagesTr/case0_0001.nii.gz"] == "is missing: dataset.json names 2 channels"


def test_default_split():
    model_selection = pytest.importorskip("sklearn.model_selection")
    for n in (5, 12, 101):
        cases = sorted(f"case_{k}" for k in range(n))
        folds = model_selection.KFold(n_splits=5, shuffle=True, random_state=12345).split(cases)
        assert validation_of(cases) == [cases[k] for k in next(iter(folds))[1]]
    assert validation_of(["a", "b", "c", "d"]) == []


def test_patients_stay_together():
    assert [patient_of(case) for case in ("p1_ED", "p1_es", "patient001_frame12", "heart_1")] == [
        "p1", "p1", "patient001", "heart_1"]  # fmt: skip
    cases = sorted(f"p{n}_{phase}" for n in range(10) for phase in ("ED", "ES"))
    val = validation_of(cases)
    patients = validation_of(sorted(f"p{n}" for n in range(10)))
    assert val == [f"{patient}_{phase}" for patient in patients for phase in ("ED", "ES")]


def test_split_by_file(tmp_path):
    describe(tmp_path)
    for n in range(4):
        write_case(tmp_path, f"h{n}", seed=n)
    splits = tmp_path / "splits_final.json"
    splits.write_text(json.dumps([{"train": ["h0", "h9"], "val": ["h3", "h1"]}, {"train": ["h1"], "val": ["h0"]}]))
    report = run(tmp_path, tmp_path / "store", **SIZE)
    assert reasons(report) == {
        ("h9", "splits_final.json"): "train of the first fold: imagesTr has no usable case h9",
        ("h2", "splits_final.json"): "its first fold lacks h2: the case is in no part of the split",
    }
    assert split_of(tmp_path / "store") == {"h0": "train", "h1": "val", "h3": "val"}
    splits.write_text("{}")
    report = run(tmp_path, tmp_path / "store", **SIZE)
    assert "is not a list of folds" in reasons(report)["", "splits_final.json"]
    assert set(split_of(tmp_path / "store").values()) == {"train"}
