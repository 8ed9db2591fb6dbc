"""The steps that a GPU report times, on a CPU: a graph of the eager step makes the same, and none moves weights."""

import gpu_step
import pytest
import torch
from tape import TapeCapture


@pytest.fixture
def steps(monkeypatch):
    """With a graph that a CPU can record."""
    monkeypatch.setattr(gpu_step.Steps, "runs", lambda self, mode: True)
    monkeypatch.setattr(gpu_step, "CudaCapture", lambda device: TapeCapture(list))
    return gpu_step.Steps("toy", 2, "cpu", rounds=2, steps=1)


def test_a_graph_of_the_eager_step_makes_the_same_steps(steps):
    model, images, _ = steps.ready()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    optimizer = gpu_step.adamw(model)
    eager = steps.way("eager", model, optimizer, images)(1.0)
    expected = [eager().item() for _ in range(9)]
    graph = steps.way("eager graph", model, optimizer, images)(1.0)  # which makes WARM_UP + 1 steps, and begins at 1
    found = [graph().item() for _ in range(9 - gpu_step.WARM_UP - 2)]
    assert found == pytest.approx(expected[gpu_step.WARM_UP + 2 :], rel=1e-6)
    assert len(set(expected)) == 9  # other masks in every step
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name]), name


def test_rows_come_one_by_one(steps):
    rows = steps.measure(("eager", "eager graph"))
    name, first = next(rows)
    assert name == first.name == "step toy batch 2 bf16 eager, decode ratio 1"
    left = dict(rows)
    assert [name, *left] == steps.names(("eager", "eager graph"))
    assert all(row.name == name and row.ms > 0 for name, row in left.items())


def test_the_update_is_that_of_the_training_loop(steps):
    """Gradients are not rewritten: the optimiser takes the factor that clips them."""
    model, images, _ = steps.ready()
    optimizer = gpu_step.adamw(model)
    seen = []
    optimizer.register_step_pre_hook(lambda o, *_: seen.append((o.grad_scale, [p.grad.clone() for p in o_params(o)])))
    step = steps.way("eager", model, optimizer, images)(1.0)
    step()
    ((scale, grads),) = seen
    norm = torch.nn.utils.get_total_norm(grads)
    assert scale == pytest.approx(max(float(norm) / gpu_step.CLIP, 1.0))


def o_params(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]
