"""benchmarks/experiments/flow_accuracy.py: what it measures on few small studies, and what ours must hold there."""

import numpy as np
import pytest

pytest.importorskip("cv2", reason="opencv is not installed (pip install opencv-python-headless)")
import flow_accuracy

SEEDS = {1: "reduced", 6: "mildly reduced", 9: "normal"}


def truth(cine, pairs):
    return cine.truth(pairs)


def one_pixel_off(cine, pairs):
    return cine.truth(pairs) + np.array([0.6, 0.8]).reshape(2, 1, 1, 1)


@pytest.fixture(scope="module")
def rows():
    methods = flow_accuracy.METHODS | {"truth": truth, "one pixel off": one_pixel_off}
    return flow_accuracy.measure(SEEDS, methods, noise=(12,), size=128)


def errors(rows, method, distance):
    return {row.seed: row.error for row in rows if (row.method, row.distance) == (method, distance)}


@pytest.mark.parametrize("distance", ["1 frame", "3 frames", "ED to ES"])
def test_the_measure_itself(rows, distance):
    assert errors(rows, "truth", distance) == dict.fromkeys(SEEDS, 0)
    assert errors(rows, "one pixel off", distance) == pytest.approx(dict.fromkeys(SEEDS, 1), abs=1e-6)
    still = errors(rows, "no motion", distance)
    assert still[1] < still[9]  # a heart that ejects less moves less
    for method in flow_accuracy.METHODS.keys() - {"no motion"}:
        assert all(error < 0.8 * still[seed] for seed, error in errors(rows, method, distance).items()), method


@pytest.mark.parametrize("distance", ["1 frame", "3 frames", "ED to ES"])
def test_ours_is_no_worse_than_opencv(rows, distance):
    unrefined, ours = errors(rows, "ours, refine 0", distance), errors(rows, "ours", distance)
    for seed, theirs in errors(rows, "OpenCV Farneback", distance).items():
        assert unrefined[seed] < 1.02 * theirs and ours[seed] < 0.95 * theirs
    mean, _, n = flow_accuracy.spread(row for row in rows if (row.method, row.distance) == ("ours", distance))
    assert n == len(SEEDS) and mean < np.mean(list(errors(rows, "OpenCV DIS", distance).values()))


def test_studies_fill_the_classes_of_ejection_fraction():
    seeds = flow_accuracy.draw_seeds(2)
    assert sorted(seeds.values()) == ["mildly reduced"] * 2 + ["normal"] * 2 + ["reduced"] * 2
    assert [flow_accuracy.class_of(ef) for ef in (39.9, 40, 50)] == ["reduced", "mildly reduced", "normal"]


def test_means_are_over_studies_with_noise_levels_averaged_before(rows):
    made = [flow_accuracy.Measured("ours", "1 frame", "normal", sd, seed, error)
            for seed, sd, error in [(1, 4, 1.0), (1, 24, 3.0), (2, 4, 4.0)]]  # fmt: skip
    assert flow_accuracy.spread(made) == pytest.approx((3, 2**0.5, 2))
    table = flow_accuracy.accuracy_table(rows, "3 frames")
    assert len({line.count("|") for line in table}) == 1 and table[2].startswith("| all | 3 |")
    assert any(line.startswith("| noise 12 | 3 |") for line in table)


def test_closed_forms_are_found():
    for line in flow_accuracy.closed_form_table()[2:5]:  # two translations and a zoom of 2 %
        assert float(line.split("|")[3]) < 0.05
