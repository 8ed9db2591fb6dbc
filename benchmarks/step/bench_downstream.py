"""Forward and backward of the fine-tuned models at base size on the CPU, batch 1: ConvViT over two frames of all views,
ConvUNetR over the SAX stack and over one LAX view.

With `--reference DIR`, a checkout of the reference, its models of the same weights are timed beside ours, and ours are
held to their outputs; without, ours are held to themselves in float64.
"""

import copy
from dataclasses import replace

import pytest
import torch
import workload
from reference import Reference
from torch import Tensor

import cinema_fast as cf
from cinema_fast.models.precision import autocast

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
OUTPUT_BUDGET = {torch.float32: 2e-5, torch.bfloat16: 3e-2}  # relative, of the outputs' norm
N_FRAMES, CLASSES = 2, 4
CASES = ("conv_vit", "conv_unetr-sax", "conv_unetr-lax_2c")


class FineTuning:
    """A model, its peer where there is a reference, and images; outputs are checked before anything can be timed."""

    def __init__(self, case: str, preset: str, reference: Reference | None):
        torch.manual_seed(0)
        kind, _, view = case.partition("-")
        config = workload.config_of(preset)
        n_frames = N_FRAMES if kind == "conv_vit" else 1
        if kind == "conv_vit":
            ours = cf.ConvViT(config, CLASSES, n_frames)
        else:
            config = replace(config, views=(view,))
            ours = cf.ConvUNetR(config, CLASSES)
        self.models = {"ours": ours}
        if reference is not None:
            self.models["reference"] = reference.build_fine_tuned(ours, CLASSES, n_frames)
            cf.load_cinema_weights(ours, self.models["reference"].state_dict())
        channels = {v: n_frames * c for v, c in config.in_chans.items()}
        self.images = workload.random_images(replace(config, in_chans=channels), 1)
        self._check()

    def _check(self) -> None:
        with torch.no_grad():
            if "reference" in self.models:
                exact = self._outputs("reference", torch.float32)
            else:
                images = {v: x.double() for v, x in self.images.items()}
                exact = _flat(copy.deepcopy(self.models["ours"]).double()(images))
            for name, dtype in DTYPES.items():
                error = float((self._outputs("ours", dtype) - exact).norm() / exact.norm())
                if not error <= OUTPUT_BUDGET[dtype]:
                    raise workload.GateError(f"outputs in {name} are off by {error:.2g}")

    def _outputs(self, whose: str, dtype: torch.dtype) -> Tensor:
        with autocast("cpu", dtype):
            return _flat(self.models[whose](self.images)).double()

    def step(self, whose: str, dtype: torch.dtype) -> None:
        model = self.models[whose]
        workload.forward_backward(model, lambda: _flat(model(self.images)).square().mean(), dtype)


def _flat(outputs: Tensor | dict[str, Tensor]) -> Tensor:
    return torch.cat([x.flatten() for x in (outputs.values() if isinstance(outputs, dict) else [outputs])])


@pytest.fixture(scope="module")
def reference(request) -> Reference | None:
    folder = request.config.getoption("--reference")
    return Reference(folder) if folder else None


@pytest.fixture(scope="module", params=CASES)
def bench(request, preset, reference):
    """The models to time."""
    return request.param, FineTuning(request.param, preset, reference)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("whose", ["ours", "reference"])
def test_fine_tuning(timed, bench, preset, whose, dtype):
    case, models = bench
    if whose not in models.models:
        pytest.skip("--reference DIR times the reference too")
    timed(lambda: models.step(whose, DTYPES[dtype]), group=f"{case}-{preset}-b1-{dtype}")
