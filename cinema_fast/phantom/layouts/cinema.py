"""The folders of ACDC as CineMA's own preprocessing writes them (github.com/mathpluscode/CineMA, cinema/data/acdc).

The steps are its, but for resampling: images stay on the grid they were drawn on (`in_plane_mm` 1 gives its pixels).
They are cut to 192 x 192 around the left ventricle at end-diastole where they are larger, and each frame is clipped to
its 0.95 and 99.5 percentiles and scaled to 0..255.
"""

import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..nifti import write_view
from ..study import PhantomStudy
from .acdc import ACDC_GROUPS
from .layout import Case, Layout, Part, Row, draw_size, table_numbers

_SIZE = 192
_FIRST = {"train": 1, "test": 101}
_RV, _LV = 1, 3  # of the phantom and of CineMA


def _name(part: str, place: int, group: str, i: int, seed: int) -> str:
    return f"patient{_FIRST[part] + place:03d}"


def _write_study(out: Path, case: Case, study: PhantomStudy) -> Row:
    folder = out / case.part / case.study
    folder.mkdir(parents=True)
    labels, ed, es = study.labels["sax"], study.ed_frame, study.es_frame
    x, y = (_window(np.flatnonzero((labels[..., ed] == _LV).any(axis=others)), labels.shape[axis])
            for axis, others in ((0, (1, 2)), (1, (0, 2))))  # fmt: skip
    labels, images = labels[x, y], study.images["sax"][x, y]
    cine = np.stack([_scaled(images[..., t]) for t in range(study.n_frames)], axis=-1)
    spacing = study.spacing_mm["sax"]
    affine = np.diag([*spacing, 1.0])
    affine[:2, 3] = x.start * spacing[0], y.start * spacing[1]
    name = f"{case.study}_sax"
    write_view(folder / f"{name}_t.nii.gz", study, "sax", cine, affine)
    volumes = {}
    for frame, t in (("ed", ed), ("es", es)):
        write_view(folder / f"{name}_{frame}.nii.gz", study, "sax", cine[..., t], affine)
        write_view(folder / f"{name}_{frame}_gt.nii.gz", study, "sax", labels[..., t], affine)
        for chamber, label in (("lv", _LV), ("rv", _RV)):
            volumes[f"{chamber}_{frame}v"] = (labels[..., t] == label).sum() * np.prod(spacing) / 1e3
    for chamber in ("lv", "rv"):
        edv, esv = volumes[f"{chamber}_edv"], volumes[f"{chamber}_esv"]
        volumes[f"{chamber}_ef"] = 100 * (edv - esv) / edv
    height, weight = draw_size(study, table_numbers(study))
    return {
        "pid": case.study, "pathology": case.group, "height": height / 100, "weight": weight,
        "bmi": weight / (height / 100) ** 2, "n_frames": study.n_frames, "ed_frame": ed + 1, "es_frame": es + 1,
        **{f"original_sax_spacing_{axis}": step for axis, step in zip("xyz", spacing)}, "n_slices": labels.shape[2],
        **{name: volumes[name] for name in ("lv_edv", "lv_esv", "lv_ef", "rv_edv", "rv_esv", "rv_ef")},
    }  # fmt: skip


def _window(found: NDArray[np.integer], n: int) -> slice:
    """At most `_SIZE` of `n` pixels, around the positions `found`, inside the image."""
    start = (found.min() + found.max() + 1 - _SIZE) // 2
    start = int(np.clip(start, 0, max(0, n - _SIZE)))
    return slice(start, min(n, start + _SIZE))


def _scaled(frame: NDArray[np.uint16]) -> NDArray[np.uint8]:
    low, high = np.percentile(frame, (0.95, 99.5))
    return (255 * (np.clip(frame, low, high) - low) / (high - low)).astype(np.uint8)


def _write_tables(out: Path, cases: list[Case], rows: list[Row]) -> None:
    for part in dict.fromkeys(case.part for case in cases):
        with (out / f"{part}_metadata.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(row for case, row in zip(cases, rows) if case.part == part)


CINEMA = Layout(
    parts=(Part("train", 100, tuple(ACDC_GROUPS), in_blocks=True), Part("test", 50, tuple(ACDC_GROUPS))),
    diseases=ACDC_GROUPS,
    study_name=_name,
    write_study=_write_study,
    written=("train", "test", "train_metadata.csv", "test_metadata.csv"),
    write_tables=_write_tables,
)
