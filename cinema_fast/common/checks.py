"""Checks of options: the error names the option as the command line spells it, what it must be, and what was given."""

from collections.abc import Callable, Sequence
from typing import Any


def flag(name: str) -> str:
    """The option of a field, as the command line spells it."""
    return f"--{name.replace('_', '-')}"


def check(config: object, *names: str, valid: Callable[[Any], bool], must: str, prefix: str = "") -> None:
    """Raise ValueError for the first of these fields of a config that is not valid. None (not given) is valid.

    prefix: of the names of a nested config on the command line, such as "mask.".
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and not valid(value):
            raise ValueError(f"{flag(prefix + name)} {must}, got {value}")


def check_at_least(config: object, least: int, *names: str) -> None:
    """As `check`, for numbers with a lower bound."""
    must = f"must be at least {least}" if least else "must not be negative"
    check(config, *names, valid=lambda value: value >= least, must=must)


def check_phases(frames: Sequence[str]) -> None:
    """Raise ValueError where --frames does not name ED and ES once each."""
    if frames and sorted(frames) != ["ed", "es"]:
        raise ValueError(f"--frames {' '.join(frames)}: expected ed es, or es ed, the order in which they are read")


def check_seeds(config: object, *names: str, bits: int = 64) -> None:
    """As `check`, for random seeds."""
    check(config, *names, valid=lambda seed: 0 <= seed < 2**bits, must=f"must lie in 0..2**{bits} - 1")
