"""A store prepared by many jobs at once: division of the studies, and locks.

Each job, `prepare --shard k/n`, prepares the studies whose name has the digest k - 1 modulo n, and no two jobs write
the same file: complete studies go to STORE/studies, failures to STORE/.shards/k-of-n.failures.jsonl. `prepare --merge`
writes the index of all of them.

Locks are the operating system's (`flock`) and end with their process. A shard holds a shared lock on STORE/.lock and an
exclusive one on STORE/.shards/k-of-n.lock; any other run holds an exclusive lock on STORE/.lock. So a shard cannot run
twice at once, nor together with a plain run or a merge. Shards of different n, which would have studies in common,
refuse to run together because of the locks held in STORE/.shards.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

from ...common.atomic import whole_file
from ...common.lock import hold_folder, is_held
from ...common.parsed_file import parse_json
from ..store.store import StoreError
from .failure import Failure
from .shard import Shard

SHARDS = ".shards"


@contextmanager
def hold_store(store: Path, shard: Shard | None) -> Iterator[None]:
    """Lock a store for writing, exclusively or as one of its shards. Raises StoreError that names the holder."""
    with ExitStack() as held:
        try:
            held.enter_context(hold_folder(store, "prepared", "wait for it, or choose another folder", StoreError,
                                           shared=shard is not None))
        except StoreError:
            names = [path.name.removesuffix(".lock").replace("-of-", "/") for path in _locks(store) if is_held(path)]
            if not names:
                raise
            raise StoreError(f"{store} is being prepared by the shards {', '.join(names)}: wait for them, or choose "
                             f"another folder") from None
        if shard:
            _hold_shard(store, shard, held)
        yield


def _hold_shard(store: Path, shard: Shard, held: ExitStack) -> None:
    folder = store / SHARDS
    folder.mkdir(exist_ok=True)
    held.enter_context(hold_folder(folder, f"prepared as shard {shard}", "wait for it, or take another shard",
                                   StoreError, name=f"{shard.name}.lock"))
    for path in _locks(store):
        if path.name.endswith(f"-of-{shard.n}.lock"):
            continue
        if is_held(path):
            other = path.name.removesuffix(".lock").replace("-of-", "/")
            raise StoreError(f"{store} is being prepared by the shard {other}, this one is {shard}: all must divide "
                             f"the studies by the same number")
        for left in (path, failures_file(store, path.name.removesuffix(".lock"))):  # left by shards of another n
            left.unlink(missing_ok=True)
    failures_file(store, shard.name).unlink(missing_ok=True)


def _locks(store: Path) -> list[Path]:
    return sorted((store / SHARDS).glob("*-of-*.lock"))


def failures_file(store: Path, name: str) -> Path:
    """The file of failures that a finished shard writes."""
    return store / SHARDS / f"{name}.failures.jsonl"


def write_failures(path: Path, failures: list[Failure]) -> None:
    """Replace a file of failures, one JSON object a line."""
    with whole_file(path, durable=True) as file:
        file.write_text("".join(json.dumps(asdict(failure)) + "\n" for failure in failures), encoding="utf-8")


def read_outcomes(store: Path) -> list[Failure]:
    """The failures of all shards of a store; an unfinished shard counts as a failure."""
    sizes = {int(path.name.removesuffix(".lock").rpartition("-")[2]) for path in _locks(store)}
    failures = []
    for n in sorted(sizes):
        for k in range(1, n + 1):
            shard = Shard(k, n)
            try:
                lines = failures_file(store, shard.name).read_text("utf-8").splitlines()
            except FileNotFoundError:
                failures.append(Failure("", None, f"shard {shard}", "has not finished"))
            else:
                failures += [Failure(**parse_json(line)) for line in lines]
    return failures


def forget_shards(store: Path, *, outcomes: bool) -> None:
    """Remove the half-written files of killed shards; with `outcomes` all files of shards, after a run of the whole."""
    for path in [store / SHARDS] if outcomes else (store / SHARDS).glob("*.preparing"):
        shutil.rmtree(path, ignore_errors=True)
