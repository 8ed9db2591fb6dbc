"""Folders that the preprocessing scripts of the CineMA reference write (cinema/data/*/preprocess.py), and the data sets
published in that form. Images are uint8, resampled, cropped and windowed. They stay on their grid, and as they are
unless they are padded, which moves the percentiles of the window a little.

    train_metadata.csv  val_metadata.csv  test_metadata.csv     a line per study, the column pid; or train.csv ...
    train/PID/PID_sax_t.nii.gz                                  the cine (ACDC, Kaggle)
              PID_sax_ed.nii.gz  PID_sax_ed_gt.nii.gz           ED and ES with label maps (ACDC, M&Ms, M&Ms-2),
              PID_sax_es.nii.gz  PID_sax_es_gt.nii.gz           also of lax_4c, (X, Y, 1)
              PID.nii.gz  PID_gt.nii.gz                         in place of these, EMIDEC: one volume
              PID_c0.nii.gz  PID_de.nii.gz  PID_t2.nii.gz       or MyoPS 2020: three volumes, with PID_gt.nii.gz

Parts are those of the tables, else of the folders (EMIDEC has all studies in train/ and three tables). Without a
validation part it is drawn as the reference's loaders do: two of each pathology, or 5 studies of MyoPS 2020. The frames
of ED and ES in a cine are those that the table names, else those that equal, or are nearest to, the images of ED and
ES. Labels are 1 RV, 2 MYO, 3 LV; those of EMIDEC and MyoPS 2020 become those of their readers here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ...common.tables import PARTS
from ...common.views import VIEWS
from ..prepare.dataset import Dataset
from ..prepare.sources import Phases, Source, Sources, phases_of_names
from . import acdc, myops2020
from .cinema_frames import PHASES, matched_frames, named_frames
from .myops2020 import CHANNELS
from .published import Published, bmi, image, number, root_of

if TYPE_CHECKING:
    from ..prepare.prepare_config import PrepareConfig

COLUMNS = {  # column of the reference -> of table.csv; others keep their names
    "center": "centre", "diastole_volume": "lv_edv_ml", "systole_volume": "lv_esv_ml",
    **{name: f"{name}_ml" for name in ("lv_edv", "lv_esv", "rv_edv", "rv_esv")},
}  # fmt: skip
OF_KAGGLE = {"ef": "lv_ef"}  # beside the volumes; elsewhere nothing says of what an `ef` is
OF_EMIDEC = {"ef": "echo_ef", "arterial_hypertension": "hypertension", "ecg": "ecg_st"}
# of the grid, of frames, and of the table itself
SKIPPED = "|pid|study|unnamed.*|orig(inal)?_.*|crop_.*|n_slices|n_frames|(ed|es)(_frame|_index)?"


class Line(NamedTuple):
    """The line of a study in a table: the part and the file of the table, the place of the line, its cells."""

    part: str
    table: Path
    where: str
    row: Mapping[str, str]


def in_folder(src: Path) -> Dataset:
    """The data set in the folder. Raises ValueError where there is none."""
    names = [f"{part}{ending}" for part in PARTS for ending in ("_metadata.csv", ".csv")]
    root = root_of(src, *names, name="a processed folder of CineMA",
                   expected="train_metadata.csv and train/PID/PID_sax_ed.nii.gz")  # fmt: skip
    # MyoPS 2020 holds 1 RV, 2 LV, 3 MYO, 4 oedema, 5 scar; EMIDEC 1 LV, 2 MYO, 3 scar, 4 no-reflow
    if any(image(folder, f"{folder.name}_c0").exists() for folder in root.glob("*/*")):
        return Dataset(partial(find, root), {1: 1, 2: 3, 3: 2, 4: 6, 5: 4}, sax_spacing=(0.0, 0.0, 0.0))
    if any(image(folder, folder.name).exists() for folder in root.glob("*/*")):
        return Dataset(partial(find, root, columns=COLUMNS | OF_EMIDEC), {1: 3, 2: 2, 3: 4, 4: 5}, (1.458, 1.458, 10.0))
    return Dataset(partial(find, root), {1: 1, 2: 2, 3: 3})


def find(root: Path, config: PrepareConfig, progress: bool, columns: Mapping[str, str] = COLUMNS) -> Sources:
    """The studies of a processed folder."""
    found = Published(config.src)
    lines = _read_tables(found, root)
    for folder in found.folders(root):
        if folder.name in PARTS:
            for study in found.folders(folder):
                _add(found, study, folder.name, lines.get(study.name), columns)
        elif any(folder.glob("*/*.nii*")):
            found.refuse(folder, f"is not a part of the data split: expected {', '.join(PARTS)}")
    sources = found.sources
    for study, line in lines.items():
        if study not in sources.studies:
            found.refuse(line.table, f"{line.where}: the study {study} has no folder or no images", study)
    if "val" not in sources.split.values() and not (root / "val").is_dir():
        drawn = _drawn({study: line.row for study, line in lines.items() if line.part == "train"}, sources)
        sources.split |= dict.fromkeys((study for study in drawn if study in sources.studies), "val")
    return sources


def _read_tables(found: Published, root: Path) -> dict[str, Line]:
    lines: dict[str, Line] = {}
    for part in PARTS:
        table = next((path for path in (root / f"{part}_metadata.csv", root / f"{part}.csv") if path.exists()), None)
        if table is None and not (root / part).is_dir():
            continue
        table = table or root / f"{part}_metadata.csv"
        for study, (where, row) in found.rows(table, "pid").items():
            line = Line(part, table, where.rpartition(", ")[2], row)
            if study in lines:
                there = lines[study]
                found.refuse(table, f"{line.where}: the study {study} is in {there.table.name}, {there.where} already; "
                                    "the line is left out", study)  # fmt: skip
            else:
                lines[study] = line
    return lines


def _add(found: Published, folder: Path, part: str, line: Line | None, columns: Mapping[str, str]) -> None:
    study, values = folder.name, {}
    views = {view: source for view in VIEWS if (source := _cine(found, folder, view, line))}
    views = views or _volumes(found, folder)
    if not views:
        return
    if line is None:
        found.refuse(folder, "is in no table: the values of the study stay unknown", study)
    elif line.part != part and part != "train":
        found.refuse(line.table, f"{line.where}: the study {study} is in the folder {part}: it stays there", study)
    else:
        part = line.part
    if line:
        values = _values(line.row, columns)
    for view, source in views.items():
        found.add(study, view, source, part, **values)


def _values(row: Mapping[str, str], columns: Mapping[str, str]) -> dict[str, str | float | None]:
    columns = columns | (OF_KAGGLE if "diastole_volume" in row else {})
    values: dict = {columns.get(name.lower(), name.lower()): text for name, text in row.items()}
    values = {name: text for name, text in values.items() if not re.fullmatch(SKIPPED, name)}
    height, weight = (number(values.get(name, "")) for name in ("height", "weight"))
    if height and height < 3:  # ACDC's is in m
        values["height"] = height = 100 * height
    return values if values.get("bmi") else values | {"bmi": bmi(height, weight)}


def _cine(found: Published, folder: Path, view: str, line: Line | None) -> Source | None:
    """The cine of a view: all its frames, or ED and ES alone."""
    study, cine = folder.name, image(folder, f"{folder.name}_{view}_t")
    images = {phase: image(folder, f"{study}_{view}_{phase}") for phase in PHASES}
    maps = {phase: image(folder, f"{study}_{view}_{phase}_gt") for phase in PHASES}
    there = {phase: path for phase, path in images.items() if path.exists()}
    drawn = {phase: path for phase, path in maps.items() if path.exists()}
    if not there and not cine.exists():
        for path in drawn.values():
            found.refuse(path, "is a label map without an image", study, view)
        return None
    if there or drawn:
        for phase in PHASES:
            if phase not in there and not cine.exists():
                found.refuse(images[phase], "is missing: the view is prepared without this frame", study, view)
            elif phase not in drawn:
                found.refuse(maps[phase], "is missing: its frame is prepared without a label map (labels)", study, view)
    if not cine.exists():
        drawn = {phase: drawn[phase] for phase in there if phase in drawn}
        return Source(tuple(there.values()), view, tuple(there), labels=tuple(drawn.values()),
                      label_frames=tuple(drawn), phases=phases_of_names(tuple(there)))  # fmt: skip
    frames, origin = {}, ""
    if line:
        frames, fault = named_frames(line.row)
        origin = f"{line.table.name}, {line.where}"
        if fault:
            found.refuse(line.table, f"{line.where}: {fault}: the cine is searched for the images of ED and ES", study)
    if not frames and there:
        frames, faults = matched_frames(cine, there)
        origin = "images of ED and ES"
        for path, fault in faults.items():
            found.refuse(path, f"{fault}: its frame stays unknown", study, view)
    for phase in [phase for phase in drawn if phase not in frames]:
        found.refuse(drawn.pop(phase), f"which frame of {cine.name} it belongs to is unknown (labels)", study, view)
    phases = Phases(frames["ed"], frames["es"], origin) if len(frames) == 2 else None
    return Source((cine,), f"{view}_t", labels=tuple(drawn.values()),
                  label_frames=tuple(str(frames[phase] + 1) for phase in drawn), phases=phases)  # fmt: skip


def _volumes(found: Published, folder: Path) -> dict[str, Source]:
    """The single volumes of a study of EMIDEC or MyoPS 2020, as the view sax."""
    study, labels = folder.name, image(folder, f"{folder.name}_gt")
    files = {name: image(folder, f"{study}_{name.lower()}") for name in CHANNELS}
    there = [path for path in files.values() if path.exists()]
    if there and len(there) < len(files):
        missing = next(path for path in files.values() if path not in there)
        found.refuse(missing, "is missing: a study needs c0, de and t2", study, "sax")
        return {}
    if not there:
        files = {"LGE": image(folder, study)}
        if not files["LGE"].exists():
            found.refuse(folder, f"holds no images: expected {study}_sax_ed.nii.gz or {study}_sax_t.nii.gz", study)
            return {}
    drawn = (labels,) if labels.exists() else ()
    return {"sax": Source(tuple(files.values()), next(iter(files)), channels=tuple(files), labels=drawn)}


def _drawn(rows: Mapping[str, Mapping[str, str]], sources: Sources) -> list[str]:
    """The validation studies that the reference's loaders draw from the lines of the training table."""
    if any(len(source.channels) > 1 for views in sources.studies.values() for source in views.values()):
        return myops2020.validation_of(list(rows))
    return acdc.validation_of({study: row.get("pathology", "") for study, row in rows.items()})


CINEMA = in_folder
