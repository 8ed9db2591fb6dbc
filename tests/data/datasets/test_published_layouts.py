"""`prepare --dataset` of ACDC, M&Ms, M&Ms-2, EMIDEC and MyoPS 2020: studies, labels, ED and ES, tables and splits."""

import csv
import json
import os
import shutil

import numpy as np
import pytest
from prepared import SIZES
from published_trees import LV, MYO, RV, SHAPE, VOXEL_ML, frames, labels_at, renamed, write

from cinema_fast.cli import main
from cinema_fast.data.datasets.acdc import validation_of as acdc_validation
from cinema_fast.data.datasets.emidec import split_of as emidec_split
from cinema_fast.data.datasets.myops2020 import validation_of as myops_validation
from cinema_fast.data.prepare.prepare import PrepareConfig, prepare
from cinema_fast.data.store.describe_store import describe
from cinema_fast.data.store.store import CineStore, StoreError

T = 6
MNMS_VALUES = {LV: 1, MYO: 2, RV: 3}


def acdc(root, studies=(("patient001", "DCM"), ("patient002", "DCM"), ("patient003", "DCM"), ("patient004", "NOR")),
         tested=("patient101",)):  # fmt: skip
    for n, (study, group) in enumerate([*studies, *((study, "NOR") for study in tested)]):
        folder = root / "database" / ("testing" if study in tested else "training") / study
        write(folder / f"{study}_4d.nii.gz", frames(T, n))
        info = f"ED: 1\nES: {T // 2 + 1}\nGroup: {group}\nHeight: 170.0\nNbFrame: {T}\nWeight: 70.0\n"
        (folder / "Info.cfg").write_text(info)
        for t in (0, T // 2):
            write(folder / f"{study}_frame{t + 1:02d}.nii.gz", frames(T, n)[..., t])
            write(folder / f"{study}_frame{t + 1:02d}_gt.nii.gz", labels_at(t, T))
        (folder / "MANDATORY_CITATION.md").write_text("cite")
    return root


MNMS_COLUMNS = ["", "External code", "VendorName", "Vendor", "Centre", "ED", "ES", "Age", "Pathology", "Sex", "Height",
                "Weight"]  # fmt: skip
MNMS_TABLE = "211230_M&Ms_Dataset_information_diagnosis_opendataset.csv"


def mnms(root, es=T // 2):
    rows = []
    for n, (part, study) in enumerate((("Training/Labeled", "A0S9V9"), ("Training/Unlabeled", "B1"),
                                       ("Validation", "C2"), ("Testing", "D3"))):  # fmt: skip
        folder = root / "OpenDataset" / part / study
        write(folder / f"{study}_sa.nii.gz", frames(T, n))
        drawn = np.zeros((*SHAPE, T), np.uint8)
        for t in (0, T // 2) if part != "Training/Unlabeled" else ():
            drawn[..., t] = renamed(labels_at(t, T), MNMS_VALUES)
        write(folder / f"{study}_sa_gt.nii.gz", drawn)
        rows.append([n, study, "Siemens", "A", 1, 0, es, 60 + n, "HCM", "M", "180" if n else "", "81"])
    with (root / "OpenDataset" / MNMS_TABLE).open("w", newline="") as file:
        csv.writer(file).writerows([MNMS_COLUMNS, *rows])
    return root


def mnms2(root):
    folder = root / "MnM2"
    for n, study in enumerate(("001", "161", "201")):
        for spelling, shape in (("SA", SHAPE), ("LA", (*SHAPE[:2], 1))):
            for frame, t in (("ED", 0), ("ES", T // 2)):
                stem = folder / "dataset" / study / f"{study}_{spelling}"
                write(stem.with_name(f"{stem.name}_{frame}.nii.gz"), frames(T, n, shape)[..., t])
                write(stem.with_name(f"{stem.name}_{frame}_gt.nii.gz"),
                      renamed(labels_at(t, T, shape), MNMS_VALUES))  # fmt: skip
            write(stem.with_name(f"{stem.name}_CINE.nii.gz"), frames(T, n, shape))
    lines = ["SUBJECT_CODE,DISEASE,VENDOR,SCANNER,FIELD", "1.0,HCM,SIEMENS,Aera,1.5", "161,LV,SIEMENS,Aera,1.5",
             "201,RV,Philips Medical Systems,Achieva,3.0"]  # fmt: skip
    (folder / "dataset_information.csv").write_text("\n".join(lines) + "\n")
    return root


def emidec(root):
    for n, case in enumerate(("N006", "N007", "N008", "N009", "N010", "P012")):
        folder = root / "emidec-dataset-1.0.1"
        write(folder / f"Case_{case}/Images/Case_{case}.nii.gz", frames(T, n)[..., 0])
        values = renamed(labels_at(0, T), {LV: 1, MYO: 2})
        values[4:6, 5:8] = 3
        values[4, 5] = 4
        write(folder / f"Case_{case}/Contours/Case_{case}.nii.gz", values)
        text = f"Sex : F\nAge : {50 + n}\nTobacco : 3\nOverweight : N\nTroponin : 12.5\nFEVG : 45\nECG (ST +) : Y\n"
        (folder / f"Case {case}.txt").write_bytes(text.encode() + b"NTProBNP\x86 : 300\n")
    write(root / "emidec-segmentation-testset-1.0.0/Case_101/Images/Case_101.nii.gz", frames(T, 9)[..., 0])
    return root


MYOPS_VALUES = {MYO: 200, LV: 500, RV: 600}


def myops2020(root):
    for n, study in enumerate(("101", "102", "103", "201")):
        kind, folder = ("test", "test20") if study == "201" else ("training", "train25")
        for k, channel in enumerate(("C0", "DE", "T2")):
            write(root / folder / f"myops_{kind}_{study}_{channel}.nii.gz", frames(T, 10 * n + k)[..., 0])
        values = renamed(labels_at(0, T), MYOPS_VALUES, np.int16)
        values[4:6, 5:8], values[4, 5] = 1220, 2221
        if study != "201":
            write(root / "train25_myops_gd" / f"myops_training_{study}_gd.nii.gz", values)
    return root


TREES = {"acdc": acdc, "mnms": mnms, "mnms2": mnms2, "emidec": emidec, "myops2020": myops2020}


def prepared(dataset, src, store, **options):
    return prepare(PrepareConfig(src, store, dataset=dataset, **{**SIZES, **options}), progress=False)


def table(path):
    with path.open(newline="") as file:
        return {row["study"]: row for row in csv.DictReader(file)}


def parts(store):
    return {study: row["split"] for study, row in table(store / "split.csv").items()}


@pytest.fixture(scope="module", params=TREES)
def dataset(request, tmp_path_factory):
    """(name, its tree, store, report)."""
    root = TREES[request.param](tmp_path_factory.mktemp(request.param))
    store = root / "store"
    return request.param, root, store, prepared(request.param, root, store)


def test_every_part_is_prepared_without_a_failure(dataset):
    name, root, store, report = dataset
    assert report.failures == [] and report.exit_code == 0
    expected = {
        "acdc": {"patient001", "patient002", "patient003", "patient004", "patient101"},
        "mnms": {"A0S9V9", "B1", "C2", "D3"}, "mnms2": {"001", "161", "201"},
        "emidec": {f"Case_{case}" for case in ("N006", "N007", "N008", "N009", "N010", "P012", "101")},
        "myops2020": {"101", "102", "103", "201"},
    }[name]  # fmt: skip
    assert set(CineStore(store).ids) == expected == set(table(store / "table.csv")) == set(parts(store))
    assert prepared(name, root, store).unchanged == len(expected)


def test_sequences_and_planes(dataset):
    name, _, path, _ = dataset
    store = CineStore(path)
    expected = {
        "emidec": {("sax", "sax"): ("lge",)}, "myops2020": {("sax", "sax"): ("cine", "lge", "t2w")},
        "mnms2": {("sax", "sax"): ("cine",), ("lax_4c", "lax_4c"): ("cine",)},
    }.get(name, {("sax", "sax"): ("cine",)})  # fmt: skip
    infos = {view: store.info(study, view) for study in store.ids for view in store.views(study)}
    assert {(view, info.plane): info.sequences for view, info in infos.items()} == expected
    said = {"emidec": "7 single volumes, LGE", "myops2020": "4 sets of channels, cine + LGE + T2w"}
    text = describe(store)
    assert f"\nsax: {said.get(name, f'{len(store.ids)} cines')}, SAX\n" in text
    shapes = [store.info(study, "sax").shape for study in store.ids]
    planes = sum(shape[3] for shape in shapes)
    assert {"emidec": f"  2D images: {planes} LGE in SAX\n", "mnms2": f"{2 * planes} cine in SAX, 6 cine in LAX 4C\n",
            "myops2020": f"  2D images: {planes} cine in SAX, {planes} LGE in SAX, {planes} T2w in SAX\n",
            }.get(name, f"  2D images: {T * planes} cine in SAX\n") in text  # fmt: skip
    if name == "emidec":
        assert "  labels of 6 of 7 volumes: MYO, LV, scar, no-reflow\n" in text


def test_a_frame_alone_is_one_of_a_cine(tmp_path):
    root = mnms2(tmp_path)
    (root / "MnM2/dataset/001/001_LA_ES.nii.gz").unlink()
    prepared("mnms2", root, root / "store")
    info = CineStore(root / "store").info("001", "lax_4c")
    assert (info.shape[0], info.sequence(0)) == (1, "cine")


def test_labels_are_those_of_this_project(dataset):
    """Each stored label lies where the tree drew that structure."""
    name, _, store, _ = dataset
    store = CineStore(store)
    labelled = [(study, view) for study in store.ids for view in store.views(study) if store.info(study, view).labels]
    assert labelled
    for study, view in labelled:
        info = store.info(study, view)
        values = {"emidec": {2, 3, 4, 5}, "myops2020": {1, 2, 3, 4, 6}}.get(name, {1, 2, 3})
        assert set(info.labels.values) == values
        t = info.labels.frames[0]
        image, labels = store.read_frame(study, view, t), store.read_labels(study, view, t)
        grey = {label: np.median(image[labels == label]) for label in (0, *values)}
        assert grey[LV] > grey[MYO] + 50  # as the tree was drawn: blood 300, muscle 160, the rest 100
        if name != "emidec":  # there the RV is background
            assert grey[RV] > grey[MYO] + 50 and grey[MYO] > grey[0] + 20


def test_ed_es_and_volumes_are_in_the_table(dataset):
    name, _, folder, _ = dataset
    rows, store = table(folder / "table.csv"), CineStore(folder)
    ends = {"acdc": (0, T // 2), "mnms": (0, T // 2), "mnms2": (0, 1)}.get(name)
    for study, row in rows.items():
        assert store.info(study, "sax").phases == ends
        if ends is None or study == "B1":
            assert not row["lv_edv_ml"]
            continue
        assert (row["ed"], row["es"]) == tuple(map(str, ends))
        drawn = [labels_at(t, T) for t in (0, T // 2)]
        for ventricle, label in (("lv", LV), ("rv", RV)):
            edv, esv = ((one == label).sum() * VOXEL_ML for one in drawn)
            found = [float(row[f"{ventricle}_{what}"]) for what in ("edv_ml", "esv_ml", "ef")]
            np.testing.assert_allclose(found, (edv, esv, 100 * (edv - esv) / edv), rtol=1e-5)


def test_facts_of_the_tables(dataset):
    name, _, store, _ = dataset
    rows = table(store / "table.csv")
    study, facts = {
        "acdc": ("patient004", {"pathology": "NOR", "height": "170", "weight": "70",
                                "bmi": f"{70 / 1.7**2:.7g}", "sex": ""}),
        "mnms": ("C2", {"pathology": "HCM", "vendor": "A", "vendor_name": "Siemens", "centre": "1", "age": "62",
                        "sex": "M", "height": "180", "bmi": "25"}),
        "mnms2": ("201", {"pathology": "RV", "vendor": "Philips Medical Systems", "scanner": "Achieva"}),
        "emidec": ("Case_N007", {"pathology": "N", "sex": "F", "age": "51", "tobacco": "former", "troponin": "12.5",
                                 "echo_ef": "45", "ecg_st": "Y", "ntprobnp": "300"}),
        "myops2020": ("101", {"pathology": ""}),
    }[name]  # fmt: skip
    assert {key: rows[study][key] for key in facts} == facts
    if name == "mnms":  # a missing height
        assert (rows["A0S9V9"]["height"], rows["A0S9V9"]["bmi"]) == ("", "")


def test_splits(dataset):
    name, _, store, _ = dataset
    found = parts(store)
    if name == "emidec":  # sorted by number, shuffled; of a class the last fifth is test, the fifth before it val
        cases = [f"Case_{case}" for case in ("N006", "N007", "N008", "N009", "N010")]
        np.random.default_rng(0).shuffle(cases)
        expected = dict.fromkeys(cases[:3], "train") | {cases[3]: "val", cases[4]: "test"}
        assert found == expected | {"Case_P012": "train", "Case_101": "test"}
    elif name == "acdc":  # a group of one gives no validation patient
        assert found["patient101"] == "test" and found["patient004"] == "train"
        assert sorted(found.values()) == ["test", "train", "train", "val", "val"]
    else:
        assert found == {
            "mnms": {"A0S9V9": "train", "B1": "train", "C2": "val", "D3": "test"},
            "mnms2": {"001": "train", "161": "val", "201": "test"},
            "myops2020": {"101": "train", "102": "train", "103": "train", "201": "test"} | {
                study: "val" for study in found if found[study] == "val"},
        }[name]  # fmt: skip


def test_splits_of_the_whole_data_sets():
    """The patients that pandas 3.1 draws from the published tables, and the sizes that the reference states."""
    groups = {f"patient{n:03d}": ("DCM", "HCM", "MINF", "NOR", "RV")[(n - 1) // 20] for n in range(1, 101)}
    drawn = {int(study.removeprefix("patient")) for study in acdc_validation(groups)}
    assert drawn == {2, 19, 22, 32, 54, 56, 61, 79, 82, 88}
    assert set(myops_validation([str(n) for n in range(101, 126)])) == {"103", "106", "112", "117", "120"}
    cases = [f"Case_N{n:03d}" for n in range(1, 34)] + [f"Case_P{n:03d}" for n in range(34, 101)]
    found = list(emidec_split(cases).values())
    assert [found.count(part) for part in ("train", "val", "test")] == [62, 19, 19]


def test_volumes_of_one_grid_are_channels(tmp_path):
    report = prepared("myops2020", myops2020(tmp_path), tmp_path / "store")
    info = CineStore(tmp_path / "store").info("101", "sax")
    assert report.exit_code == 0 and info.channels == ("C0", "DE", "T2") and info.shape[0] == 3
    assert info.labels.frames == (0,) and info.spacing_mm == (2.0, 2.0, 8.0)  # as scanned
    emidec_store = tmp_path / "other"
    prepared("emidec", emidec(tmp_path / "emidec"), emidec_store)
    info = CineStore(emidec_store).info("Case_N006", "sax")
    assert info.channels == ("LGE",) and info.spacing_mm == (1.458, 1.458, 10.0) and info.phases is None


def failures(report):
    return [f"{failure.file}: {failure.reason}" for failure in report.failures]


def test_faults_name_file_and_line_and_the_rest_goes_on(tmp_path):
    root = mnms(tmp_path)
    path = root / "OpenDataset" / MNMS_TABLE
    lines = path.read_text().splitlines()
    lines[1] = lines[1].replace(",3,", ",99,")  # ES of A0S9V9
    lines[3] = lines[3].replace("C2", "D3")
    lines.append("9,Z9,Siemens,A,1,0,3,50,HCM,F,,")
    path.write_text("\n".join(lines) + "\n")
    wrong = renamed(np.stack([labels_at(t, T) for t in range(T)], -1), MNMS_VALUES)
    wrong[0, 0, 0, 0] = 7
    write(root / "OpenDataset/Testing/D3/D3_sa_gt.nii.gz", wrong)
    report = prepared("mnms", root, root / "store")
    found = "\n".join(failures(report))
    assert report.prepared == 4 and report.exit_code == 1
    assert "A0S9V9_sa.nii.gz: 211230" in found and "line 2: ES is frame 99, counted from 0, and the cine has 6" in found
    assert f"{MNMS_TABLE}: line 5: the study 'D3' is in {MNMS_TABLE}, line 4 already" in found
    assert f"{MNMS_TABLE}: line 6: the study Z9 has no folder or no images" in found
    assert f"{MNMS_TABLE}: has no line of the study C2" in found
    assert "D3_sa_gt.nii.gz: holds the value 7, which is outside of the label map 1=3 2=2 3=1" in found
    assert table(root / "store/table.csv")["C2"]["pathology"] == ""


def test_the_table_of_an_earlier_release(tmp_path):
    """Another name; numbers as pandas writes them in columns with empty cells; no column of the diagnosis."""
    root = mnms(tmp_path)
    path = root / "OpenDataset" / MNMS_TABLE
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    path.unlink()
    earlier = path.with_name("201014_M&Ms_Dataset_Information_-_opendataset.csv")
    with earlier.open("w", newline="") as file:
        writer = csv.DictWriter(file, [name for name in MNMS_COLUMNS if name != "Pathology"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(row | {"ED": f"{row['ED']}.0", "ES": f"{row['ES']}.0"} for row in rows)
    report = prepared("mnms", root, root / "store")
    assert failures(report) == [f"OpenDataset/{earlier.name}: no column Pathology: these values stay unknown"]
    row = table(root / "store/table.csv")["C2"]
    assert (row["ed"], row["es"], row["vendor"], row["pathology"]) == ("0", str(T // 2), "A", "")
    record = json.loads((root / "store/studies/C2/study.json").read_text())["sax"]
    assert record["phases"]["source"] == f"{earlier.name}, line 4"


def test_a_missing_table_and_missing_frames(tmp_path):
    root = acdc(tmp_path)
    training = root / "database/training"
    (training / "patient001/patient001_frame04_gt.nii.gz").unlink()
    (training / "patient002/Info.cfg").unlink()
    (training / "patient003/patient003_4d.nii.gz").unlink()
    report = prepared("acdc", root, root / "store")
    found = failures(report)
    assert report.prepared == 4
    assert any("patient001_frame04_gt.nii.gz: is missing: Info.cfg says ES: 4" in line for line in found)
    assert any("patient002/Info.cfg: cannot be read" in line for line in found)
    assert table(root / "store/table.csv")["patient002"]["es"] == str(T // 2)  # from the label maps
    assert any("patient003_4d.nii.gz: is missing" in line for line in found)
    again = prepared("acdc", root, root / "store")
    assert failures(again) and again.prepared <= 1  # faults are reported by every run until they are mended


def test_a_left_ventricle_that_is_larger_at_es_is_reported(tmp_path):
    root = acdc(tmp_path)
    info = root / "database/training/patient001/Info.cfg"
    info.write_text(info.read_text().replace("ED: 1", f"ED: {T // 2 + 1}").replace(f"ES: {T // 2 + 1}", "ES: 1"))
    report = prepared("acdc", root, root / "store")
    edv, esv = ((labels_at(t, T) == LV).sum() for t in (T // 2, 0))
    (found,) = failures(report)
    assert f"Info.cfg: the left ventricle has {esv} voxels at ES (frame 0) and only {edv} at ED (frame 3)" in found
    assert report.prepared == 5 and float(table(root / "store/table.csv")["patient001"]["lv_ef"]) < 0


def test_ed_and_es_of_a_csv_come_first(tmp_path):
    """Data sets such as Kaggle do not say them."""
    root, path = acdc(tmp_path / "acdc"), tmp_path / "phases.csv"
    path.write_text("study,ed,es\npatient002,1,2\n")
    report = prepared("acdc", root, root / "store", phases=path)
    rows = table(root / "store/table.csv")
    ends = [(rows[study]["ed"], rows[study]["es"]) for study in ("patient001", "patient002")]
    assert ends == [("0", str(T // 2)), ("1", "2")]
    assert rows["patient002"]["lv_ef"] == "" and failures(report) == []


def test_no_program_waits_for_a_pipe(tmp_path):
    info = acdc(tmp_path / "acdc") / "database/training/patient001/Info.cfg"
    text = emidec(tmp_path / "emidec") / "emidec-dataset-1.0.1/Case N007.txt"
    for path in (info, text):
        path.unlink()
        os.mkfifo(path)
    for name in ("acdc", "emidec"):
        (found,) = failures(prepared(name, tmp_path / name, tmp_path / f"store-{name}"))
        assert "cannot be read (not a regular file)" in found


def test_a_labelled_case_of_emidec_without_its_contours(tmp_path):
    root = emidec(tmp_path)
    shutil.rmtree(root / "emidec-dataset-1.0.1/Case_N007/Contours")
    (found,) = failures(prepared("emidec", root, root / "store"))
    assert "Case_N007/Contours/Case_N007.nii.gz: is missing: the case is prepared without a label map" in found


def test_another_label_map_is_refused(tmp_path):
    store = tmp_path / "store"
    prepared("acdc", acdc(tmp_path / "acdc"), store)
    with pytest.raises(StoreError, match=r"dataset='acdc' \(now 'mnms'\), label_map="):
        prepared("mnms", mnms(tmp_path / "mnms"), store)


def test_options_of_other_folders_are_refused(tmp_path, capsys):
    assert main(["prepare", str(tmp_path), str(tmp_path / "store"), "--dataset", "acdc", "--labels", "x"]) == 1
    assert "--labels is for other folders: --dataset acdc finds" in capsys.readouterr().err
    assert main(["prepare", str(tmp_path), str(tmp_path / "store"), "--dataset", "acdc"]) == 1
    assert "is not ACDC as unpacked: expected database/training/patient001" in capsys.readouterr().err


def test_a_study_that_comes_twice_is_refused(tmp_path):
    root = acdc(tmp_path)
    shutil.copytree(root / "database/training/patient002", root / "database/testing/patient002")
    (found,) = failures(prepared("acdc", root, root / "store"))
    assert "database/testing/patient002/patient002_4d.nii.gz: a second sax of the study patient002" in found
    assert "which is in database/training/patient002/patient002_4d.nii.gz already" in found
    assert parts(root / "store")["patient002"] != "test"


def test_the_rule_of_validation_on_small_trees():
    groups = {"a": "DCM", "b": "DCM", "c": "DCM", "d": "HCM", "e": "HCM", "f": "NOR"}
    drawn = acdc_validation(groups)
    assert len(drawn) == 4 and {"d", "e"} < set(drawn) and "f" not in drawn  # of a single patient none
    assert set(acdc_validation({"a": "DCM", "b": "DCM", "d": "HCM", "e": "HCM"})) == {"b", "e"}  # else none would train
    assert acdc_validation({"a": "DCM"}) == [] and myops_validation(["101"]) == [] == myops_validation([])


def test_shards_and_their_merge_write_the_same_tables(tmp_path):
    root = mnms(tmp_path)
    prepared("mnms", root, root / "whole")
    for k in (1, 2):
        prepared("mnms", root, root / "parts", shard=f"{k}/2")
        assert not (root / "parts/table.csv").exists()
    prepared("mnms", root, root / "parts", merge=True)
    for name in ("table.csv", "split.csv"):
        assert (root / "parts" / name).read_bytes() == (root / "whole" / name).read_bytes()
    prepare(PrepareConfig(root / "OpenDataset/Testing/D3", root / "whole", pattern="*_{view}.nii.gz",
                          aliases=("sax=sa",), overwrite=True, **SIZES), progress=False)  # fmt: skip
    assert not (root / "whole/table.csv").exists()  # it would describe studies that are gone


def test_values_that_no_person_has_are_refused(tmp_path):
    root = acdc(tmp_path / "acdc")
    info = root / "database/training/patient001/Info.cfg"
    info.write_text(info.read_text().replace("170.0", "1.70").replace("70.0", "70,5").replace("Group: DCM\n", ""))
    found = failures(prepared("acdc", root, root / "store"))
    assert [line.partition("Info.cfg: ")[2] for line in found] == [
        "height of patient001 is '1.70', expected a number from 30 to 250 (cm): it stays unknown",
        "weight of patient001 is '70,5', expected a number from 1 to 400 (kg): it stays unknown",
        "has no Group: the pathology of the patient stays unknown",
    ]  # fmt: skip
    row = table(root / "store/table.csv")["patient001"]
    assert row["height"] == row["weight"] == row["bmi"] == row["pathology"] == ""
    root = mnms(tmp_path / "mnms")
    path = root / "OpenDataset" / MNMS_TABLE
    path.write_text(path.read_text().replace(",60,HCM", ",forty,HCM").replace(",180,", ",NaN,"))
    (line,) = failures(prepared("mnms", root, root / "store"))
    assert f"{MNMS_TABLE}: line 2: age of A0S9V9 is 'forty', expected a number from 0 to 120 (years)" in line


def test_one_data_set_in_one_place(tmp_path):
    acdc(tmp_path / "a")
    acdc(tmp_path / "b")
    with pytest.raises(ValueError, match=r"holds ACDC more than once: .*a/database, .*b/database: give one of them"):
        prepared("acdc", tmp_path, tmp_path / "store")
    with pytest.raises(ValueError, match="it may be a part of it: give the folder above"):
        prepared("acdc", tmp_path / "a/database/training", tmp_path / "store")


def test_a_removed_study_and_a_deleted_label_map(tmp_path):
    """A study that is gone leaves the tables, not the store; EMIDEC's split does not depend on the label maps."""
    root = emidec(tmp_path)
    prepared("emidec", root, root / "store")
    before = parts(root / "store")
    shutil.rmtree(root / "emidec-dataset-1.0.1/Case_P012")
    (root / "emidec-dataset-1.0.1/Case_N007/Contours/Case_N007.nii.gz").unlink()
    report = prepared("emidec", root, root / "store")
    assert report.n_studies == 7 and "Case_N007.nii.gz: is missing" in failures(report)[0]
    del before["Case_P012"]
    assert parts(root / "store") == before and "Case_P012" not in table(root / "store/table.csv")


def test_faults_of_a_table_share_a_line_of_the_report(tmp_path):
    root = mnms(tmp_path)
    path = root / "OpenDataset" / MNMS_TABLE
    path.write_text(path.read_text() + "7,Y8,Siemens,A,1,0,3,50,HCM,F,,\n9,Z9,Siemens,A,1,0,3,50,HCM,F,,\n")
    report = str(prepared("mnms", root, root / "store"))
    assert f"{MNMS_TABLE}: 2 faults: line 6: the study Y8 has no folder or no images; line 7" in report
