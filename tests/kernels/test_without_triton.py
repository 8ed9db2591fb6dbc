"""On a machine without Triton (a Mac, say) everything imports, trains, and says why the kernels are not there."""

import subprocess
import sys

from machine import ROOT

PROGRAM = """
import sys
sys.modules["triton"] = None  # importing it fails, and it is not found
import torch
import cinema_fast as cf
from cinema_fast import kernels
from small_models import make_images, make_plan, small_model

model = small_model()
images = make_images(model.config)
model(images, make_plan(model.config, images)).loss.backward()
assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
for operation, backend, why in kernels.table():
    print(operation, backend, why)
try:
    cf.sample_mask(batch=1, n=4, keep=1, seed=0, backend="triton")
except kernels.BackendError as error:
    print(error)
"""


def test_a_step_and_the_reasons():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env={"PYTHONPATH": str(ROOT / "tests" / "support"), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) >= 7
    assert "sample_mask: backend 'triton' cannot run: triton is not installed" in lines[-1]
    assert all("triton is not installed" in line for line in lines[:6])
