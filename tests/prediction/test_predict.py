"""`cinema-fast predict`: tables, volumes, landmarks, what cannot be predicted, and real scans."""

import json
import os
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from cine_files import BALL, affine_of, write_cine, write_study
from nibabel.affines import apply_affine
from PIL import Image
from prediction_cases import (
    CAVITY_MM,
    CAVITY_RADII_MM,
    OBLIQUE,
    Brightest,
    Brightness,
    lines_of,
    oblique,
    predict_as,
    segmenter,
    stand_in,
    tree,
    truth_of,
    write_heart,
)
from real_studies import PREPARE

from cinema_fast.common.tables import read_landmarks
from cinema_fast.data.prepare.prepare import PrepareConfig, prepare
from cinema_fast.data.store.landmarks import landmark_voxels
from cinema_fast.data.store.store import CineStore
from cinema_fast.prediction import predict
from cinema_fast.prediction.predict_config import PredictConfig
from cinema_fast.tasks.finetuned_run import FinetunedRun
from cinema_fast.tasks.landmarks import Landmarks
from cinema_fast.tasks.segmentation import Segmentation

AXIS = ("annulus_1", "annulus_2", "apex")


def test_volumes_are_those_of_balls(monkeypatch, tmp_path):
    write_heart(tmp_path / "src", oblique())
    out = tmp_path / "out"
    report = predict_as(monkeypatch, segmenter(), tmp_path / "src", out)
    assert (report.exit_code, report.studies, report.failures) == (0, 1, [])
    assert tree(out) == {
        "results.json", "studies.csv", "frames.csv", "studies", "studies/heart", "studies/heart/sax_labels.nii.gz",
        "studies/heart/sax.gif", "studies/heart/sax_volumes.png",
    }  # fmt: skip
    affine = oblique()
    normal = affine[:3, 2] / 8.0
    along = np.array([normal @ (affine[:3, 3] - BALL - CAVITY_MM) + 8.0 * z for z in range(9)])
    discs = np.pi * (np.array(CAVITY_RADII_MM)[:, None] ** 2 - along**2).clip(min=0)  # of each slice through the ball
    ml = discs.sum(1) * 8.0 / 1000
    per_frame = lines_of(out / "frames.csv")
    found = np.array([float(line["LV_ml"]) for line in per_frame])
    np.testing.assert_allclose(found, ml, rtol=0.01)  # discs of 400 pixels and more
    assert [(line["frame"], line["time_ms"]) for line in per_frame] == [(f"{t}", f"{50 * t}") for t in range(4)]
    (line,) = lines_of(out / "studies.csv")
    assert (line["study"], line["ed_frame"], line["es_frame"], line["rv_ef"]) == ("heart", "0", "2", "")
    assert float(line["lv_ef"]) == pytest.approx(100 * (1 - ml[2] / ml[0]), abs=0.5)
    assert float(line["lv_edv_ml"]) == pytest.approx(found[0]) and float(line["lv_esv_ml"]) == pytest.approx(found[2])
    assert float(line["lv_mass_g"]) == pytest.approx(1.05 * float(per_frame[0]["MYO_ml"]), rel=1e-6)
    results = json.loads((out / "results.json").read_text())
    view = results["studies"]["heart"]["views"]["sax"]
    assert view["function"]["lv_ef"] == pytest.approx(float(line["lv_ef"]), rel=1e-6)
    assert (results["step"], results["task"], view["label_maps"]) == (7, "segmentation", ["sax_labels.nii.gz"])
    np.testing.assert_allclose(view["volumes_ml"]["LV"], found, rtol=1e-6)
    with Image.open(out / "studies/heart/sax.gif") as moving:
        assert moving.n_frames == 4 and moving.info["duration"] == 50
        colours = np.unique(np.asarray(moving.convert("RGB")).reshape(-1, 3), axis=0).tolist()
    assert [66, 135, 245] in colours and [70, 200, 90] in colours  # outlines of both structures


@pytest.mark.parametrize(("name", "shape"), [("a_lax_4c.nii.gz", (60, 60, 1)), ("a_sax.nii.gz", (60, 60, 1))])
def test_a_single_slice_has_no_volumes(monkeypatch, tmp_path, name, shape):
    write_heart(tmp_path, oblique((), shape, (1.5, 1.5, 8.0)), shape, name)
    out = tmp_path / "out"
    assert predict_as(monkeypatch, segmenter(), tmp_path, out).exit_code == 0
    (line,) = lines_of(out / "studies.csv")
    assert set(line.values()) == {"a", "", "few_slices" * ("sax" in name)}
    assert lines_of(out / "frames.csv") == []
    assert "ml" not in json.dumps(json.loads((out / "results.json").read_text())["studies"])
    assert not list(out.rglob("*.png"))


