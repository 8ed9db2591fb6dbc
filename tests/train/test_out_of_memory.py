"""Memory that runs out in a step ends the run with a line that says what was asked for and what would fit."""

import re

import numpy as np
import pytest
import torch
from forked import run
from killed_pretrain import last_line

from cinema_fast.methods.pretrain import pretrain
from cinema_fast.methods.pretrain_config import PretrainConfig
from cinema_fast.train.checkpoint import newest_checkpoint, save_checkpoint
from cinema_fast.train.memory import OutOfMemory, memory_advice

# the third forward pass wants more than the process may still map
IN_A_STEP = """
import itertools, resource, torch
from cinema_fast.models.cinema import CineMA
forward, count = CineMA.forward, itertools.count(1)
def hungry(self, *inputs):
    if next(count) == 3:
        mapped = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + 2**30,) * 2)
        torch.empty(3 * 2**30, dtype=torch.uint8)
    return forward(self, *inputs)
CineMA.forward = hungry
"""


def config_of(**changes) -> PretrainConfig:
    return PretrainConfig(**{"data": "STORE", "out": "RUN", "steps": 9, "device": "cpu", "precision": "bf16"} | changes)


@pytest.mark.slow
def test_a_step_that_does_not_fit(tiny_store, tmp_path):
    options = {"steps": 6, "preset": "cinema-tiny", "checkpoint_every": 2, "device": "cpu", "precision": "fp32"}
    options |= {"data": tiny_store, "out": tmp_path / "run", "batch_size": 6, "accumulate": 2, "views": "lax_2c"}
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
    ended = run("pretrain", *words, code=IN_A_STEP)
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    assert (said := re.fullmatch(
        r"cinema-fast: (out of memory on the cpu: 3\.00 GiB more was requested; peak use of this process was "
        r"\d+\.\d\d GiB, in training cinema-tiny with --batch-size 6 --accumulate 2 --mode eager --recompute none in "
        r"float32\. To continue with less memory \(results equal up to rounding\), add --resume and --batch-size 3 "
        r"--accumulate 4, or --recompute full, or --precision bf16)",
        last_line(ended),
    )), last_line(ended)  # fmt: skip
    assert said[1] in (tmp_path / "run" / "run.log").read_text()
    options |= {"views": ("lax_2c",), "resume": True, "batch_size": 3, "accumulate": 4}
    assert pretrain(PretrainConfig(**options)).exit_code == 0  # the advice holds


CUDA = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.20 GiB is free."
)


def refuse(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("work", "asked"),
    [
        (lambda: refuse(torch.OutOfMemoryError(CUDA)), "2.50 GiB more was requested"),
        (lambda: refuse(torch.AcceleratorError("CUDA error: out of memory")), "peak use of this process was"),
        (lambda: np.empty(2**50), "8.00 PiB more was requested"),
        (lambda: bytearray(2**60), "peak use of this process was"),
        (lambda: refuse(OSError(12, "Cannot allocate memory")), "peak use of this process was"),
    ],
    ids=["CUDA", "CUDA, outside PyTorch", "NumPy", "Python", "system"],
)
def test_whoever_is_refused_memory(work, asked):
    refused = pytest.raises(OutOfMemory, match=f"^out of memory on the cpu: {asked}")
    with refused as told, memory_advice(config_of()):
        work()
    assert "add --resume and --batch-size 32 --accumulate 2," in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({"batch_size": 9, "accumulate": 2}, "--resume and --batch-size 3 --accumulate 6, or --rec"),
        ({"batch_size": 7}, "--resume and --batch-size 1 --accumulate 7, or --recompute full$"),
        ({"batch_size": 1, "recompute": "full", "precision": "fp32"}, "--resume and --precision bf16$"),
        ({"batch_size": 1, "recompute": "full"}, "Another run .* smaller --preset, or --parallel fsdp"),
    ],
)
def test_the_advice_is_of_use(changes, advice):
    with pytest.raises(OutOfMemory, match=advice), memory_advice(config_of(**changes)):
        raise MemoryError


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("out of memory"), KeyboardInterrupt()])
def test_other_errors_stay_what_they_are(error):
    with pytest.raises(type(error)) as told, memory_advice(config_of()):
        raise error
    assert told.value is error


def test_a_checkpoint_is_not_taken_for_damaged(tmp_path, monkeypatch):
    """Where it is read by a process that has no room for it: it would be skipped, and later removed."""
    save_checkpoint(tmp_path, 3, {"w": torch.zeros(3)}, {}, keep=2)
    with monkeypatch.context() as without:
        without.setattr(torch, "load", lambda *_, **__: torch.empty(2**60))
        with pytest.raises(RuntimeError, match="allocate memory"):
            newest_checkpoint(tmp_path, pytest.fail)
    assert newest_checkpoint(tmp_path, pytest.fail).step == 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_that_is_full():
    refused = pytest.raises(OutOfMemory, match=r"the cuda: \S+ \S+ more was requested; peak use was \S+ of \S+ GiB")
    with refused, memory_advice(config_of(device="cuda")):
        torch.empty(2**50, dtype=torch.uint8, device="cuda")
