"""Write an image or a label map of a synthetic study as NIfTI."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..common.views import plane_of

if TYPE_CHECKING:
    from .study import PhantomStudy


def write_view(
    path: Path,
    study: PhantomStudy,
    view: str,
    voxels: NDArray[np.integer],
    affine: NDArray[np.float64] | None = None,
) -> None:
    """Write a cine, 4D (X, Y, Z, T) with one slice for a long axis, or one frame, 3D (X, Y, Z).

    The header has mm, seconds, and the affine as sform and qform, both with the code of the scanner's axes.

    Args:
        voxels: (X, Y[, Z], T), or (X, Y[, Z]) of one frame, on the grid of `view`; uint16 is written as int16. Of the
            sequences other than the cine the one frame of (X, Y[, Z], 1) is written.
        affine: (4, 4), voxel to mm; by default that of the view.
    """
    import nibabel

    voxels = voxels.view(np.int16) if voxels.dtype == np.uint16 else voxels
    plane = plane_of(view)
    if view != plane:
        voxels = voxels[..., 0]
    voxels = voxels if plane == "sax" else voxels[:, :, None]
    affine = study.affines[view] if affine is None else affine
    nifti = nibabel.Nifti1Image(voxels, affine)
    nifti.set_sform(affine, code="scanner")
    nifti.set_qform(affine, code="scanner")
    nifti.header.set_xyzt_units("mm", "sec")
    nifti.header.set_zooms((*study.spacing_mm[view], study.frame_time_ms / 1e3)[: voxels.ndim])
    nibabel.save(nifti, path)
