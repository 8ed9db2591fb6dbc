"""GLS and MAPSE of hand-made annuli, and of any heart that is turned and moved."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from cinema_fast.evaluation.results import write_results
from cinema_fast.metrics.assessment import Assessment
from cinema_fast.metrics.long_axis import AXIS, LONG_AXIS, annulus_to_apex, long_axis_function, longest_and_shortest


def descending(*mm: float, wide: float = 30.0, length: float = 90.0, tilt: float = 0.0) -> dict[str, np.ndarray]:
    """An annulus that has come down by `mm` in each frame, its first end by `tilt` of it more, above a fixed apex."""
    down = np.array(mm)
    zero = np.zeros(len(mm))
    return {
        "annulus_1": np.stack([zero - wide / 2, length - down * (1 + tilt)], -1),
        "annulus_2": np.stack([zero + wide / 2, length - down * (1 - tilt)], -1),
        "apex": np.zeros((len(mm), 2)),
    }


def test_of_an_annulus_that_comes_down():
    points = descending(0.0, 6.0, 15.0, 9.0, tilt=0.2)
    assert annulus_to_apex(points).tolist() == [90, 84, 75, 81]
    assert longest_and_shortest(points) == (0, 2)
    found = long_axis_function(points, 0, 2)
    assert list(found) == list(LONG_AXIS)
    # the ends come down by 18 and 12 mm
    assert found == pytest.approx({"longest_mm": 90, "shortest_mm": 75, "shortening_mm": 15, "mapse_mm": 15,
                                   "gls": -100 * 15 / 90})  # fmt: skip


def test_an_annulus_that_goes_aside_moves_without_shortening():
    points = descending(0.0, 0.0)
    for name in AXIS:
        points[name][1] += (3.0, 4.0)
    assert long_axis_function(points, 0, 1) == pytest.approx({"longest_mm": 90, "shortest_mm": 90, "shortening_mm": 0,
                                                              "mapse_mm": 5, "gls": 0})  # fmt: skip
    nowhere = {name: np.zeros((2, 3)) for name in AXIS}
    assert math.isnan(long_axis_function(nowhere, 0, 1)["gls"])


@given(st.integers(0, 2**32 - 1), st.integers(2, 6))
@settings(max_examples=30, deadline=None)
def test_it_is_that_of_the_heart_wherever_it_lies(seed, frames):
    rng = np.random.default_rng(seed)
    points = {name: rng.normal(0, 40, (frames, 3)) for name in AXIS}
    ends = longest_and_shortest(points)
    turn, shift = Rotation.random(rng=seed), rng.normal(0, 100, 3)
    moved = {name: turn.apply(at) + shift for name, at in points.items()}
    assert longest_and_shortest(moved) == ends
    found = long_axis_function(points, *ends)
    assert long_axis_function(moved, *ends) == pytest.approx(found)
    assert found["gls"] <= 0 <= found["shortening_mm"] and found["mapse_mm"] >= 0
    back = long_axis_function(points, *ends[::-1])
    assert back["mapse_mm"] == pytest.approx(found["mapse_mm"]) and back["gls"] >= 0


def test_the_prediction_is_measured_at_the_frames_of_the_truth(tmp_path):
    """Not where it is longest itself; what it did not find is a failure."""
    made = Assessment(resamples=20)
    made.add_long_axis("a", "lax_4c", descending(3.0, 0.0, 12.0), descending(0.0, 5.0, 15.0))
    made.add_long_axis("b", "lax_4c", descending(0.0, 15.0), descending(0.0, 9.0))
    lost = descending(0.0, 15.0)
    lost["annulus_2"][1] = math.nan
    made.add_long_axis("c", "lax_4c", lost, descending(0.0, 10.0))
    with pytest.raises(ValueError, match="study a, lax_4c: long_axis was evaluated before"):
        made.add_long_axis("a", "lax_4c", lost, lost)
    found = {(row["study"], row["name"]): (row["pred"], row["truth"]) for row in made.rows}
    assert found["a", "mapse_mm"] == pytest.approx((9, 15))
    assert found["a", "gls"] == pytest.approx((-100 * 9 / 87, -100 * 15 / 90))
    assert found["a", "longest_mm"] == (87, 90)
    assert found["c", "gls"][0] == found["c", "mapse_mm"][0] == math.inf and found["c", "longest_mm"] == (90, 90)
    results = write_results(made, tmp_path, about={})
    numbers = {table["name"]: table["numbers"] for table in results["tables"]}
    assert numbers["mapse_mm"]["bias"]["value"] == pytest.approx((-6 + 6) / 2)
    assert numbers["mapse_mm"]["mae"]["value"] == pytest.approx(6) and numbers["mapse_mm"]["mae"]["n"] == 2
    assert numbers["gls"]["mae"]["note"].startswith("1 of 3 failed") and numbers["longest_mm"]["mae"]["n"] == 3
    page = (tmp_path / "report" / "index.html").read_text()
    assert "Long-axis function from landmarks" in page and "GLS of the line from annulus to apex (%), agreement" in page
