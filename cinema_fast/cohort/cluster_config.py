"""The options of `cluster`: the one source of their defaults and checks."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from ..common.checks import check_at_least, check_seeds

METHODS = {"kmeans": "k-means", "gaussian": "Gaussian mixture"}


@dataclass(frozen=True)
class ClusterConfig:
    """Cluster the embeddings of a cohort, say how stable the clusters are, and describe them by a table.

    Writes OUT/clusters.csv (study, cluster, place in the map), characteristics.csv, results.json, and
    report/index.html with its pictures.
    """

    # Parquet file of `cinema-fast embed`
    embeddings: Positional[Path]
    # folder to write
    out: Path
    # CSV with a column study: what is known of the studies, by which clusters are described
    table: Path | None = None
    # columns of the table to describe; all when none is named
    columns: tuple[str, ...] = ()
    # k-means, or a mixture of Gaussians with diagonal covariances
    method: Literal["kmeans", "gaussian"] = "kmeans"
    # number of clusters; by default that of the highest silhouette (kmeans) or the lowest BIC (gaussian)
    clusters: int | None = None
    # largest number of clusters tried
    most: int = 10
    # pairs of subsamples for the stability, and Gaussian clouds for the separation, whose p is at least 1 / (1 + these)
    resamples: int = 50
    # how studies are laid out in two dimensions
    map: Literal["pca", "tsne"] = "pca"
    # key of everything random
    seed: int = 0

    def __post_init__(self):
        check_at_least(self, 2, "most", "clusters")
        check_at_least(self, 20, "resamples")
        check_seeds(self, "seed", bits=32)
        if self.columns and not self.table:
            raise ValueError("--columns wants --table CSV, whose columns they are")
