"""Counts and names of studies, files and the like, as messages, tables and pictures write them."""

from collections.abc import Mapping, Sequence

NAMED = 5  # a message names at most this many items


def counted(n: int, one: str, many: str = "") -> str:
    """A number and its noun: 1 file, 2 files; `many` where the plural is not `one` and an s."""
    return f"{n} {one if n == 1 else many or one + 's'}"


def count_studies(n: int) -> str:
    """1 study, 2 studies."""
    return counted(n, "study", "studies")


def sizes_in_words(sizes: Mapping[str, Sequence[int]]) -> str:
    """Of views: 192 x 192 x 16 (sax), 256 x 256 (lax_2c, lax_4c)."""
    views: dict[str, list[str]] = {}
    for view, size in sizes.items():
        views.setdefault(" x ".join(map(str, size)), []).append(view)
    return ", ".join(f"{size} ({', '.join(of)})" for size, of in views.items())


def named(items: Sequence[str], by: str = ", ") -> str:
    """The first NAMED of `items`, followed by `...` where there are more."""
    return by.join([*items[:NAMED], *["..."] * (len(items) > NAMED)])


def printable(name: str) -> str:
    """The name of a file or study, with bytes that are not text written as escapes, since no font can draw them."""
    return name.encode("utf-8", "backslashreplace").decode()
