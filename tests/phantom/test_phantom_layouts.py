"""Layouts of public data sets: file lists, tables, labels and frames against the studies that they were made of."""

import csv
import json
import re
from collections import Counter
from pkgutil import resolve_name

import nibabel
import numpy as np
import pytest
from command_line import called

from cinema_fast.data.formats.nifti import read_cine
from cinema_fast.phantom.layouts.registry import LAYOUTS
from cinema_fast.phantom.layouts.write_layout import write_layout
from cinema_fast.phantom.study import make_study

SEED = 7
SMALL = {"n_frames": 4, "in_plane_mm": 4.0, "n_slices": 3}
N = {"acdc": 6, "mnms": 5, "mnms2": 6, "emidec": 4, "myops2020": 3, "nnunet": 3, "cinema": 3}
DISEASES = {  # written again: the diagnosis in the tables -> the heart that was drawn
    "DCM": "dilated", "LV": "dilated", "HCM": "hypertrophic", "MINF": "infarct", "IHD": "infarct", "P": "infarct",
    "NOR": "normal", "N": "normal", "RV": "rv_abnormal", "ARV": "rv_abnormal",
}  # fmt: skip
STYLES = {  # written again: the vendor in the tables -> the style of the images; "": the standard one
    "A": "siemens", "B": "philips", "C": "ge", "D": "", "SIEMENS": "siemens", "Philips Medical Systems": "philips",
    "GE MEDICAL SYSTEMS": "ge",
}  # fmt: skip
DECIDED = {"emidec": {"sequences": ("lge",), "acute": True}, "myops2020": {"sequences": (), "acute": True}}
RV, MYO, LV, SCAR, NO_REFLOW, OEDEMA = 1, 2, 3, 4, 5, 6  # of the phantom


class Written:
    """A layout on disk, read back; `of` gives the study of a name in the data set."""

    def __init__(self, out, name):
        write_layout(out, name, N[name], SEED, **SMALL)
        self.out, self.options = out, DECIDED.get(name, {}) | SMALL
        self.rows = {row["study"]: row for row in table(out / "truth.csv")}
        self.names = list(self.rows)

    def of(self, name):
        row = self.rows[name]
        seed = SEED, int(row["number"])
        return make_study(seed, disease=row["disease"], vendor=row["vendor"] or None, **self.options)

    def files(self):
        return sorted(str(path.relative_to(self.out)) for path in self.out.rglob("*") if path.is_file())

    def read(self, name):
        return np.asanyarray(nibabel.load(self.out / name).dataobj)


