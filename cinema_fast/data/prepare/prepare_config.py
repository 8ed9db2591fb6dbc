"""The options of `prepare`: the one source of their defaults and checks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...common.checks import check
from .shard import Shard, parse_shard
from .source_format import FormatName

_SHAPING = ("sax_size", "lax_size", "sax_spacing", "lax_spacing", "labels", "lv_label")


@dataclass(frozen=True)
class PrepareConfig:
    """Options of `prepare`."""

    src: Path
    """Folder of NIfTI cines (.nii or .nii.gz), 4D with time last: (X, Y, Z, T), long-axis views (X, Y, 1, T); or of
    DICOM cine series, in folders of any depth."""
    dst: Path
    """Folder of the store: new, empty, or a store that an earlier run with the same options began."""
    format: FormatName = "auto"
    """What SRC holds. auto: NIfTI where files named so lie where the pattern looks, else DICOM."""
    views_rules: Path | None = None
    """DICOM: YAML file of the rules by which descriptions of series become views; without, those that the package
    brings (data/formats/view_rules.yaml, to begin your own from)."""
    pattern: str = "{id}_{view}.nii.gz"
    """Where the files lie, relative to SRC. {id} names the study (without it SRC is one study), {view} the view,
    * matches anything within one name; sub-folders are allowed, as in "{id}/*_{view}.nii.gz". With {frame}, as in
    "{id}_{view}_{frame}.nii.gz", every file is one 3D frame, and they are stacked in the order of that part of the
    name (which holds no _; numbers by value; so ED before ES)."""
    aliases: tuple[str, ...] = ()
    """How the files spell the views, each as VIEW=SPELLING: lax_2c=Se8_2ch sax=sax_4d_6slices. Other views than sax,
    lax_2c, lax_3c and lax_4c may be named too; they are taken for single slices."""
    labels: str | None = None
    """Pattern of label files (NIfTI) relative to SRC, with {id} and {view} as in the files they belong to: where there
    is one, the label maps are stored beside the cine, and the view is centred on the labelled left ventricle. A file
    holds the maps of all frames (4D, frames without labels being empty); or of one frame, with {frame} in its name: as
    in the cine's own files where those are frames, else the number of the frame, from 1 ("{id}_frame{frame}_gt.nii.gz"
    for ..._frame01_gt.nii.gz)."""
    lv_label: int = 3
    """Value of the left ventricle's cavity in the label files."""
    sax_size: tuple[int, int, int] = (192, 192, 16)
    """Size of short-axis frames in voxels. In plane cropped or padded to it; of more slices the middle ones are kept,
    fewer slices are stored as they are and padded when they are loaded."""
    lax_size: tuple[int, int] = (256, 256)
    """Size of long-axis frames in pixels."""
    sax_spacing: tuple[float, float, float] = (1.0, 1.0, 10.0)
    """Spacing of short-axis frames in mm."""
    lax_spacing: tuple[float, float] = (1.0, 1.0)
    """Spacing of long-axis frames in mm."""
    orientation: Literal["auto", "patient", "stored"] = "auto"
    """How the axes of the images lie. patient: alike in every study, found from each header, however a file stores
    them; stored: as in the files, as stores of earlier versions are and published weights have seen them. auto: as the
    store was begun; a new one by the patient."""
    workers: int = 0
    """Studies prepared at a time, each in a process of its own; 0: one per core."""
    overwrite: bool = False
    """Empty the store first. Without it, studies whose sources are unchanged are kept."""
    motion: bool = False
    """Also give every view in the store a motion map, where it has none or a damaged one: how much each pixel moves
    over the cycle, by which the masks of pre-training can be guided. It is made from the stored frames, on a GPU where
    there is one."""
    check: bool = False
    """Also read all that is in the store, and make anew the studies whose files are not what was written: altered
    pixels, that is; a study with a file missing, cut short or of another header is made anew without it. To read a
    store and change nothing, without SRC: `cinema-fast verify STORE`."""

    shard: str | None = None
    """Prepare only part k of n, as k/n (k from 1), beside other jobs that prepare the other parts of SRC into the same
    store; the store has no index until `--merge`."""
    merge: bool = False
    """Prepare nothing: make the index of what the shards have put into the store, and report what failed or is
    missing."""

    def __post_init__(self) -> None:
        for name in ("src", "dst"):
            object.__setattr__(self, name, Path(getattr(self, name)))
        grid = "sax_size", "lax_size", "sax_spacing", "lax_spacing"
        check(self, *grid, valid=lambda values: all(value > 0 for value in values), must="must be positive")
        check(self, "workers", valid=lambda n: n >= 0, must="must be 0 (one per core) or more")
        if self.merge and self.shard:
            raise ValueError("--merge comes after all shards and is none of them: leave out --shard")
        if self.overwrite and (self.merge or self.shard):
            raise ValueError("--overwrite would remove what other shards prepared: remove the store first")
        _ = self.part

    @property
    def part(self) -> Shard | None:
        """`shard`, understood. Raises ValueError."""
        return parse_shard(self.shard) if self.shard else None

    def shaping(self) -> dict:
        """The options that shape the stored frames, as they read back from JSON."""
        options = json.loads(json.dumps({name: getattr(self, name) for name in _SHAPING}))
        return options | ({} if self.orientation == "stored" else {"orientation": "patient"})
