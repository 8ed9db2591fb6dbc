"""`cinema-fast cluster`: its files, a report that stands alone and shows names as text, and answers to mistakes."""

import csv
import json
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from embedding_files import planted, write_embeddings

from cinema_fast.cli import main
from cinema_fast.cohort.cluster import cluster
from cinema_fast.cohort.cluster_config import ClusterConfig
from cinema_fast.common.tables import read_table

pytest.importorskip("sklearn")
QUICK = ("--resamples", "20", "--max-clusters", "4")
EVIL = "<script>alert(1)</script> & \"$\\frac"


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Three groups of 30, 20 and 10 studies, and a table: ef falls by 10 from group to group, disease follows it."""
    folder = tmp_path_factory.mktemp("cohort")
    vectors, group = planted((30, 20, 10))
    studies = write_embeddings(folder / "e.parquet", vectors, [f"<b>&{i:02d}" for i in range(60)])
    rng = np.random.default_rng(0)
    with (folder / "t.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["study", "ef", "disease", EVIL, "name", "empty", "percent", "sex"])
        for i, (study, g) in enumerate(zip(studies, group)):
            if i not in (0, 1):  # two studies are not in the table
                ef = "" if i == 2 else f"{60 - 10 * g + rng.standard_normal():.4f}"
                table.writerow([study, ef, ("DCM", "<i>HCM</i>", "NOR")[g], rng.standard_normal(), f"n{i}", "",
                                f"{40 + i % 3} %", ("male", "Male")[i % 2]])
        table.writerow(["other", 1, "DCM", 1, "x", "", "", ""])
    return folder, group


def lines_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_embeddings_that_are_not_there(tmp_path, capsys):
    assert main(["cluster", str(tmp_path / "none.parquet"), "--out", str(tmp_path / "out")]) == 1
    told = "is not a file; expected the Parquet file that `cinema-fast embed` wrote"
    assert capsys.readouterr().err == f"cinema-fast: {tmp_path / 'none.parquet'} {told}\n"


def test_files_of_a_cohort(cohort, tmp_path, capsys):
    folder, group = cohort
    out = tmp_path / "out"
    files = ("--table", str(folder / "t.csv"), "--out", str(out))
    assert main(["cluster", str(folder / "e.parquet"), *files, *QUICK]) == 0
    said = capsys.readouterr().out
    assert "60 studies, 3 clusters of 30, 20, 10 (k-means; number: highest mean silhouette of 2 to 4 clusters)" in said
    assert "t.csv: 2 studies" in said and "column name left out: 58 different words" in said
    assert "column empty left out: no study has a value" in said
    assert "column percent left out: " in said and "line 2: percent is '42 %', not a number: write 42, with" in said
    assert "column sex left out: " in said and "sex is 'male' on line 2 and 'Male' on line 3, which would" in said
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*.*")) == [
        "characteristics.csv", "clusters.csv", "report/index.html", "report/map.png", "report/number.png",
        "results.json",
    ]  # fmt: skip
    rows = lines_of(out / "clusters.csv")
    assert [row["study"] for row in rows] == [f"<b>&{i:02d}" for i in range(60)]
    np.testing.assert_array_equal([int(row["cluster"]) for row in rows], group + 1)
    assert len({(row["x"], row["y"]) for row in rows}) == 60
    found = json.loads((out / "results.json").read_text())
    assert found["sizes"] == [30, 20, 10] and found["criterion"]["name"] == "silhouette"
    assert found["stability"]["mean"] > 0.99 and found["stability"]["n"] == 20 and found["options"]["seed"] == 0
    assert found["embeddings"]["preset"] == "cinema-tiny" and set(found["versions"]) >= {"scikit-learn", "scipy"}


def test_characteristics_of_a_cohort(cohort, tmp_path):
    folder, group = cohort
    cluster(ClusterConfig(folder / "e.parquet", tmp_path / "out", folder / "t.csv", resamples=20, max_clusters=4))
    rows = lines_of(tmp_path / "out" / "characteristics.csv")
    ef = [row for row in rows if row["column"] == "ef"]
    known = read_table(folder / "t.csv").numeric("ef")
    for row, g in zip(ef, range(3)):
        values = [known[f"<b>&{i:02d}"] for i in np.flatnonzero(group == g) if f"<b>&{i:02d}" in known]
        assert int(row["n"]) == len(values) and int(row["missing"]) == (group == g).sum() - len(values)
        assert float(row["mean"]) == pytest.approx(np.mean(values)) and float(row["median"]) == np.median(values)
        assert float(row["sd"]) == pytest.approx(np.std(values, ddof=1))
    assert float(ef[0]["effect"]) > 2 and float(ef[2]["effect"]) < -1 and float(ef[0]["p_adjusted"]) < 1e-6
    words = [row for row in rows if row["column"] == "disease"]
    assert [row["word"] for row in words] == ["<i>HCM</i>", "DCM", "NOR"] * 3
    assert [float(row["share"]) for row in words] == [0, 1, 0, 1, 0, 0, 0, 0, 1]
    assert all(float(row["effect"]) == pytest.approx(1) for row in words)


TAGS = {"html", "head", "body", "meta", "title", "style", "h1", "h2", "h3", "p", "table", "tr", "th", "td", "img", "br"}


class Page(HTMLParser):
    """What a browser would make of a page: its elements, text, and what it would fetch."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.links = set(), "", []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "data", "action")]

    def handle_data(self, data):
        self.text += data


