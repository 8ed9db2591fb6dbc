"""`predict` of ED and ES alone, of a public data set, and of single volumes and channels."""

import gzip
import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from cine_files import write_cine, write_study
from described import with_phases
from prediction_cases import (
    OBLIQUE,
    STRUCTURES,
    Brightness,
    assert_aligned,
    heart_cine,
    lines_of,
    oblique,
    predict_as,
    segmenter,
    stand_in,
    write_heart,
)

from cinema_fast.cli import main
from cinema_fast.common.tables import read_table
from cinema_fast.data.formats.cine import Cine
from cinema_fast.data.prepare.original_geometry import label_files
from cinema_fast.data.prepare.prepare import PrepareConfig, prepare
from cinema_fast.data.prepare.sources import Source
from cinema_fast.data.store.store import CineStore
from cinema_fast.tasks.finetuned_run import load_run
from cinema_fast.tasks.segmentation import Segmentation


def labels_of(path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


@pytest.fixture
def scans(tmp_path):
    """A cine of four frames, largest in frame 0 and smallest in frame 2, and the CSV that says so."""
    write_heart(tmp_path / "src", oblique())
    (tmp_path / "phases.csv").write_text("study,ed,es\nheart,0,2\n")
    return tmp_path / "src", tmp_path / "phases.csv"


@pytest.mark.parametrize("frames", [("ed", "es"), ("es", "ed")])
def test_ed_and_es_alone(monkeypatch, tmp_path, scans, frames):
    """They are those of a prediction of the whole cycle, on the grid of the scan, and so is the function of the LV."""
    src, phases = scans
    predict_as(monkeypatch, segmenter(), src, tmp_path / "whole")
    out = tmp_path / "two"
    report = predict_as(monkeypatch, segmenter(), src, out, frames=frames, phases=phases)
    assert (report.exit_code, report.failures) == (0, [])
    whole = labels_of(tmp_path / "whole/studies/heart/sax_labels.nii.gz")
    for name, t in (("ed", 0), ("es", 2)):
        found = nib.load(out / f"studies/heart/sax_{name}_labels.nii.gz")
        np.testing.assert_array_equal(np.asarray(found.dataobj), whole[..., t])
        np.testing.assert_array_equal(found.affine, nib.load(src / "heart_sax.nii.gz").affine)
    assert len(list(out.rglob("*_labels.nii.gz"))) == 2
    every = {line["frame"]: line for line in lines_of(tmp_path / "whole" / "frames.csv")}
    here = {line["frame"]: line for line in lines_of(out / "frames.csv")}
    assert list(here) == [{"ed": "0", "es": "2"}[name] for name in frames]
    assert all(here[t]["LV_ml"] == every[t]["LV_ml"] for t in here)
    (one,), (other,) = (lines_of(folder / "studies.csv") for folder in (tmp_path / "whole", out))
    for name in ("lv_ef", "lv_edv_ml", "lv_esv_ml", "ed_frame", "es_frame", "flags"):
        assert one[name] == other[name], name
    assert other["frames"] == "2"


def test_a_file_for_each_frame(monkeypatch, tmp_path):
    """Named ED and ES: no CSV is needed, and the files of the labels take the names that were asked for."""
    affine = oblique()
    cine, _ = heart_cine(OBLIQUE[0], affine)
    for name, t in (("ED", 0), ("ES", 2), ("mid", 1)):
        write_cine(tmp_path / f"src/heart_sax_{name}.nii.gz", cine[..., t], affine)
    out, pattern = tmp_path / "out", "{id}_{view}_{frame}.nii.gz"
    predict_as(monkeypatch, segmenter(), tmp_path / "src", out, frames=("ed", "es"), pattern=pattern)
    predict_as(monkeypatch, segmenter(), tmp_path / "src", tmp_path / "all", pattern=pattern)
    assert sorted(path.name for path in out.rglob("*.nii.gz")) == ["sax_ed_labels.nii.gz", "sax_es_labels.nii.gz"]
    for name in ("ed", "es"):
        ours, right = (labels_of(folder / f"studies/heart/sax_{one}_labels.nii.gz")
                       for folder, one in ((out, name), (tmp_path / "all", name.upper())))  # fmt: skip
        np.testing.assert_array_equal(ours, right)


def test_a_study_without_ed_and_es(monkeypatch, tmp_path, scans):
    src, phases = scans
    write_heart(src, oblique(), name="other_sax.nii.gz")
    report = predict_as(monkeypatch, segmenter(), src, tmp_path / "out", frames=("ed", "es"), phases=phases)
    assert (report.studies, report.exit_code) == (1, 1)
    (failure,) = report.failures
    assert failure.study == "other" and "ED and ES of sax are unknown: give the frames by" in failure.reason
    assert "for `predict` by its own --phases" in failure.reason


def test_dicom_labels_have_a_file_for_each_named_frame():
    labels = np.random.default_rng(0).integers(0, 4, (2, 5, 6, 3), np.uint8)
    cine = Cine((), (5, 6, 3), 2, oblique(), None, "")
    files = label_files("sax", labels, Source((), "sax", ("ed", "es"), "dicom"), cine)
    for t, name in enumerate(("ed", "es")):
        image = nib.Nifti1Image.from_bytes(gzip.decompress(files[f"sax_{name}_labels.nii.gz"]))
        np.testing.assert_array_equal(np.asarray(image.dataobj), labels[t])
        np.testing.assert_allclose(image.affine, oblique(), atol=1e-5)


def test_a_data_set_without_a_look_at_its_labels(monkeypatch, tmp_path):
    """The label maps, which would move the crop, change nothing; ED and ES are those of the data set's own file."""
    affine, shape = oblique(), OBLIQUE[0]
    cine, _ = heart_cine(shape, affine)
    folder = tmp_path / "src/database/training/patient001"
    write_cine(folder / "patient001_4d.nii.gz", cine, affine, 50.0)
    (folder / "Info.cfg").write_text("ED: 1\nES: 3\nGroup: NOR\nHeight: 170\nNbFrame: 4\nWeight: 70\n")
    run = segmenter(sax=(64, 64, 10))
    options = {"dataset": "acdc", "frames": ("ed", "es")}
    predict_as(monkeypatch, run, tmp_path / "src", tmp_path / "without", **options)
    labels = np.zeros(shape, np.uint8)
    labels[:20, :20] = 3
    write_cine(folder / "patient001_frame01_gt.nii.gz", labels, affine)
    report = predict_as(monkeypatch, run, tmp_path / "src", tmp_path / "with", **options)
    assert report.failures == []  # nor is the label map of ES missed
    for name in ("ed", "es"):
        files = [tmp_path / out / f"studies/patient001/sax_{name}_labels.nii.gz" for out in ("without", "with")]
        assert files[0].read_bytes() == files[1].read_bytes() and labels_of(files[0]).any()
    assert [line["frame"] for line in lines_of(tmp_path / "with" / "frames.csv")] == ["0", "2"]
    report = predict_as(monkeypatch, run, tmp_path / "src/database", tmp_path / "deeper", dataset="acdc")
    assert report.studies == 1


class SecondChannel(Brightness):
    """Sees the labels in the brightness of the second of two channels."""

    def forward(self, images):
        return super().forward({view: x[:, 1:] for view, x in images.items()})


def test_channels_have_one_label_map(monkeypatch, tmp_path):
    """Three-dimensional, on the grid of the scan; with volumes, without EF."""
    affine = oblique()
    cine, labels = heart_cine(OBLIQUE[0], affine)
    for study in ("a", "b"):
        write_cine(tmp_path / f"src/{study}_C0.nii.gz", 900 - cine[..., 0], affine)
        write_cine(tmp_path / f"src/{study}_DE.nii.gz", cine[..., 0], affine)
    like = segmenter()
    task = Segmentation(STRUCTURES, ("sax",), "0", {"sax": ("C0", "DE")})
    run = stand_in(task, SecondChannel(), like.info.store.prepare, {"sax": (128, 128, 10)})
    out = tmp_path / "out"
    report = predict_as(monkeypatch, run, tmp_path / "src", out, channels=("sax=C0+DE",))
    assert (report.studies, report.failures) == (2, [])
    found = labels_of(out / "studies/a/sax_labels.nii.gz")
    assert found.shape == OBLIQUE[0]
    assert_aligned(found[..., None], labels[..., :1], middle=0.5, volume=0.05)
    lines = lines_of(out / "frames.csv")
    assert [(line["study"], line["frame"]) for line in lines] == [("a", "0"), ("b", "0")]
    voxel_ml = abs(np.linalg.det(affine[:3, :3])) / 1000
    assert float(lines[0]["LV_ml"]) == pytest.approx((found == 2).sum() * voxel_ml, rel=1e-5)
    row = lines_of(out / "studies.csv")[0]  # without columns of the cycle, which a volume does not have
    assert float(row["sax_LV_ml"]) == float(lines[0]["LV_ml"]) and "lv_ef" not in row
    assert not any("trained on" in remark for remark in report.remarks)
    report = predict_as(monkeypatch, run, tmp_path / "src", tmp_path / "swapped", channels=("sax=DE+C0",))
    assert report.studies == 0 and "sax is made of the channels DE, C0" in report.failures[0].reason


def test_a_cine_and_a_single_volume(monkeypatch, tmp_path):
    """studies.csv has the function of the cine beside the volumes of the other view."""
    affine = oblique()
    cine, _ = heart_cine(OBLIQUE[0], affine)
    write_cine(tmp_path / "src/a_sax.nii.gz", cine, affine)
    write_cine(tmp_path / "src/a_LGE.nii.gz", cine[..., 0], affine)
    size = (128, 128, 10)
    task = Segmentation(STRUCTURES, ("sax", "lge_sax"), "0", {"lge_sax": ("LGE",)})
    run = stand_in(task, Brightness(), segmenter().info.store.prepare, {"sax": size, "lge_sax": size})
    views = {"aliases": ("lge_sax=LGE",), "single": ("lge_sax",)}
    assert predict_as(monkeypatch, run, tmp_path / "src", tmp_path / "out", **views).exit_code == 0
    (row,) = lines_of(tmp_path / "out/studies.csv")
    volumes = {(line["view"], line["frame"]): float(line["LV_ml"]) for line in lines_of(tmp_path / "out/frames.csv")}
    assert float(row["lge_sax_LV_ml"]) == volumes["lge_sax", "0"] == volumes["sax", "0"]
    of_cine = [ml for (view, _), ml in volumes.items() if view == "sax"]
    assert float(row["lv_edv_ml"]) == max(of_cine) > float(row["lv_esv_ml"]) == min(of_cine)


@pytest.mark.parametrize("one_file", [False, True])
def test_a_single_volume(monkeypatch, tmp_path, one_file):
    affine = oblique()
    cine, labels = heart_cine(OBLIQUE[0], affine)
    path = write_cine(tmp_path / "src/a_sax.nii.gz", cine[..., 0], affine)
    src, out = path if one_file else path.parent, tmp_path / "out"
    report = predict_as(monkeypatch, segmenter(), src, out, single=("sax",))
    assert report.exit_code == 0
    assert "these are single volumes, and the run was trained on cines" in str(report)
    (study,) = (out / "studies").iterdir()
    found = labels_of(study / "sax_labels.nii.gz")
    assert_aligned(found[..., None], labels[..., :1], middle=0.5, volume=0.05)
    assert json.loads((out / "results.json").read_text())["studies"][study.name]["views"]["sax"]["volumes_ml"]["LV"]


def test_values_of_ed_and_es(tiny_store, tmp_path, capsys):
    """Those of the prepared study; one without ED and ES is a failure that names the cure."""
    store = with_phases(shutil.copytree(tiny_store, tmp_path / "store"), lambda study, view: (0, 1))
    (tmp_path / "t.csv").write_text("study,ef\n" + "".join(f"s{i:02d},{50 + i}\n" for i in range(12)))
    options = ("--task regression --targets ef --preset cinema-demo --steps 2 --validate-every 2 --batch-size 4 "
               "--views sax --val 0 --test 0 --device cpu --frames ed es")  # fmt: skip
    arguments = ["--data", str(store), "--out", str(tmp_path / "run"), "--table", str(tmp_path / "t.csv")]
    assert main(["finetune", *arguments, *options.split()]) == 0
    for n in range(2):
        write_study(tmp_path / "src", f"p{n}", ("sax",), seed=n)
    (tmp_path / "phases.csv").write_text("study,ed,es\np1,3,1\n")
    words = ["predict", str(tmp_path / "run"), str(tmp_path / "src"), str(tmp_path / "out"), "--workers", "1"]
    capsys.readouterr()
    assert main([*words, "--phases", str(tmp_path / "phases.csv"), "--frames", "ed", "es"]) == 1
    assert "ED and ES of sax are unknown" in capsys.readouterr().out
    run = load_run(tmp_path / "run")
    shaping = {name: tuple(run.info.store.prepare[name]) for name in ("sax_size", "lax_size")}
    prepare(PrepareConfig(tmp_path / "src", tmp_path / "prepared", workers=1, orientation="stored",
                          phases=tmp_path / "phases.csv", **shaping), progress=False)  # fmt: skip
    right = run.predict_study(CineStore(tmp_path / "prepared"), "p1", ("sax",))["ef"]
    found = read_table(tmp_path / "out" / "studies.csv").numeric("ef")
    assert found == {"p1": pytest.approx(float(right), rel=1e-6)}
    assert main([*words[:-3], str(tmp_path / "no"), "--frames", "es", "ed"]) == 1
    assert "--frames es ed: the run was trained on other frames (ed es)" in capsys.readouterr().err
