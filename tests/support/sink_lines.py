"""Lines of a run for its sinks, and a stand-in for wandb."""

import types

import pytest

from cinema_fast.train.run_info import RunInfo, StoreInfo

LINES = [{"step": n, "epoch": n / 2, "loss": 1 / n, "skipped": 0, "reader": "torch"} for n in (2, 4, 6, 8)]
INFO = RunInfo({"lr": 1e-3, "views": ["sax"]}, {"depth": 2}, StoreInfo(1, "ab", "stored"), {})


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


def events(folder) -> dict[str, dict[int, float]]:
    """{name: {step: value}} as TensorBoard shows them, each step once, and the texts under 'config'."""
    loading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = loading.EventAccumulator(str(folder))
    found.Reload()
    shown = {name: [(e.step, e.value) for e in found.Scalars(name)] for name in found.Tags()["scalars"]}
    assert all(len(dict(points)) == len(points) for points in shown.values())
    texts = [e for name in found.Tags()["tensors"] for e in found.Tensors(name)]
    shown["config"] = [(e.step, e.tensor_proto.string_val[0].decode()) for e in texts]
    return {name: dict(points) for name, points in shown.items()}
