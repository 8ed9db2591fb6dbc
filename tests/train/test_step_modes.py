"""The training step, eager, compiled and replayed: the same numbers, and what changes by step does change."""


import numpy as np
import pytest
import torch
from machine import has_gpu
from marks import slow_in_interpreter
from small_models import small_model
from step_cases import CINEMA, CLIPS, FULL, clipped
from tape import TapeCapture
from tolerances import assert_same_training

from cinema_fast.data.loading.batch import Batch
from cinema_fast.data.loading.sampler import Draw
from cinema_fast.kernels import use
from cinema_fast.methods.guidance import Guidance
from cinema_fast.methods.masking import MaskedLoss
from cinema_fast.methods.pretrain_config import MaskConfig
from cinema_fast.train.graph import WARM_UP, CudaCapture
from cinema_fast.train.method import Place
from cinema_fast.train.optimizer import adamw, groups_of
from cinema_fast.train.step import make_train_step

WIDTHS = {"enc_embed_dim": 16, "enc_depth": 1, "dec_embed_dim": 24, "dec_depth": 1}  # head dims of 8


def batch_of(config, step: int, views: tuple[str, ...]) -> Batch:
    """One batch of a step: other frames, extents, augmentation and samples than those of other steps."""
    generator = torch.Generator().manual_seed(step)
    frames, extent, augment = {}, {}, {}
    for view in views:
        size = config.image_size[view]
        frames[view] = torch.randint(0, 256, (2, *size), dtype=torch.uint8, generator=generator)
        extent[view] = torch.tensor([[n - step % 2 for n in size]] * 2)
        pair = FULL.map(lambda x: torch.cat([x, x]))
        changed = {"angle": pair.angle * step, "gamma": pair.gamma + 0.1 * step, "noise_key": pair.noise_key + step}
        augment[view] = pair._replace(**changed)
    slot = torch.tensor([2 * step, 2 * step + 1])
    draw = Draw(step, ("a", "b"), views, *[np.zeros(2)] * 2, {}, slot.numpy(), np.zeros(2, np.int64))
    motion = {v: x[:, 0] if v == "clip" else x for v, x in frames.items()}
    return Batch(draw, frames, extent, augment, slot, motion=motion)


def train(
    mode: str, shape: dict, views_of, *, steps: int, guided: bool = False, online: bool = False, device: str = "cpu"
):
    """Plans that the model gets, results, and weights, of a few steps in a mode."""
    model = small_model(**shape, **WIDTHS).to(device)
    optimizer = adamw(groups_of(model, weight_decay=0.05), lr=1e-3)
    device, plans = torch.device(device), []
    mask = MaskConfig(guidance="motion", warmup=0.5)
    guidance = Guidance(mask, model.config, steps=steps, online=online, device=device) if guided else None

    def state():
        kept = [value for of in optimizer.state.values() for value in of.values()]
        return [*model.parameters(), *kept]

    captures = {"replayed": lambda: TapeCapture(state), "graph": lambda: CudaCapture(device)}
    if mode != "compiled":
        model.register_forward_pre_hook(lambda _, inputs: plans.append(inputs[1]))
    loss = MaskedLoss(model.config, Place(device), mask_ratio=0.6, decode_ratio=0.5, seed=3, guidance=guidance)
    step = make_train_step(
        loss, model, optimizer, device=device, update=clipped(0.5), compiled=mode == "compiled",
        capture=captures.get(mode, lambda: None)(),
    )  # fmt: skip
    drawn, results = [], []
    for number in range(steps):
        batches = [batch_of(model.config, number, views_of(number))]
        results.append(step(batches, number, 1e-3 * (1 + number)).tolist())
        drawn.append({view: plan.keep.clone() for view, plan in plans[-1].items()} if plans else None)
    return drawn, results, model


def weights(model) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


SHAPES = {"frames": CINEMA, "clips": CLIPS}
GUIDED = [("frames", "no"), ("frames", "stored"), ("clips", "no"), ("clips", "stored"), ("clips", "online")]


