"""What a prediction is: the one source of its options, defaults and checks."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..common.checks import check
from ..data.prepare.source_format import FormatName


@dataclass(frozen=True)
class PredictConfig:
    """Predict NIfTI or DICOM studies by a fine-tuned model, in the geometry of the scan.

    OUT/results.json, studies.csv; of segmentation also frames.csv, of landmarks landmarks.csv; and OUT/studies/ID/ with
    label maps and pictures. Studies are prepared as those of the run's store were.
    """

    # folder of a fine-tuning run
    run: Path
    # folder of NIfTI cines or of DICOM series, as for `prepare`; or one NIfTI file
    src: Path
    # folder to write, new or empty
    out: Path
    # what SRC holds. auto: NIfTI where files named so lie where the pattern looks, else DICOM
    format: FormatName = "auto"
    # DICOM: YAML file of the rules by which descriptions of series become views, in place of the package's own
    views_rules: Path | None = None
    # where the files lie, relative to SRC, with {id}, {view} and {frame} as for `prepare`
    pattern: str = "{id}_{view}.nii.gz"
    # how the files spell the views, each as VIEW=SPELLING: lax_2c=Se8_2ch sax=sax_4d_6slices
    aliases: tuple[str, ...] = ()
    # view that a single file shows, where its name does not say it as the pattern has it
    view: str | None = None
    # studies prepared at a time, each in a process of its own; 0: one per core
    workers: int = 0
    # where to run; auto takes the GPU if there is one
    device: Literal["auto", "cpu", "cuda"] = "auto"
    # arithmetic of activations; that of the run where none is named
    precision: Literal["fp32", "bf16"] | None = None

    def __post_init__(self):
        check(self, "workers", valid=lambda n: n >= 0, must="must be 0 (one per core) or more")
        if self.view and not self.src.is_file():
            raise ValueError(f"--view is for a single file, and {self.src} is none: --aliases, or --views-rules")
