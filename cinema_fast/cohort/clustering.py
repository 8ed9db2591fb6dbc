"""Clusters of the vectors of a cohort: how many there are, how stable and how well separated they are.

Vectors are standardised and reduced to the principal components that hold VARIANCE_KEPT of the variance. Two numbers
test the result. Stability, whether other studies of the same cohort would give the same groups: clusterings of random
subsamples are compared on the studies they share (Ben-Hur, Elisseeff and Guyon 2002). Separation, whether there are
groups at all: k-means divides any cloud, so it is compared with that of one Gaussian cloud of the same covariance
(after SigClust, Liu et al. 2008).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

Method = Literal["kmeans", "gaussian"]
CRITERION = {"kmeans": "silhouette", "gaussian": "bic"}  # the highest silhouette, or the lowest bic, is best
VARIANCE_KEPT = 0.9
STUDIES_PER_CLUSTER = 5  # on average; with fewer, neither sizes nor characteristics mean anything
SHARE_DRAWN = 0.8  # share of the studies in a subsample
_SILHOUETTE_STUDIES = 5000  # of more studies, this many are drawn: the cost grows with the number squared


@dataclass(frozen=True)
class Interval:
    """The mean of n values, and their central 95 %."""

    mean: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: np.ndarray) -> "Interval":
        low, high = np.percentile(values, [2.5, 97.5])
        return cls(float(values.mean()), float(low), float(high), len(values))

    def __str__(self) -> str:
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class Separation:
    """silhouette: mean silhouette of the clusters. one_cloud: that of clusterings of one Gaussian cloud. p: share of
    those clusterings, with the cohort's counted among them, that are separated as well (one-sided)."""

    silhouette: float
    one_cloud: Interval
    p: float


@dataclass(frozen=True)
class Clustering:
    """clusters (n,) int, 1 to `number`, the largest is 1. curve: {number of clusters: criterion}.

    points (n, C): principal components, which hold the share `variance` of the whole. stability: adjusted Rand index of
    pairs of subsamples. Stability and separation are None where there is one cluster.
    """

    clusters: np.ndarray
    curve: dict[int, float]
    points: np.ndarray
    variance: float
    stability: Interval | None
    separation: Separation | None

    @property
    def number(self) -> int:
        return int(self.clusters.max())

    @property
    def stable(self) -> str:
        """How stable and separated the clusters are, in words. The thresholds are a convention."""
        if self.stability is None:
            return "one cluster: the criterion favours no split"
        if self.separation and self.separation.p > 0.05:
            return "no groups: data from one Gaussian separate as well (p > 0.05); do not interpret the clusters"
        if self.stability.mean < 0.6:
            return "not stable: other studies would give other clusters; do not interpret them"
        good = "stable: other studies of this cohort would give nearly the same clusters"
        return good if self.stability.mean >= 0.8 else "partly stable: interpret the clusters with care"


