"""Reads the Parquet file of `cinema-fast embed`, and a table about its studies."""

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..common.parquet import read_parquet
from ..common.tables import Table, check_matches, read_table


@dataclass(frozen=True)
class Embeddings:
    """One vector a study, perhaps of one view of it.

    studies: n names, as `embed` prints them. vectors (n, D) float64, finite. metadata: what the file was made from
    (preset, checkpoint, step, store, ...), empty where it was not written by `embed`. sha256: of the file.
    """

    path: Path
    studies: list[str]
    vectors: np.ndarray
    metadata: dict[str, str]
    sha256: str


def read_embeddings(path: Path, view: str | None = None) -> Embeddings:
    """Read a Parquet file with the columns `study` and `embedding`; of one with a column `view` the rows of `view`.

    Raises ValueError where pyarrow is not installed, or where the file is wrong (the message names it): not Parquet, a
    missing column, no study, a study twice, vectors of different lengths, or numbers that are not finite; and where
    `view` is not given for a file that needs it, is given for another, or is not in it. Raises OSError where it cannot
    be read.
    """
    try:
        import pyarrow as pa
    except ImportError as error:
        raise ValueError(f"embeddings are read by pyarrow: pip install 'cinema-fast[embed]' ({error})") from None

    if not path.is_file():
        raise ValueError(f"{path} is not a file; expected the Parquet file that `cinema-fast embed` wrote")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    try:
        table = read_parquet(path)
    except pa.ArrowException as error:
        raise ValueError(f"{path} is not a Parquet file, or is damaged; expected one from `embed` ({error})") from None
    for column in ("study", "embedding"):
        if column not in table.column_names:
            raise ValueError(f"{path} has no column {column!r} (it has {', '.join(table.column_names)}); "
                             "expected a file that `cinema-fast embed` wrote")
    if "view" in table.column_names:
        table = table.filter([of == view for of in _views(table, view, path)])
    elif view:
        raise ValueError(f"--view {view} has no effect on {path}, which has one vector per study: leave it out, or "
                         "write one per view by `cinema-fast embed --per view`")
    studies = table["study"].to_pylist()
    if not studies:
        raise ValueError(f"{path}: no study in it")
    study, times = Counter(studies).most_common(1)[0]
    if times > 1:
        raise ValueError(f"{path}: study {study!r} is in it {times} times")
    try:
        vectors = np.array(table["embedding"].to_pylist(), np.float64).reshape(len(studies), -1)
    except (TypeError, ValueError):
        raise ValueError(f"{path}: the column embedding holds no vectors of one length") from None
    if bad := [study for study, vector in zip(studies, vectors) if not np.isfinite(vector).all()]:
        raise ValueError(f"{path}: the vector of study {bad[0]!r} is not finite ({len(bad)} of {len(studies)} studies)")
    about = {name.decode(): value.decode() for name, value in (table.schema.metadata or {}).items()}
    return Embeddings(path, studies, vectors, {name: about[name] for name in _MADE_BY if name in about}, digest)


_MADE_BY = ("preset", "checkpoint", "step", "store", "batch_size", "device", "precision", "per", "tokens")


def _views(table, view: str | None, path: Path) -> list[str]:
    """The view of each row. Raises ValueError where `view` is none of them."""
    of_rows = table["view"].to_pylist()
    if view not in of_rows:
        held = ", ".join(dict.fromkeys(map(str, of_rows)))
        problem = "has a vector per view: choose a view" if view is None else f"has no view {view!r}: choose another"
        raise ValueError(f"{path} {problem} with --view ({held})")
    return of_rows


def read_beside(path: Path, embeddings: Embeddings) -> Table:
    """Read a CSV table about the studies. Raises ValueError as `read_table`, and where it lists none of them."""
    table = read_table(path)
    if not any(study in table.rows for study in embeddings.studies):
        raise ValueError(
            f"{path}: none of the {len(embeddings.studies)} studies of {embeddings.path} is in it: "
            f"it has {next(iter(table.rows))!r}, the embeddings have {embeddings.studies[0]!r}"
        )
    check_matches(path, table.rows, embeddings.studies, embeddings.path)
    return table
