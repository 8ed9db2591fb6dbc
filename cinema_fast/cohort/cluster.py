"""`cinema-fast cluster`: clusters of a cohort's embeddings, their stability and characteristics."""

import csv
import json
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path

import numpy as np

from ..common.extras import need
from ..common.output import new_folder
from ..common.tables import Table, is_number, means_number
from ..metrics.characteristics import Characteristic, describe
from .cluster_config import ClusterConfig
from .cluster_report import ClusterReport, write_cluster_report
from .clustering import CRITERION, SHARE_DRAWN, VARIANCE_KEPT, check_cohort, find_clusters, lay_out
from .embeddings import read_beside, read_embeddings


def cluster(config: ClusterConfig) -> ClusterReport:
    """Cluster a cohort; see ClusterConfig, and `clustering.py` and `characteristics.py` for the methods.

    A pure function of the files and the options.

    Raises:
        ValueError: no scikit-learn or pyarrow; OUT is a file or not empty; embeddings that cannot be read, are too few
            or all alike; a table without the studies or a column.
        OSError: a file cannot be read. OutputError (an OSError): OUT cannot be written; no part of it is left.
    """
    need("sklearn", "embeddings are clustered")
    need("jinja2", "the report is written")
    written = ("clusters.csv", "characteristics.csv", "results.json", "report")
    with new_folder(config.out, "cluster", vars(config), written):
        return _cluster(config)


def _cluster(config: ClusterConfig) -> ClusterReport:
    embeddings = read_embeddings(config.embeddings, config.view)
    try:
        check_cohort(embeddings.vectors, config.clusters)
    except ValueError as error:
        raise ValueError(f"{config.embeddings}: {error}") from None
    columns, no_numbers, without_row = {}, {}, 0
    if config.table:
        table = read_beside(config.table, embeddings)
        columns, no_numbers = read_columns(table, config.columns or table.columns)
        without_row = sum(study not in table.rows for study in embeddings.studies)
    found = find_clusters(
        embeddings.vectors, method=config.method, number=config.clusters, most=config.max_clusters,
        resamples=config.resamples, seed=config.seed,
    )  # fmt: skip
    lines, left_out = describe(columns, embeddings.studies, found.clusters)
    left_out = {column: f"{why} ({no_numbers[column]})" if column in no_numbers else why
                for column, why in left_out.items()}
    left_out |= {column: why for column, why in no_numbers.items() if column not in columns}
    report = ClusterReport(config, embeddings, found, lines, left_out, without_row)
    _write(report, lay_out(found.points, config.map, config.seed), columns)
    return report


def read_columns(table: Table, names: tuple[str, ...]) -> tuple[dict[str, dict], dict[str, str]]:
    """({column: {study: number or word}}, {column of words: why it holds no numbers}). Only the second has columns of
    words that seem to be meant as numbers, or that spell a word in several ways: they are left out.

    Raises ValueError where there is no such column.
    """
    columns, no_numbers = {}, {}
    for name in names:
        words = table.values(name)
        try:
            columns[name] = table.numeric(name)
        except ValueError as error:
            no_numbers[name] = str(error)
            if any(means_number(word) and not is_number(word) for word in words.values()):
                continue
            try:
                table.check_classes(name, words)
            except ValueError as unlike:
                no_numbers[name] = str(unlike)
            else:
                columns[name] = words
    return columns, no_numbers


def _write(report: ClusterReport, places: np.ndarray, columns: dict[str, dict]) -> None:
    out, found = report.config.out, report.found
    rows = zip(report.embeddings.studies, found.clusters.tolist(), *np.round(places, 6).T.tolist())
    _write_csv(out / "clusters.csv", ("study", "cluster", "x", "y"), rows)
    names = [field.name for field in fields(Characteristic)]
    _write_csv(out / "characteristics.csv", names, (asdict(line).values() for line in report.lines))
    (out / "results.json").write_text(json.dumps(results(report), indent=1) + "\n", encoding="utf-8")
    write_cluster_report(out / "report", report, places, columns)


def _write_csv(path: Path, names, rows) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(names)
        table.writerows(rows)


def results(report: ClusterReport) -> dict:
    """The content of results.json: every number of the clustering, and the options that determine it."""
    config, found = report.config, report.found
    return {
        "studies": len(found.clusters),
        "clusters": found.number,
        "sizes": report.sizes,
        "number_by": report.choice,
        "criterion": {"name": CRITERION[config.method], "curve": found.curve},
        "stability": found.stability and {"measure": "adjusted Rand index of pairs of subsamples",
                                          "share_drawn": SHARE_DRAWN, **asdict(found.stability)},
        "separation": found.separation and asdict(found.separation),
        "verdict": found.stable,
        "components": {"number": found.points.shape[1], "variance": found.variance, "variance_wanted": VARIANCE_KEPT},
        "options": {name: getattr(config, name)
                    for name in ("view", "method", "clusters", "max_clusters", "resamples", "map", "seed")},
        "embeddings": report.embeddings.metadata | {"sha256": report.embeddings.sha256},
        "studies_without_row": report.without_row,
        "columns_left_out": report.left_out,
        "versions": {name: version(name) for name in ("cinema-fast", "scikit-learn", "scipy", "numpy")},
    }  # fmt: skip