def find_clusters(
    vectors: np.ndarray, *, method: Method, number: int | None, most: int, resamples: int, seed: int
) -> Clustering:
    """Cluster vectors (n, D).

    number: of clusters; None: the number up to `most` with the best criterion. resamples: number of pairs of
    subsamples, and of Gaussian clouds. A pure function of its arguments: it uses one thread and draws from `seed` only.

    Raises ValueError: too few studies, vectors that are all alike, fewer different ones than clusters.
    """
    from threadpoolctl import threadpool_limits

    check_cohort(vectors, number)
    with threadpool_limits(1):  # several threads would add sums in varying order
        points, variance = reduce(vectors)
        room = min(most, len(vectors) // STUDIES_PER_CLUSTER, len(np.unique(vectors, axis=0)))
        numbers = range(1 if method == "gaussian" else 2, max(room, number or 2) + 1)
        curve = {k: _criterion(points, k, method, seed) for k in numbers}
        best = min if CRITERION[method] == "bic" else max
        clusters = assign(points, number or best(curve, key=curve.get), method, seed)
        stability = separation = None
        if (found := int(clusters.max())) > 1:
            stability = Interval.of(stability_of(vectors, found, method, resamples, seed))
            separation = separation_of(points, clusters, method, resamples, seed)
    return Clustering(clusters, curve, points, variance, stability, separation)


def check_cohort(vectors: np.ndarray, number: int | None) -> None:
    """Raise ValueError where vectors (n, D) cannot be clustered, into `number` clusters or any."""
    least = STUDIES_PER_CLUSTER * (number or 2)
    if len(vectors) < least:
        raise ValueError(
            f"{len(vectors)} studies are too few for {number or 'two or more'} clusters: "
            f"expected {least} or more, {STUDIES_PER_CLUSTER} a cluster"
        )
    if not _varied(vectors).any():
        raise ValueError(f"the vectors of all {len(vectors)} studies are equal: nothing to cluster")
    different = len(np.unique(vectors, axis=0))
    if different < (number or 2):
        raise ValueError(f"--clusters {number}, but only {different} different vectors")


def _varied(vectors: np.ndarray) -> np.ndarray:
    """(D,) bool: entries that vary by more than float32's rounding; standardising would amplify the others."""
    return vectors.std(0) > 1e-6 * np.abs(vectors).max()


def reduce(vectors: np.ndarray) -> tuple[np.ndarray, float]:
    """Vectors (n, D) standardised, as principal components (n, C); and their share of the variance."""
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    scaled = StandardScaler().fit_transform(vectors[:, _varied(vectors)])
    pca = PCA(svd_solver="full").fit(scaled)
    shares = np.cumsum(pca.explained_variance_ratio_)
    kept = min(int(np.searchsorted(shares, VARIANCE_KEPT)) + 1, len(shares))
    return pca.transform(scaled)[:, :kept], float(shares[kept - 1])


def assign(points: np.ndarray, number: int, method: Method, seed: int) -> np.ndarray:
    """Clusters (n,) int of points (n, C), numbered from 1 by falling size; of equal size, by their first study.

    There may be fewer than `number`: a component of a mixture may have no study.
    """
    labels = _model(number, method, seed).fit_predict(points)
    _, first, which, sizes = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    return np.argsort(np.lexsort((first, -sizes)))[which] + 1


def _model(number: int, method: Method, seed: int):
    from sklearn.cluster import KMeans
    from sklearn.mixture import GaussianMixture

    if method == "kmeans":
        return KMeans(number, n_init=10, random_state=seed)
    # diagonal: full covariances of small clusters fit a few studies exactly, and bic then favours the most clusters
    return GaussianMixture(number, covariance_type="diag", reg_covar=1e-3, n_init=5, random_state=seed)


def _criterion(points: np.ndarray, number: int, method: Method, seed: int) -> float:
    if CRITERION[method] == "bic":
        return float(_model(number, method, seed).fit(points).bic(points))
    return silhouette(points, assign(points, number, method, seed), seed)


def silhouette(points: np.ndarray, clusters: np.ndarray, seed: int) -> float:
    """Mean silhouette, -1 to 1 (Rousseeuw 1987), of at most _SILHOUETTE_STUDIES studies; 0 for a single cluster."""
    from sklearn.metrics import silhouette_score

    if clusters.max() == 1:
        return 0.0
    drawn = min(len(points), _SILHOUETTE_STUDIES)
    return float(silhouette_score(points, clusters, sample_size=drawn, random_state=seed))


def stability_of(vectors: np.ndarray, number: int, method: Method, pairs: int, seed: int) -> np.ndarray:
    """(pairs,) adjusted Rand index, 1 for equal clusterings and 0 in the mean for independent ones.

    Each pair is two random subsamples, which are standardised, reduced and clustered separately, and compared on the
    studies that both hold.
    """
    from sklearn.metrics import adjusted_rand_score

    n, indices = len(vectors), []
    for rng in (np.random.default_rng((seed, pair)) for pair in range(pairs)):
        parts = [np.sort(rng.choice(n, round(SHARE_DRAWN * n), replace=False)) for _ in range(2)]
        labels = np.zeros((2, n), int)
        for found, part in zip(labels, parts):
            found[part] = assign(reduce(vectors[part])[0], number, method, seed)
        shared = labels.all(0)
        indices.append(adjusted_rand_score(*labels[:, shared]))
    return np.array(indices)


def separation_of(points: np.ndarray, clusters: np.ndarray, method: Method, clouds: int, seed: int) -> Separation:
    """How much better points (n, C) separate than one Gaussian cloud of their covariance with as many clusters."""
    found, number = silhouette(points, clusters, seed), int(clusters.max())
    of_clouds = []
    for rng in (np.random.default_rng((seed, 1, cloud)) for cloud in range(clouds)):
        cloud = rng.standard_normal(points.shape) * points.std(0)  # principal components are not correlated
        of_clouds.append(silhouette(cloud, assign(cloud, number, method, seed), seed))
    as_good = sum(value >= found for value in of_clouds)
    return Separation(found, Interval.of(np.array(of_clouds)), (1 + as_good) / (1 + clouds))


def lay_out(points: np.ndarray, kind: Literal["pca", "tsne"], seed: int) -> np.ndarray:
    """(n, 2) coordinates of points (n, C) for a picture: their first two components, or t-SNE (van der Maaten 2008)."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    if kind == "pca":
        return np.pad(points[:, :2], ((0, 0), (0, max(0, 2 - points.shape[1]))))
    with threadpool_limits(1):
        perplexity = min(30.0, (len(points) - 1) / 3)
        return TSNE(perplexity=perplexity, init="random", random_state=seed).fit_transform(points).astype(np.float64)
