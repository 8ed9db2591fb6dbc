"""A small cine and the transfer syntaxes that it is written in."""

import numpy as np
from cine_files import affine_of, ball_cine
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

SHAPE = (40, 36, 2)


AFFINE = affine_of((0.1, 0.2, 1.0), (1.5, 1.3, 8.0), (0, 0, 20), SHAPE)


DATA = ball_cine(SHAPE, AFFINE, n_frames=3).astype(np.uint16)


SYNTAXES = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, RLELossless,
            JPEG2000Lossless)