def cine_info(src, grid):
    """What the store of a scan says of its long axis."""
    prepare(PrepareConfig(src, src.parent / "store", workers=1, **grid), progress=False)
    return CineStore(src.parent / "store").info("p", "lax_4c")


def test_landmarks_in_voxels_and_in_the_scanner(monkeypatch, tmp_path):
    """The ball lies in the plane, its middle is found as the first landmark; the others lie at known shares from it."""
    write_study(tmp_path / "src", "p", ("lax_4c",))
    task = Landmarks(AXIS, "coordinates", ("lax_4c",), {"lax_4c": AXIS}, "0")
    grid = {"lax_size": (64, 64), "lax_spacing": (1.0, 1.0), "sax_size": (8, 8, 8), "sax_spacing": (1.0, 1.0, 8.0),
            "orientation": "patient"}  # fmt: skip
    run, out = stand_in(task, Brightest(), grid, {"lax_4c": (64, 64)}), tmp_path / "out"
    assert predict_as(monkeypatch, run, tmp_path / "src", out).exit_code == 0
    known = read_landmarks(out / "landmarks.csv")["p"]["lax_4c"]  # as finetune and evaluate take them
    info = cine_info(tmp_path / "src", grid)
    source = nib.load(tmp_path / "src" / "p_lax_4c.nii.gz")
    for t in range(4):
        np.testing.assert_allclose(known[t]["annulus_1"], BALL, atol=0.3)
        at = [landmark_voxels(info, known[t][name])[0] for name in task.names]
        np.testing.assert_allclose(np.array(at) - at[0], [[0, 0], [8, 8], [-16, -16]], atol=1e-3)
    line = lines_of(out / "landmarks.csv")[-1]
    voxel = [float(line[f"{axis}_voxel"]) for axis in "xyz"]
    np.testing.assert_allclose(apply_affine(source.affine, voxel), known[3]["apex"], atol=1e-3)
    assert (line["frame"], line["landmark"], round(voxel[2], 4)) == ("3", "apex", 0)
    (row,) = lines_of(out / "studies.csv")
    assert float(row["lax_4c_longest_mm"]) == pytest.approx(20 * np.sqrt(2), abs=1e-3)
    assert float(row["lax_4c_shortening_mm"]) == pytest.approx(0, abs=1e-3) and row["landmarks"] == "12"
    with Image.open(out / "studies/p/lax_4c.gif") as moving:
        assert moving.n_frames == 4


def test_what_no_view_was_trained_for_is_not_predicted(monkeypatch, tmp_path):
    write_study(tmp_path / "src", "p", ("lax_4c",))
    task = Landmarks(AXIS, "coordinates", ("lax_4c",), {"lax_4c": ("annulus_1", "apex")}, "0")
    grid = {"lax_size": (64, 64), "lax_spacing": (1.0, 1.0), "sax_size": (8, 8, 8), "sax_spacing": (1.0, 1.0, 8.0),
            "orientation": "patient"}  # fmt: skip
    run, out = stand_in(task, Brightest(), grid, {"lax_4c": (64, 64)}), tmp_path / "out"
    assert predict_as(monkeypatch, run, tmp_path / "src", out).exit_code == 0
    known = read_landmarks(out / "landmarks.csv")["p"]["lax_4c"]
    assert all(set(known[t]) == {"annulus_1", "apex"} for t in range(4))
    info = cine_info(tmp_path / "src", grid)
    at = {name: landmark_voxels(info, mm)[0] for name, mm in known[0].items()}
    np.testing.assert_allclose(at["apex"] - at["annulus_1"], [-16, -16], atol=1e-3)
    (row,) = lines_of(out / "studies.csv")
    assert set(row) == {"study", "flags", "landmarks"} and row["landmarks"] == "8"


