"""A method is one file: what this one defines, a teacher and all, is trained by `pretrain` as it is."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from machine import ROOT
from safetensors.torch import load_file
from tape import TapeCapture
from tiny_runs import metrics
from tolerances import assert_same_training
from torch import nn

from cinema_fast.cli import main
from cinema_fast.data.loading.augment import model_input
from cinema_fast.data.loading.sampler import Sampler
from cinema_fast.data.store.store import CineStore
from cinema_fast.methods.registry import method_for
from cinema_fast.models import config as presets
from cinema_fast.train import loop
from cinema_fast.train.method import Method
from cinema_fast.train.setup import describe_run

MOMENTUM = 0.9


@dataclass(frozen=True)
class TwinConfig:
    """A made-up preset: one view, its image size, the width of the model."""

    views: tuple[str, ...] = ("sax",)
    image_size: tuple[int, ...] = (32, 32, 4)
    width: int = 8


class Twins(nn.Module):
    """A student, and a teacher that is the average of its past."""

    def __init__(self, config: TwinConfig):
        super().__init__()
        inputs = config.image_size[0] * config.image_size[1]
        self.student, self.teacher = (nn.Sequential(nn.Linear(inputs, config.width), nn.Dropout(0.2)) for _ in "st")
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(False)

    def forward(self, images):
        rows = images.mean(-1).flatten(1)
        with torch.no_grad():
            wanted = self.teacher(rows) + 1
        return (self.student(rows) - wanted).square().mean()


@method_for(TwinConfig)
class Twin(Method):
    """The student learns to be one more than its teacher; `seen` counts updates and is part of checkpoints."""

    def __init__(self, options, preset, place):
        self.options, self.preset, self.place, self.seen = options, preset, place, 0
        self.store = CineStore(options.data)
        self.sampler = Sampler(
            {study: preset.views for study in self.store.ids}, seed=options.seed, batch_size=options.batch_size,
            accumulate=options.accumulate, world=place.ranks.world,
        )  # fmt: skip
        self.sizes = {"sax": preset.image_size}
        self.info = describe_run(options, place, self.store, preset, self.store)

    def build(self):
        return Twins(self.preset)

    def loss(self, model, batch, step):
        return model(model_input(batch.frames["sax"], batch.extent["sax"], batch.augment["sax"])[:, 0])

    def units(self, model):
        return [model.student]

    def after_update(self, model, step, made):
        self.seen += 1
        with torch.no_grad():
            for old, new in zip(model.teacher.parameters(), model.student.parameters()):
                old.lerp_(new, made * (1 - MOMENTUM))

    def state(self):
        return {"seen": self.seen}

    def restore(self, state):
        self.seen = state["seen"]

    def remarks(self, model):
        yield f"twins, {self.seen} updates seen"

    def figures(self, model, step, say):
        say(f"figures after {step} steps")
        mean = torch.stack([weight.mean() for weight in model.teacher.parameters()]).mean()
        return {"teacher_mean": float(mean), "unknown": None}

    def seconds(self):
        return {"thinking": 0.0}

    def finish(self, model, log):
        log.say("the twins are grown up")
        return self.seen


@pytest.fixture(autouse=True)
def twin_preset(monkeypatch):
    monkeypatch.setitem(presets._PRESETS, "twin", TwinConfig())


def arguments(store, out, *more) -> list[str]:
    return [
        "pretrain", "--data", str(store), "--out", str(out), "--preset", "twin", "--steps", "6", "--batch-size", "4",
        "--log-every", "1", "--checkpoint-every", "2", "--device", "cpu", "--precision", "fp32", *more,
    ]  # fmt: skip


def last_weights(out: Path) -> dict:
    return load_file(out / "checkpoints" / "step-00000006.safetensors")


def test_it_is_trained_with_its_teacher(tiny_store, tmp_path, capsys):
    assert main(arguments(tiny_store, tmp_path / "run")) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6] and all(line["thinking"] == 0 for line in lines)
    assert not {"tflops", "mfu", "score"}.intersection(lines[-1])
    assert len({line["teacher_mean"] for line in lines}) == 6 and all(line["unknown"] is None for line in lines)
    log = (tmp_path / "run" / "run.log").read_text()
    assert log.count("figures after") == 6
    assert "twins, 0 updates seen" in log and "the twins are grown up" in log
    torch.manual_seed(0)
    fresh = Twins(TwinConfig()).state_dict()
    weights = last_weights(tmp_path / "run")
    assert all(not torch.equal(weights[name], fresh[name]) for name in fresh)  # the teacher has moved, too


def test_killed_it_goes_on_to_the_same_bits(tiny_store, tmp_path, monkeypatch):
    """Also dropout: the generators start each step from seed and step."""
    assert main(arguments(tiny_store, tmp_path / "whole")) == 0

    def killed(log, done):
        if done == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop.RunLog, "advance", killed)
        assert main(arguments(tiny_store, tmp_path / "cut")) == 130
    torch.manual_seed(99)
    assert main(arguments(tiny_store, tmp_path / "cut", "--resume", "--workers", "3")) == 0
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    whole, cut = (tmp_path / name / "checkpoints" / "step-00000006.safetensors" for name in ("whole", "cut"))
    assert whole.read_bytes() == cut.read_bytes()
    log = (tmp_path / "cut" / "run.log").read_text()
    assert "resuming from step 2" in log and "twins, 2 updates seen" in log


def test_replayed_it_is_the_same(tiny_store, tmp_path, monkeypatch):
    """The teacher's average is part of what is recorded. Without dropout, whose numbers a tape would draw again."""
    monkeypatch.setattr(Twins, "train", lambda self, mode=True: nn.Module.train(self, False))
    monkeypatch.setattr(Twins, "__init__", _without_dropout(Twins.__init__))
    assert main(arguments(tiny_store, tmp_path / "eager")) == 0
    make = loop.make_train_step

    def taped(loss, model, optimizer, **how):
        def state():
            return [*model.parameters(), *(value for of in optimizer.state.values() for value in of.values())]

        return make(loss, model, optimizer, **how | {"capture": TapeCapture(state)})

    monkeypatch.setattr(loop, "make_train_step", taped)
    assert main(arguments(tiny_store, tmp_path / "replayed")) == 0
    assert_same_training(last_weights(tmp_path / "replayed"), last_weights(tmp_path / "eager"))


