"""`cinema-fast predict` of numbers and classes by runs that were fine-tuned, and its answers to mistakes."""

import json
import math
import re
import shutil

import nibabel as nib
import pytest
from cine_files import VIEWS, write_study
from prediction_cases import lines_of, tree

from cinema_fast.cli import main
from cinema_fast.common.tables import read_table
from cinema_fast.data.prepare.prepare import PrepareConfig, prepare
from cinema_fast.data.store.clips import ClipStore
from cinema_fast.data.store.store import CineStore
from cinema_fast.tasks.finetuned_run import load_run
from cinema_fast.train.run_info import RunInfo, StoreInfo, write_run_info


@pytest.fixture(scope="module")
def fitted(tiny_store, tmp_path_factory):
    """The folder of a run that learnt a number and a class for four steps, all views at once."""
    folder = tmp_path_factory.mktemp("fitted")
    rows = "".join(f"s{i:02d},{50 + i},{'NOR' if i % 2 else 'DCM'}\n" for i in range(12))
    (folder / "t.csv").write_text("study,ef,disease\n" + rows)
    options = (
        "--task multitask --targets ef disease --preset cinema-demo --steps 4 --validate-every 4 --batch-size 4 "
        "--val 0 --test 0 --device cpu"
    )
    arguments = ["--data", str(tiny_store), "--out", str(folder / "run"), "--table", str(folder / "t.csv")]
    assert main(["finetune", *arguments, *options.split()]) == 0
    return folder / "run"


def test_values_are_those_of_a_prepared_store(fitted, tmp_path, capsys):
    for n, views in enumerate((tuple(VIEWS), ("sax",))):
        write_study(tmp_path / "src", f"p{n}", views, seed=n)
    out = tmp_path / "out"
    assert main(["predict", str(fitted), str(tmp_path / "src"), str(out), "--workers", "1"]) == 0
    assert "2 studies predicted, 0 failures" in capsys.readouterr().out
    run = load_run(fitted)
    shaping = {name: tuple(run.info.store.prepare[name]) for name in ("sax_size", "lax_size")}
    options = {"workers": 1, "orientation": "stored"}  # as the store of the run says, by having no word of it
    prepare(PrepareConfig(tmp_path / "src", tmp_path / "store", **options, **shaping), progress=False)
    store, table = CineStore(tmp_path / "store"), read_table(out / "studies.csv")
    results = json.loads((out / "results.json").read_text())["studies"]
    for study in store.ids:
        right = run.predict_study(store, study, store.views(study))
        assert table.numeric("ef")[study] == pytest.approx(float(right["ef"]), rel=1e-6)
        shares = [table.numeric(f"disease: {name}")[study] for name in ("DCM", "NOR")]
        assert shares == pytest.approx(right["disease"].tolist(), abs=1e-6)
        assert table.values("disease")[study] == ("DCM", "NOR")[int(right["disease"].argmax())]
        assert results[study]["views"] == list(store.views(study)) == table.values("views")[study].split()
        assert results[study]["predictions"]["disease"]["probabilities"] == pytest.approx(
            dict(zip(("DCM", "NOR"), shares)), abs=1e-6)  # fmt: skip
    assert tree(out) == {"results.json", "studies.csv"}


def test_a_target_that_is_named_flags(fitted, tmp_path, monkeypatch):
    """As an older version allowed: the run is read, and its values are not written over."""
    old = shutil.copytree(fitted, tmp_path / "old")
    saved = (old / "config.yaml").read_text()
    (old / "config.yaml").write_text(re.sub(r"(name:|-) ef\n", r"\1 flags\n", saved))
    run = load_run(old)
    assert [target.name for target in run.task.targets] == ["flags", "disease"]
    write_study(tmp_path / "src", "p", ("sax",))
    places = [str(old), str(tmp_path / "src"), str(tmp_path / "out")]
    assert main(["predict", *places, "--workers", "1"]) == 0
    (line,) = lines_of(tmp_path / "out" / "studies.csv")
    assert math.isfinite(float(line["flags"])) and line["predict_flags"].split()[0] == "missing_views"


def test_clips_are_of_cines(tiny_store, tmp_path, capsys):
    (tmp_path / "t.csv").write_text("study,ef\n" + "".join(f"s{i:02d},{50 + i}\n" for i in range(12)))
    options = "--task regression --targets ef --preset heartmae-tiny --steps 1 --validate-every 1 --views sax"
    arguments = ["--data", str(tiny_store), "--out", str(tmp_path / "run"), "--table", str(tmp_path / "t.csv")]
    assert main(["finetune", *arguments, *options.split(), "--device", "cpu"]) == 0
    write_study(tmp_path / "src", "p", n_frames=5)
    for name, code in (("{id}_{view}.nii.gz", 0), ("{id}_{view}_{frame}.nii.gz", 3)):
        places = [str(tmp_path / part) for part in ("run", "src", f"out{code}")]
        assert main(["predict", *places, "--workers", "1", "--pattern", name]) == code
        still = nib.load(tmp_path / "src" / "p_sax.nii.gz")
        nib.save(still.slicer[..., 0], tmp_path / "src" / "p_sax_ed.nii.gz")
    (line,) = lines_of(tmp_path / "out0" / "studies.csv")
    run = load_run(tmp_path / "run")
    prepare(PrepareConfig(tmp_path / "src", tmp_path / "store", workers=1, sax_size=(32, 32, 4), lax_size=(32, 32),
                          orientation="stored"), progress=False)  # fmt: skip
    right = run.predict_study(ClipStore(CineStore(tmp_path / "store"), ["sax"]), "p", ("clip",))["ef"]
    assert line["views"] == "sax" and float(line["ef"]) == pytest.approx(float(right), rel=1e-6)
    assert "the model reads clips of the cycle, and no sax has 4 frames or more" in capsys.readouterr().out


def test_mistakes(fitted, tmp_path, capsys):
    write_study(tmp_path / "src", "p", ("sax",))
    write_run_info(tmp_path / "pre", RunInfo({"preset": "cinema-demo"}, {}, StoreInfo(1, "ab", "stored"), {}))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for run, src, out, options, expected in (
        (fitted, "src", "full", (), "full is not empty: choose another folder to write"),
        (tmp_path / "pre", "src", "out", (), "is a run of pretrain: fine-tune it"),
        (tmp_path / "none", "src", "out", (), "holds no run"),
        (fitted, "none", "out", (), "none is not a folder"),
        (fitted, "src", "out", ("--pattern", "{view}/{id}.nii"), "matches the pattern"),
        (fitted, "src", "out", ("--pattern", "{id}_sa{view}.nii.gz", "--aliases", "rvot=x"), "the model of"),
        (fitted, "src", "out", ("--workers", "-1"), "--workers must be 0"),
    ):
        assert main(["predict", str(run), str(tmp_path / src), str(tmp_path / out), *options]) == 1
        said = capsys.readouterr().err
        assert expected in said and said.startswith("cinema-fast: ") and said.count("\n") == 1
        assert not (tmp_path / "out").exists()