@pytest.mark.parametrize("n_frames", [1, 4])
def test_a_cavity_that_is_in_no_frame_is_reported(monkeypatch, tmp_path, n_frames):
    """The heart is found without it; the volumes of it are 0 ml in every frame."""
    shape, affine = OBLIQUE[0], oblique()
    bright = (truth_of(shape, affine, 0) > 0) * np.int16(300)
    bright[0, 0, 0] = 600  # the scale of the grey levels
    cine, options = np.repeat(bright[..., None], n_frames, -1), {}
    if n_frames == 1:
        cine, options = bright, {"pattern": "{id}_{view}_{frame}.nii.gz"}
    write_cine(tmp_path / "src" / f"a_sax{'_ed' * (n_frames == 1)}.nii.gz", cine, affine, 50.0)
    run, whole = segmenter(), FinetunedRun.predict_frames

    def wall(self, view, frames):
        found = whole(self, view, frames)
        found[:, 2] = 0.0
        return found

    monkeypatch.setattr(FinetunedRun, "predict_frames", wall)
    assert predict_as(monkeypatch, run, tmp_path / "src", tmp_path / "out", **options).exit_code == 0
    (row,) = lines_of(tmp_path / "out" / "studies.csv")
    assert row["flags"] == "lv_not_found" and row["empty_frames"] == " ".join(map(str, range(n_frames)))


def test_an_rv_alone_fills_the_columns_of_the_lv(monkeypatch, tmp_path):
    write_heart(tmp_path / "src", oblique())
    run, out = replace(segmenter(), task=Segmentation(("MYO", "RV"), ("sax", "lax_4c"), "0")), tmp_path / "out"
    assert predict_as(monkeypatch, run, tmp_path / "src", out).exit_code == 0
    (row,) = lines_of(out / "studies.csv")
    assert (row["ed_frame"], row["es_frame"], row["rv_ed_frame"], row["rv_empty_frames"]) == ("0", "2", "", "")
    assert row["rv_ef"] and row["lv_mass_g"] and not row["lv_ef"]


def test_a_frame_without_a_cavity_has_no_function(monkeypatch, tmp_path):
    """The smallest volume would be 0 ml, and the ejection fraction 100 %."""
    write_heart(tmp_path / "src", oblique())
    run, out, seen = segmenter(), tmp_path / "out", []
    whole = type(run).predict_frames

    def blind(self, view, frames):
        found = whole(self, view, frames)
        seen.append(view)
        found[1] = 0.0
        found[1, 0] = 1.0
        return found

    monkeypatch.setattr(type(run), "predict_frames", blind)
    assert predict_as(monkeypatch, run, tmp_path / "src", out).exit_code == 0 and seen == ["sax"]
    (row,) = lines_of(out / "studies.csv")
    assert (row["empty_frames"], row["lv_ef"], row["es_frame"]) == ("1", "", "")
    view = json.loads((out / "results.json").read_text())["studies"]["heart"]["views"]["sax"]
    assert view["empty_frames"] == [1] and "function" not in view and view["volumes_ml"]["LV"][1] == 0
    assert view["flags"] == ["lv_empty_frames"] and row["flags"] == "lv_empty_frames"


def test_each_ventricle_has_its_own_cycle(monkeypatch, tmp_path):
    """What lies around the cavity is largest where the cavity is smallest: at the LV's frames its EF would be < 0."""
    write_heart(tmp_path / "src", oblique())
    run, out = segmenter(), tmp_path / "out"
    run = replace(run, task=Segmentation(("RV", "LV"), ("sax", "lax_4c"), "0"))
    report = predict_as(monkeypatch, run, tmp_path / "src", out)
    (row,) = lines_of(out / "studies.csv")
    ends = [row[name] for name in ("ed_frame", "es_frame", "rv_ed_frame", "rv_es_frame")]
    assert ends == ["0", "2", "2", "0"]
    volumes = {name: [float(line[f"{name}_ml"]) for line in lines_of(out / "frames.csv")] for name in ("RV", "LV")}
    for name, curve in volumes.items():
        ef = 100 * (1 - min(curve) / max(curve))
        assert float(row[f"{name.lower()}_ef"]) == pytest.approx(ef, rel=1e-5)
        assert float(row[f"{name.lower()}_edv_ml"]) == pytest.approx(max(curve), rel=1e-5)
    results = json.loads((out / "results.json").read_text())
    assert "phases_disagree" in row["flags"].split() and report.flags == {"heart": row["flags"].split()}
    assert results["studies"]["heart"]["flags"] == row["flags"].split() and results["flags"]["phases_disagree"] == 1
    assert results["studies"]["heart"]["missing_views"] == [] and results["trained"] == ""  # views are one by one
    said = str(report)
    assert "flag phases_disagree: 1 study (heart): ED or ES of the RV" in said
    assert "without lax_4c" not in said and "older version" not in said


