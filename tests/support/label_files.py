"""Label maps beside the small cines."""

import numpy as np
from prepared import run

from cinema_fast.data.formats.nifti import read_cine

PATTERN = "labels/{id}_{view}.nii.gz"


def drawn(src, study: str, low: int = 8):
    """(label maps (X, Y, Z, T) of frames 0 and 2, affine) of a study's SAX."""
    cine = read_cine(src / f"{study}_sax.nii.gz", stack=True)
    labels = np.zeros((*cine.shape, cine.n_frames), np.uint8)
    labels[low:24, 12:28, :, ::2] = 3
    labels[low:24, 28:30, :, ::2] = 2
    return labels, cine.affine


def again(src, store, **options):
    return run(src, store, labels=PATTERN, **options)
