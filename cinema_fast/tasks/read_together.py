"""Which images of a view a model reads together: ED and ES (`--frames ed es`), or the channels of a view that is no
cine, such as C0, DE and T2 of MyoPS."""

from collections.abc import Mapping, Sequence

from ..common.views import PHASES
from ..data.store.records import CineInfo
from ..data.store.store import CineStore

GIVE_PHASES = "give the frames by `cinema-fast prepare SRC STORE --phases CSV` (for `predict` by its own --phases)"


def phase_frames(info: CineInfo, frames: Sequence[str]) -> tuple[int, ...]:
    """The frames of a view, which are known, by their names among PHASES."""
    return tuple(info.phases[PHASES.index(name)] for name in frames)


def unknown_phases(view: str, info: CineInfo, frames: Sequence[str]) -> str:
    """Why the frames of these names cannot be read; "" where they can, or none is named."""
    if not frames or info.phases is not None:
        return ""
    if info.channels:
        return f"{view} is no cine but single volumes ({', '.join(info.channels)}), without ED and ES"
    return f"ED and ES of {view} are unknown: {GIVE_PHASES}"


def common_channels(store: CineStore, views_of: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """{view: its channels} of the views that are no cines, the same in all studies of {study: its views}.

    Raises ValueError naming a study whose channels, or their order, differ from those of the first study.
    """
    found: dict[str, tuple[str, ...]] = {}
    for study, views in views_of.items():
        for view in views:
            info = store.info(study, view)
            found.setdefault(view, info.channels)
            if why := mismatch(view, info, found):
                raise ValueError(
                    f"{store.path}: study {study}: {why}: prepare all studies with the same --channels, or leave out "
                    f"{view} (--views)"
                )
    return {view: channels for view, channels in found.items() if channels}


def mismatch(view: str, info: CineInfo, channels: Mapping[str, tuple[str, ...]]) -> str:
    """How the channels of a view differ from {view: channels} of the run's studies, in words; "" where they agree."""
    have, expected = info.channels, channels.get(view, ())
    if have == expected or max(len(have), len(expected)) < 2:  # a single volume is read as a cine of one frame
        return ""
    have, expected = (f"made of the channels {', '.join(names)}" if names else "a cine" for names in (have, expected))
    return f"{view} is {have}, and in the run's other studies it is {expected}"


def other_kind(view: str, info: CineInfo, channels: Mapping[str, tuple[str, ...]]) -> str:
    """A remark where a view is a cine and was single volumes in training, or the other way round; else ""."""
    kinds = ["single volumes" if one else "cines" for one in (info.channels, channels.get(view))]
    if kinds[0] == kinds[1]:
        return ""
    return (f"these are {kinds[0]}, and the run was trained on {kinds[1]}: with images of another kind, such as late "
            "enhancement in place of cines, its predictions mean nothing")  # fmt: skip