@pytest.mark.parametrize(("n", "few", "continued"), [(1, 1, 1), (2, 1, 1), (3, 1, 0), (4, 0, 0)])
def test_a_part_of_a_stack_is_continued_and_not_filled_with_zeros(n, few, continued):
    """Half of the slices of the smallest whole one, or fewer; a short whole one lies among zeros, as in training."""
    seen = []

    class Whole(Brightness):
        def forward(self, images):
            seen.append(images["sax"][0, 0, 0, 0])
            return super().forward(images)

    run = segmenter(sax=(8, 8, 10))
    run = replace(run, model=Whole(), info=replace(run.info, labels=replace(run.info.labels, fewest_slices={"sax": 4})))
    frames = np.broadcast_to(np.arange(n, dtype=np.uint8) + 10, (2, 8, 8, n)).copy()
    frames[:, 1] = 0
    found = run.predict_frames("sax", frames)
    assert found.shape == (2, 3, 8, 8, n) and run.has_few_slices("sax", frames.shape) == bool(few)
    levels = (seen[0] * frames.max()).round().int().tolist()
    before = (10 - n) // 2 if continued else 0
    edges = (10, 9 + n) if continued else (0, 0)
    assert levels == [edges[0]] * before + list(range(10, 10 + n)) + [edges[1]] * (10 - n - before)


def test_an_empty_label_map_is_reported(monkeypatch, tmp_path):
    for name in ("a_sax.nii.gz", "b_sax.nii.gz"):
        write_heart(tmp_path / "src", oblique(), name=name)
    run, out, whole = segmenter(), tmp_path / "out", FinetunedRun.predict_frames
    blind = iter([True, False])

    def predicted(self, view, frames):
        found = whole(self, view, frames)
        if next(blind):
            found[:] = 0.0
            found[:, 0] = 1.0
        return found

    monkeypatch.setattr(FinetunedRun, "predict_frames", predicted)
    report = predict_as(monkeypatch, run, tmp_path / "src", out)
    assert str(report).startswith("2 studies predicted, 0 failures, nothing found in a view of 1 study\n")
    empty, found = (line["flags"].split() for line in lines_of(out / "studies.csv"))
    assert empty == ["nothing_found", "lv_not_found"] and not set(empty) & set(found)
    assert json.loads((out / "results.json").read_text())["flags"]["nothing_found"] == 1


def test_what_cannot_be_read_is_named_and_the_rest_predicted(monkeypatch, tmp_path):
    src, out = tmp_path / "src", tmp_path / "there" / "out"
    write_heart(src, oblique(), name="a_sax.nii.gz")
    hostile = os.fsdecode(b"<b>&$\\frac$ ..%2e\xff_sax.nii.gz")
    write_heart(src, oblique(), name=hostile)
    (src / "b_sax.nii.gz").write_bytes((src / "a_sax.nii.gz").read_bytes()[:-40])
    (src / "notes.nii.gz").write_bytes(b"")
    shape = (40, 40, 1)
    write_heart(src, affine_of((1, 0, 0), (2.0, 2.0, 6.0), BALL, shape), shape, "c_lax_2c.nii.gz")
    before = tree(tmp_path)
    report = predict_as(monkeypatch, segmenter(), src, out)
    assert (report.exit_code, report.studies, report.unmatched) == (1, 2, 1)
    said = {failure.file: failure.reason for failure in report.failures}
    assert said.keys() == {"b_sax.nii.gz", "c_lax_2c.nii.gz"} and "truncated" in said["b_sax.nii.gz"]
    assert "none of the views that the model reads: sax, lax_4c; it has lax_2c" in said["c_lax_2c.nii.gz"]
    written = {path for path in tree(tmp_path) - before if "." in Path(path).name}
    assert written and all(path.startswith("there/out/") for path in written)
    study = hostile.removesuffix("_sax.nii.gz")
    assert {line["study"] for line in lines_of(out / "studies.csv")} == {"a", study}
    results = json.loads((out / "results.json").read_text())
    assert set(results["studies"]) == {"a", study} and len(results["failures"]) == 2
    assert not (out / ".preparing").exists()


