"""Names of the labels of segmentation (`--structures`)."""

from collections.abc import Sequence

from ..data.store.store import CineStore

GIVEN = ("RV", "MYO", "LV")  # where neither the option nor the store says more
UNUSED = "-"  # the name of a label that no study has


def structures_of(store: CineStore, structures: tuple[str, ...]) -> tuple[str, ...]:
    """The names of the labels 1, 2, ...: those given, unless they are GIVEN and the store is of a public data set: then
    all names of the data set, whether its studies here have them or not, and UNUSED for other labels."""
    named = {int(label): name for label, name in store.prepare.get("structures", {}).items()}
    if structures != GIVEN or not named:
        return structures
    return tuple(named.get(label, UNUSED) for label in range(1, 1 + max(named)))


def names_of(structures: Sequence[str]) -> dict[int, str]:
    """{label: its name} of the labels 1, 2, ... that studies have."""
    return {label: name for label, name in enumerate(structures, start=1) if name != UNUSED}


def unused_labels(structures: Sequence[str]) -> list[int]:
    """The labels that no study has. The network has an output for each, which is never the answer."""
    return [label for label, name in enumerate(structures, start=1) if name == UNUSED]
