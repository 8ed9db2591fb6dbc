"""`cinema-fast probe`: splits, intervals and answers to mistakes; and a store embedded, clustered and probed."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
from embedding_files import write_embeddings

from cinema_fast.cli import main
from cinema_fast.cohort.probe_embeddings import MeanOverSeeds, ProbeConfig, probe
from cinema_fast.cohort.probes import knn_probe, linear_probe
from cinema_fast.metrics.bootstrap import estimate

pytest.importorskip("sklearn")
N = 80


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Vectors of 80 studies; ef and disease follow from them, luck does not; grade is disease as a number."""
    folder = tmp_path_factory.mktemp("cohort")
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((N, 8)).astype(np.float32)
    studies = write_embeddings(folder / "e.parquet", vectors)
    ef, luck = 50 + 8 * vectors[:, 0] + rng.standard_normal(N), rng.standard_normal(N)
    sick = (vectors[:, 1] > 0).astype(int)
    columns = {
        "ef": [f"{x:.4f}" if i else "" for i, x in enumerate(ef)],
        "disease": np.array(["NOR", "SICK"])[sick],
        "grade": sick,
        "luck": luck,
        "same": ["x"] * N,
        "rare": ["a"] * (N - 1) + ["b"],
        "mixed": ["n/a" if i == 3 else f"{x:.0f}" for i, x in enumerate(ef)],  # few enough to be classes
        "comma": [f"{x:.2f}".replace(".", ",") for x in ef],
        "case": ["sick", "Sick"] * (N // 2),
        "few": ["1", "2"] * 4 + [""] * (N - 8),
        "name": studies,
    }
    write_table(folder / "t.csv", studies, columns)
    return folder, vectors, columns


def write_table(path, studies, columns):
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["study", *columns])
        table.writerows(zip(studies, *columns.values()))


def config_of(folder, out, *targets, **options) -> ProbeConfig:
    return ProbeConfig(folder / "e.parquet", **{"table": folder / "t.csv", "targets": targets, "out": out} | options)


@pytest.mark.slow
def test_what_follows_is_found_and_luck_is_not(cohort, tmp_path, capsys):
    folder, _, _ = cohort
    arguments = ("--table", str(folder / "t.csv"), "--targets", "ef", "disease", "luck", "--out", str(tmp_path / "out"))
    assert main(["probe", str(folder / "e.parquet"), *arguments]) == 0
    said = capsys.readouterr().out
    assert "ef (regression, 55 train, 24 test, 3 seeds, split: 30% drawn for the test by seed)" in said
    assert "disease (classification, 56 train, 24 test, 3 seeds" in said
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    ef, disease, luck = (found["targets"][name]["scores"] for name in ("ef", "disease", "luck"))
    assert found["targets"]["ef"]["n"] == N - 1 and found["targets"]["ef"]["n_test"] == [24] * 3
    assert ef["linear"]["r2"]["value"] > 0.95 > ef["knn"]["r2"]["value"] > 0.2 and ef["linear"]["r2"]["low"] > 0.9
    assert disease["linear"]["auroc"]["value"] > 0.95 and disease["constant"]["auroc"]["value"] == 0.5
    assert luck["linear"]["r2"]["value"] < 0.2 and luck["linear"]["mae"]["low"] < luck["constant"]["mae"]["value"]
    assert ef["linear"]["mae"]["n"] == 72 and 24 < ef["linear"]["mae"]["studies"] <= 72
    assert found["embeddings"]["step"] == "7" and found["options"]["seeds"] == [0, 1, 2]


def test_few_test_studies_are_warned_of(cohort, tmp_path):
    folder, *_ = cohort
    few, enough = (str(probe(config_of(folder, tmp_path / str(share), "luck", test=share))) for share in (0.1, 0.3))
    assert "warning: only 8 studies to test on" in few and "warning" not in enough


