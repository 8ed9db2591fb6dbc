"""Names of the labels of segmentation (`--structures`)."""

from collections.abc import Sequence

UNUSED = "-"  # the name of a label that no study has


def names_of(structures: Sequence[str]) -> dict[int, str]:
    """{label: its name} of the labels 1, 2, ... that studies have."""
    return {label: name for label, name in enumerate(structures, start=1) if name != UNUSED}


def unused_labels(structures: Sequence[str]) -> list[int]:
    """The labels that no study has. The network has an output for each, which is never the answer."""
    return [label for label, name in enumerate(structures, start=1) if name == UNUSED]
