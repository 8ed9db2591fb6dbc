"""Small components are removed slice by slice, against a search pixel by pixel."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cinema_fast.metrics.components import without_small_components


def searched(labels: np.ndarray, structure: set[int], least: int) -> np.ndarray:
    """What is left of one slice (X, Y), by following neighbours."""
    found, seen = labels.copy(), set()
    inside = {tuple(at) for at in np.argwhere(np.isin(labels, list(structure))).tolist()}
    for start in sorted(inside):
        if start in seen:
            continue
        part, edge = {start}, [start]
        while edge:
            x, y = edge.pop()
            near = {(x + i, y + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & inside - part
            part |= near
            edge += near
        seen |= part
        if len(part) < least:
            (x0, y0), (x1, y1) = (tuple(edge(at[k] for at in part) for k in (0, 1)) for edge in (min, max))
            box = labels[max(0, x0 - 1) : x1 + 2, max(0, y0 - 1) : y1 + 2].ravel().tolist()
            counts = {label: box.count(label) for label in sorted(set(box) - structure)}
            for at in part:
                found[at] = max(counts, key=counts.get, default=0)
    return found


@given(st.integers(0, 2**32 - 1), st.integers(2, 8), st.sampled_from([(4,), (2, 4), (3, 5)]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_every_slice_is_as_if_searched(seed, least, structure, stack):
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 0, 2, 3, 4, 5], (2, 7, 6, *(3,) * stack)).astype(np.uint8)
    before = labels.copy()
    found = without_small_components(labels, structure, least)
    assert found.dtype == np.uint8 and (labels == before).all()
    slices = np.moveaxis(labels.reshape(2, 7, 6, -1), 3, 1).reshape(-1, 7, 6)
    wanted = np.stack([searched(one, set(structure), least) for one in slices]).reshape(2, -1, 7, 6)
    np.testing.assert_array_equal(found, np.moveaxis(wanted, 1, 3).reshape(labels.shape))


def test_a_component_of_a_slice_is_counted_there_alone():
    """Diagonal neighbours are one component; the same pixels in the next slice or frame are another."""
    labels = np.zeros((2, 9, 9, 2), np.uint8)
    labels[:, 1:8, 1:8] = 2
    labels[0, 3, 3, 0] = labels[0, 4, 4, 0] = labels[0, 4, 4, 1] = labels[1, 4, 4, 0] = 4
    found = without_small_components(labels, (4,), 2)
    assert np.argwhere(found == 4).tolist() == [[0, 3, 3, 0], [0, 4, 4, 0]]
    assert (found[:, 1:8, 1:8] > 0).all()  # they became the myocardium around them


def test_the_order_of_myops():
    """First scar, whose place is taken by the oedema around it; then what is left of both."""
    labels = np.full((1, 20, 20, 1), 2, np.uint8)
    labels[0, 2:6, 2:6] = 6
    labels[0, 3, 3] = 4
    scar = without_small_components(labels, (4,), 2)
    assert (scar[0, 2:6, 2:6] == 6).all()
    assert (without_small_components(scar, (4, 6), 16) == scar).all()
    assert (without_small_components(scar, (4, 6), 17) == 2).all()


def test_without_other_labels_around_it_becomes_background():
    assert not without_small_components(np.full((1, 3, 3), 4, np.uint8), (4,), 10).any()
