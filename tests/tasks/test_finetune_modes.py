"""The step of every task, eager, replayed and compiled, and its batches by either loader: the same numbers."""

import dataclasses
import math

import pytest
import torch
from finetune_cases import TASKS
from loader_cases import equal, needs_dali
from machine import has_gpu
from marks import slow
from step_cases import no_wait
from tape import TapeCapture
from tiny_runs import metrics
from tolerances import assert_same_training

from cinema_fast.data.loading.dali import make_loader
from cinema_fast.kernels import use
from cinema_fast.tasks.finetune import finetune
from cinema_fast.tasks.supervised import Supervised
from cinema_fast.train.graph import WARM_UP, CudaCapture
from cinema_fast.train.method import Place
from cinema_fast.train.optimizer import adamw
from cinema_fast.train.step import make_train_step

CPU = torch.device("cpu")
NETWORKS = TASKS | {"fixed weights": {"task": "multitask", "balance": "fixed"}}


def loader_of(method: Supervised, kind: str = "torch", *, steps: int):
    how = {"device": method.place.device, "start": 0, "stop": steps, "workers": 1, "labels": method.labels}
    return make_loader(kind, method.store, method.sampler, method.sizes, **how)


class Steps:
    """The training step of a configuration, as the loop makes it, and what it trains. mode: "replayed" by a tape."""

    def __init__(self, config, mode: str = "eager", device: str = "cpu"):
        self.device = torch.device(device)
        self.method = Supervised(config, None, Place(self.device))
        torch.manual_seed(config.seed)
        self.model = self.method.build().to(self.device)
        self.optimizer = adamw(self.method.groups(self.model), lr=config.lr)
        captures = {"replayed": lambda: TapeCapture(self.state), "graph": lambda: CudaCapture(self.device)}
        self.step = make_train_step(
            self.method.loss, self.model, self.optimizer, device=self.device, update=self.method.update,
            seed=config.seed, capture=captures.get(mode, lambda: None)(),
        )  # fmt: skip

    def state(self) -> list[torch.Tensor]:
        kept = [value for of in self.optimizer.state.values() for value in of.values()]
        return [*self.model.parameters(), *self.model.buffers(), *kept]

    def made(self, steps: int) -> list[list[float]]:
        """What the first steps give, each at a learning rate of its own."""
        batches = enumerate(loader_of(self.method, steps=steps))
        return [self.step(micros, number, 1e-3 * (1 + number)).tolist() for number, micros in batches]


STILL = {"accumulate": 2, "dropout": 0.0, "drop_path": 0.0, "cutout": 0.0}  # only the first of two would be seeded


@pytest.mark.parametrize(
    ("name", "how"),
    [
        *((name, {"accumulate": 1}) for name in TASKS),
        slow("fixed weights", {"accumulate": 1}),
        slow("segmentation", STILL),
    ],
    ids=str,
)
def test_replays_are_the_eager_steps(discs, tmp_path, name, how):
    """With other studies, targets, augmentations and learning rates in each; dropout, skipped branches and cutout
    boxes are drawn anew."""
    config = discs.config(tmp_path / "run", **NETWORKS[name] | {"batch_size": 2} | how)
    with use("torch"):
        eager, replayed = Steps(config), Steps(config, "replayed")
        wanted = eager.made(WARM_UP + 3)
        assert replayed.made(WARM_UP + 3) == wanted and all(made == 1 for _, _, made in wanted)
    assert all(map(torch.equal, eager.state(), replayed.state()))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_never_waits_for_the_device(discs, tmp_path, name):
    steps = Steps(discs.config(tmp_path / "run", **NETWORKS[name], batch_size=2), device="cuda" if has_gpu() else "cpu")
    first, second = loader_of(steps.method, steps=2)
    with use("torch"):
        steps.step(first, 0, 1e-3)
        with no_wait():
            result = steps.step(second, 1, 1e-3)
    loss, norm, made = result.tolist()
    assert math.isfinite(loss) and norm > 0 and made == 1


@pytest.mark.gpu
@pytest.mark.skipif(not has_gpu(), reason="CUDA graphs need a GPU; a tape stands for them elsewhere")
@pytest.mark.parametrize("name", NETWORKS)
def test_graphs_are_the_eager_steps(discs, tmp_path, name):
    still = {"dropout": 0.0, "drop_path": 0.0, "cutout": 0.0}
    config = discs.config(tmp_path / "run", **NETWORKS[name], batch_size=2, **still)
    eager, graphed = (Steps(config, mode, "cuda") for mode in ("eager", "graph"))
    for one, two in zip(eager.made(WARM_UP + 3), graphed.made(WARM_UP + 3), strict=True):
        assert two == pytest.approx(one, rel=1e-4)
    assert_same_training(*(dict(steps.model.named_parameters()) for steps in (graphed, eager)))


@pytest.mark.slow  # minutes of C++
@pytest.mark.parametrize("name", ["heatmaps", "multitask"])
def test_compiled_steps_agree(discs, tmp_path, name):
    still = {"dropout": 0.0, "drop_path": 0.0, "steps": 3, "validate_every": 3, "log_every": 1, "batch_size": 2}
    runs = [tmp_path / mode for mode in ("eager", "compile")]
    for out in runs:
        finetune(discs.config(out, **NETWORKS[name] | still, mode=out.name))
    for eager, compiled in zip(*map(metrics, runs), strict=True):
        assert compiled == pytest.approx(eager, rel=1e-3)


def test_graphs_want_a_gpu(discs, tmp_path):
    with pytest.raises(ValueError, match="--mode graph replays CUDA graphs, and this run is on cpu: use --mode comp"):
        finetune(discs.config(tmp_path / "run", "segmentation", mode="graph"))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@needs_dali
@pytest.mark.parametrize("name", ["segmentation", "heatmaps", "multitask", "clips"])
def test_batches_by_dali_are_those_of_the_plain_loader(discs, tmp_path, name):
    method = Supervised(discs.config(tmp_path / "run", **NETWORKS[name]), None, Place(CPU))
    plain, dali = (list(loader_of(method, kind, steps=4)) for kind in ("torch", "dali"))
    assert all(equal(one, other) for one, other in zip(plain, dali, strict=True))


@pytest.mark.slow
@needs_dali
def test_a_run_by_dali_is_the_run_by_threads(discs, tmp_path):
    config = discs.config(tmp_path / "torch", "segmentation", steps=4, validate_every=2, log_every=1, loader="torch")
    finetune(config)
    finetune(dataclasses.replace(config, out=tmp_path / "dali", loader="dali"))
    assert metrics(tmp_path / "dali") == metrics(tmp_path / "torch")
    ends = [(tmp_path / kind / "checkpoints" / "step-00000004.safetensors").read_bytes() for kind in ("torch", "dali")]
    assert ends[0] == ends[1]
    assert "loader dali (requested)" in (tmp_path / "dali" / "run.log").read_text()
