"""Parquet files in, by pyarrow (extra `embed`)."""

from collections.abc import Sequence
from pathlib import Path


def read_parquet(path: Path, columns: Sequence[str] | None = None):
    """The pyarrow.Table of a file, or of some of its columns.

    Raises pyarrow.ArrowException where it is no Parquet file or a damaged one, OSError where it cannot be read.
    """
    import pyarrow.parquet as pq

    # opened here: pyarrow takes no path that is not UTF-8. Read by this thread: those of pyarrow's pools let go of the
    # file some time later, and where Python is ending by then, they end the process by SIGABRT
    with path.open("rb") as file:
        return pq.ParquetFile(file, pre_buffer=False).read(columns, use_threads=False)
