"""The labelled studies and frames of a validation: each study at fixed phases, without augmentation."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby

from .sampler import Draw, fixed_draw


def validation_draws(
    views_of: Mapping[str, tuple[str, ...]],
    phases: Sequence[float],
    *,
    batch_size: int,
    frames_of: Callable[[str, str, float], Sequence[int]],
    planes: Mapping[str, int] | None = None,
) -> Iterator[Draw]:
    """Each study at each of the phases, in batches whose studies have the same views.

    Args:
        frames_of: as in `loader.Labels`; of phases that show the same frames only the first is drawn.
        planes: {study: its image planes}, all of which are drawn, where a model reads clips; else None.
    """
    order = sorted((views, study) for study, views in views_of.items())
    for views, members in groupby(order, key=lambda member: member[0]):
        items: list[tuple[str, float, int]] = []
        for _, study in members:
            if planes:
                items += [(study, 0.0, plane) for plane in range(planes[study])]
                continue
            shown = {tuple(frames_of(study, view, phase) for view in views): phase for phase in reversed(phases)}
            items += [(study, phase, 0) for phase in sorted(shown.values())]
        for start in range(0, len(items), batch_size):
            ids, phase, plane = zip(*items[start : start + batch_size])
            yield fixed_draw(ids, views, step=0, phase=phase, slot=range(len(ids)), plane=plane)
