"""Several processes fine-tune as one: under torchrun, on the CPU, by gloo."""

import os
import re
from pathlib import Path

import pytest
from labelled_discs import QUICK, discs, write_discs, write_table  # noqa: F401
from safetensors.torch import load_file
from test_ranks import torchrun
from tolerances import assert_same_training
from training_fixtures import metrics

from cinema_fast.tasks.finetune import finetune
from cinema_fast.tasks.finetuned_run import load_run

STILL = {"dropout": 0.0, "drop_path": 0.0, "blank": 0.0}  # nothing is drawn but what images are changed by
STEPS = {"steps": 6, "validate_every": 3, "log_every": 1, "seed": 5}
TASKS = {
    "segmentation": {},
    "landmarks": {},
    "multitask": {"targets": ("radius", "size")},  # each study has both: means of parts are those of the whole
}


def words(config) -> list[str]:
    """What of a configuration `test_ranks.torchrun` does not say itself, as on the command line."""
    options = [
        "--task", config.task, "--preset", config.preset, "--batch-size", config.batch_size, "--accumulate",
        config.accumulate, "--val", config.val, "--test", config.test, "--n-frames", config.n_frames,
        "--validate-every", config.validate_every, "--patience", config.patience, "--workers", 1, "--parallel",
        config.parallel, "--dropout", config.dropout, "--drop-path", config.drop_path, "--blank", config.blank,
        "--augment.translation", config.augment.translation, "--decoder-channels", *config.decoder_channels,
    ]  # fmt: skip
    options += ["--table", config.table] if config.table else []
    options += ["--targets", *config.targets] if config.targets else []
    return [str(option) for option in options + ["--resume"] * config.resume]


def run_of_ranks(config, **how):
    """The run of a configuration by two ranks. how: of `test_ranks.torchrun`."""
    return torchrun(2, config.data, config.out, *words(config), steps=config.steps, method="finetune", **how)


@pytest.fixture(scope="module")
def alone(discs, tmp_path_factory):  # noqa: F811
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
        *((task, {"batch_size": 1, "accumulate": 2}) for task in TASKS),
        ("multitask", {"batch_size": 2, "parallel": "fsdp"}),
        ("multitask", {"batch_size": 1, "accumulate": 2, "parallel": "fsdp"}),
        ("segmentation", {"batch_size": 2, "parallel": "fsdp"}),
        ("landmarks", {"batch_size": 2, "parallel": "fsdp"}),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(map(str, value.values())),
)
def test_ranks_make_the_steps_of_one_process(discs, tmp_path, alone, task, shape):  # noqa: F811
    """Losses, gradient norms, validations, weights and the best of them, to rounding."""
    config = discs.config(tmp_path / "run", task, **shape, **STEPS | STILL | TASKS[task])
    ended = run_of_ranks(config)
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
    assert log.count("validation at step 6") == log.count("best weights: step") == 1  # one rank speaks
