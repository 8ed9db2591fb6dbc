"""A store prepared by many jobs at once: which studies are whose, and who may write when.

Each job, `prepare --shard k/n`, makes the studies whose name has the digest k - 1 modulo n, and writes nothing that two
jobs share: whole studies appear in STORE/studies, what failed in STORE/.shards/k-of-n.failures.jsonl. `prepare --merge`
makes the index of all of it.

Locks are the kernel's (`flock`) and end with their process. A shard holds STORE/.lock together with the other shards
and STORE/.shards/k-of-n.lock alone; any other run holds STORE/.lock alone. So two runs of one shard refuse each other,
and so do a shard and a plain run or a merge. Shards of another n, whose studies would be the same in part, refuse each
other by the locks that they find held in STORE/.shards.
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
    """Hold a store for writing, alone or as one of its shards. Raises StoreError that says who holds it."""
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
        for left in (path, failures_file(store, path.name.removesuffix(".lock"))):  # of an earlier division
            left.unlink(missing_ok=True)
    failures_file(store, shard.name).unlink(missing_ok=True)


def _locks(store: Path) -> list[Path]:
    return sorted((store / SHARDS).glob("*-of-*.lock"))


def failures_file(store: Path, name: str) -> Path:
    """Where a shard that has run to its end says what failed."""
    return store / SHARDS / f"{name}.failures.jsonl"


def write_failures(path: Path, failures: list[Failure]) -> None:
    """Replace a file of failures, one JSON object a line."""
    with whole_file(path, durable=True) as file:
        file.write_text("".join(json.dumps(asdict(failure)) + "\n" for failure in failures), encoding="utf-8")


def read_outcomes(store: Path) -> list[Failure]:
    """What failed in the shards of a store; a shard that has not finished is a failure too."""
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
    """Remove what killed shards left half done; with `outcomes` all, for a run of the whole has superseded it."""
    for path in [store / SHARDS] if outcomes else (store / SHARDS).glob("*.preparing"):
        shutil.rmtree(path, ignore_errors=True)