def test_the_column_split_is_obeyed(cohort, tmp_path):
    folder, vectors, columns = cohort
    part = np.array(["train"] * 40 + ["test"] * 25 + ["val"] * 10 + [""] * 5)
    studies = [f"s{i:03d}" for i in range(N)]
    write_table(tmp_path / "t.csv", studies, columns | {"split": part})
    report = probe(config_of(folder, tmp_path / "out", "luck", table=tmp_path / "t.csv", seeds=(3,)))
    found = report.targets["luck"]
    assert report.split == "the column split" and (found.n_train, found.n_test) == ((40,), (25,))
    y, x = np.asarray(columns["luck"], float), vectors.astype(float)
    for name, direct in (
        ("linear", linear_probe(x[:40], y[:40], x[40:65], y[40:65], seed=3)),
        ("knn", knn_probe(x[:40], y[:40], x[40:65], y[40:65])),
    ):
        assert found.scores[name]["mae"].value == pytest.approx(direct.scores["mae"])
        assert found.scores[name] == {
            score: value for score, value in estimate(direct.measure, studies[40:65]).items() if score in direct.scores
        }
    write_table(tmp_path / "t.csv", studies, columns | {"split": ["train"] * 79 + ["holdout"]})
    with pytest.raises(ValueError, match="line 81: split is 'holdout', expected train, val or test"):
        probe(config_of(folder, tmp_path / "new", "luck", table=tmp_path / "t.csv"))
    write_table(tmp_path / "t.csv", studies, columns | {"split": ["train"] * 79 + ["test"]})
    with pytest.raises(ValueError, match="luck: 1 study with a label to test on; expected two or more"):
        probe(config_of(folder, tmp_path / "new", "luck", table=tmp_path / "t.csv"))
    sides = np.where(np.asarray(columns["grade"]) == 1, "train", "test")
    write_table(tmp_path / "t.csv", studies, columns | {"split": sides})
    with pytest.raises(ValueError, match="disease: class 'NOR' is not among both the training and the test studies"):
        probe(config_of(folder, tmp_path / "new", "disease", table=tmp_path / "t.csv"))


def test_scores_are_means_over_seeds_under_any_weights(cohort):
    _, x, columns = cohort
    y = np.asarray(columns["luck"], float)
    two = [knn_probe(x[a], y[a], x[b], y[b]) for a, b in (
        (np.arange(40), np.arange(40, 80)), (np.arange(20, 80), np.arange(20)))]
    mean = MeanOverSeeds(two)
    weights = np.random.default_rng(0).integers(1, 5, (3, 60)).astype(float)
    by_hand = [np.average(np.abs(p.predictions - truth), weights=w)
               for w in weights for p, truth, w in ((two[0], y[40:], w[:40]), (two[1], y[:20], w[40:]))]
    np.testing.assert_allclose(mean(weights)["mae"], np.reshape(by_hand, (3, 2)).mean(1))
    assert mean.point()["mae"] == pytest.approx(np.mean([p.scores["mae"] for p in two])) and mean.n == 60


