"""Several processes train as one, on the CPU, by gloo."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from forked import run
from hypothesis import given, settings
from hypothesis import strategies as st
from marks import slow
from rank_runs import ENVIRONMENT, ONE, forked_ranks, torchrun, weights, words
from tiny_runs import metrics
from tolerances import assert_same_training

from cinema_fast.methods.pretrain import pretrain
from cinema_fast.methods.pretrain_config import PretrainConfig
from cinema_fast.train.ranks import STARTED_BY, Agreement, Ranks


@pytest.fixture(scope="module")
def alone(tiny_store, tmp_path_factory):
    """A run of one process without torchrun, four studies a step."""
    out = tmp_path_factory.mktemp("alone") / "run"
    ended = run("pretrain", "--data", tiny_store, "--out", out, "--steps", "6", "--batch-size", "4", *ONE)
    assert ended.returncode == 0, ended.stderr
    return out


def assert_same_run(out: Path, alone: Path) -> None:
    """Losses, gradient norms and weights are those of one process, to rounding."""
    for found, wanted in zip(metrics(out), metrics(alone), strict=True):
        assert found == pytest.approx(wanted, rel=1e-5)
    assert_same_training(weights(out), weights(alone))


@pytest.mark.parametrize(
    ("ranks", "options"),
    [
        (2, ["--batch-size", 1, "--accumulate", 2]),
        slow(2, ["--batch-size", 2, "--parallel", "fsdp"]),
        pytest.param(4, ["--batch-size", 1], marks=pytest.mark.slow),
        pytest.param(4, ["--batch-size", 1, "--parallel", "fsdp"], marks=pytest.mark.slow),
        pytest.param(2, ["--batch-size", 1, "--accumulate", 2, "--parallel", "fsdp"], marks=pytest.mark.slow),
    ],
    ids=["ddp, accumulated", "fsdp", "four", "four, fsdp", "fsdp, accumulated"],
)
def test_ranks_make_the_steps_of_one_process(tiny_store, tmp_path, alone, ranks, options):
    ended = (torchrun if ranks == 4 else forked_ranks)(ranks, tiny_store, tmp_path / "run", *options)
    assert ended.returncode == 0, ended.stderr
    assert_same_run(tmp_path / "run", alone)
    log = (tmp_path / "run" / "run.log").read_text()
    assert "4 studies a step" in log and f"{ranks} ranks, {'fsdp' if 'fsdp' in options else 'ddp'}" in log
    assert ended.stderr.count("step 6/6") == 1  # one rank speaks
    assert "Grad strides" not in ended.stderr  # DDP's, of gradients of a batch of one


@pytest.mark.slow
def test_shards_are_read_by_another_number_of_ranks(tiny_store, tmp_path, alone):
    """One rank, then two, then one: what each leaves the next goes on from, and the run is that of one process."""
    out = tmp_path / "run"
    for ranks, until in ((1, 2), (2, 4), (1, 6)):
        # it makes this step and the next, in which the ranks learn of it, and saves
        stop = f"if number == {until - 2} != 4: os.kill(os.getpid(), signal.SIGTERM)"
        options = ["--batch-size", 4 // ranks, "--parallel", "fsdp", "--resume"]
        ended = torchrun(ranks, tiny_store, out, *options, at_step=stop)
        if until < 6:
            assert f"stopped by SIGTERM after step {until} and saved" in ended.stderr
            assert (out / "checkpoints" / f"shards-{until:08d}.json").exists()
        else:
            assert ended.returncode == 0 and "resuming from step 4" in ended.stderr
    assert_same_run(out, alone)


@pytest.mark.slow
def test_a_signal_to_every_process_stops_and_saves(tiny_store, tmp_path):
    """As a scheduler sends it: torchrun hands it on to ranks that have had it."""
    out = tmp_path / "run"
    with subprocess.Popen(
        words(2, tiny_store, out, "--batch-size", 2, steps=100_000), stderr=subprocess.PIPE, text=True,
        env=ENVIRONMENT, start_new_session=True,
    ) as process:  # fmt: skip
        while not (out / "metrics.jsonl").exists() or len(metrics(out)) < 2:
            assert process.poll() is None
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    step = int(re.search(r"stopped by SIGTERM after step (\d+) and saved", said)[1])
    assert (out / "checkpoints" / f"step-{step:08d}.json").exists()


def test_what_cannot_be_is_refused_before_anything_is_done(tiny_store, tmp_path, monkeypatch):
    def refusal(**changes) -> str:
        with pytest.raises(ValueError) as caught:
            pretrain(PretrainConfig(tiny_store, tmp_path / "run", 1, preset="cinema-tiny", device="cpu", **changes))
        return str(caught.value)

    assert "processes: start them by torchrun" in refusal(parallel="fsdp")
    assert "--mode compile is for whole models, not for --parallel fsdp" in refusal(parallel="fsdp", mode="compile")
    assert "--mode graph replays CUDA graphs, and this run is on cpu" in refusal(mode="graph")
    for name in STARTED_BY:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANK", "0")
    assert "LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT is not: start them by torchrun" in refusal()
    assert not (tmp_path / "run").exists()


@given(st.lists(st.tuples(*[st.sampled_from([0, 0, 0, signal.SIGINT, signal.SIGTERM])] * 2), min_size=1, max_size=6))
@settings(max_examples=30, deadline=None)
def test_all_learn_of_a_signal_one_step_after_it_and_none_waits(two_ranks, signals):
    """In one thread, where a rank that waited for the other in the same step would wait for ever."""
    together, alone = [Agreement(ranks) for ranks in two_ranks], Agreement(Ranks())
    before = 0
    for n, values in enumerate(signals):
        last = n == len(signals) - 1
        assert [each.after(value, last=last) for each, value in zip(together, values)] == [before] * 2
        assert alone.after(values[0], last=last) == values[0]
        if before:
            break
        before = max(values)
