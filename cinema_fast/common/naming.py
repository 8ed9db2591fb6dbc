"""How messages, tables and pictures count and name studies, files and the like."""

from collections.abc import Mapping, Sequence

NAMED = 5  # items that a message names at most


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
    """A name of a file or study with those of its bytes that are no text spelt out, as no font can draw them."""
    return name.encode("utf-8", "backslashreplace").decode()
