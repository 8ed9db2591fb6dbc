"""Who may write into a run folder: a new run into a new one, a resumed run into its own, one process at a time."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from ..common.lock import hold_folder
from ..common.output import check_outside_store
from ..common.parsed_file import parse_yaml
from ..common.regular_file import read_regular
from ..data.store.clips import MIN_FRAMES
from ..methods.pretrain_config import PretrainConfig

_MARKS = ("config.yaml", "metrics.jsonl", "checkpoints")


def check_run_folder(config: PretrainConfig, settled: dict) -> None:
    """Refuse what is no folder, is or lies in a store, or holds another run.

    settled: what the run is made of (`run`, `model`, `store`), compared with the folder's config.yaml on resume.
    Raises ValueError saying what differs and what to do.
    """
    out = config.out
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ValueError(f"--out {out}: {there} is a file; want a folder, which may be new")
    if not config.resume:
        check_outside_store(out)
        if any((out / mark).exists() for mark in _MARKS):
            raise ValueError(f"{out} already holds a run: go on with it by --resume, or choose another --out")
        return
    before = read_config(out)
    if before is None:
        return
    differs = config.differences(before["run"], settled["run"]["ranks"])
    old, new = before["model"], settled["model"]
    differs += [f"model {name}: was {old.get(name)}, now {new[name]}" for name in new if new[name] != old.get(name)]
    if before["store"]["sha256"] != settled["store"]["sha256"]:
        was, now = before["store"]["studies"], settled["store"]["studies"]
        differs.append(f"store {config.data}: was {was} studies, now {now}, or their contents have changed")
    if differs:
        raise ValueError(
            f"{out} was begun otherwise, and going on would not be the same run:\n  " + "\n  ".join(differs)
            + "\ngive the old values, or begin another run (--out) from its weights (--init-from)"
        )


def lock_run_folder(out: Path, say: Callable[[str], None]) -> AbstractContextManager[None]:
    """Make the folder and hold it for this process; ValueError where another process holds it."""
    out.mkdir(parents=True, exist_ok=True)
    return hold_folder(out, "written", "wait for it, stop it, or choose another --out", ValueError, say)


def read_config(out: Path) -> dict | None:
    """The config.yaml of a run folder, None where there is none. Raises ValueError where it is damaged."""
    import yaml

    path = out / "config.yaml"
    if not path.exists():
        return None
    try:
        values = parse_yaml(read_regular(path).decode())
        if all(isinstance(values[part], dict) for part in ("run", "model", "store")):
            return values
        reason = "want run, model and store in it"
    except (yaml.YAMLError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
    raise ValueError(f"{path} is damaged ({reason}); begin another run, or put the file back")


def min_frames_of(settled: dict | None) -> int:
    """Least frames of the cines that a run draws its clips from: a new run (None), or one by its config.yaml.

    Runs of older versions took cines of two frames too, and go on with them.
    """
    return MIN_FRAMES if settled is None else settled.get("min_frames", 2)


def write_config(out: Path, settled: dict) -> None:
    """Write config.yaml, whole or not at all."""
    import yaml

    out.mkdir(parents=True, exist_ok=True)
    temporary = out / "config.yaml.tmp"
    with temporary.open("w", encoding="utf-8") as file:
        yaml.safe_dump(settled, file, sort_keys=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, out / "config.yaml")
