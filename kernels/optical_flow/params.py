"""The parameters of the flow: one source of their names, defaults and ranges."""

import operator
from numbers import Real
from typing import NamedTuple

from .pyramid import POLY_N

MAX_LEVELS = 32
MAX_WINDOW = 511
MAX_REFINE = 16  # each sweep shrinks the valid part of the region that a block of flow_refine_* computes


class FlowParams(NamedTuple):
    """Parameters of `optical_flow` and `motion_map`; all but `refine` are OpenCV's in name and meaning.

    levels: pyramid levels below the frame's own; a level whose shorter side would be under 32 pixels is left out.
    pyr_scale: size of a level relative to the next finer one, in (0, 1). window: side [pixels], odd, of the square over
    which motion is assumed to be the same. iterations: at each level. poly_n: radius [pixels] of the expansion, 5 or 7.
    poly_sigma: standard deviation [pixels] of its weights. refine: sweeps of the refinement at the frame's own size; 0
    gives OpenCV's flow.
    """

    levels: int = 3
    pyr_scale: float = 0.5
    window: int = 15
    iterations: int = 3
    poly_n: int = 7
    poly_sigma: float = 1.5
    refine: int = 10

    def checked(self) -> "FlowParams":
        """The same parameters as Python ints and floats. ValueError names a parameter that is out of range."""
        integers = ("levels", "window", "iterations", "poly_n", "refine")
        params = FlowParams(**{
            name: integer(name, value) if name in integers else _real(name, value)
            for name, value in self._asdict().items()
        })  # fmt: skip
        for name, good, wanted in (
            ("levels", 1 <= params.levels <= MAX_LEVELS, f"in 1..{MAX_LEVELS}"),
            ("pyr_scale", 0 < params.pyr_scale < 1, "in (0, 1)"),
            ("window", 3 <= params.window <= MAX_WINDOW and params.window % 2 == 1, f"odd, in 3..{MAX_WINDOW}"),
            ("iterations", params.iterations >= 1, "at least 1"),
            ("poly_n", params.poly_n in POLY_N, "5 or 7"),
            ("poly_sigma", 0 < params.poly_sigma < float("inf"), "positive"),
            ("refine", 0 <= params.refine <= MAX_REFINE, f"in 0..{MAX_REFINE}"),
        ):
            if not good:
                raise ValueError(f"optical_flow: {name} must be {wanted}, got {getattr(params, name)}")
        return params


DEFAULT = FlowParams()


def integer(name: str, value: int, operation: str = "optical_flow") -> int:
    """Python's int of any kind of integer. ValueError for anything else, including True and False."""
    try:
        if not isinstance(value, bool):
            return operator.index(value)
    except TypeError:
        pass
    raise ValueError(f"{operation}: {name} must be an integer, got {value!r}")


def _real(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"optical_flow: {name} must be a number, got {value!r}")
    return float(value)
