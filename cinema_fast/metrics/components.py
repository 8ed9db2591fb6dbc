"""Removal of small connected components from label maps."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage


def without_small_components(labels: np.ndarray, structure: Sequence[int], least: int) -> np.ndarray:
    """A copy of label maps (T, X, Y[, Z]) uint8 without the small components of a structure, slice by slice.

    structure: its labels, which together make the mask. In every slice, an 8-connected component of the mask with fewer
    than `least` pixels takes the most frequent label in its bounding box, extended by one pixel on every side, that is
    not of the structure; the lowest of equally frequent ones, 0 where there is no other. `labels` decides, so the order
    of the components does not matter.

    Source: the post-processing of the CineMA reference for MyoPS 2020, which it takes from EfficientSeg. There, pixels
    of a component that was removed before count with their new label.
    """
    mask = np.isin(labels, structure)
    linked = np.zeros((3,) * labels.ndim, bool)
    linked[(1, slice(None), slice(None), 1)[: labels.ndim]] = True  # not along T and Z
    components, _ = ndimage.label(mask, linked)
    sizes = np.bincount(components.ravel())
    found = labels.copy()
    for k, box in enumerate(ndimage.find_objects(components), start=1):
        if sizes[k] < least:
            x, y = (slice(max(0, side.start - 1), side.stop + 1) for side in box[1:3])
            around = (box[0], x, y, *box[3:])
            others = labels[around][~mask[around]]
            found[box][components[box] == k] = np.bincount(others, minlength=1).argmax()
    return found
