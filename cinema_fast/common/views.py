"""Names of views."""

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

VIEWS = ("sax", "lax_2c", "lax_3c", "lax_4c")
PHASES = ("ed", "es")  # names of the frames of end-diastole and end-systole
CLIP = "clip"  # the one view of a model over clips (T, X, Y): any image plane of a study over the cardiac cycle


def views_in_order(views: Iterable[str]) -> list[str]:
    """The views of VIEWS first, in that order, then others by name."""
    return sorted(views, key=lambda view: (VIEWS.index(view) if view in VIEWS else len(VIEWS), view))


@lru_cache(maxsize=1024)
def plane_of(view: str) -> str | None:
    """The view of VIEWS whose image plane a view shows, by its name: `sax` of lge_sax; None where it names none."""
    return next((plane for plane in VIEWS if re.search(rf"(^|_){plane}(_|$)", view)), None)


def view_like(view: str, n_axes: int, axes_of: Mapping[str, int]) -> str | None:
    """The view whose images are most like those of `view`: of {view: its number of spatial axes} one with n_axes, that
    of the same plane, else the first. None where there is none, and for the views of VIEWS, which nothing replaces."""
    fitting = [other for other, n in axes_of.items() if n == n_axes and view not in VIEWS]
    plane = plane_of(view)
    return next((other for other in fitting if plane and plane_of(other) == plane), next(iter(fitting), None))


def is_stack(view: str) -> bool | None:
    """Whether a view is a stack of slices (SAX) or a single slice (LAX), by its name; None where the name does not say:
    then a file of several slices is a stack."""
    plane = plane_of(view)
    return None if plane is None else plane == "sax"