def _without_dropout(build):
    def built(self, config):
        build(self, config)
        self.eval()

    return built


RANKS = f"""
import sys
sys.path[:0] = {[str(Path(__file__).parent), str(ROOT / "tests" / "support")]!r}
import test_method
from cinema_fast.models import config
config._PRESETS["twin"] = test_method.TwinConfig()
test_method.Twins.__init__ = test_method._without_dropout(test_method.Twins.__init__)
from cinema_fast.cli import main
sys.exit(main())
"""


@pytest.mark.slow
def test_two_ranks_make_the_steps_of_one(tiny_store, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(RANKS)
    starts = {
        "one": [sys.executable, str(program)],
        "two": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program)],
    }
    for name, start in starts.items():
        words = arguments(tiny_store, tmp_path / name, *(["--batch-size", "2"] if name == "two" else []))
        ended = subprocess.run([*start, *words], capture_output=True, text=True, timeout=240,
                               env=os.environ | {"OMP_NUM_THREADS": "1"})  # fmt: skip
        assert ended.returncode == 0, ended.stderr
    for found, wanted in zip(metrics(tmp_path / "two"), metrics(tmp_path / "one"), strict=True):
        assert found.pop("thinking") == wanted.pop("thinking") == 0
        assert found.pop("unknown") is wanted.pop("unknown") is None
        assert found == pytest.approx(wanted, rel=1e-5)
    assert_same_training(last_weights(tmp_path / "two"), last_weights(tmp_path / "one"))


def test_the_loop_knows_no_method():
    """Of what is trained the loop and its parts read only what `Method` says."""
    declared = {field for field in vars(Method) if not field.startswith("_")} | set(Method.__annotations__)
    source = Path(loop.__file__).read_text()
    used = set(re.findall(r"\bmethod\.(\w+)", source))
    assert "loss" in used and used <= declared
