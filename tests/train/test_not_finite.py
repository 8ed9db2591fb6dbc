"""Numbers that are not finite, wherever they come from: the step is skipped and named, and nothing of it is kept."""

import math
import re

import pytest
import torch
from marks import slow
from safetensors.torch import load_file
from tiny_runs import metrics

import cinema_fast as cf
from cinema_fast.data.loading.augmentation import AugmentConfig
from cinema_fast.data.loading.loader import Loader
from cinema_fast.methods.pretrain import pretrain
from cinema_fast.methods.pretrain_config import PretrainConfig
from cinema_fast.train.meter import Meter, NonFiniteError

pytestmark = pytest.mark.usefixtures("no_report")
STEPS, BAD = 8, 4
WEIGHT = "encoder.blocks.0.mlp.fc1.weight"


def config_of(store, out, **changes) -> PretrainConfig:
    options = {
        "data": store, "out": out, "steps": STEPS, "preset": "cinema-tiny", "batch_size": 2, "seed": 11, "log_every": 1,
        "precision": "fp32", "device": "cpu", "views": ("lax_2c", "lax_4c"), "checkpoint_every": 1,
        "keep_checkpoints": STEPS, "augment": AugmentConfig(gamma=(0.9, 1.1)),
    }  # fmt: skip
    return PretrainConfig(**options | changes)


def in_the_batch(monkeypatch, last: int = BAD) -> None:
    """The brightness of one image of the steps BAD to `last`."""
    read = Loader._read

    def poisoned(self, at):
        batch = read(self, at)
        if BAD <= at[0] + 1 <= last:
            batch.augment["lax_4c"].gamma[1] = torch.nan
        return batch

    monkeypatch.setattr(Loader, "_read", poisoned)


def before_step(monkeypatch, act) -> None:
    """`act(WEIGHT)` before the forward pass of step BAD; a handle that it returns is removed before the next."""
    forward, count, handles = cf.CineMA.forward, iter(range(1, 1000)), []

    def poisoned(self, *inputs):
        while handles:
            handles.pop().remove()
        if next(count) == BAD and (handle := act(self.get_parameter(WEIGHT))):
            handles.append(handle)
        return forward(self, *inputs)

    monkeypatch.setattr(cf.CineMA, "forward", poisoned)


def in_a_gradient(monkeypatch) -> None:
    """One element of one parameter's."""
    first = torch.zeros(2, 1, dtype=torch.int64)
    before_step(monkeypatch, lambda weight: weight.register_hook(
        lambda grad: grad.index_put(tuple(first), torch.tensor(math.inf))
    ))  # fmt: skip


def in_a_weight(monkeypatch) -> None:
    """One element, for good."""

    def spoil(weight):
        weight.data[0, 0] = torch.nan

    before_step(monkeypatch, spoil)


def saved(out, step: int) -> tuple[dict, dict]:
    """Weights and the optimiser's state of a checkpoint."""
    at = out / "checkpoints" / f"step-{step:08d}"
    state = torch.load(at.with_suffix(".pt"), weights_only=True)["optimizer"]["state"]
    flat = {(number, kind): tensor for number, of in state.items() for kind, tensor in of.items()}
    return load_file(at.with_suffix(".safetensors")), flat


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("poison", "what"), [slow(in_the_batch, "loss nan"), (in_a_gradient, "gradient norm inf")])
def test_a_step_changes_nothing(tiny_store, tmp_path, monkeypatch, poison, what):
    poison(monkeypatch)
    pretrain(config_of(tiny_store, tmp_path / "run"))
    before, after, later = (saved(tmp_path / "run", step) for step in (BAD - 1, BAD, BAD + 1))
    assert equal(before[0], after[0]) and equal(before[1], after[1])  # weights; moments and count of updates
    assert not equal(after[0], later[0])
    assert [line["skipped"] for line in metrics(tmp_path / "run")] == [int(n >= BAD) for n in range(1, STEPS + 1)]
    log = (tmp_path / "run" / "run.log").read_text()
    assert log.count("update skipped") == 1 and f"step {BAD}: {what} is not finite, update skipped; studies s" in log


@pytest.mark.parametrize(
    ("options", "message"),
    [
        slow({"checkpoint_every": 3, "max_skips": 1}, r"2 updates in a row .*\(--max-skips 1\)"),
        ({"checkpoint_every": 1, "keep_checkpoints": 1},
         rf"step {BAD}: 1 of \d+ weights are not finite, {WEIGHT} among them"),
    ],
    ids=["by --max-skips", "at the next checkpoint"],
)
def test_a_weight_ends_the_run_and_is_never_saved(tiny_store, tmp_path, monkeypatch, options, message):
    pretrain(config_of(tiny_store, tmp_path / "undisturbed"))
    config = config_of(tiny_store, tmp_path / "run", **options)
    with monkeypatch.context() as poisoned:
        in_a_weight(poisoned)
        with pytest.raises(NonFiniteError, match=rf"(?s){message}.*--resume goes back to step 3, .*a lower --lr"):
            pretrain(config)
    pretrain(config_of(tiny_store, tmp_path / "run", resume=True, **options))  # as advised
    assert equal(saved(tmp_path / "run", STEPS)[0], saved(tmp_path / "undisturbed", STEPS)[0])


@pytest.mark.parametrize("log_every", [slow(1), 10])
@pytest.mark.parametrize(("steps", "status"), [(STEPS - 1, 0), (STEPS, 1)])
def test_a_run_whose_last_updates_were_all_skipped_fails(
    tiny_store, tmp_path, monkeypatch, steps, status, log_every
):
    in_the_batch(monkeypatch, last=STEPS)  # four at the end, or five
    options = {"steps": steps, "log_every": log_every, "checkpoint_every": BAD + 1}
    outcome = pretrain(config_of(tiny_store, tmp_path / "run", **options))
    assert (outcome.exit_code, outcome.step) == (status, steps)
    said = f"gradient of its last 5 updates was not finite. .* weights are those of step {BAD - 1}.* a lower --lr"
    assert bool(re.search(said, (tmp_path / "run" / "run.log").read_text())) == bool(status)
    again = config_of(tiny_store, tmp_path / "run", resume=True, **options)
    assert pretrain(again).exit_code == status  # nothing is left to do, and it is no better
    newest = tmp_path / "run" / "checkpoints" / f"step-{steps:08d}.json"
    newest.unlink()
    assert pretrain(again).exit_code == status  # in the middle of those that are skipped


def test_of_a_short_run_all_updates_are_its_last():
    skip, make = torch.tensor([math.nan, 1.0, 0.0]), torch.tensor([1.0, 1.0, 1.0])
    for rows, found in (([skip], 1), ([skip] * 4, 4), ([make], 0), ([make, *[skip] * 4], 0), ([make, *[skip] * 9], 9)):
        meter = Meter(max_skips=10, newest=lambda: 0)
        for step, row in enumerate(rows, start=1):
            meter.add(step, ("s",), row, 0.0)
        meter.read()
        assert meter.skipped_at_end(len(rows)) == found


def test_a_weight_before_the_first_checkpoint(tiny_store, tmp_path, monkeypatch):
    in_a_weight(monkeypatch)
    with pytest.raises(NonFiniteError, match=rf"{WEIGHT} among them, .* There is no checkpoint yet.*a lower --lr"):
        pretrain(config_of(tiny_store, tmp_path / "run", steps=BAD, checkpoint_every=BAD))
    assert not list((tmp_path / "run").glob("checkpoints/*"))