@pytest.mark.parametrize(("shape", "guided"), GUIDED)
def test_replays_are_the_eager_steps(shape, guided):
    """Masks, augmentation, learning rate and strength of the guidance are those of each step, and all differ."""
    views = SHAPES[shape]["views"]
    how = {"steps": WARM_UP + 4, "guided": guided != "no", "online": guided == "online"}
    with use("torch"):
        runs = [train(mode, SHAPES[shape], lambda _: views, **how) for mode in ("eager", "replayed")]
    (masks, results, model), (replayed, again, other) = runs
    assert again == results
    for step, (one, two) in enumerate(zip(masks, replayed)):
        assert all(torch.equal(one[view], two[view]) for view in views), step
    for before, after in zip(masks[WARM_UP:], masks[WARM_UP + 1 :]):
        assert all(not torch.equal(before[view], after[view]) for view in views)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters()))


@slow_in_interpreter
def test_replayed_kernels_are_the_eager_ones(backend):
    with use(backend):
        runs = [train(mode, CLIPS, lambda _: ("clip",), steps=WARM_UP + 2) for mode in ("eager", "replayed")]
    assert runs[0][1] == runs[1][1]


def test_steps_of_other_views_are_other_graphs():
    """Sets of views alternate; each set is captured once it has come often enough, and none disturbs another."""
    sets = [CINEMA["views"], ("sax",), CINEMA["views"]]
    with use("torch"):
        runs = [
            train(mode, CINEMA, lambda step: sets[step % 3], steps=3 * (WARM_UP + 2)) for mode in ("eager", "replayed")
        ]
    assert runs[0][1] == runs[1][1]
    assert all(torch.equal(a, b) for a, b in zip(runs[0][2].parameters(), runs[1][2].parameters()))


def test_a_replay_that_is_not_finite_changes_nothing():
    model = small_model(**CINEMA, **WIDTHS)
    optimizer = adamw(groups_of(model, weight_decay=0.05), lr=1e-3)

    def state():
        return [*model.parameters(), *(value for of in optimizer.state.values() for value in of.values())]

    cpu = torch.device("cpu")
    loss = MaskedLoss(model.config, Place(cpu), mask_ratio=0.6, decode_ratio=0.5, seed=3)
    step = make_train_step(loss, model, optimizer, device=cpu, update=clipped(0.5), capture=TapeCapture(state))
    with use("torch"):
        for number in range(WARM_UP + 2):
            assert step([batch_of(model.config, number, CINEMA["views"])], number, 1e-3)[2] == 1
        before = [tensor.detach().clone() for tensor in state()]
        batch = batch_of(model.config, 9, CINEMA["views"])
        batch.augment["sax"].noise.fill_(torch.nan)
        loss, _, made = step([batch], 9, 1e-3).tolist()
        assert loss != loss and made == 0
        assert all(torch.equal(a, b) for a, b in zip(before, state()))
        assert step([batch_of(model.config, 10, CINEMA["views"])], 10, 1e-3)[2] == 1


@pytest.mark.gpu
@pytest.mark.skipif(not has_gpu(), reason="CUDA graphs need a GPU; a tape stands for them elsewhere")
@pytest.mark.parametrize(("shape", "guided"), GUIDED)
def test_graphs_are_the_eager_steps(shape, guided):
    views = SHAPES[shape]["views"]
    how = {"steps": WARM_UP + 4, "guided": guided != "no", "online": guided == "online", "device": "cuda"}
    (_, results, model), (_, again, other) = (
        train(mode, SHAPES[shape], lambda _: views, **how) for mode in ("eager", "graph")
    )
    for step, (one, two) in enumerate(zip(results, again)):
        assert two == pytest.approx(one, rel=1e-5), step
    assert_same_training(weights(other), weights(model))


@pytest.mark.slow  # minutes of C++
def test_compiled_steps_are_the_eager_ones_to_rounding():
    sets = [CINEMA["views"], ("sax",)]
    runs = [train(mode, CINEMA, lambda step: sets[step % 2], steps=6) for mode in ("eager", "compiled")]
    for eager, compiled in zip(runs[0][1], runs[1][1]):
        assert compiled == pytest.approx(eager, rel=1e-4)
    assert_same_training(*(weights(model) for _, _, model in reversed(runs)))
