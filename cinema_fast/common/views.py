"""Names of views."""

from collections.abc import Iterable

VIEWS = ("sax", "lax_2c", "lax_3c", "lax_4c")
CLIP = "clip"  # the one view of a model over clips (T, X, Y): any image plane of a study over the cardiac cycle


def views_in_order(views: Iterable[str]) -> list[str]:
    """The views of VIEWS first, in that order, then others by name."""
    return sorted(views, key=lambda view: (VIEWS.index(view) if view in VIEWS else len(VIEWS), view))
