"""Segmented hearts made by hand, whose scores are known, and whole evaluations of them."""

import numpy as np

from cinema_fast.metrics.assessment import Assessment
from cinema_fast.metrics.cases import SegmentationCase

HOSTILE = "<script>alert('1')</script>\" onerror=\"x & $\\frac$ \udcff"
SHAPE = (24, 20, 5)


def heart(lv: int, shift: int = 0) -> np.ndarray:
    """(24, 20, 5) uint8: boxes; an LV of `lv` x 8 x 5 voxels in a myocardium of 12 x 12 x 5, an RV of 4 x 12 x 5."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[2 + shift : 6 + shift, 4:16] = 1
    labels[6 + shift : 18 + shift, 4:16] = 2
    labels[8 + shift : 8 + lv + shift, 6:14] = 3
    return labels


def case(study: str, *, es: int = 4, shift: int = 0, view: str = "sax", **more) -> SegmentationCase:
    """Six frames of which the first is ED (LV 8 wide), the fourth ES; truth at both, prediction shifted along X."""
    widths = [8, 7, 6, es, 6, 7]
    pred = np.stack([heart(lv, shift) for lv in widths])
    image = np.random.default_rng(0).integers(0, 256, pred.shape).astype(np.uint8)
    truth = {0: heart(8), 3: heart(es)}
    spacing = (1.5, 2.0, 10.0)
    if view != "sax":
        image, pred, truth, spacing = image[..., 2], pred[..., 2], {t: v[..., 2] for t, v in truth.items()}, spacing[:2]
    return SegmentationCase(study, view, spacing, image, pred, truth, **more)


def assessment(n: int = 6, *, noise: float = 1.0, seed: int = 0, **options) -> Assessment:
    """An evaluation of n studies of every kind; the first study's name is HOSTILE. noise: of the predictions."""
    made, rng, errors = Assessment(resamples=200, **options), np.random.default_rng(0), np.random.default_rng(seed + 1)
    for i in range(n):
        study = HOSTILE if i == 0 else f"heart-{i}"
        made.add_segmentation(case(study, es=3 + i % 3, shift=min(i, 3), known={"lv_ef": 50.0}))
        made.add_segmentation(case(study, view="lax_4c", shift=1, stability={3: {"LV": 0.8}}))
        age, ill = rng.uniform(40, 80), bool(i % 2)
        made.add_regression(study, "age", age + noise * errors.normal(), age, "years")
        p = 1 / (1 + np.exp(-(2 * ill - 1) - noise * errors.normal()))
        made.add_classification(study, "disease", (1 - p, p), "DCM" if ill else "NOR", ("NOR", "DCM"))
        three = errors.dirichlet(np.ones(3))
        made.add_classification(study, "scanner", three, "ABC"[i % 3], "ABC")
        made.add_landmarks(study, "lax_4c", 0, {"apex": (3.0, 4.0 * noise)}, {"apex": (0.0, 0.0), "base": (0.0, 0.0)})
        made.add_retest(study, "lv_ef", 60.0, 60.0 + i)
    return made
