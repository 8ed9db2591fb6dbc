"""Lines of a run for its sinks, and a stand-in for wandb."""

import os
import sys
import types
from collections.abc import Sequence

import pytest

from cinema_fast.train import sinks as module
from cinema_fast.train.run_info import RunInfo, StoreInfo
from cinema_fast.train.sinks import Sinks

LINES = [{"step": n, "epoch": n / 2, "loss": 1 / n, "skipped": 0, "reader": "torch"} for n in (2, 4, 6, 8)]
INFO = RunInfo({"lr": 1e-3, "views": ["sax"]}, {"depth": 2}, StoreInfo(1, "ab", "stored"), {})


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


class StandIn(types.ModuleType):
    """Records what is asked of wandb. key: there is one; broken: the call that fails; starting_step: on its server."""

    def __init__(self, *, key: bool = False, broken: str = "", starting_step: int = 0):
        super().__init__("wandb")
        self.key, self.broken, self.calls, self.points = key, broken, [], []
        self.starting_step = starting_step
        self.Settings = dict

    def _called(self, what, **named):
        if what == self.broken:
            raise RuntimeError(f"{what}\n  failed")
        self.calls.append((what, named))

    def login(self, **named):
        assert named == {"prompt": False, "verify": False}  # never a question in the middle of a night
        return self.key

    def setup(self):
        return types.SimpleNamespace(settings=types.SimpleNamespace(base_url="http://127.0.0.1:9"))

    def init(self, **named):
        self._called("init", **named)
        run = types.SimpleNamespace(log=self._log, finish=lambda **how: self._called("finish", **how))
        run.offline, run.starting_step = named["mode"] != "online", self.starting_step
        return run

    def _log(self, values, step):
        self._called("log", step=step)
        self.points.append((step, values))


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
