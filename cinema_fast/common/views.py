"""Names of views."""

import re
from collections.abc import Iterable

VIEWS = ("sax", "lax_2c", "lax_3c", "lax_4c")
CLIP = "clip"  # the one view of a model over clips (T, X, Y): any image plane of a study over the cardiac cycle


def views_in_order(views: Iterable[str]) -> list[str]:
    """The views of VIEWS first, in that order, then others by name."""
    return sorted(views, key=lambda view: (VIEWS.index(view) if view in VIEWS else len(VIEWS), view))


def plane_of(view: str) -> str | None:
    """The view of VIEWS whose image plane a view shows, by its name: `sax` of lge_sax; None where it names none."""
    return next((plane for plane in VIEWS if re.search(rf"(^|_){plane}(_|$)", view)), None)


def is_stack(view: str) -> bool | None:
    """Whether a view is a stack of slices (SAX) or a single slice (LAX), by its name; None where the name does not say:
    then a file of several slices is a stack."""
    plane = plane_of(view)
    return None if plane is None else plane == "sax"
