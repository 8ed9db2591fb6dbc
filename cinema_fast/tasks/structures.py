"""Names of the labels of segmentation (`--structures`)."""

from collections.abc import Sequence

from ..data.store.store import CineStore

GIVEN = ("RV", "MYO", "LV")  # where neither the option nor the store says more
UNUSED = "-"  # the name of a label that no study has


def structures_of(store: CineStore, structures: tuple[str, ...]) -> tuple[str, ...]:
    """The names of the labels 1, 2, ...: those given, unless they are GIVEN and the store is of a public data set: then
    the names of the data set, UNUSED for a label that no study of the store has."""
    named = store.prepare.get("structures")
    if structures != GIVEN or not named:
        return structures
    infos = (store.info(study, view) for study in store.ids for view in store.views(study))
    present = {value for info in infos if info.labels for value in info.labels.values or ()}
    return tuple(named.get(str(label), UNUSED) if label in present else UNUSED
                 for label in range(1, 1 + max(present, default=0))) or structures  # fmt: skip


def names_of(structures: Sequence[str]) -> dict[int, str]:
    """{label: its name} of the labels 1, 2, ... that studies have."""
    return {label: name for label, name in enumerate(structures, start=1) if name != UNUSED}


def unused_labels(structures: Sequence[str]) -> list[int]:
    """The labels that no study has. The network has an output for each, which is never the answer."""
    return [label for label, name in enumerate(structures, start=1) if name == UNUSED]
