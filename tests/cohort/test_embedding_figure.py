"""The cohort in two dimensions: components against a closed form, labels from tables that may not fit."""

import numpy as np
import pytest
from matplotlib.image import imread

from cinema_fast.cohort.embedding_figure import draw_embeddings, principal_components, read_labels


def test_components_are_the_axes_of_a_stretched_cloud():
    rng = np.random.default_rng(0)
    cloud = rng.standard_normal((500, 2))
    cloud -= cloud.mean(0)
    basis = np.linalg.qr(rng.standard_normal((6, 6)))[0][:2]
    basis *= np.where(np.take_along_axis(basis, np.abs(basis).argmax(1)[:, None], 1) < 0, -1, 1)
    # decorrelated, so that the cloud's own axes are the basis
    cloud = np.linalg.svd(cloud, full_matrices=False)[0] * [10.0, 5.0]
    points, shares = principal_components((cloud @ basis + 3).astype(np.float32))
    np.testing.assert_allclose(points, cloud, atol=1e-4)
    np.testing.assert_allclose(shares, [0.8, 0.2], atol=1e-5)


@pytest.mark.parametrize("shape", [(5, 3), (1, 4), (4, 1)])
def test_cohorts_without_two_directions(shape):
    vectors = np.ones(shape, np.float32)
    points, shares = principal_components(vectors)
    assert points.shape == (len(vectors), 2) and not points.any() and not shares.any()


def write(path, text):
    path.write_text(text)
    return path


def test_labels_are_matched_by_study(tmp_path):
    table = write(tmp_path / "t.csv", "ef,study,word\n61.5,b,x\n,c,y\n20,z,w\n")
    np.testing.assert_array_equal(read_labels(table, "ef", ["a", "b", "c"]), [np.nan, 61.5, np.nan])


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", r"no column 'study'"),
        ("id,ef\na,1\n", r"no column 'study' .*'id', 'ef'"),
        ("study,lvef\na,1\n", "no column 'ef'"),
        ("study,ef\na,1\nb,low\n", "line 3: ef is 'low', not a number"),
        ("study,ef\nx,1\n", "no ef of any of the 1 studies"),
        ("study,ef\na,\n", "no ef of any"),
    ],
)
def test_tables_that_do_not_fit(tmp_path, text, match):
    with pytest.raises(ValueError, match=match):
        read_labels(write(tmp_path / "t.csv", text), "ef", ["a"])


def test_colours_are_of_the_values(tmp_path):
    rng = np.random.default_rng(0)
    vectors = {"one": rng.standard_normal((40, 8)), "two": rng.standard_normal((40, 8))}
    pictures = {}
    some = np.r_[np.full(20, np.nan), np.arange(20.0)]
    for name, values in (("plain", None), ("some", some), ("all", np.arange(40.0))):
        draw_embeddings(tmp_path / f"{name}.png", vectors, values, "EF")
        pictures[name] = imread(tmp_path / f"{name}.png")[..., :3]
    grey = np.abs(pictures["some"] - 211 / 255).max(-1) < 0.01  # matplotlib's lightgrey
    assert grey.sum() > 200 > (np.abs(pictures["all"] - 211 / 255).max(-1) < 0.01).sum()
