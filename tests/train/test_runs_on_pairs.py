"""Runs of older versions drew clips from ED and ES alone: such a run is embedded, judged and predicted as it learnt."""

import json

import pytest
import yaml
from cine_files import write_study
from prediction_cases import lines_of
from tiny_runs import write_store

from cinema_fast.cli import main
from cinema_fast.data.store.store import CineStore

OPTIONS = "--preset heartmae-tiny --steps 1 --views sax --device cpu"


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """A folder with a store of pairs, and the runs mae and ef on it, which do not say how few frames they take."""
    folder = tmp_path_factory.mktemp("old")
    studies = [f"s{i:02d}" for i in range(6)]
    write_store(folder / "store", dict.fromkeys(studies, ("sax",)), frames=2)
    (folder / "t.csv").write_text("study,ef\n" + "".join(f"{study},{50 + i}\n" for i, study in enumerate(studies)))
    task = "--task regression --targets ef --validate-every 1 --val 0.2 --test 0.4"
    table = ["--table", str(folder / "t.csv"), *task.split()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cinema_fast.train.run_info.MIN_FRAMES", 2)
        patch.setattr("cinema_fast.methods.mae.write_report", lambda *_, **__: [])
        for command, out, more in (("pretrain", "mae", []), ("finetune", "ef", table)):
            where = ["--data", str(folder / "store"), "--out", str(folder / out)]
            assert main([command, *where, *OPTIONS.split(), *more]) == 0
            run_info = yaml.safe_load((folder / out / "config.yaml").read_text())
            assert run_info.pop("min_frames") == 2
            (folder / out / "config.yaml").write_text(yaml.safe_dump(run_info))
    return folder


def test_embed(old, tmp_path, capsys):
    assert main(["embed", str(old / "mae"), str(old / "store"), str(tmp_path / "e.parquet"), "--device", "cpu"]) == 0
    assert "6 studies embedded, 0 skipped" in capsys.readouterr().out


def test_evaluate(old, tmp_path):
    options = ["--table", str(old / "t.csv"), "--device", "cpu", "--resamples", "10"]
    assert main(["evaluate", str(old / "ef"), str(tmp_path / "eval"), *options]) == 0
    judged = {row["study"] for row in lines_of(tmp_path / "eval" / "rows.csv")}
    run_info = yaml.safe_load((old / "ef" / "config.yaml").read_text())
    assert judged == set(run_info["split"]["test"]) and judged < set(CineStore(old / "store").ids)


def test_predict(old, tmp_path):
    write_study(tmp_path / "src", "pair", ("sax",), n_frames=2)
    assert main(["predict", str(old / "ef"), str(tmp_path / "src"), str(tmp_path / "out"), "--workers", "1"]) == 0
    assert [line["study"] for line in lines_of(tmp_path / "out" / "studies.csv")] == ["pair"]
    assert json.loads((tmp_path / "out" / "results.json").read_text())["studies"]["pair"]["views"] == ["sax"]
