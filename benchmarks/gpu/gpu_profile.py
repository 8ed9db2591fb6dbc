"""Where a training step's time goes on the device: by kernel, and by kind beside what was predicted."""

import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import gpu_turn
import torch
import workload
from gpu_step import WARM_UP, Steps, adamw, attempt, release
from report_schema import BreakdownRow, ProfileRow, Row
from torch.profiler import ProfilerActivity, profile

from cinema_fast import CineMAConfig
from cinema_fast.data.loading.augmentation import Augmentation
from cinema_fast.data.loading.batch import Batch
from cinema_fast.kernels import OPERATIONS
from cinema_fast.methods.guidance import Guidance
from cinema_fast.methods.masking import draw_plan
from cinema_fast.methods.pretrain_config import MaskConfig

OTHERS = "our other kernels"


def own_kernels() -> str:
    """A pattern of our kernels' names: those with an operation's in it, the CUDA ones of the flow, all Triton ones."""
    modules = [module for name, module in sys.modules.items() if name.startswith("cinema_fast.kernels")]
    triton = {name for module in modules for name, value in vars(module).items() if hasattr(value, "warmup")}
    return "|".join([*OPERATIONS, "^flow_", *(f"^{name}$" for name in sorted(triton))])


# the first pattern that a kernel's name (on the CPU: an operator's) has in it says what it is
COMPONENTS = {
    "depthwise convolution": r"depthwise|convolution",
    "attention": r"attention|flash|fmha|sdpa|::baddbmm|::_softmax",  # the last two: in bf16 on some CPUs
    OTHERS: own_kernels(),
    "matrix products": r"gemm|nvjet|cutlass|xmma|cublas|splitk|::mm|::bmm|::addmm|::linear",
    "optimiser": r"multi_tensor|adam|lpnorm|_foreach|l2norm",
    "norm, GELU, residual and the rest": r"",
}
KERNELS = 40  # the slowest, which a table shows
GUIDANCE = "guided masks, beyond masks by chance"
GUIDANCE_ROW = f"breakdown {GUIDANCE}"
ALL = "all kernels"
GUIDANCE_SHARE = 0.03  # of a step, at most


def component_of(kernel: str) -> str:
    """The component that a kernel belongs to, by its name."""
    return next(name for name, pattern in COMPONENTS.items() if re.search(pattern, kernel, re.IGNORECASE))


class StepProfile:
    """Profiles of `steps` steps of ours, every token decoded.

    The Chrome traces lie in `folder` as trace-<mode>.json.gz: chrome://tracing or https://ui.perfetto.dev opens them.
    """

    def __init__(self, preset: str, batch: int, device: str, steps: int, folder: Path):
        self.preset, self.batch, self.device, self.steps, self.folder = preset, batch, device, steps, folder
        self.ours = Steps(preset, batch, device, rounds=1, steps=steps)

    def names(self, modes: tuple[str, ...]) -> list[str]:
        """The rows that `measure` or, of one mode, `of_step` gives, beside one for each of the slowest kernels."""
        parts = [f"breakdown {name}" for name in (*COMPONENTS, GUIDANCE)] if "eager" in modes else []
        return [f"profile {mode} {ALL}" for mode in modes if self.ours.runs(mode)] + parts

    def measure(self, modes: tuple[str, ...]) -> Iterator[tuple[str, Row | str]]:
        """Every mode that runs here, and of the eager step what each component takes of a study, the largest first."""
        model, images, _ = self.ours.ready()
        optimizer = adamw(model)
        for mode in filter(self.ours.runs, modes):
            yield from self.of_step(mode, self.ours.way(mode, model, optimizer, images)(1.0))
            release()
        if "eager" in modes:
            yield GUIDANCE_ROW, attempt(self._guidance)

    def of_step(self, mode: str, step: Callable[[], object]) -> Iterator[tuple[str, Row | str]]:
        """All kernels of a step together, then the slowest."""
        kernels = attempt(lambda: self._profiled(lambda _: step(), mode))
        if isinstance(kernels, str):
            yield f"profile {mode} {ALL}", kernels
            return
        total = sum(us for _, us in kernels.values())
        launches = sum(count for count, _ in kernels.values())
        rows = [ProfileRow(mode, ALL, launches, total, 1.0)]
        slowest = sorted(kernels.items(), key=lambda item: -item[1][1])[:KERNELS]
        rows += [ProfileRow(mode, name, count, us, us / total) for name, (count, us) in slowest]
        yield from ((row.name, row) for row in rows)
        if mode == "eager":
            yield from self._breakdown(kernels)

    def _breakdown(self, kernels: dict[str, tuple[float, float]]) -> Iterator[tuple[str, BreakdownRow]]:
        spent: dict[str, float] = defaultdict(float)
        for name, (_, us) in kernels.items():
            spent[component_of(name)] += us / 1e3 / self.batch
        self.total = sum(spent.values())
        for name in sorted(COMPONENTS, key=lambda name: -spent[name]):
            share = spent[name] / self.total
            row = BreakdownRow(name, self.preset, self.batch, spent[name], share, None)
            yield row.name, row

    def _guidance(self) -> BreakdownRow:
        drawn = [self._profiled(run) for run in masks(self.ours.config, self.batch, self.device)]
        guided, by_chance = (sum(us for _, us in found.values()) / 1e3 / self.batch for found in drawn)
        more, total = guided - by_chance, self.total
        return BreakdownRow(GUIDANCE, self.preset, self.batch, more, more / total, GUIDANCE_SHARE * total)

    def _profiled(self, run: Callable[[int], object], trace_of: str | None = None) -> dict[str, tuple[float, float]]:
        """{kernel: launches and microseconds a step, of the device}; on a CPU of operators. trace_of: keeps a trace."""
        for count in range(WARM_UP):
            run(count)
        on_gpu = self.device == "cuda"
        seen = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
        with gpu_turn.turn(), profile(activities=seen) as trace:
            for count in range(self.steps):
                run(count)
            if on_gpu:
                torch.cuda.synchronize()
        if trace_of:
            trace.export_chrome_trace(str(self.folder / f"trace-{trace_of.replace(' ', '-')}.json.gz"))
        found = {}
        for event in trace.key_averages():
            if on_gpu and (event.device_type != torch.autograd.DeviceType.CUDA or event.is_user_annotation):
                continue  # an operator or a named range, whose kernels have entries of their own
            us = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            if us > 0:
                found[event.key] = event.count / self.steps, us / self.steps
        return found


def masks(config: CineMAConfig, batch: int, device: str) -> tuple[Callable[[int], None], Callable[[int], None]]:
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
