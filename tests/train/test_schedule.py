"""The learning-rate schedule against its closed form."""

import math

import numpy as np
import pytest

from cinema_fast.train.optimizer import cosine_schedule


def test_landmarks_of_the_published_recipe():
    rates = cosine_schedule(800, peak=1e-3, floor=1e-6, warmup=10)
    assert rates.shape == (800,)
    np.testing.assert_allclose(rates[:10], 1e-4 * np.arange(1, 11), rtol=1e-12)
    assert rates.argmax() == 9
    assert rates[-1] == pytest.approx(1e-6, rel=1e-9)
    assert rates[9 + 395] == pytest.approx((1e-3 + 1e-6) / 2, rel=1e-9)  # half-way down the cosine
    assert np.all(np.diff(rates[9:]) < 0)


@pytest.mark.parametrize("step", [10, 57, 200, 798])
def test_cosine_at_any_step(step):
    expected = 1e-6 + (1e-3 - 1e-6) * (1 + math.cos(math.pi * (step - 9) / 790)) / 2
    assert cosine_schedule(800, peak=1e-3, floor=1e-6, warmup=10)[step] == pytest.approx(expected, rel=1e-12)


def test_short_runs():
    assert cosine_schedule(1, peak=2.0, floor=1.0, warmup=0).tolist() == [1.0]
    assert cosine_schedule(1, peak=2.0, floor=1.0, warmup=1).tolist() == [2.0]
    np.testing.assert_allclose(cosine_schedule(3, peak=3.0, floor=0.0, warmup=3), [1.0, 2.0, 3.0])


@pytest.mark.parametrize(("steps", "warmup", "match"), [(0, 0, "steps"), (5, 6, "0..5"), (5, -1, "warm-up")])
def test_bad_arguments(steps, warmup, match):
    with pytest.raises(ValueError, match=match):
        cosine_schedule(steps, peak=1.0, floor=0.0, warmup=warmup)
