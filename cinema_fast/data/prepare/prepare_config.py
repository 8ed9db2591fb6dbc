"""The options of `prepare`: the one source of their defaults and checks."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ...common.checks import check, flag
from .dataset import Dataset, DatasetName, dataset_of
from .shard import Shard, parse_shard
from .source_format import FormatName

_SHAPING = ("sax_size", "lax_size", "sax_spacing", "lax_spacing", "labels", "lv_label")
# options that shape a store too, but that stores of earlier versions lack: recorded where they are given
_SHAPING_IF_GIVEN = ("dataset", "single", "channels")
_OF_FILES = ("format", "views_rules", "pattern", "aliases", "labels", "label_map", "lv_label", "single", "channels")


@dataclass(frozen=True)
class PrepareConfig:
    """Options of `prepare`."""

    # folder of NIfTI cines (.nii or .nii.gz): 4D with time last, (X, Y, Z, T), long-axis views (X, Y, 1, T); or of
    # DICOM cine series, in folders of any depth
    src: Annotated[Path, tyro.conf.arg(metavar="SRC")]
    # folder of the store: new, empty, or a store that was begun with the same options
    dst: Annotated[Path, tyro.conf.arg(metavar="STORE")]
    # public data set that SRC holds, as unpacked: cines, label maps and tables are found by their published names.
    # STORE/table.csv and STORE/split.csv are written for `finetune --table --split`, and STORE/landmarks.csv where the
    # data set has landmarks; see docs/how-to/datasets.md
    dataset: DatasetName | None = None
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
    # lax_2c, lax_3c and lax_4c may be named too; a name that holds one of these as a word, such as lge_sax, is a stack
    # or a single slice as that one is; the word lge, t1map, t2map, t2w or t1w in it is the sequence of its images.
    # lge_sax, t1map_lax_4c and the like are known without an alias
    aliases: tuple[str, ...] = ()
    # views whose files are single 3D volumes (X, Y, Z), not cines: each becomes a view of one frame. Files with one
    # frame of views whose names say another sequence, such as lge_sax, do so anyway
    single: tuple[str, ...] = ()
    # views made of several single volumes on one grid, read together as channels: VIEW=SPELLING+SPELLING, for instance
    # sax=C0+DE+T2
    channels: tuple[str, ...] = ()
    # pattern of label-map files (NIfTI) relative to SRC, with {id} and {view} as in --pattern. A 4D file labels all
    # frames; empty frames count as unlabelled. With {frame}, each file labels one frame, numbered from 1
    # ("{id}_frame{frame}_gt.nii.gz"), or named as the cine's own files where those are one per frame. Views are centred
    # on the labelled left ventricle
    labels: str | None = None
    # labels of the values in the label files, each as VALUE=LABEL: 1=3 2=2 3=1. Values to 65535 become labels from 0
    # (background) to 255; a value that is not listed is an error
    label_map: tuple[str, ...] = ()
    # label of the left ventricular cavity, after --label-map
    lv_label: int = 3
    # CSV with the columns study, ed and es: the frames of end-diastole and end-systole, from 0. Without it they are
    # known from --dataset or file names (ED, ES), or are the labelled frames with the largest and the smallest left
    # ventricle
    phases: Path | None = None
    # size of short-axis frames in voxels: cropped or padded in plane; of more slices the middle ones are kept, fewer
    # slices are stored as they are and padded at loading
    sax_size: tuple[int, int, int] = (192, 192, 16)
    # size of long-axis frames in pixels
    lax_size: tuple[int, int] = (256, 256)
    # voxel spacing of short-axis frames in mm, 0: as scanned; if not given: 1 1 10, or that of the data set
    sax_spacing: tuple[float, float, float] | None = None
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
        if self.sax_spacing is None:
            spacing = self.published.sax_spacing if self.published else (1.0, 1.0, 10.0)
            object.__setattr__(self, "sax_spacing", spacing)
        grid = "sax_size", "lax_size", "lax_spacing"
        check(self, *grid, valid=lambda values: all(value > 0 for value in values), must="must be positive")
        check(self, "sax_spacing", valid=lambda values: all(value >= 0 for value in values),
              must="must be positive, or 0 for the spacing of the scan")
        if self.label_map and not self.labels and not self.dataset:
            raise ValueError("--label-map is for label files: give their pattern by --labels")
        if self.dataset:
            for field in fields(self):
                if field.name in _OF_FILES and getattr(self, field.name) != field.default:
                    raise ValueError(f"{flag(field.name)} is for other folders: --dataset {self.dataset} finds and "
                                     "reads its files by their published names")
        _ = self.label_of
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

    @cached_property
    def published(self) -> Dataset | None:
        """The data set of --dataset. Raises ValueError where SRC is not of its layout."""
        return dataset_of(self.dataset, self.src) if self.dataset else None

    @cached_property
    def label_of(self) -> dict[int, int] | None:
        """{value in the label files: label}; None where values are labels. Raises ValueError."""
        if self.published:
            return dict(self.published.label_map) or None
        found: dict[int, int] = {}
        for pair in self.label_map:
            if pair == "0=0":  # background always is
                continue
            match = re.fullmatch("([0-9]{1,5})=([0-9]{1,3})", pair)
            value, label = map(int, match.groups()) if match else (0, 0)
            if not 0 < value <= 65535 or label > 255:
                raise ValueError(f"--label-map {pair}: expected VALUE=LABEL, a value from 1 to 65535 and a label from "
                                 "0 to 255, for instance 1=3 2=2 3=1")
            if value in found:
                raise ValueError(f"--label-map names the value {value} twice")
            found[value] = label
        return found or None

    @property
    def reads_labels(self) -> bool:
        """Whether label maps are looked for."""
        return self.labels is not None or self.dataset is not None

    def shaping(self) -> dict:
        """The options that determine the stored frames, as they are read back from JSON."""
        options = {name: getattr(self, name) for name in _SHAPING}
        options |= {name: value for name in _SHAPING_IF_GIVEN if (value := getattr(self, name))}
        if label_of := self.label_of:
            options["label_map"] = {str(value): label for value, label in sorted(label_of.items())}
        if self.published and (names := self.published.structures):
            options["structures"] = {str(label): name for label, name in names.items()}
        options = json.loads(json.dumps(options))
        return options | ({} if self.orientation == "stored" else {"orientation": "patient"})
