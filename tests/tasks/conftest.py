"""Runs that are stopped at a step, and a pre-training run to start from."""

import os
import signal

import pytest

from cinema_fast.methods.pretrain import pretrain
from cinema_fast.methods.pretrain_config import PretrainConfig
from cinema_fast.train import loop


@pytest.fixture
def stop_after(monkeypatch):
    """A function of n: from then on SIGTERM comes in the middle of the n-th step (counted from 1)."""
    make = loop.make_train_step

    def plan(n: int | None) -> None:
        def wrapped(*arguments, **options):
            step_of = make(*arguments, **options)

            def step(batches, number, lr):
                if number + 1 == n:
                    os.kill(os.getpid(), signal.SIGTERM)
                return step_of(batches, number, lr)

            return step

        monkeypatch.setattr(loop, "make_train_step", wrapped)

    return plan


@pytest.fixture(scope="module")
def pretrained(discs, tmp_path_factory):
    """A run of two steps that holds out a quarter of the studies, as the fine-tuning of these tests does."""
    out = tmp_path_factory.mktemp("pretrained") / "run"
    pretrain(PretrainConfig(data=discs.store, out=out, steps=2, preset="cinema-demo", batch_size=2, device="cpu",
                            precision="fp32", holdout=0.25))  # fmt: skip
    return out