@pytest.mark.parametrize("kind", ["segmentation", "landmarks"])
def test_the_order_in_which_studies_are_ready_does_not_show(monkeypatch, tmp_path, kind):
    names, src = ("a, \"b\"\n", "b", "c", "d", os.fsdecode(b"e\xff")), tmp_path / "src"
    run, view, shape = segmenter(), "sax", OBLIQUE[0]
    if kind == "landmarks":
        view, shape, grid = "lax_4c", (60, 60, 1), {"lax_size": (64, 64), "lax_spacing": (1.5, 1.5)}
        task = Landmarks(AXIS, "coordinates", (view,), {view: AXIS}, "0")
        run = stand_in(task, Brightest(), grid, {view: (64, 64)})
    for name in names:
        write_heart(src, oblique((), shape, (1.5, 1.5, 8.0)), shape, f"{name}_{view}.nii.gz")
    for name in "bd":
        (src / f"{name}_{view}.nii.gz").write_bytes(b"no scan")
    assert predict_as(monkeypatch, run, src, tmp_path / "usual").studies == 3
    prepared = predict.prepared_studies
    monkeypatch.setattr(predict, "prepared_studies", lambda *how: (one for one in list(prepared(*how))[::-1]))
    assert predict_as(monkeypatch, run, src, tmp_path / "backwards").studies == 3
    files = [path for path in tree(tmp_path / "usual") if path.endswith((".csv", ".json"))]
    assert len(files) == 3 and tree(tmp_path / "usual") == tree(tmp_path / "backwards")
    for file in files:
        assert (tmp_path / "usual" / file).read_bytes() == (tmp_path / "backwards" / file).read_bytes(), file
    assert [line["study"] for line in lines_of(tmp_path / "backwards" / "studies.csv")] == [names[n] for n in (0, 2, 4)]


def test_names_cannot_lead_out(monkeypatch, tmp_path):
    write_heart(tmp_path / "src", oblique(), name="x.._sax.nii.gz")
    write_heart(tmp_path / "src", oblique(), name="..nii.gz")
    before = tree(tmp_path)
    report = predict_as(monkeypatch, segmenter(), tmp_path / "src", tmp_path / "out", pattern="x{id}_{view}.nii.gz")
    assert report.exit_code == 3 and "a study cannot have the name '..'" in str(report)
    with pytest.raises(ValueError, match=r"cannot have the name '\.'"):
        predict_as(monkeypatch, segmenter(), tmp_path / "src" / "..nii.gz", tmp_path / "out", view="sax")
    assert tree(tmp_path) == before


def test_one_file(monkeypatch, tmp_path):
    write_heart(tmp_path, oblique(), name="scan.nii.gz")
    write_heart(tmp_path, oblique(), name="p1_sax.nii.gz")
    assert predict_as(monkeypatch, segmenter(), tmp_path / "p1_sax.nii.gz", tmp_path / "o1").exit_code == 0
    assert predict_as(monkeypatch, segmenter(), tmp_path / "scan.nii.gz", tmp_path / "o2", view="sax").studies == 1
    one, two = (nib.load(tmp_path / name / "sax_labels.nii.gz") for name in ("o1/studies/p1", "o2/studies/scan"))
    np.testing.assert_array_equal(one.dataobj, two.dataobj)
    with pytest.raises(ValueError, match=r"name does not give the view by the pattern .* --view"):
        predict_as(monkeypatch, segmenter(), tmp_path / "scan.nii.gz", tmp_path / "o3")
    with pytest.raises(ValueError, match="--view lax_2c: the model of run reads sax, lax_4c"):
        predict_as(monkeypatch, segmenter(), tmp_path / "scan.nii.gz", tmp_path / "o3", view="lax_2c")
    with pytest.raises(ValueError, match="--view is for a single file"):
        PredictConfig(tmp_path, tmp_path, tmp_path / "o3", view="sax")
    assert not (tmp_path / "o3").exists()


@pytest.mark.parametrize("name", ["cine", "cmr", "dicom"])
def test_real_scans_pass_through(shared, monkeypatch, tmp_path, name):
    run = segmenter((48, 48, 8), (3.0, 3.0, 10.0), (64, 64), (3.0, 3.0))
    src = shared / "data" / ("cine/dicom_Se11_slim" if name == "dicom" else name)
    given = PREPARE.get(name)
    options = {"pattern": given[1], "aliases": tuple(given[3:])} if given else {}
    report = predict_as(monkeypatch, run, src, tmp_path / "out", **options)
    assert report.exit_code == 0, report
    maps = sorted((tmp_path / "out").rglob("*_labels.nii.gz"))
    shapes = {nib.load(path).shape for path in maps}
    if name == "cine":
        for path, source in zip(maps, ("Se6_4ch_or_3ch", "sax_4d_6slices")):  # lax_4c, sax
            image, scan = nib.load(path), nib.load(src / f"{source}.nii.gz")
            assert image.shape == scan.shape and image.header.get_zooms() == scan.header.get_zooms()
            np.testing.assert_array_equal(image.affine, scan.affine)
    elif name == "cmr":
        assert len(maps) == 8 and {path.name for path in maps} >= {"sax_ed_labels.nii.gz", "lax_4c_es_labels.nii.gz"}
        assert shapes == {nib.load(path).shape for path in src.glob("*.nii.gz")}
    else:
        ((*_, slices, frames),) = shapes
        assert (slices, frames) == (1, 25)
