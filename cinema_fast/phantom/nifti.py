"""Write an image or a label map of a synthetic study as NIfTI."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .cohort import PhantomStudy


def write_view(
    path: Path,
    study: PhantomStudy,
    view: str,
    voxels: NDArray[np.integer],
    affine: NDArray[np.float64] | None = None,
) -> None:
    """Write all frames of a view, 4D (X, Y, Z, T) with one slice for a long axis, or one frame, 3D (X, Y, Z).

    The header has mm, seconds, and the affine as sform and qform, both with the code of the scanner's axes.

    Args:
        voxels: (X, Y[, Z], T), or (X, Y[, Z]) of one frame, on the grid of `view`; uint16 is written as int16.
        affine: (4, 4), voxel to mm; by default that of the view.
    """
    import nibabel

    voxels = voxels.view(np.int16) if voxels.dtype == np.uint16 else voxels
    voxels = voxels if view == "sax" else voxels[:, :, None]
    affine = study.affines[view] if affine is None else affine
    nifti = nibabel.Nifti1Image(voxels, affine)
    nifti.set_sform(affine, code="scanner")
    nifti.set_qform(affine, code="scanner")
    nifti.header.set_xyzt_units("mm", "sec")
    nifti.header.set_zooms((*study.spacing_mm[view], study.frame_time_ms / 1e3)[: voxels.ndim])
    nibabel.save(nifti, path)
