"""Every task trains, is stopped, goes on bit for bit as if it had not been, and is read back."""


import pytest
from finetune_cases import TASKS
from marks import slow
from tiny_runs import metrics

from cinema_fast.tasks.finetune import finetune
from cinema_fast.tasks.finetuned_run import load_run
from cinema_fast.tasks.supervised import Supervised
from cinema_fast.train.method import Place
from cinema_fast.train.run_info import read_run_info

STEPS = {"steps": 6, "validate_every": 4, "log_every": 2, "batch_size": 2}


@pytest.mark.parametrize("name", [name if name in ("segmentation", "clips") else slow(name) for name in TASKS])
def test_stopped_resumed_and_read_back(discs, tmp_path, stop_after, name):
    config = discs.config(tmp_path / "whole", **TASKS[name] | STEPS)
    assert finetune(config).exit_code == 0
    whole = metrics(tmp_path / "whole")
    assert [line["step"] for line in whole] == [2, 4, 6] and ["score" in line for line in whole] == [False, True, True]
    assert all(line["loss"] > 0 and line["grad_norm"] > 0 and line["skipped"] == 0 for line in whole)
    assert (read_run_info(tmp_path / "whole").min_frames is not None) == (name == "clips")  # nothing else counts frames

    for n, resume in ((3, False), (5, True), (None, True)):
        stop_after(n)
        ended = finetune(discs.config(tmp_path / "parts", **TASKS[name] | STEPS | {"resume": resume}))
        assert ended.exit_code == (0 if n is None else 143) and ended.step == (n or 6)
    assert metrics(tmp_path / "parts") == whole
    for part in ("best", "checkpoints"):
        ends = [max((tmp_path / run / part).glob("*.safetensors")) for run in ("whole", "parts")]
        assert ends[0].name == ends[1].name and ends[0].read_bytes() == ends[1].read_bytes()
    log = (tmp_path / "parts" / "run.log").read_text()
    assert "stopped by SIGTERM after step 3 and saved" in log and "resuming from step 5" in log

    run = load_run(tmp_path / "parts", device="cpu")
    best = max((line for line in whole if "score" in line), key=lambda line: line["score"])
    assert run.step == best["step"] and not run.model.training
    said = Supervised(config, None, Place(run.device, run.precision)).validate(run.model, print)
    assert said == {key: value for key, value in best.items() if key == "score" or key.startswith("val_")}


def _line(discs, out, **options) -> dict:
    finetune(discs.config(out, "regression", steps=2, validate_every=2, views=("lax_4c",), **options))
    return metrics(out)[-1]


def test_recomputing_changes_no_bit(discs, tmp_path):
    lines = [_line(discs, tmp_path / how, recompute=how) for how in ("none", "selective", "full")]
    assert lines[0] == lines[1] == lines[2]


@pytest.mark.slow
def test_compiled_steps_agree(discs, tmp_path):
    eager, compiled = (_line(discs, tmp_path / mode, mode=mode) for mode in ("eager", "compile"))
    for name in ("loss", "grad_norm", "score"):
        assert compiled[name] == pytest.approx(eager[name], rel=1e-4)


def test_bf16_agrees_to_its_precision(discs, tmp_path):
    whole, half = (_line(discs, tmp_path / name, precision=name) for name in ("fp32", "bf16"))
    assert half["loss"] == pytest.approx(whole["loss"], rel=0.05) and half["loss"] != whole["loss"]
