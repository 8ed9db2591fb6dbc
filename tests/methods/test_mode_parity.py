"""200 steps on synthetic hearts: kernels, plain PyTorch and compiled code learn the same."""

import json

import numpy as np
import pytest

from cinema_fast.data.prepare.prepare import PrepareConfig, prepare
from cinema_fast.kernels import use
from cinema_fast.methods.pretrain import pretrain
from cinema_fast.methods.pretrain_config import PretrainConfig
from cinema_fast.phantom.cohort import write_cohort

STEPS = 200
# relative to the loss: two runs part by rounding alone, which AdamW's first steps enlarge
WORST, MEAN = 2e-2, 2e-3


def curve(store, out, **how) -> np.ndarray:
    """The loss of each step."""
    config = PretrainConfig(
        data=store, out=out, steps=STEPS, preset="cinema-demo", batch_size=2, seed=1, log_every=1, device="cpu",
        precision="fp32", **how,
    )  # fmt: skip
    pretrain(config)
    return np.array([json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()])


@pytest.mark.slow
def test_loss_curves_of_all_ways_agree(tmp_path, no_report):
    write_cohort(tmp_path / "nifti", 6, 0, n_frames=6, size=32, n_slices=4, in_plane_mm=6.0)
    sizes = {"sax_size": (32, 32, 4), "sax_spacing": (6.0, 6.0, 10.0), "lax_size": (32, 32), "lax_spacing": (6.0, 6.0)}
    prepare(PrepareConfig(tmp_path / "nifti", tmp_path / "store", workers=1, **sizes))
    with use("torch"):
        plain = curve(tmp_path / "store", tmp_path / "plain")
    assert plain[-20:].mean() < 0.7 * plain[:5].mean()
    for name, how in {"kernels": {}, "compiled": {"mode": "compile"}, "recomputed": {"recompute": "full"}}.items():
        error = np.abs(curve(tmp_path / "store", tmp_path / name, **how) / plain - 1)
        assert error.max() < WORST and error.mean() < MEAN, (name, error.max(), error.mean())
