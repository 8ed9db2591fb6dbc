"""Reads Parquet files by pyarrow (extra `embed`)."""

from collections.abc import Sequence
from pathlib import Path


def read_parquet(path: Path, columns: Sequence[str] | None = None):
    """The pyarrow.Table of a file, or of some of its columns.

    Raises pyarrow.ArrowException where it is not a Parquet file or is damaged, OSError where it cannot be read.
    """
    import pyarrow.parquet as pq

    # The file is opened here because pyarrow only accepts paths in UTF-8. This thread reads it because pyarrow's pool
    # threads close it some time later; if Python is ending by then, they abort the process (SIGABRT).
    with path.open("rb") as file:
        return pq.ParquetFile(file, pre_buffer=False).read(columns, use_threads=False)
