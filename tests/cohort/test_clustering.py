"""Clusters against planted ones, and what is said of cohorts that have none."""

from dataclasses import replace

import numpy as np
import pytest
from embedding_files import planted

from cinema_fast.cohort.clustering import (
    VARIANCE_KEPT,
    assign,
    find_clusters,
    lay_out,
    reduce,
    separation_of,
    stability_of,
)

pytest.importorskip("sklearn")


def found(vectors, method="kmeans", number=None, most=6, seed=0):
    return find_clusters(vectors, method=method, number=number, most=most, resamples=20, seed=seed)


@pytest.mark.parametrize("method", ["kmeans", "gaussian"])
def test_planted_clusters_are_found(method):
    vectors, group = planted((40, 30, 20))
    clustering = found(vectors, method)
    np.testing.assert_array_equal(clustering.clusters, group + 1)  # planted largest first, as clusters are numbered
    assert clustering.number == 3 and clustering.stability.mean > 0.99 and clustering.stability.n == 20
    assert clustering.separation.p == pytest.approx(1 / 21) and clustering.stable.startswith("stable")


def test_a_given_number_is_taken_and_the_curve_still_drawn():
    vectors, group = planted((40, 30, 20))
    clustering = found(vectors, number=2)
    assert clustering.number == 2 and list(clustering.curve) == [2, 3, 4, 5, 6]
    assert max(clustering.curve, key=clustering.curve.get) == 3
    assert [len(set(clustering.clusters[group == g])) for g in range(3)] == [1, 1, 1]


def test_noise_divides_no_better_than_noise():
    vectors = np.random.default_rng(3).standard_normal((90, 16))
    clustering = found(vectors)
    assert clustering.stability.mean < 0.5 and clustering.separation.p > 0.05
    assert clustering.stable.startswith("no groups")
    one = found(vectors, "gaussian")
    assert one.number == 1 and one.stability is None and one.separation is None
    assert one.stable.startswith("one cluster") and (one.clusters == 1).all()


def test_a_stretched_cloud_divides_stably_and_has_no_groups():
    """What stability alone would not tell."""
    rng = np.random.default_rng(0)
    line = 6 * rng.standard_normal((150, 1)) * rng.standard_normal(16)
    clustering = found(line + rng.standard_normal((150, 16)), number=2)
    assert clustering.stability.mean > 0.6 and clustering.stable.startswith("no groups")


def test_unstable_and_partly_stable_are_reported():
    clustering = found(planted()[0])
    for mean, said in ((0.59, "not stable"), (0.61, "partly"), (0.79, "partly"), (0.81, "stable")):
        assert replace(clustering, stability=replace(clustering.stability, mean=mean)).stable.startswith(said)


def test_clusters_are_numbered_by_size_then_by_first_study():
    points = np.array([[9.0], [0], [0.1], [20], [20.1], [40], [40.1], [40.2]])
    np.testing.assert_array_equal(assign(points, 4, "kmeans", 0), [4, 2, 2, 3, 3, 1, 1, 1])


def test_components_hold_the_variance_that_is_wanted():
    """Of independent columns, standardised, each component holds the same share."""
    rng = np.random.default_rng(0)
    columns = np.linalg.qr(np.c_[np.ones(60), rng.standard_normal((60, 20))])[0][:, 1:]  # orthogonal, of mean 0
    vectors = columns * np.logspace(-2, 3, 20) + 5
    points, share = reduce(vectors)
    assert points.shape == (60, 18) and share == pytest.approx(VARIANCE_KEPT)
    np.testing.assert_allclose(points.var(0), 1, rtol=1e-9)
    fixed = np.c_[vectors, np.full(60, np.float32(0.1))]
    fixed[::2, -1] += 1e-9  # rounding is not a direction
    np.testing.assert_allclose(np.abs(reduce(fixed)[0].T @ points).sum(), np.abs(points.T @ points).sum(), rtol=1e-6)


def test_stability_is_the_rand_index_on_shared_studies():
    vectors = planted((30, 30), apart=4.0)[0]
    np.testing.assert_array_equal(stability_of(vectors, 2, "kmeans", 5, 0), np.ones(5))
    noise = np.random.default_rng(0).standard_normal((60, 30))
    low = stability_of(noise, 4, "kmeans", 20, 0)
    assert abs(low).max() < 0.8 and low.mean() < 0.4


def test_separation_counts_the_cohort_among_the_clouds():
    vectors, group = planted()
    points, _ = reduce(vectors)
    mixed = np.random.default_rng(0).permutation(group) + 1  # clusters that divide nothing
    assert separation_of(points, mixed, "kmeans", 20, 0).p == 1
    assert separation_of(points, group + 1, "kmeans", 39, 0).p == pytest.approx(1 / 40)


@pytest.mark.slow
def test_everything_follows_from_the_seed():
    vectors, _ = planted(apart=0.8)
    first, again, other = (found(vectors, seed=seed) for seed in (1, 1, 2))
    assert first.stability == again.stability and first.separation == again.separation and first.curve == again.curve
    np.testing.assert_array_equal(first.clusters, again.clusters)
    assert first.stability != other.stability
    maps = [lay_out(first.points[:30], "tsne", seed) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(maps[0], maps[1])
    assert maps[0].shape == (30, 2) and not np.array_equal(maps[0], maps[2])
    np.testing.assert_array_equal(lay_out(first.points, "pca", 0), first.points[:, :2])
    assert not lay_out(first.points[:, :1], "pca", 0)[:, 1].any()


@pytest.mark.parametrize(
    ("vectors", "number", "match"),
    [
        (np.eye(9), None, "9 studies are too few for two or more clusters: expected 10 or more, 5 a cluster"),
        (np.eye(14), 3, "14 studies are too few for 3 clusters: expected 15 or more"),
        (np.full((20, 4), 0.3), None, "vectors of all 20 studies are equal"),
        (np.full((20, 4), 0.3) + 1e-9 * np.eye(20, 4), None, "are equal"),
        (np.tile(np.eye(2), (10, 1)), 3, "--clusters 3, but only 2 different vectors"),
    ],
)
def test_cohorts_that_cannot_be_divided(vectors, number, match):
    with pytest.raises(ValueError, match=match):
        found(vectors, number=number)


@pytest.mark.parametrize("method", ["kmeans", "gaussian"])
def test_two_points_repeated(method):
    clustering = found(np.tile(np.eye(2), (10, 1)), method)
    assert clustering.number == 2 and clustering.stability.mean == 1
