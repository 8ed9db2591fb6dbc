"""What the readers of public data sets share: finding folders and images, refusing files, values of tables."""

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ...common.tables import read_lines
from ..prepare.sources import Refusal, Source, Sources, list_folder

ENDINGS = (".nii.gz", ".nii")
DEEPEST = 2  # folders between SRC and the published root
PLAUSIBLE = {"age": (0, 120), "height": (30, 250), "weight": (1, 400)}
UNITS = {"age": "years", "height": "cm", "weight": "kg"}


@dataclass(slots=True)
class Published:
    """The studies of a published folder as they are found. src: the folder given. sources: the result."""

    src: Path
    sources: Sources = field(default_factory=Sources)

    def refuse(self, path: Path, reason: str, study: str = "", view: str | None = None) -> None:
        """Note a file that cannot be used; everything else goes on."""
        self.sources.refused.append(Refusal(study, view, path.relative_to(self.src).as_posix(), reason))

    def add(self, study: str, view: str, source: Source, part: str, **values: str | float | None) -> None:
        """Enter a view of a study, its part of the split, and its values by column; None and "" are unknown.

        Refuses the view where it is there already: two folders of one name.
        """
        views = self.sources.studies.setdefault(study, {})
        if view in views:
            there = views[view].files[0].relative_to(self.src).as_posix()
            self.refuse(source.files[0], f"a second {view} of the study {study}, which is in {there} already: two "
                                         "folders of one name", study, view)  # fmt: skip
            return
        views[view] = source
        self.sources.split[study] = part
        self.set(study, **values)

    def set(self, study: str, **values: str | float | None) -> None:
        """Enter values of a study by column; None and "" are unknown."""
        known = {name: value for name, value in values.items() if value not in (None, "")}
        self.sources.table.setdefault(study, {}).update(known)

    def measured(self, path: Path, where: str, study: str, name: str, text: str) -> float | None:
        """The number in a cell of age (years), height (cm) or weight (kg); None where it is empty or NaN. A word, or a
        number that no person has, is refused: `where` is its line, or ""."""
        value = number(text)
        low, high = PLAUSIBLE[name]
        if value is not None and low <= value <= high:
            return value
        if text and text.lower() != "nan":
            line = f"{where}: " * bool(where)
            self.refuse(path, f"{line}{name} of {study} is {text!r}, expected a number from {low} to {high} "
                              f"({UNITS[name]}): it stays unknown", study)  # fmt: skip
        return None

    def folders(self, folder: Path, pattern: str = "[^.].*") -> Iterator[Path]:
        """The sub-folders of a folder whose name matches, by name, numbers by value; nothing where it is absent."""
        yield from (path for path in self._entries(folder, pattern) if path.is_dir())

    def files(self, folder: Path, pattern: str = "[^.].*") -> Iterator[Path]:
        """The files of a folder whose name matches, likewise."""
        yield from (path for path in self._entries(folder, pattern) if path.is_file())

    def _entries(self, folder: Path, pattern: str) -> Iterator[Path]:
        if folder.is_dir():
            names = [entry.name for entry in list_folder(self.src, folder, self.sources.refused)]
            yield from (folder / name for name in sorted(names, key=by_number) if re.fullmatch(pattern, name))

    def rows(
        self, path: Path, column: str, *columns: str, study_of: Callable[[str], str] = str
    ) -> dict[str, tuple[str, dict[str, str]]]:
        """{study: (place of its line, for messages; its cells by column)} of a CSV table whose `column` names studies.

        A line without a name or with one that came before is refused; a table that cannot be read, or that lacks one of
        the columns, is refused as a whole and gives nothing. study_of: the study of a cell in `column`.
        """
        found: dict[str, tuple[str, dict[str, str]]] = {}
        try:
            for number, row in read_lines(path, (column, *columns))[1]:
                study = study_of(row[column])
                if not study or study in found:
                    what = f"the study {study!r} is in {found[study][0]} already" if study else f"no {column}"
                    self.refuse(path, f"line {number}: {what}; the line is left out", study)
                else:
                    found[study] = f"{path.name}, line {number}", row
        except FileNotFoundError:
            self.refuse(path, "there is no such table: its values stay unknown; unpack the data set as a whole")
        except (OSError, ValueError) as err:
            reason = str(err).removeprefix(str(path)).lstrip(":, ")
            self.refuse(path, f"{reason} (values of this table stay unknown from there on)")
        return found

    def check_listed(
        self, path: Path, rows: dict[str, tuple[str, dict[str, str]]], studies: Collection[str] | None = None
    ) -> None:
        """Refuse the lines of a table without a study, and name the studies without a line. studies: those that the
        table is about; None: all."""
        studies = self.sources.studies if studies is None else studies
        for study in (study for study in rows if study not in studies):
            line = rows[study][0].rpartition(", ")[2]
            self.refuse(path, f"{line}: the study {study} has no folder or no images", study)
        for study in (study for study in studies if rows and study not in rows):
            self.refuse(path, f"has no line of the study {study}: its values stay unknown", study)


def by_number(name: str) -> list[tuple[int, int | str]]:
    """Sort key of names by which 10 follows 9."""
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", name) if part]


def root_of(src: Path, *marks: str, name: str, expected: str) -> Path:
    """The folder that holds an entry with one of the names `marks`: `src`, or one up to DEEPEST folders below it.

    Raises ValueError where there is none, or several at one depth. name, expected: of the data set, and how its folder
    looks, for the message.
    """
    if not src.is_dir():
        raise ValueError(f"{src} is not a folder: it must hold {name} as unpacked ({expected})")
    level = [src]
    for _ in range(DEEPEST + 1):
        roots = [folder for folder in level if any((folder / mark).exists() for mark in marks)]
        if len(roots) > 1:
            raise ValueError(f"{src} holds {name} more than once: {', '.join(map(str, roots))}: give one of them")
        if roots:
            return roots[0]
        level = [Path(entry.path) for folder in level for entry in list_folder(src, folder, []) if entry.is_dir()]
    there = ", ".join(sorted(path.name for path in src.iterdir())[:4]) or "nothing"
    inner = src.resolve().name in marks or any(mark in src.resolve().parts[-DEEPEST:] for mark in marks)
    above = "; it may be a part of it: give the folder above" * inner
    raise ValueError(f"{src} is not {name} as unpacked: expected {expected}; found {there}{above}")


def image(folder: Path, stem: str) -> Path:
    """The NIfTI file of this name, compressed or not; the compressed name where there is neither."""
    files = [folder / f"{stem}{ending}" for ending in ENDINGS]
    return next((path for path in files if path.exists()), files[0])


def bmi(height_cm: float | None, weight_kg: float | None) -> float | None:
    """Body mass index, weight / height^2 [kg/m^2]; None where one of the two is unknown or 0."""
    return weight_kg / (height_cm / 100) ** 2 if height_cm and weight_kg else None


def whole(text: str) -> str:
    """A cell without the fraction .0 of a whole number, which pandas and Excel write in columns with empty cells."""
    return re.sub(r"(?<=[0-9])\.0+$", "", text)


def number(text: str) -> float | None:
    """The number in a cell; None where there is none, such as an empty cell, NaN or a word."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if value == value and abs(value) < float("inf") else None
