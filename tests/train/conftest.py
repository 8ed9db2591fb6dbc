"""Ranks in this process, a full disk, and sinks with a stand-in for wandb."""

import os
import sys
import types
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist
from damage import no_room
from sink_lines import INFO, StandIn

from cinema_fast.train import sinks as module
from cinema_fast.train.ranks import Ranks
from cinema_fast.train.sinks import Sinks


@pytest.fixture(scope="module")
def group():
    """A group of this process alone, which writes and reads the one shard that there is."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def full_disk(monkeypatch):
    """From a call on, files whose names end so get no room."""

    def begin(end: str):
        replace = os.replace

        def full(source, target):
            no_room() if str(target).endswith(end) else replace(source, target)

        monkeypatch.setattr(os, "replace", full)

    return begin


@pytest.fixture(scope="module")
def two_ranks():
    """Two ranks in this process, which can talk over gloo."""
    store = dist.HashStore()
    with ThreadPoolExecutor(2) as beside:
        groups = beside.map(lambda rank: dist.ProcessGroupGloo(store, rank, 2, timedelta(seconds=20)), range(2))
        return [Ranks(rank, rank, 2, hosts) for rank, hosts in enumerate(groups)]


@pytest.fixture
def said():
    return []


@pytest.fixture
def write(tmp_path, said, monkeypatch):
    """Gives lines to sinks as one process does whose metrics.jsonl has the lines `kept` already."""

    def process(name: str, lines: list[dict], kept: Sequence[dict] = (), *, end: str = "done", seconds: float = 0):
        clock[0] += 1000
        sinks = Sinks([name], tmp_path, INFO, lines=kept, say=said.append)
        for line in lines:
            clock[0] += seconds
            sinks.write(line)
        if end != "killed":
            sinks.close(failed=end == "failed")

    clock = [0.0]
    monkeypatch.setattr(module, "time", types.SimpleNamespace(monotonic=lambda: clock[0]))
    return process


@pytest.fixture
def no_wandb_settings(monkeypatch, tmp_path):
    """Neither the environment nor a file says anything about wandb."""
    for name in list(os.environ):
        if name.startswith("WANDB"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / "netrc"))


@pytest.fixture
def stand_in(monkeypatch, no_wandb_settings):
    def install(**how) -> StandIn:
        found = StandIn(**how)
        monkeypatch.setitem(sys.modules, "wandb", found)
        return found

    return install
