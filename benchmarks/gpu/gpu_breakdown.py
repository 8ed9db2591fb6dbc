"""Where a training step's time goes on the device, by kind of kernel, beside what each kind should take.

The budgets are estimates for one study of cinema-base on an H100, every masked token decoded: matrix products at the
rate a large one reaches, attention at the best published rates, the rest by bytes.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator

import torch
import workload
from gpu_step import WARM_UP, adamw, train
from report_schema import BreakdownRow
from torch.profiler import ProfilerActivity, profile

import cinema_fast as cf
from cinema_fast.data.augmentation import Augmentation
from cinema_fast.data.loader import Batch
from cinema_fast.train.config import MaskConfig
from cinema_fast.train.guidance import Guidance
from cinema_fast.train.step import draw_plan

# the first pattern that a kernel's name (on the CPU: an operator's) has in it says what it is
COMPONENTS = {
    "depthwise convolution": r"depthwise|convolution",
    "patch embedding, queries, loss, masks": r"patch_embed|assemble_queries|masked_mse|sample_mask",
    "attention": r"attention|flash|fmha|sdpa",
    "matrix products": r"gemm|nvjet|cutlass|xmma|cublas|splitk|::mm|::bmm|::addmm|::linear",
    "optimiser": r"multi_tensor|adam|lpnorm|_foreach|l2norm",
    "norm, GELU, residual and the rest": r"",
}
BUDGET_MS = {
    "matrix products": 1.12,
    "attention": 0.60,
    "norm, GELU, residual and the rest": 0.45,
    "depthwise convolution": 0.10,
    "patch embedding, queries, loss, masks": 0.10,
    "optimiser": 0.05,
}


GUIDANCE = "guided masks, beyond masks by chance"
GUIDANCE_SHARE = 0.03  # of a step, at most


def component_of(kernel: str) -> str:
    """The component that a kernel belongs to, by its name."""
    return next(name for name, pattern in COMPONENTS.items() if re.search(pattern, kernel, re.IGNORECASE))


class Breakdown:
    """One profile of `steps` steps of ours, in eager, every token decoded."""

    def __init__(self, preset: str, batch: int, device: str, steps: int):
        self.preset, self.batch, self.device, self.steps = preset, batch, device, steps

    @property
    def names(self) -> list[str]:
        """The rows that `measure` yields."""
        return [f"breakdown {name}" for name in (*COMPONENTS, GUIDANCE)]

    def measure(self, _: Callable[[], float]) -> Iterator[tuple[str, BreakdownRow]]:
        """Milliseconds a study of each component, the largest first."""
        config = workload.config_of(self.preset)
        model = cf.CineMA(config).to(self.device)
        optimizer = adamw(model)
        images = workload.random_images(config, self.batch, self.device)

        def step(count: int) -> None:
            plan = workload.draw_plan(config, self.batch, step=count, device=self.device)
            train(model, optimizer, lambda: model(images, plan).loss)

        spent = self.profiled(step)
        total = sum(spent.values())
        budget = BUDGET_MS if self.device == "cuda" and self.preset == "cinema-base" else {}
        for name in sorted(COMPONENTS, key=lambda name: -spent[name]):
            row = BreakdownRow(name, self.preset, self.batch, spent[name], spent[name] / total, budget.get(name))
            yield row.name, row
        guided, by_chance = (sum(self.profiled(run).values()) for run in masks(config, self.batch, self.device))
        more = guided - by_chance
        row = BreakdownRow(GUIDANCE, self.preset, self.batch, more, more / total, GUIDANCE_SHARE * total)
        yield row.name, row

    def profiled(self, run: Callable[[int], None]) -> dict[str, float]:
        """{component: milliseconds a study} of the device, in `steps` runs."""
        for count in range(WARM_UP):
            run(count)
        on_gpu = self.device == "cuda"
        with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as trace:
            for count in range(self.steps):
                run(count)
            if on_gpu:
                torch.cuda.synchronize()
        spent: dict[str, float] = defaultdict(float)
        for event in trace.key_averages():
            time = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            spent[component_of(event.key)] += time / 1e3 / self.steps / self.batch
        return spent


def masks(config: cf.CineMAConfig, batch: int, device: str) -> tuple[Callable[[int], None], Callable[[int], None]]:
    """The drawing of a step's masks guided by stored maps, which are zoomed as the images are, and by chance."""
    mask = MaskConfig(guidance="motion")
    guidance = Guidance(mask, config, steps=1, online=False, device=torch.device(device))
    images = workload.random_images(config, 1, device)  # names the views
    maps = {v: torch.randint(0, 256, (batch, *config.image_size[v]), dtype=torch.uint8, device=device) for v in images}
    extent = {v: torch.tensor([config.image_size[v]] * batch, device=device) for v in images}
    zoom = Augmentation(zoom=torch.linspace(0.9, 1.1, batch, device=device))
    ids = torch.arange(batch, device=device)
    ready = Batch(None, maps, extent, dict.fromkeys(images, zoom), ids, motion=maps)

    def draw(step: int, weights: dict[str, torch.Tensor] | None) -> None:
        draw_plan(config, config.views, ids, mask_ratio=workload.MASK_RATIO, seed=0, step=step, weights=weights)

    return lambda step: draw(step, guidance.weights(ready, images, step)), lambda step: draw(step, None)
