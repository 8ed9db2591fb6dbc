"""The options of `predict`: the one source of their defaults and checks."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ..common.checks import check, check_phases
from ..data.prepare.dataset import DatasetName
from ..data.prepare.source_format import FormatName


@dataclass(frozen=True)
class PredictConfig:
    """Predict NIfTI or DICOM studies with a fine-tuned model, in the geometry of the scan.

    Writes OUT/results.json and studies.csv; for segmentation also frames.csv, for landmarks landmarks.csv; and
    OUT/studies/ID/ with label maps and pictures. Studies are prepared like those of the run's store.
    """

    # folder of a fine-tuning run
    run: Annotated[Path, tyro.conf.arg(metavar="RUN")]
    # folder of NIfTI cines or of DICOM series, as for `prepare`; or one NIfTI file
    src: Annotated[Path, tyro.conf.arg(metavar="SRC")]
    # folder to write, new or empty
    out: Annotated[Path, tyro.conf.arg(metavar="OUT")]
    # public data set that SRC holds, as for `prepare`; its label maps are not looked at
    dataset: DatasetName | None = None
    # format of SRC; auto: NIfTI if files match the pattern, else DICOM
    format: FormatName = "auto"
    # DICOM: YAML file of rules that map series descriptions to views, in place of the package's own
    views_rules: Path | None = None
    # pattern of file paths relative to SRC, with {id}, {view} and {frame} as for `prepare`
    pattern: str = "{id}_{view}.nii.gz"
    # spelling of views in file names, each as VIEW=SPELLING, for instance lax_2c=Se8_2ch
    aliases: tuple[str, ...] = ()
    # views whose files are single 3D volumes, as for `prepare`
    single: tuple[str, ...] = ()
    # views made of several single volumes, as for `prepare`: VIEW=SPELLING+SPELLING
    channels: tuple[str, ...] = ()
    # CSV with the columns study, ed and es: frames of end-diastole and end-systole, from 0, for models that read them;
    # without it they are known from file names (ED, ES) or from --dataset
    phases: Path | None = None
    # segmentation: predict the frames of end-diastole and end-systole alone (ed es), not the whole cycle; for targets
    # of a table it must be what the run was trained on
    frames: tuple[Literal["ed", "es"], ...] = ()
    # view of a single file, where its name does not match the pattern
    view: str | None = None
    # processes that prepare studies; 0: one per core
    workers: int = 0
    # device to run on; auto: the GPU if there is one
    device: Literal["auto", "cpu", "cuda"] = "auto"
    # precision of activations; if not given: the run's
    precision: Literal["fp32", "bf16"] | None = None

    def __post_init__(self):
        check_phases(self.frames)
        check(self, "workers", valid=lambda n: n >= 0, must="must be 0 (one per core) or more")
        if self.view and not self.src.is_file():
            raise ValueError(f"--view is for a single file, not for {self.src}: use --aliases or --views-rules")
        for name in ("dataset", "channels"):
            if getattr(self, name) and self.src.is_file():
                raise ValueError(f"--{name} needs a folder, and {self.src} is a file")