def test_the_page_stands_alone_and_shows_names_as_text(cohort, tmp_path):
    folder, _ = cohort
    cluster(ClusterConfig(folder / "e.parquet", tmp_path / "out", folder / "t.csv", (EVIL, "disease"), resamples=20))
    text = (tmp_path / "out" / "report" / "index.html").read_text()
    page = Page(text)
    assert page.tags <= TAGS
    assert len(page.links) == 2 and all(link.startswith("data:image/png;base64,") for link in page.links)
    assert not re.search(r"https?://|url\(|@import", text)
    assert EVIL in page.text and "<i>HCM</i>" in page.text and "ef" not in page.text.split()


@pytest.mark.slow
def test_the_same_again_to_the_byte(cohort, tmp_path):
    folder, _ = cohort
    for name in ("a", "b"):
        options = {"resamples": 20, "max_clusters": 4, "seed": 5}
        cluster(ClusterConfig(folder / "e.parquet", tmp_path / name, folder / "t.csv", **options))
    for path in (p for p in (tmp_path / "a").rglob("*.*")):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes(), path.name


def test_without_a_table_and_one_cluster(tmp_path, capsys):
    write_embeddings(tmp_path / "e.parquet", np.random.default_rng(0).standard_normal((40, 8)))
    options = ("--method", "gaussian", *QUICK)
    assert main(["cluster", str(tmp_path / "e.parquet"), "--out", str(tmp_path / "out"), *options]) == 0
    assert "one cluster: the criterion favours no split" in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["clusters"] == 1 and found["stability"] is None and "1" in found["criterion"]["curve"]
    assert lines_of(tmp_path / "out" / "characteristics.csv") == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("--columns", "eff"), "no column 'eff'; did you mean 'ef'?"),
        (("--clusters", "13"), "60 studies are too few for 13 clusters: expected 65 or more, 5 a cluster"),
        (("--clusters", "1"), "--clusters must be at least 2, got 1"),
        (("--resamples", "3"), "--resamples must be at least 20, got 3"),
        (("--seed", "-1"), "--seed must lie in 0..2**32 - 1, got -1"),
        (("--out", __file__), "is a file; expected a folder to write, which may be new"),
        (("--table", "nothing.csv"), "nothing.csv"),
    ],
)
def test_mistakes_in_options(cohort, tmp_path, capsys, change, expected):
    folder, _ = cohort
    arguments = ("--table", str(folder / "t.csv"), "--out", str(tmp_path / "out"))
    assert main(["cluster", str(folder / "e.parquet"), *arguments, *change]) == 1
    *noted, said = capsys.readouterr().err.splitlines()
    assert said.startswith("cinema-fast: ") and expected in said
    assert all("t.csv: it lists 58 of the 60 studies of " in note for note in noted) and len(noted) < 2
    assert not (tmp_path / "out").exists()


def test_mistakes_in_files(cohort, tmp_path, monkeypatch):
    folder, _ = cohort

    def attempt(match, embeddings=folder / "e.parquet", **options):
        with pytest.raises((ValueError, OSError), match=match):
            cluster(ClusterConfig(embeddings, tmp_path / "out", **options))
        assert not (tmp_path / "out").exists()

    (tmp_path / "t.csv").write_text("study,ef\nx,1\n")
    attempt("none of the 60 studies of .*e.parquet is in it: it has 'x', the embeddings have '<b>&00'",
            table=tmp_path / "t.csv")
    attempt("--columns needs --table", columns=("ef",))
    attempt("t.csv is not a Parquet file", embeddings=tmp_path / "t.csv")
    attempt("is not a file", embeddings=tmp_path / "none")
    file = tmp_path / "e.parquet"
    vectors = np.eye(12)
    write_embeddings(file, vectors[:9])
    attempt("e.parquet: 9 studies are too few", embeddings=file)
    write_embeddings(file, np.ones((12, 4)))
    attempt("e.parquet: the vectors of all 12 studies are equal", embeddings=file)
    write_embeddings(file, vectors, ["twice"] * 2 + [f"s{i}" for i in range(10)])
    attempt("study 'twice' is in it 2 times", embeddings=file)
    vectors[3, 4] = np.nan
    write_embeddings(file, vectors)
    attempt(r"vector of study 's003' is not finite \(1 of 12 studies\)", embeddings=file)
    write_embeddings(file, np.ones((0, 4)))
    attempt("no study in it", embeddings=file)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    attempt(r"pip install 'cinema-fast\[downstream\]'")


def test_files_of_others(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    for columns, match in (
        ({"study": ["a"]}, r"no column 'embedding' \(it has study\)"),
        ({"study": ["a", "b"], "embedding": [[1.0], [1.0, 2.0]]}, "no vectors of one length"),
        ({"study": ["a", "b"], "embedding": ["x", "y"]}, "no vectors of one length"),
    ):
        pq.write_table(pa.table(columns), tmp_path / "e.parquet")
        with pytest.raises(ValueError, match=match):
            cluster(ClusterConfig(tmp_path / "e.parquet", tmp_path / "out"))
