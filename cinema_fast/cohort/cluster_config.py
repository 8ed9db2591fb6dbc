"""The options of `cluster`: the one source of their defaults and checks."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from ..common.checks import check_at_least, check_seeds

METHODS = {"kmeans": "k-means", "gaussian": "Gaussian mixture"}


@dataclass(frozen=True)
class ClusterConfig:
    """Cluster the embeddings of a cohort, measure how stable the clusters are, and describe them by a table.

    Writes OUT/clusters.csv (study, cluster, place in the map), characteristics.csv, results.json, and
    report/index.html with its pictures.
    """

    # Parquet file of `cinema-fast embed`
    embeddings: Annotated[Positional[Path], tyro.conf.arg(metavar="EMBEDDINGS")]
    # folder to write, new or empty
    out: Path
    # CSV with a column study and characteristics of the studies, by which clusters are described
    table: Path | None = None
    # columns of the table to describe clusters by; if not given: all
    columns: tuple[str, ...] = ()
    # view whose vectors are clustered, of a file with a vector per view (embed --per view)
    view: str | None = None
    # clustering method: k-means, or a Gaussian mixture with diagonal covariances
    method: Literal["kmeans", "gaussian"] = "kmeans"
    # number of clusters; if not given: that of the highest silhouette (kmeans) or the lowest BIC (gaussian)
    clusters: int | None = None
    # largest number of clusters to try
    max_clusters: int = 10
    # number of pairs of subsamples (stability) and of null samples (separation); p is at least 1 / (1 + this number)
    resamples: int = 50
    # projection of the studies to two dimensions, for the map
    map: Literal["pca", "tsne"] = "pca"
    # random seed
    seed: int = 0

    def __post_init__(self):
        check_at_least(self, 2, "max_clusters", "clusters")
        check_at_least(self, 20, "resamples")
        check_seeds(self, "seed", bits=32)
        if self.columns and not self.table:
            raise ValueError("--columns needs --table CSV, which has these columns")
