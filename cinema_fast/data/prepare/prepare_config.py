"""The options of `prepare`: the one source of their defaults and checks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ...common.checks import check
from .shard import Shard, parse_shard
from .source_format import FormatName

_SHAPING = ("sax_size", "lax_size", "sax_spacing", "lax_spacing", "labels", "lv_label")


@dataclass(frozen=True)
class PrepareConfig:
    """Options of `prepare`."""

    # folder of NIfTI cines (.nii or .nii.gz): 4D with time last, (X, Y, Z, T), long-axis views (X, Y, 1, T); or of
    # DICOM cine series, in folders of any depth
    src: Annotated[Path, tyro.conf.arg(metavar="SRC")]
    # folder of the store: new, empty, or a store that was begun with the same options
    dst: Annotated[Path, tyro.conf.arg(metavar="STORE")]
    # format of SRC; auto: NIfTI if files match the pattern, else DICOM
    format: FormatName = "auto"
    # DICOM: YAML file of rules that map series descriptions to views; default rules are in data/formats/view_rules.yaml
    views_rules: Path | None = None
    # NIfTI: pattern of file paths relative to SRC. {id} is the study (without it SRC is one study), {view} the
    # view, * matches anything within one name; sub-folders are allowed, as in "{id}/*_{view}.nii.gz". With {frame},
    # as in "{id}_{view}_{frame}.nii.gz", every file is one 3D frame; frames are stacked in the order of that part
    # of the name (without _; numbers by value; ED before ES)
    pattern: str = "{id}_{view}.nii.gz"
    # spelling of views in file names, each as VIEW=SPELLING: lax_2c=Se8_2ch sax=sax_4d_6slices. Views other than sax,
    # lax_2c, lax_3c and lax_4c may be named too; they are read as single slices
    aliases: tuple[str, ...] = ()
    # pattern of label-map files (NIfTI) relative to SRC, with {id} and {view} as in --pattern. A 4D file labels all
    # frames; empty frames count as unlabelled. With {frame}, each file labels one frame, numbered from 1
    # ("{id}_frame{frame}_gt.nii.gz"), or named as the cine's own files where those are one per frame. Views are centred
    # on the labelled left ventricle
    labels: str | None = None
    # value of the left ventricular cavity in the label maps
    lv_label: int = 3
    # size of short-axis frames in voxels: cropped or padded in plane; of more slices the middle ones are kept, fewer
    # slices are stored as they are and padded at loading
    sax_size: tuple[int, int, int] = (192, 192, 16)
    # size of long-axis frames in pixels
    lax_size: tuple[int, int] = (256, 256)
    # voxel spacing of short-axis frames in mm
    sax_spacing: tuple[float, float, float] = (1.0, 1.0, 10.0)
    # pixel spacing of long-axis frames in mm
    lax_spacing: tuple[float, float] = (1.0, 1.0)
    # axes of the images. patient: the same orientation in every study, from each header; stored: as in the files, as in
    # stores of earlier versions and for published weights; auto: what the store already uses, patient for a new store
    orientation: Literal["auto", "patient", "stored"] = "auto"
    # processes that prepare studies; 0: one per core
    workers: int = 0
    # empty the store first; without it studies whose sources are unchanged are kept
    overwrite: bool = False
    # also compute motion maps (how much each pixel moves over the cycle), for views that have none or a damaged one;
    # they can guide the masks of pre-training. On the GPU where there is one
    motion: bool = False
    # check every file of the store against its checksum, and prepare altered studies again (those with missing or cut
    # files always are). To check without changing anything: `cinema-fast verify STORE`
    repair: bool = False

    # prepare only part K of N, given as K/N (K from 1). Run one job per part with the same STORE, then once with
    # --merge, which writes the index
    shard: str | None = None
    # prepare nothing: write the index of what all shards prepared, and report failures and missing studies
    merge: bool = False

    def __post_init__(self) -> None:
        for name in ("src", "dst"):
            object.__setattr__(self, name, Path(getattr(self, name)))
        grid = "sax_size", "lax_size", "sax_spacing", "lax_spacing"
        check(self, *grid, valid=lambda values: all(value > 0 for value in values), must="must be positive")
        check(self, "workers", valid=lambda n: n >= 0, must="must be 0 (one per core) or more")
        if self.merge and self.shard:
            raise ValueError("--merge runs after all shards: leave out --shard")
        if self.overwrite and (self.merge or self.shard):
            raise ValueError("--overwrite would remove what other shards prepared: remove the store first")
        _ = self.part

    @property
    def part(self) -> Shard | None:
        """The parsed `shard`, or None. Raises ValueError."""
        return parse_shard(self.shard) if self.shard else None

    def shaping(self) -> dict:
        """The options that determine the stored frames, as they are read back from JSON."""
        options = json.loads(json.dumps({name: getattr(self, name) for name in _SHAPING}))
        return options | ({} if self.orientation == "stored" else {"orientation": "patient"})