def table(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    made = {}

    def get(name):
        if name not in made:
            made[name] = Written(tmp_path_factory.mktemp(name) / "out", name)
        return made[name]

    return get


def check_labels(found, labels, values, dtype=np.uint8):
    """`found` has the data set's `values` {label of the phantom: value}, 0 for what is not drawn, voxel by voxel."""
    assert found.dtype == dtype and found.shape == labels.shape
    assert set(np.unique(found)) == {0, *values.values()}
    for value in values.values():
        of_value = np.isin(labels, [label for label in values if values[label] == value])
        np.testing.assert_array_equal(found == value, of_value)


def test_acdc(written):
    data = written("acdc")
    assert data.names == [f"patient{n}" for n in ("001", "002", "003", "004", "101", "102")]
    expected = ["database/MANDATORY_CITATION.md", "truth.csv"]
    for name, part in zip(data.names, ["training"] * 4 + ["testing"] * 2):
        study, folder = data.of(name), f"database/{part}/{name}"
        es = f"{study.es_frame + 1:02d}"
        expected += [f"{folder}/{file}" for file in (
            "Info.cfg", "MANDATORY_CITATION.md", f"{name}_4d.nii.gz", f"{name}_frame01.nii.gz",
            f"{name}_frame01_gt.nii.gz", f"{name}_frame{es}.nii.gz", f"{name}_frame{es}_gt.nii.gz",
        )]  # fmt: skip
        info = dict(line.split(": ") for line in (data.out / folder / "Info.cfg").read_text().splitlines())
        assert list(info) == ["ED", "ES", "Group", "Height", "NbFrame", "Weight"]
        assert (info["ED"], info["ES"], info["NbFrame"]) == ("1", str(int(es)), "4")
        assert DISEASES[info["Group"]] == study.patient.disease == data.rows[name]["disease"]
        assert float(info["Weight"]) / (float(info["Height"]) / 100) ** 2 == pytest.approx(study.patient.bmi, abs=0.05)
        np.testing.assert_array_equal(data.read(f"{folder}/{name}_4d.nii.gz"), study.images["sax"])
        for number, t in (("01", 0), (es, study.es_frame)):
            np.testing.assert_array_equal(
                data.read(f"{folder}/{name}_frame{number}.nii.gz"), study.images["sax"][..., t]
            )
            found = data.read(f"{folder}/{name}_frame{number}_gt.nii.gz")
            check_labels(found, study.labels["sax"][..., t], {RV: 1, MYO: 2, LV: 3})
        cine = read_cine(data.out / folder / f"{name}_4d.nii.gz", stack=True)
        assert not cine.oriented and cine.frame_time_ms == pytest.approx(study.frame_time_ms, rel=1e-4)
        np.testing.assert_allclose(cine.affine, np.diag([*study.spacing_mm["sax"], 1]), rtol=1e-6)
    assert data.files() == sorted(expected)
    assert "synthetic" in (data.out / "database/MANDATORY_CITATION.md").read_text()


def test_mnms(written):
    data = written("mnms")
    parts = ["Training/Labeled"] * 2 + ["Validation", "Testing", "Training/Unlabeled"]
    rows = table(data.out / "OpenDataset/211230_M&Ms_Dataset_information_diagnosis_opendataset.csv")
    assert list(rows[0]) == ["", "External code", "VendorName", "Vendor", "Centre", "ED", "ES", "Age", "Pathology",
                             "Sex", "Height", "Weight"]  # fmt: skip
    expected = ["OpenDataset/211230_M&Ms_Dataset_information_diagnosis_opendataset.csv", "truth.csv"]
    for row, part in zip(rows, parts, strict=True):
        code = row["External code"]
        assert re.fullmatch(r"([A-Z][0-9]){3}", code)
        name, study = f"OpenDataset/{part}/{code}/{code}_sa", data.of(code)
        expected += [f"{name}.nii.gz", f"{name}_gt.nii.gz"]
        assert DISEASES[row["Pathology"]] == study.patient.disease and STYLES[row["Vendor"]] == study.vendor
        assert (row["ED"], row["ES"], row["Age"]) == ("0", str(study.es_frame), f"{study.patient.age:.0f}")
        assert row["Sex"] == {"male": "M", "female": "F"}[study.patient.sex] and int(row["Centre"]) in range(1, 7)
        np.testing.assert_array_equal(data.read(f"{name}.nii.gz"), study.images["sax"])
        drawn = np.zeros_like(study.labels["sax"])
        drawn[..., [0, study.es_frame]] = study.labels["sax"][..., [0, study.es_frame]]
        if part == "Training/Unlabeled":
            assert not data.read(f"{name}_gt.nii.gz").any()
        else:
            check_labels(data.read(f"{name}_gt.nii.gz"), drawn, {LV: 1, MYO: 2, RV: 3})
        np.testing.assert_allclose(nibabel.load(data.out / f"{name}_gt.nii.gz").affine, study.affines["sax"], atol=1e-3)
    assert data.files() == sorted(expected)
    assert {row["Vendor"] for row in rows} == set("ABCD")
    assert [row["Height"] == row["Weight"] == "" for row in rows] == [False, True, False, False, False]


def test_mnms2(written):
    data = written("mnms2")
    assert data.names == ["001", "002", "003", "161", "201", "202"]
    rows = table(data.out / "MnM2/dataset_information.csv")
    assert list(rows[0]) == ["SUBJECT_CODE", "DISEASE", "VENDOR", "SCANNER", "FIELD"] and all(map(all, rows))
    assert [row["SUBJECT_CODE"] for row in rows] == ["1", "2", "3", "161", "201", "202"]
    assert {row["VENDOR"] for row in rows} == {"GE MEDICAL SYSTEMS", "Philips Medical Systems", "SIEMENS"}
    expected = ["MnM2/dataset_information.csv", "truth.csv"]
    for name, row in zip(data.names, rows):
        study, folder = data.of(name), f"MnM2/dataset/{name}"
        expected += [f"{folder}/{name}_{view}_{frame}.nii.gz" for view in ("SA", "LA")
                     for frame in ("ED", "ED_gt", "ES", "ES_gt", "CINE")]  # fmt: skip
        assert DISEASES[row["DISEASE"]] == study.patient.disease
        assert STYLES[row["VENDOR"]] == study.vendor
        for short, images, labels in (
            ("SA", study.images["sax"], study.labels["sax"]),
            ("LA", study.images["lax_4c"][:, :, None], study.labels["lax_4c"][:, :, None]),
        ):
            np.testing.assert_array_equal(data.read(f"{folder}/{name}_{short}_CINE.nii.gz"), images)
            for frame, t in (("ED", 0), ("ES", study.es_frame)):
                np.testing.assert_array_equal(data.read(f"{folder}/{name}_{short}_{frame}.nii.gz"), images[..., t])
                found = data.read(f"{folder}/{name}_{short}_{frame}_gt.nii.gz")
                check_labels(found, labels[..., t], {LV: 1, MYO: 2, RV: 3})
    assert data.files() == sorted(expected)


def test_emidec(written):
    data = written("emidec")
    train, test = "emidec-dataset-1.0.1", "emidec-segmentation-testset-1.0.0"
    assert data.files() == sorted([
        f"{train}/Readme.txt", "truth.csv", f"{test}/Case_101/Images/Case_101.nii.gz",
        *(f"{train}/{file}" for case in ("P001", "N002", "P003") for file in (
            f"Case {case}.txt", f"Case_{case}/Images/Case_{case}.nii.gz", f"Case_{case}/Contours/Case_{case}.nii.gz",
        )),
    ])  # fmt: skip
    for case in ("P001", "N002", "P003"):
        study = data.of(f"Case_{case}")
        assert DISEASES[case[0]] == study.patient.disease
        image = nibabel.load(data.out / train / f"Case_{case}/Images/Case_{case}.nii.gz")
        np.testing.assert_array_equal(np.asanyarray(image.dataobj), study.images["lge_sax"][..., 0])
        np.testing.assert_allclose(image.affine, study.affines["lge_sax"], atol=1e-3)
        contours = data.read(f"{train}/Case_{case}/Contours/Case_{case}.nii.gz")
        infarct = {OEDEMA: 2, SCAR: 3, NO_REFLOW: 4} if case[0] == "P" else {}
        check_labels(contours, study.labels["lge_sax"][..., 0], {LV: 1, MYO: 2, **infarct})
        # as the reference reads it: escapes decoded, keys and values stripped
        text = (data.out / train / f"Case {case}.txt").read_text(encoding="unicode_escape")
        lines = [line.partition(":") for line in text.splitlines() if ":" in line]
        said = {key.strip(): value.strip() for key, _, value in lines}
        assert said.keys() == {
            "Gap between slices", "Sex", "Age", "Tobacco", "Overweight", "Arterial hypertension", "Diabetes",
            "Familial history of coronary artery disease", "ECG (ST +)", "Troponin", "Killip Max", "FEVG", "NTProBNP",
        }  # fmt: skip
        gap = study.spacing_mm["lge_sax"][2]
        assert float(said["Gap between slices"].removesuffix(" mm")) == pytest.approx(gap, abs=0.05)
        assert said["Sex"] == {"male": "M", "female": "F"}[study.patient.sex]
        fate = study.outcome
        assert (said["Arterial hypertension"], said["Diabetes"]) == ("NY"[fate.hypertension], "NY"[fate.diabetes])
        assert said["Overweight"] == ("Y" if study.patient.bmi > 25 else "N")
        assert int(said["FEVG"]) == round(study.ef) and int(said["NTProBNP"]) > 0 and float(said["Troponin"]) >= 0
        assert int(said["Tobacco"]) in (1, 2, 3) and int(said["Killip Max"]) in (1, 2, 3, 4)
    np.testing.assert_array_equal(
        data.read(f"{test}/Case_101/Images/Case_101.nii.gz"), data.of("Case_101").images["lge_sax"][..., 0]
    )


def test_myops2020(written):
    data = written("myops2020")
    images = {"train25/myops_training_101": "101", "train25/myops_training_102": "102", "test20/myops_test_201": "201"}
    assert data.files() == sorted([
        "train25_myops_gd/myops_training_101_gd.nii.gz", "train25_myops_gd/myops_training_102_gd.nii.gz", "truth.csv",
        *(f"{image}_{sequence}.nii.gz" for image in images for sequence in ("C0", "DE", "T2")),
    ])  # fmt: skip
    for image, name in images.items():
        study = data.of(name)
        quiet = {}
        for channel, sequence in (("C0", "cine"), ("DE", "lge"), ("T2", "t2w")):
            quiet[channel], labels = study.scan_again("sax", 0, 0, sequence=sequence, gain=1, noise_sd=0)
        for channel in quiet:  # the image of this sequence, in another gain and with noise, and of no other one
            nifti = nibabel.load(data.out / f"{image}_{channel}.nii.gz")
            np.testing.assert_allclose(nifti.affine, study.affines["sax"], atol=1e-3)
            alike = {other: np.corrcoef(np.ravel(nifti.dataobj), quiet[other].ravel())[0, 1] for other in quiet}
            assert [other for other in alike if alike[other] > 0.97] == [channel]
        if name != "201":
            found = data.read(f"train25_myops_gd/myops_training_{name}_gd.nii.gz")
            values = {LV: 500, MYO: 200, RV: 600, OEDEMA: 1220, SCAR: 2221, NO_REFLOW: 2221}
            check_labels(found, labels, values, np.int16)


def test_injured_muscle_shows_in_the_images(tmp_path):
    """By the tissues scar is 8.2 times as bright as healthy muscle in late enhancement, and oedema 1.4 times on T2;
    less in voxels that hold two tissues. A cine shows neither."""
    shape = {"n_frames": 2, "in_plane_mm": 2.0, "n_slices": 8}

    def means(labels, image, values):
        labels, image = (np.asanyarray(nibabel.load(tmp_path / path).dataobj) for path in (labels, image))
        return [image[labels == value].mean() for value in values]

    write_layout(tmp_path / "emidec", "emidec", 1, SEED, **shape)
    case = "emidec/emidec-dataset-1.0.1/Case_P001/{}/Case_P001.nii.gz"
    healthy, scar, core = means(case.format("Contours"), case.format("Images"), (2, 3, 4))
    assert scar > 3 * healthy and core < scar / 2
    write_layout(tmp_path / "myops", "myops2020", 1, SEED, **shape)
    labels, image = "myops/train25_myops_gd/myops_training_101_gd.nii.gz", "myops/train25/myops_training_101_{}.nii.gz"
    healthy, oedema, scar = means(labels, image.format("DE"), (200, 1220, 2221))
    assert scar > 3 * healthy and scar > 2 * oedema
    healthy, oedema, scar = means(labels, image.format("T2"), (200, 1220, 2221))
    assert oedema > 1.25 * healthy and oedema > scar > 1.15 * healthy
    healthy, oedema, scar = means(labels, image.format("C0"), (200, 1220, 2221))
    assert oedema == pytest.approx(healthy, rel=0.2) and scar == pytest.approx(healthy, rel=0.2)


def test_nnunet(written):
    data = written("nnunet")
    names = [f"heart-{i:06d}_{frame}" for i in range(3) for frame in ("ED", "ES")]
    assert data.files() == sorted([
        "dataset.json", "truth.csv", *(f"imagesTr/{name}_0000.nii.gz" for name in names[:4]),
        *(f"labelsTr/{name}.nii.gz" for name in names[:4]), *(f"imagesTs/{name}_0000.nii.gz" for name in names[4:]),
    ])  # fmt: skip
    document = json.loads((data.out / "dataset.json").read_text())
    assert document["labels"] == {"background": 0, "RV": 1, "MYO": 2, "LV": 3}
    assert document["numTraining"] == 4 and document["file_ending"] == ".nii.gz"
    assert list(document["channel_names"]) == ["0"]
    for i in range(3):
        study = make_study((SEED, i), **SMALL)  # that of the default layout
        for frame, t in (("ED", 0), ("ES", study.es_frame)):
            image = f"images{'Tr' if i < 2 else 'Ts'}/heart-{i:06d}_{frame}_0000.nii.gz"
            np.testing.assert_array_equal(data.read(image), study.images["sax"][..., t])
            if i < 2:
                found = data.read(f"labelsTr/heart-{i:06d}_{frame}.nii.gz")
                check_labels(found, study.labels["sax"][..., t], {RV: 1, MYO: 2, LV: 3})


def test_cinema(written):
    data = written("cinema")
    assert data.names == ["patient001", "patient002", "patient101"]
    parts = ["train", "train", "test"]
    assert data.files() == sorted([
        "train_metadata.csv", "test_metadata.csv", "truth.csv",
        *(f"{part}/{name}/{name}_sax_{frame}.nii.gz" for part, name in zip(parts, data.names)
          for frame in ("ed", "ed_gt", "es", "es_gt", "t")),
    ])  # fmt: skip
    rows = [row for part in ("train", "test") for row in table(data.out / f"{part}_metadata.csv")]
    for name, part, row in zip(data.names, parts, rows, strict=True):
        study, file = data.of(name), f"{part}/{name}/{name}_sax"
        assert row["pid"] == name and DISEASES[row["pathology"]] == study.patient.disease
        assert float(row["bmi"]) == pytest.approx(study.patient.bmi, abs=0.05) and 1.4 < float(row["height"]) < 2.1
        assert (row["n_frames"], row["ed_frame"], row["es_frame"]) == ("4", "1", str(study.es_frame + 1))
        cine, voxel_ml = data.read(f"{file}_t.nii.gz"), np.prod(study.spacing_mm["sax"]) / 1e3
        for frame, t in (("ed", 0), ("es", study.es_frame)):
            labels, image = study.labels["sax"][..., t], data.read(f"{file}_{frame}.nii.gz")
            check_labels(data.read(f"{file}_{frame}_gt.nii.gz"), labels, {RV: 1, MYO: 2, LV: 3})
            for chamber, label in (("lv", LV), ("rv", RV)):
                assert float(row[f"{chamber}_{frame}v"]) == pytest.approx((labels == label).sum() * voxel_ml)
            np.testing.assert_array_equal(image, cine[..., t])
            assert image.dtype == np.uint8 and (image.min(), image.max()) == (0, 255)
            rank = np.corrcoef(image.ravel(), study.images["sax"][..., t].ravel())[0, 1]
            assert rank > 0.98  # clipped at two percentiles, else linear
        assert float(row["lv_ef"]) == pytest.approx(100 * (1 - float(row["lv_esv"]) / float(row["lv_edv"])))


def test_cinema_is_cut_to_192_around_the_ventricle(tmp_path):
    shape = {"n_frames": 2, "in_plane_mm": 1.0, "n_slices": 2}
    write_layout(tmp_path, "cinema", 1, SEED, **shape)
    study = make_study((SEED, 0), disease="dilated", **shape)
    found = nibabel.load(tmp_path / "train/patient001/patient001_sax_ed_gt.nii.gz")
    labels, corner = np.asanyarray(found.dataobj), np.round(found.affine[:2, 3]).astype(int)
    assert study.labels["sax"].shape[:2] == (288, 288) and labels.shape == (192, 192, 2)
    window = tuple(slice(start, start + 192) for start in corner)
    np.testing.assert_array_equal(labels, study.labels["sax"][(*window, slice(None), 0)])
    for along in np.nonzero(labels == LV)[:2]:
        assert abs((along.min() + along.max()) / 2 - 95.5) <= 0.5


@pytest.mark.parametrize("name", LAYOUTS)
def test_truth_is_that_of_the_hearts(written, name):
    for study, row in written(name).rows.items():
        truth = written(name).of(study).truth()
        keys = "ef", "edv_ml", "es_frame", "ed_frame", "age", "disease", "vendor", "scar_percent", "oedema_ml"
        assert all(row[key] == str(truth[key]) for key in keys)


def test_sizes_and_groups_as_published():
    def cases(name, n):
        return resolve_name(LAYOUTS[name]).cases(n, SEED)

    acdc = cases("acdc", 150)
    assert [c.study for c in acdc] == [f"patient{i:03d}" for i in range(1, 151)]
    assert [c.group for c in acdc[:100]] == [g for g in ("DCM", "HCM", "MINF", "NOR", "RV") for _ in range(20)]
    assert set(Counter(c.group for c in acdc[100:]).values()) == {10}
    mnms = cases("mnms", 345)
    assert len({c.study for c in mnms}) == 345 and {c.study for c in mnms[:9]} == {c.study for c in cases("mnms", 9)}
    assert Counter(c.part for c in mnms) == {
        "Training/Labeled": 150, "Training/Unlabeled": 25, "Validation": 34, "Testing": 136,
    }  # fmt: skip
    assert {c.group for c in mnms if c.part == "Training/Labeled"} == {"DCM", "HCM", "NOR", "ARV"}
    mnms2 = cases("mnms2", 360)
    assert [c.study for c in mnms2] == [f"{i:03d}" for i in range(1, 361)]
    assert {c.group for c in mnms2[:160]} == {"LV", "HCM", "NOR"} == {c.group for c in mnms2[160:]} - {"RV"}
    emidec = Counter(c.study.removeprefix("Case_")[0] for c in cases("emidec", 150))
    assert emidec == {"N": 33, "P": 67, "1": 50}
    assert [c.study for c in cases("myops2020", 45)] == [str(i) for i in (*range(101, 126), *range(201, 221))]
    with pytest.raises(ValueError, match=r"n must be at most 45, .* got 46"):
        cases("myops2020", 46)


@pytest.mark.parametrize("name", LAYOUTS)
def test_small_cohorts_fill_every_part_with_several_studies_a_group(name):
    layout = resolve_name(LAYOUTS[name])
    for n in range(1, 46):
        cases = layout.cases(n, SEED)
        assert [c.i for c in cases] == list(range(n)) and len({c.study for c in cases}) == n
        assert len({c.part for c in cases}) == min(n, len(layout.parts))
        for part in {c.part for c in cases}:
            groups = Counter(c.group for c in cases if c.part == part)
            if name not in ("myops2020", "nnunet"):  # infarcts alone; no groups
                assert len(groups) >= min(2, groups.total())
                assert groups.total() < 4 or min(groups.values()) >= 2


def test_the_seed_alone_decides(written, tmp_path):
    write_layout(tmp_path, "mnms", N["mnms"], SEED, workers=2, **SMALL)
    data = written("mnms")
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == set(data.files())
    assert all((data.out / file).read_bytes() == (tmp_path / file).read_bytes() for file in data.files())
    cases = [resolve_name(LAYOUTS["mnms"]).cases(5, seed) for seed in (SEED, SEED + 1)]
    assert not {c.study for c in cases[0]} & {c.study for c in cases[1]}


def test_scan_again_has_the_same_heart_and_another_noise():
    quiet = make_study(5, noise_sd=0, **SMALL)
    for view in ("sax", "lax_4c"):
        first, again = quiet.images[view][..., 2], quiet.scan_again(view, 2, 0, gain=1.0, noise_sd=0)[0]
        bright = again > 200
        ratio = first[bright] / again[bright]  # one gain for all pixels, but for rounding
        assert again.shape == first.shape and again.dtype == first.dtype and np.ptp(ratio) / ratio.mean() < 0.02
    one, same, other = (quiet.scan_again("sax", 0, k, gain=1.5, noise_sd=8)[0].astype(float) for k in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    bright = one > 300  # where the noise of a magnitude is Gaussian
    assert (one - other)[bright].std() == pytest.approx(2**0.5 * 8 * 1.5, rel=0.1)
    with pytest.raises(IndexError, match="frame 4"):
        quiet.scan_again("sax", 4, 0, gain=1, noise_sd=0)


def test_command(capfd, tmp_path):
    shape = ("--n-frames", 4, "--n-slices", 3, "--in-plane-mm", 4, "--layout")
    status, out, _ = called(capfd, "phantom", tmp_path / "a", "--n", 2, *shape, "acdc")
    assert status == 0 and (tmp_path / "a/database/testing/patient101/Info.cfg").exists()
    assert out.startswith(f"{tmp_path / 'a'}: 2 studies in the layout of acdc, 1 in training, 1 in testing; true ")
    assert called(capfd, "phantom", tmp_path / "b", *shape, "acdcs")[0] == 2
    status, _, err = called(capfd, "phantom", tmp_path / "b", "--n", 151, *shape, "acdc")
    assert status == 1 and "n must be at most 150" in err
    for layout, decided in (("acdc", {"disease": "normal"}), ("mnms2", {"vendor": "ge"}), ("emidec", {"acute": False})):
        with pytest.raises(TypeError, match=next(iter(decided))):
            write_layout(tmp_path / "b", layout, 2, 0, **decided)
    with pytest.raises(ValueError, match="unknown layout"):
        write_layout(tmp_path / "b", "nothing", 2, 0)
    assert not (tmp_path / "b").exists()
    status, _, err = called(capfd, "phantom", tmp_path / "a", *shape, "mnms")
    assert status == 1 and "is not empty: choose another folder" in err
