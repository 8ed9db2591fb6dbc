"""Rescan: cines of hearts that were scanned twice, as pickles (Bhuva et al., Circ. Cardiovasc. Imaging 2019).

    pickle/train/A/s_0000/2C.pickle  4C.pickle  SAX.pickle  SAX_segs.pickle      by group A, B, ...
           test/scan_00_A/...   scan_00_B/...                                    pairs
           test_retest_100/1027/2C.pickle  4C.pickle  SAX.pickle                 without label maps
           test_retest_100/labels.csv                                            A,B1,B2,EDV_A,ESV_A,EDV_B1,...

Studies are A_s_0000, scan_00_A and 1027. Labels of the files are 1 LV, 2 MYO, 3 RV, drawn by a model. Train and
validation are those of the CineMA reference (cinema/segmentation/rescan): of each group, the first study by name that
has all four files is validation. Files of views that were not exported hold an empty dictionary. The pairs are test
studies: the column heart is the same in both scans of a pair, for `evaluate --retest heart`. Of test_retest_100 these
are A and B1; where a line has B2, both scans of B have the mean of their volumes.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from ..formats.rescan_cine import read_rescan_cine, read_rescan_labels
from ..prepare.dataset import Dataset
from ..prepare.source_format import SourceFormat
from ..prepare.sources import Source, Sources
from .published import Published, number, root_of, whole

if TYPE_CHECKING:
    from ..prepare.prepare_config import PrepareConfig

FILES = {"sax": "SAX.pickle", "lax_2c": "2C.pickle", "lax_4c": "4C.pickle"}
LABELS = "SAX_segs.pickle"
TRAIN, PAIRS, RETEST = "train", "test", "test_retest_100"
VOLUMES = ("EDV", "ESV")
EMPTY = 16  # bytes; the pickle of an empty dictionary has 5 or 6


def find(config: PrepareConfig, progress: bool) -> Sources:
    """The studies of Rescan. Raises ValueError where the folder is not that of Rescan."""
    root = root_of(config.src, RETEST, PAIRS, TRAIN, name="Rescan", expected="pickle/train/A/s_0000/SAX.pickle")
    found = Published(config.src)
    for group in found.folders(root / TRAIN):
        complete = [study for folder in sorted(found.folders(group))
                    if _add(found, folder, study := f"{group.name}_{folder.name}", "train")]  # fmt: skip
        found.sources.split |= dict.fromkeys(complete[:1], "val")
    for folder in found.folders(root / PAIRS):
        pair = re.fullmatch("(.+)_[AB]", folder.name)
        _add(found, folder, folder.name, "test", heart=pair and pair[1])
    for folder in found.folders(root / RETEST):
        _add(found, folder, folder.name, "test", labelled=False)
    if (root / RETEST).is_dir():
        _add_volumes(found, root / RETEST / "labels.csv")
    return found.sources


def _add(
    found: Published, folder: Path, study: str, part: str, *, labelled: bool = True, heart: str | None = None
) -> bool:
    """Enter the views of a folder; whether it has all of them, and label maps."""
    files = {name: folder / name for name in (*FILES.values(), *[LABELS] * labelled)}
    for path in files.values():
        without = "label maps (labels)" if path.name == LABELS else "the view"
        if not path.exists():
            found.refuse(path, f"is missing: the study is prepared without {without}", study)
        elif path.stat().st_size <= EMPTY:
            found.refuse(path, f"is empty, it was not exported: the study is prepared without {without}", study)
    usable = {name: path for name, path in files.items() if path.exists() and path.stat().st_size > EMPTY}
    for view, name in FILES.items():
        if name in usable:
            labels = (usable[LABELS],) if view == "sax" and LABELS in usable else ()
            source = Source((usable[name],), usable[name].stem, format="rescan", labels=labels)
            found.add(study, view, source, part, heart=heart)
    return len(usable) == len(files)


def _add_volumes(found: Published, path: Path) -> None:
    """Enter hearts and volumes of labels.csv; line n + 2 is the pair n."""
    scanned: dict[str, str] = {}
    columns = ("B1", "B2", *(f"{volume}_{scan}" for volume in VOLUMES for scan in ("A", "B1", "B2")))
    for n, (where, row) in enumerate(found.rows(path, "A", *columns).values()):
        line = where.rpartition(", ")[2]
        scans = {name: whole(row[name]) for name in ("A", "B1", "B2") if row[name]}
        for name, study in scans.items():
            if study not in found.sources.studies:
                found.refuse(path, f"{line}: the scan {name} of the pair, {study}, has no folder or no images", study)
            elif study in scanned:
                found.refuse(path, f"{line}: the scan {study} is in {scanned[study]} already", study)
            else:
                scanned[study] = line
                edv, esv = (_mean(row, volume, ("A",) if name == "A" else ("B1", "B2")) for volume in VOLUMES)
                found.set(study, heart=f"retest_{n:02d}" if name != "B2" else None, lv_edv_ml=edv, lv_esv_ml=esv,
                          lv_ef=100 * (edv - esv) / edv if edv and esv else None)  # fmt: skip


def _mean(row: dict[str, str], volume: str, scans: tuple[str, ...]) -> float | None:
    """Mean of a volume [ml] over the scans for which it is known."""
    known = [value for scan in scans if (value := number(row[f"{volume}_{scan}"])) is not None]
    return sum(known) / len(known) if known else None


RESCAN = Dataset(find, label_map={1: 3, 2: 2, 3: 1})
PICKLES = SourceFormat(
    read=lambda source, stack: read_rescan_cine(source.files[0], stack=bool(stack)), read_labels=read_rescan_labels
)
