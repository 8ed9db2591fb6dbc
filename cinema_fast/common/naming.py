"""Some of many: how messages name studies, files and the like."""

from collections.abc import Sequence

NAMED = 5  # at most, of those that a message is about


def named(items: Sequence[str], by: str = ", ") -> str:
    """The first NAMED of `items`, and `...` where there are more."""
    return by.join([*items[:NAMED], *["..."] * (len(items) > NAMED)])
