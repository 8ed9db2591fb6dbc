"""One training step of cinema-base on the CPU, 4 views, batch 1, and what its parts take of it; compiled against eager.

stem: with token embedding and fusion; decoder: with heads and loss; update: gradient clipping and AdamW. Each part is
its own forward and backward, on inputs and upstream gradients of the real step's shapes. The compiled step is timed in
turn with the eager one, so that a machine that slows down for a while slows both.
"""

import copy
import statistics
import time
from unittest import mock

import pytest
import torch
import workload
from tolerances import assert_no_worse
from torch import Tensor, nn

import cinema_fast as cf
from cinema_fast.models.flops import forward_flops
from cinema_fast.models.precision import autocast
from cinema_fast.train.compile import compile_model

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PARTS = ("stem", "encoder", "decoder", "update")
COMPILED = {"cinema-demo": 8, "cinema-base": 1}  # batches
ROUNDS = 9


class Step:
    """A model with the inputs of a step and of its parts; the loss is checked before anything can be timed."""

    def __init__(self, preset: str, batch: int = 1):
        torch.manual_seed(0)
        self.config = workload.config_of(preset)
        self.model = cf.CineMA(self.config)
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=0.0, fused=True)
        self.images = workload.random_images(self.config, batch)
        self.plan = workload.draw_plan(self.config, batch)
        self.grids = {v: self.config.grid(v) for v in self.config.views}
        counts = [{v: len(ids[0]) for v, ids in ids_by_view.items()} for ids_by_view in self._ids()]
        self.flops = forward_flops(self.config, *counts)._asdict()
        self._check()

    def _ids(self):
        return {v: p.keep for v, p in self.plan.items()}, {v: p.masked for v, p in self.plan.items()}

    def _check(self) -> None:
        with torch.no_grad():
            exact = copy.deepcopy(self.model).double()({v: x.double() for v, x in self.images.items()}, self.plan).loss
            loss = self.model(self.images, self.plan).loss.item()
            with autocast("cpu", torch.bfloat16):
                low = self.model(self.images, self.plan).loss.item()
            self.stem_out = {v: self._stem(v) for v in self.config.views}
            self.tokens = torch.cat([tokens for _, tokens in self.stem_out.values()], dim=1)
            self.encoded = self.model.encoder(self.tokens)
            _, self.features = self.model._features(self.images, self.plan, self.grids, None)
            decoded = self._decode(self.features).item()
        workload.gate("float32 loss", loss, exact.item(), workload.LOSS_BUDGET[torch.float32])
        workload.gate("bf16 loss", low, exact.item(), workload.LOSS_BUDGET[torch.bfloat16])
        workload.gate("the decoder's part", decoded, loss, workload.LOSS_BUDGET[torch.float32])

    def _stem(self, view):
        return self.model.enc_down_dict[view](self.images[view], self.plan[view], self.grids[view], None)

    def _decode(self, features):
        with mock.patch.object(self.model, "_features", return_value=(None, features)):
            return self.model(self.images, self.plan).loss

    def check_compiled(self, compiled: nn.Module, dtype: torch.dtype) -> None:
        """Gradients of `compiled` are as near to float64's as those of the model that it was made of."""
        exact = copy.deepcopy(self.model).double()
        loss = exact({v: x.double() for v, x in self.images.items()}, self.plan).loss
        loss.backward()
        rows = []
        for model in (self.model, compiled):
            found = self.forward_backward(model, dtype)
            workload.gate(f"{dtype} loss", found.item(), loss.item(), workload.LOSS_BUDGET[dtype])
            rows.append(torch.cat([p.grad.flatten() for p in self.model.parameters() if p.requires_grad]))
        wanted = torch.cat([p.grad.flatten() for p in exact.parameters() if p.requires_grad])
        assert_no_worse(rows[1], rows[0], wanted, "gradients")

    def forward_backward(self, model: nn.Module, dtype: torch.dtype) -> Tensor:
        """The loss; `model` is this one or what it was compiled to, which has the same parameters."""
        return workload.forward_backward(self.model, lambda: model(self.images, self.plan).loss, dtype)

    def step(self, dtype: torch.dtype) -> None:
        self.forward_backward(self.model, dtype)
        self.update(dtype)

    def stem(self, dtype: torch.dtype) -> None:
        self.model.zero_grad(set_to_none=True)
        sizes = [1, *(p.keep.shape[1] for p in self.plan.values())]
        encoded = self.encoded.detach().requires_grad_().split(sizes, dim=1)[1:]
        outputs = []
        with autocast("cpu", dtype):
            for view, x in zip(self.config.views, encoded):
                skips, tokens = self._stem(view)
                outputs += [tokens, self.model.enc_fusion_dict[view](skips, x)]
        torch.autograd.backward(outputs, [torch.ones_like(x) for x in outputs])

    def encoder(self, dtype: torch.dtype) -> None:
        self.model.zero_grad(set_to_none=True)
        tokens = self.tokens.detach().requires_grad_()
        with autocast("cpu", dtype):
            out = self.model.encoder(tokens)
        out.backward(torch.ones_like(out))

    def decoder(self, dtype: torch.dtype) -> None:
        features = {v: x.detach().requires_grad_() for v, x in self.features.items()}
        workload.forward_backward(self.model, lambda: self._decode(features), dtype)

    def update(self, _: torch.dtype) -> None:
        nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
        self.optimizer.step()


