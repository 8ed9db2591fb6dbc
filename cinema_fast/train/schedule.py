"""Learning rates as an array indexed by step."""

import numpy as np


def cosine_schedule(steps: int, *, peak: float, floor: float, warmup: int) -> np.ndarray:
    """Linear warm-up to `peak`, then half a cosine down to `floor`.

    Step warmup - 1 is at the peak and step steps - 1 at the floor, so no step is wasted at rate 0. The reference's
    recipe is 1e-3 to 1e-6 with 10 of 800 epochs of warm-up (Fu et al., "A versatile foundation model for cine CMR").

    Returns (steps,) float64. Raises ValueError for no steps, or a warm-up that is negative or longer than the run.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if not 0 <= warmup <= steps:
        raise ValueError(f"warm-up must lie in 0..{steps} (the steps of the run), got {warmup}")
    done = np.arange(1, steps + 1)
    decay = np.clip((done - warmup) / max(steps - warmup, 1), 0, 1)
    cosine = floor + (peak - floor) * 0.5 * (1 + np.cos(np.pi * decay))
    return np.where(done <= warmup, peak * done / max(warmup, 1), cosine)
