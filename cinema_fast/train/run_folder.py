"""Checks and locks a run folder: a new run needs a new folder, a resumed run its own; one process at a time."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from ..common.lock import hold_folder
from ..common.naming import count_studies
from ..common.output import check_outside_store
from .options import RunOptions
from .run_info import RunInfo, read_run_info

_MARKS = ("config.yaml", "metrics.jsonl", "checkpoints")


def check_run_folder(options: RunOptions, info: RunInfo) -> None:
    """Refuse a path that is not a folder, is or lies in a store, or holds another run.

    info: of the run; on resume it is compared with the folder's. Raises ValueError saying what differs and what to do.
    """
    out = options.out
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ValueError(f"--out {out}: {there} is a file; expected a folder, which may be new")
    if not options.resume:
        check_outside_store(out)
        if any((out / mark).exists() for mark in _MARKS):
            raise ValueError(f"{out} already holds a run: continue it with --resume, or choose another --out")
        return
    before = read_run_info(out)
    if before is None:
        return
    differs = options.differences(before.options, info.options["ranks"])
    old, new = before.model, info.model
    differs += [f"model {name}: was {old.get(name)}, now {new[name]}" for name in new if new[name] != old.get(name)]
    if before.store.sha256 != info.store.sha256:
        was, now = before.store.studies, info.store.studies
        differs.append(f"store {options.data}: its contents have changed ({count_studies(was)} then, "
                       f"{count_studies(now)} now)")
    if before.held_out != info.held_out:
        differs.append("split: other studies are held out")
    if differs:
        raise ValueError(
            f"--resume: {out} was started with other options:\n  " + "\n  ".join(differs)
            + f"\nGive the old values, or start another run (--out) from its weights (--init-from {out})"
        )
    if info.labels and (part := info.labels.difference(before.labels)):
        raise ValueError(
            f"the labels have changed since {out} was started ({part} differs from its config.yaml): restore them, or "
            "start another run (--out)"
        )


def lock_run_folder(out: Path, say: Callable[[str], None]) -> AbstractContextManager[None]:
    """Make the folder and lock it for this process; ValueError where another process holds it."""
    out.mkdir(parents=True, exist_ok=True)
    return hold_folder(out, "written", "wait for it, stop it, or choose another --out", ValueError, say)
