"""How messages, tables and pictures name studies, files and the like."""

from collections.abc import Sequence

NAMED = 5  # items that a message names at most


def named(items: Sequence[str], by: str = ", ") -> str:
    """The first NAMED of `items`, followed by `...` where there are more."""
    return by.join([*items[:NAMED], *["..."] * (len(items) > NAMED)])


def printable(name: str) -> str:
    """A name of a file or study with those of its bytes that are no text spelt out, as no font can draw them."""
    return name.encode("utf-8", "backslashreplace").decode()
