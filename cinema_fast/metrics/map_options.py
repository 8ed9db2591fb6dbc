"""The form of the options of `evaluate` for label maps; `map_scoring` looks up what they name."""

from collections.abc import Sequence
from typing import Literal

EmptyDice = Literal["leave-out", "one"]
_OF_A_REGION = "expected NAME=PART+PART, each part a label or the name of a structure, such as MYO=2+4+5"
_OF_A_COMPONENT = "expected PART+PART=PIXELS, 2 or more, such as scar+oedema=200"


def region_parts(pairs: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """{name: its parts} of `--regions NAME=PART+PART ...`. Raises ValueError for a pair of another form, and for a name
    that is given twice."""
    found: dict[str, tuple[str, ...]] = {}
    for pair in pairs:
        name, _, text = pair.partition("=")
        parts = tuple(text.split("+"))
        if not name or not all(parts):
            raise ValueError(f"--regions {pair}: {_OF_A_REGION}")
        if name in found:
            raise ValueError(f"--regions {pair}: expected each name once, got {name} twice")
        found[name] = parts
    return found


def component_parts(pairs: Sequence[str]) -> dict[tuple[str, ...], int]:
    """{parts: pixels} of `--min-component PART+PART=PIXELS ...`. Raises ValueError as `region_parts`."""
    found: dict[tuple[str, ...], int] = {}
    for pair in pairs:
        text, _, pixels = pair.rpartition("=")
        parts = tuple(text.split("+"))
        if not all(parts) or not pixels.isdecimal() or int(pixels) < 2:
            raise ValueError(f"--min-component {pair}: {_OF_A_COMPONENT}")
        if parts in found:
            raise ValueError(f"--min-component {pair}: expected each structure once, got {text} twice")
        found[parts] = int(pixels)
    return found
