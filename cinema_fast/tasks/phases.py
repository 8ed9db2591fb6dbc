"""The frames of end-diastole and end-systole of a view (`--frames ed es`)."""

from collections.abc import Sequence

from ..common.views import PHASES
from ..data.store.records import CineInfo

GIVE_PHASES = "give the frames by `cinema-fast prepare SRC STORE --phases CSV` (for `predict` by its own --phases)"


def phase_frames(info: CineInfo, frames: Sequence[str]) -> tuple[int, ...]:
    """The frames of a view, which are known, by their names among PHASES."""
    return tuple(info.phases[PHASES.index(name)] for name in frames)


def unknown_phases(view: str, info: CineInfo, frames: Sequence[str]) -> str:
    """Why the frames of these names cannot be read; "" where they can, or none is named."""
    return f"ED and ES of {view} are unknown: {GIVE_PHASES}" if frames and info.phases is None else ""
