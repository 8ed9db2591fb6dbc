"""Several processes fine-tune as one, on the CPU, by gloo."""

import dataclasses
import re
from pathlib import Path

import pytest
from marks import slow
from rank_runs import forked_ranks
from safetensors.torch import load_file
from tiny_runs import metrics
from tolerances import assert_same_training

from cinema_fast.tasks.finetune import finetune
from cinema_fast.tasks.finetuned_run import load_run

STILL = {"dropout": 0.0, "drop_path": 0.0, "cutout": 0.0}  # nothing is drawn but what images are changed by
STEPS = {"steps": 6, "validate_every": 2, "log_every": 1, "seed": 5}
TASKS = {
    "segmentation": {},
    "landmarks": {},
    "multitask": {"targets": ("radius", "size")},  # each study has both: means of parts are those of the whole
}


def words(config) -> list[str]:
    """What of a configuration `forked_ranks` does not say itself, as on the command line."""
    options = [
        "--task", config.task, "--preset", config.preset, "--batch-size", config.batch_size, "--accumulate",
        config.accumulate, "--val", config.val, "--test", config.test, "--n-frames", config.n_frames,
        "--validate-every", config.validate_every, "--patience", config.patience, "--workers", 1, "--parallel",
        config.parallel, "--dropout", config.dropout, "--lr", config.lr, "--min-lr", config.min_lr, "--drop-path",
        config.drop_path, "--cutout", config.cutout, "--checkpoint-every", 1000,
        "--augment.translation", config.augment.translation, "--decoder-channels", *config.decoder_channels,
    ]  # fmt: skip
    options += ["--table", config.table] if config.table else []
    options += ["--targets", *config.targets] if config.targets else []
    return [str(option) for option in options + ["--resume"] * config.resume]


def run_of_ranks(config, **how):
    """The run of a configuration by two ranks. how: of `forked_ranks`."""
    return forked_ranks(2, config.data, config.out, *words(config), steps=config.steps, method="finetune", **how)


@pytest.fixture(scope="module")
def alone(discs, tmp_path_factory):
    """A function of a task: the folder of its run by one process, four studies a step."""
    folder, done = tmp_path_factory.mktemp("alone"), {}

    def run(task: str) -> Path:
        if task not in done:
            done[task] = folder / task
            finetune(discs.config(done[task], task, batch_size=4, **STEPS | STILL | TASKS[task]))
        return done[task]

    return run


@pytest.mark.parametrize(
    ("task", "shape"),
    [
        slow("segmentation", {"batch_size": 1, "accumulate": 2}),
        ("multitask", {"batch_size": 2, "parallel": "fsdp"}),
        pytest.param("landmarks", {"batch_size": 1, "accumulate": 2}, marks=pytest.mark.slow),
        pytest.param("multitask", {"batch_size": 1, "accumulate": 2}, marks=pytest.mark.slow),
        pytest.param("landmarks", {"batch_size": 2, "parallel": "fsdp"}, marks=pytest.mark.slow),
        pytest.param(
            "segmentation", {"batch_size": 1, "accumulate": 2, "parallel": "fsdp"}, marks=pytest.mark.slow
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(map(str, value.values())),
)
def test_ranks_make_the_steps_of_one_process(discs, tmp_path, alone, task, shape):
    """Losses, gradient norms, validations, weights and the best of them, to rounding.

    All ranks die after the second validation, and go on from the newest checkpoint that counts: DDP's is of the same
    step, FSDP's of the first validation.
    """
    config = discs.config(tmp_path / "run", task, resume=True, **shape, **STEPS | STILL | TASKS[task])
    die = "if number == 4 and os.environ['TORCHELASTIC_RESTART_COUNT'] == '0': os.kill(os.getpid(), signal.SIGKILL)"
    ended = run_of_ranks(config, at_step=die, restarts=1)
    assert ended.returncode == 0, ended.stderr
    wanted = alone(task)
    for found, line in zip(metrics(config.out), metrics(wanted), strict=True):
        assert found == pytest.approx(line, rel=1e-4), line["step"]
    for part in ("best", "checkpoints"):
        (found,), (line,) = ([max((out / part).glob("step-*.safetensors"))] for out in (config.out, wanted))
        assert found.name == line.name
        assert_same_training(load_file(found), load_file(line))
    assert load_run(config.out, device="cpu").step == load_run(wanted, device="cpu").step
    log = (config.out / "run.log").read_text()
    assert "4 studies a step" in log and f"2 ranks, {config.parallel}" in log
    assert f"resuming from step {2 if config.parallel == 'fsdp' else 4}" in log
    assert log.count("validation at step 6") == log.count("best weights: step") == 1  # one rank speaks


@pytest.mark.slow
def test_ranks_drop_what_micro_batches_drop(discs, tmp_path):
    """Also of dropout, skipped branches and cutout boxes: two ranks make the steps of one with two micro-batches."""
    common = {"batch_size": 2, "dropout": 0.2, "drop_path": 0.3, "cutout": 0.3} | STEPS
    finetune(discs.config(tmp_path / "one", "segmentation", accumulate=2, **common))
    ended = run_of_ranks(discs.config(tmp_path / "two", "segmentation", **common))
    assert ended.returncode == 0, ended.stderr
    for found, line in zip(metrics(tmp_path / "two"), metrics(tmp_path / "one"), strict=True):
        assert found == pytest.approx(line, rel=1e-4), line["step"]


@pytest.mark.slow
def test_ranks_draw_differently_go_on_and_stop_early(discs, tmp_path):
    """Dropout, skipped branches and cutout boxes are each rank's own; a stop, and patience, are agreed on."""
    slow = {"lr": 1e-9, "min_lr": 0.0}  # no validation is better than the first
    config = discs.config(
        tmp_path / "run", "segmentation", batch_size=2, steps=40, validate_every=2, patience=2, **slow
    )
    stop = "if number == 1: print('drawn', p.torch.rand(()).item(), flush=True); os.kill(os.getpid(), signal.SIGTERM)"
    stopped = run_of_ranks(config, at_step=stop)
    assert "stopped by SIGTERM after step 3 and saved" in stopped.stderr
    assert len(set(re.findall(r"drawn (\S+)", stopped.stdout))) == 2
    ended = run_of_ranks(dataclasses.replace(config, resume=True))
    assert ended.returncode == 0, ended.stderr
    log = (config.out / "run.log").read_text()
    assert "resuming from step 3" in log and "stopped early: no better score in the last 2 validations" in log
    assert metrics(config.out)[-1]["step"] == 6 and load_run(config.out, device="cpu").step == 2


def test_a_network_with_statistics_of_batches_is_not_sharded(discs, tmp_path):
    with pytest.raises(ValueError, match="--parallel fsdp is for transformers: with --network baseline use ddp"):
        discs.config(tmp_path / "run", "segmentation", network="baseline", parallel="fsdp")