@pytest.fixture(scope="module")
def eager_step(request):
    """The step of one preset at the batch that it is compiled for."""
    return Step(*request.param)


def pytest_generate_tests(metafunc):
    """What is compiled; with --smoke the toy."""
    if "eager_step" in metafunc.fixturenames:
        cases = [("toy", 2)] if metafunc.config.getoption("--smoke") else list(COMPILED.items())
        metafunc.parametrize("eager_step", cases, ids=[f"{preset}-b{batch}" for preset, batch in cases], indirect=True)


@pytest.fixture(scope="module")
def bench(preset):
    """The step to time."""
    return Step(preset)


@pytest.fixture(scope="module")
def medians(summary, preset):
    """{(dtype, part): seconds}; at the end their shares are printed."""
    seconds: dict[tuple[str, str], float] = {}
    yield seconds
    for dtype in DTYPES:
        found = {part: seconds[dtype, part] for part in PARTS if (dtype, part) in seconds}
        shares = [f"{part} {s / sum(found.values()):.0%}" for part, s in found.items()]
        if shares:
            summary.append(f"{preset} {dtype}, shares of the step's parts: {', '.join(shares)}")


@pytest.mark.parametrize("part", ["step", *PARTS])
@pytest.mark.parametrize("dtype", DTYPES)
def test_step(timed, benchmark, bench, medians, preset, dtype, part):
    if part == "update":
        bench.step(DTYPES[dtype])  # leaves the gradients that it needs
    gflop = {"step": sum(bench.flops.values()), "update": 0}.get(part, bench.flops.get(part)) * 3 / 1e9
    seconds = timed(lambda: getattr(bench, part)(DTYPES[dtype]), group=f"step-{preset}-b1-{dtype}")
    if seconds:
        medians[dtype, part] = seconds
        benchmark.extra_info |= {"gflop": gflop, "gflop_per_s": gflop / seconds}


@pytest.mark.parametrize("dtype", DTYPES)
def test_compiled(benchmark, eager_step, summary, request, dtype):
    smoke, name, kind = request.config.getoption("--smoke"), request.node.callspec.id, DTYPES[dtype]
    torch.compiler.reset()
    backend = "eager" if smoke else "inductor"  # which takes minutes of C++
    compiled = compile_model(eager_step.model, backend)
    eager_step.check_compiled(compiled, kind)
    seconds = {"eager": [], "compiled": []}

    def in_turn(way, model):
        start = time.perf_counter()
        eager_step.forward_backward(model, kind)
        eager_step.update(kind)
        seconds[way].append(time.perf_counter() - start)

    in_turn("eager", eager_step.model)  # the optimiser makes its state
    seconds["eager"].clear()
    benchmark.group = f"compiled-{name}"
    benchmark.pedantic(
        lambda: in_turn("compiled", compiled),
        setup=lambda: in_turn("eager", eager_step.model),
        rounds=1 if smoke else ROUNDS,
    )
    ratios = sorted(e / c for e, c in zip(seconds["eager"], seconds["compiled"]))
    benchmark.extra_info |= {"eager_seconds": seconds["eager"], "compiled_seconds": seconds["compiled"]}
    eager, faster = statistics.median(seconds["eager"]), statistics.median(ratios)
    summary.append(
        f"{name}: eager {eager:.3f} s, compiled {statistics.median(seconds['compiled']):.3f} s, "
        f"{faster:.2f} times faster ({ratios[0]:.2f}-{ratios[-1]:.2f})"
    )