@pytest.mark.slow
def test_numbers_that_are_classes_and_the_same_again(cohort, tmp_path):
    folder, _, columns = cohort
    reports = [
        probe(config_of(folder, tmp_path / str(at), target, classes=classes, seeds=(1,)))
        for at, (target, classes) in enumerate((("disease", ()), ("grade", ("grade",)), ("disease", ())))
    ]
    assert reports[1].targets["grade"] == reports[0].targets["disease"]
    stages = [cell + "b" if cell == "1" else cell for cell in map(str, columns["grade"])]  # 0 and 1b
    write_table(tmp_path / "t.csv", columns["name"], {"stage": stages})
    named = {"table": tmp_path / "t.csv", "classes": ("stage",), "seeds": (1,)}
    found = probe(config_of(folder, tmp_path / "stage", "stage", **named))
    assert found.targets["stage"] == reports[0].targets["disease"]
    assert (tmp_path / "0" / "results.json").read_bytes() == (tmp_path / "2" / "results.json").read_bytes()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("--targets", "lvef"), "no column 'lvef'"),
        (("--targets", "same"), "same is 'x' in all 80 studies: nothing to predict"),
        (("--targets", "rare"), "rare: class 'b' has 1 study; expected four or more"),
        (("--targets", "few"), "8 of the 80 studies of"),
        (("--targets", "mixed"), "t.csv, line 5: mixed is 'n/a', not a number. Leave the cell empty where a number is "
                                 "unknown; columns of classes are named by --classes"),
        (("--targets", "comma"), ", with a decimal point and no other signs. Leave the cell empty where a number is"),
        (("--targets", "case"), "t.csv: case is 'sick' on line 2 and 'Sick' on line 3, which would be two classes"),
        (("--targets", "name"), "line 2: name is 's000', not a number; and too many different words for classes"),
        (("--targets", "ef", "ef"), "--targets needs different columns, one or more, got ef ef"),
        (("--classes", "disease"), "--classes disease: not among --targets"),
        (("--test", "1"), "--test is a share, above 0 and below 1, got 1"),
        (("--test", "0.999"), "ef: --test 0.999: "),
        (("--seeds", "1", "1"), "--seeds needs different numbers"),
        (("--neighbours", "0"), "--neighbours must be at least 1, got 0"),
        (("--out", __file__), "is a file; expected a folder to write, which may be new"),
    ],
)
def test_mistakes(cohort, tmp_path, capsys, change, expected):
    folder, _, _ = cohort
    arguments = ("--table", str(folder / "t.csv"), "--targets", "ef", "--out", str(tmp_path / "out"))
    assert main(["probe", str(folder / "e.parquet"), *arguments, *change]) == 1
    said = capsys.readouterr().err
    assert said.startswith("cinema-fast: ") and said.count("\n") == 1 and expected in said
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_store_is_embedded_clustered_and_probed(tiny_store, tmp_path, capfd):
    """The commands one after the other; twelve studies of a model of two steps are no cohort, but go through."""
    run, file = tmp_path / "run", str(tmp_path / "e.parquet")
    options = ("--steps", "2", "--preset", "cinema-tiny", "--batch-size", "3", "--device", "cpu")
    assert main(["pretrain", "--data", str(tiny_store), "--out", str(run), *options]) == 0
    assert main(["embed", str(run), str(tiny_store), file, "--device", "cpu"]) == 0
    table = tmp_path / "t.csv"
    table.write_text("study,edv,sax_only\n" + "".join(f"s{i:02d},{100 + i},{'ny'[i % 4 == 0]}\n" for i in range(12)))
    assert main(["cluster", file, "--table", str(table), "--out", str(tmp_path / "c"), "--resamples", "20"]) == 0
    assert "12 studies, 2 clusters" in capfd.readouterr().out
    assert json.loads((tmp_path / "c" / "results.json").read_text())["embeddings"]["preset"] == "cinema-tiny"
    arguments = ("--table", str(table), "--targets", "edv", "--out", str(tmp_path / "p"))
    assert main(["probe", file, *arguments]) == 0
    assert json.loads((tmp_path / "p" / "results.json").read_text())["targets"]["edv"]["n"] == 12


def test_reading_embeddings_starts_no_thread(cohort):
    """One of pyarrow's that still holds the file when Python ends would end the process by SIGABRT, now and then."""
    code = (
        "import os, sys; from pathlib import Path; import pyarrow.parquet\n"
        "from cinema_fast.cohort.embeddings import read_embeddings\n"
        "before = os.listdir('/proc/self/task')\n"
        "read_embeddings(Path(sys.argv[1]))\n"
        "print(len(os.listdir('/proc/self/task')) - len(before))"
    )
    found = subprocess.run([sys.executable, "-c", code, cohort[0] / "e.parquet"], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, "0\n"), found.stderr
