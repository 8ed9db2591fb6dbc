"""A cine of a beating ball, and what must be read of it."""

import numpy as np
from cine_files import affine_of, ball_cine

SHAPE = (40, 36, 4)


AFFINE = affine_of((0.1, 0.2, 1.0), (1.5, 1.3, 8.0), (0, 0, 20), SHAPE)


DATA = ball_cine(SHAPE, AFFINE, n_frames=5)


def assert_same(cine, data=DATA, affine=AFFINE, frame_ms=40.0, slope=1.0, inter=0.0):
    assert (cine.shape, cine.n_frames) == (data.shape[:3], data.shape[3])
    assert cine.frame_time_ms == frame_ms
    np.testing.assert_allclose(cine.affine, affine, atol=1e-5)
    for t in range(cine.n_frames):
        assert cine.frame(t).dtype == np.float32
        np.testing.assert_array_equal(cine.frame(t), data[..., t] * np.float32(slope) + np.float32(inter))
