"""A step of self-distillation on a GPU that is not there: counted as other steps are, in eager and compiled.

Of operations of ours attention is charged the cycles of its machine code for 577 tokens, in proportion to the logits;
patch_embed and prototype_loss are charged bytes and FLOPs alone. Cutting the crops is left out.
"""

from collections import Counter
from collections.abc import Callable

import torch
import workload
from compiled_traffic import CompiledTraffic, compiled_traffic
from faked_gpu import faked_gpu, to_faked
from operation_work import sequences
from step_cost import Assumptions, Work, device_total, host_seconds, rates, spread, step_seconds
from step_traffic import OURS, Operator, Step, Traffic
from step_work import REST, component_of, digest, recalled, remembered, written
from torch import nn

import cinema_fast as cf
from cinema_fast.kernels.shapes import ATTENTION_SHAPES
from cinema_fast.models.config import DINOConfig
from cinema_fast.models.dino import DINOOutput
from cinema_fast.models.flops import dino_step_flops
from cinema_fast.models.precision import autocast

PRESET, BATCH, MODES = "cmrfm-small8", 64, ("eager", "eager graph", "compiled", "graph")
MEASURED_SHAPE = "vit-small8-b64"  # of the attention whose machine code is read
LOSS = f"{OURS}prototype_loss"
LOSS_PRODUCTS = 4  # with the prototypes: logits twice, the weighted means, the gradient of the prototypes


class FakedDINO:
    """A step of `batch` images on the faked GPU."""

    def __init__(self, config: DINOConfig, batch: int):
        sizes = [config.vit.image_size] * 2 + [config.local_size] * config.n_local
        with torch.device("meta"):
            model = cf.DINO(config)
        self.model = to_faked(model)
        self.model.centre = torch.empty(model.centre.shape, device="cuda")
        self.optimizer, self.temperature = self.model.optimizer(), torch.empty((), device="cuda")
        self.crops = [torch.empty(batch, config.vit.in_chans, size, size, device="cuda") for size in sizes]

    def output(self, model: nn.Module) -> DINOOutput:
        """Of `model`, this one or what it is compiled to."""
        return model(self.crops, self.temperature, update_centre=False)

    def forward_backward(self) -> DINOOutput:
        """Gradients lie in the parameters."""
        outputs = []

        def loss_of():
            outputs.append(self.output(self.model))
            return outputs[0].loss

        workload.forward_backward(self.model, loss_of, torch.bfloat16)
        return outputs[0]

    def update(self, output: DINOOutput) -> None:
        """Student, centre and teacher."""
        self.optimizer.step(lr=0.0, weight_decay=0.0, clip=3.0, loss=output.loss)
        self.model.update_centre(output.teacher_mean)
        self.model.update_teacher(0.996)


def eager_dino_step(config: DINOConfig, batch: int) -> Step:
    """Of the second step; the first also makes the optimiser's state."""
    with faked_gpu():
        step = FakedDINO(config, batch)
        step.update(step.forward_backward())
        model, rest = Traffic(), Traffic()
        with model:
            output = step.forward_backward()
        with rest:
            step.update(output)
    return Step(model.operators, rest.operators)


def compiled_dino_step(config: DINOConfig, batch: int) -> CompiledTraffic:
    """The model of a step, through Inductor: minutes."""
    with faked_gpu():
        step = FakedDINO(config, batch)

        def call(model):
            with autocast("cuda", torch.bfloat16):
                return step.output(model).loss

        return compiled_traffic(step.model, call)


def _works(
    operators: Counter[Operator], config: DINOConfig, batch: int, attention: dict[str, Counter[Work]]
) -> Counter[Work]:
    """Kernels of some operators; attention: those of MEASURED_SHAPE by pass."""
    shape, found = ATTENTION_SHAPES[MEASURED_SHAPE], Counter()
    for operator, n in operators.items():
        if operator.name.startswith(f"{OURS}sparse_attention"):
            share = _logits(operator, config, batch) / (shape.batch * shape.queries * shape.keys * shape.heads)
            launched = attention["bwd" if "backward" in operator.name else "fwd"]
            n_bytes = operator.n_bytes / launched.total()
            for work, times in launched.items():
                found[work._replace(n_bytes=n_bytes, cycles=share * work.cycles)] += n * times
        elif operator.name.startswith(LOSS):
            rows = batch * (4 + config.n_local)
            flops = LOSS_PRODUCTS * 2 * rows * config.bottleneck * config.prototypes
            found[Work(operator.n_bytes, flops, launches=LOSS_PRODUCTS)] += n
        else:
            found[Work(operator.n_bytes, operator.flops, launches=operator.launches)] += n
    return found


def _logits(operator: Operator, config: DINOConfig, batch: int) -> int:
    """Of a call on the packed crops, of the teacher (the global ones) or the student, in a whole block or the last."""
    tokens = [1 + (size // config.vit.patch_size) ** 2 for size in (config.vit.image_size, config.local_size)]
    called = sequences(operator.call)
    lengths = tokens[:1] * (2 * batch) + tokens[1:] * (called.batch - 2 * batch)
    last = called.queries == 1
    return called.heads * sum(n if last else n * n for n in lengths)


def _by_component(step: Step, compiled: CompiledTraffic | None, works) -> dict[str, Counter[Work]]:
    """Of the step in eager, or with what Inductor wrote in place of all but matrix products and operations of ours."""
    parts = {}
    for operators, model in ((step.model, True), (step.rest, False)):
        for operator, n in operators.items():
            name = component_of(operator, model)
            if compiled is None or name != REST:
                parts.setdefault(name, Counter())[operator] += n
    parts = {name: works(part) for name, part in parts.items()}
    return parts if compiled is None else parts | {REST: written(compiled)}


def dino_rows(
    gpus: dict[str, Assumptions],
    kernels: dict[tuple, Counter[Work]],
    compiled: dict,
    short: Callable[[float], float],
    *,
    only_known: bool = False,
) -> list[dict]:
    """Rows of the document.

    kernels: as `kernel_work` gives them. compiled: what Inductor makes of steps by key; the step's is added where it is
    not there, which takes minutes; with `only_known` that of any version of PyTorch is taken, and LookupError is raised
    where there is none. short: rounds a figure.
    """
    config, rows = cf.preset(PRESET), []
    attention = {name: kernels["sparse_attention", name, MEASURED_SHAPE, "bfloat16"] for name in ("fwd", "bwd")}
    step = eager_dino_step(config, BATCH)
    name = f"{PRESET} batch {BATCH} {digest(step.model)} torch "
    key = name + torch.__version__
    if only_known:
        key = next((known for known in compiled if known.startswith(name)), key)
    if key not in compiled:
        if only_known:
            raise LookupError(f"Inductor was not given {key}")
        compiled[key] = remembered(compiled_dino_step(config, BATCH))
    for mode in MODES:
        traffic = None if mode.startswith("eager") else recalled(compiled[key])
        parts = _by_component(step, traffic, lambda part: _works(part, config, BATCH, attention))
        every = sum(parts.values(), Counter())
        for gpu, given in gpus.items():
            middle, low, high = spread(lambda at, mode=mode, every=every: step_seconds(every, at, mode), given)
            rows.append({
                "gpu": gpu, "preset": PRESET, "batch": BATCH, "dtype": "bf16", "mode": mode,
                "launches": sum(n * work.launches for work, n in every.items()),
                "bytes": round(sum(n * work.n_bytes for work, n in every.items())),
                "useful_flops": BATCH * dino_step_flops(config),
                "ms": short(middle * 1e3), "ms_low": short(low * 1e3), "ms_high": short(high * 1e3),
                "images_per_s": short(BATCH / middle),
                "host_ms": short(1e3 * host_seconds(every, rates(given), mode)),
                "device_ms_by_component": {
                    name: short(1e3 * device_total(part, rates(given), "graph" in mode)) for name, part in parts.items()
                },
            })  # fmt: skip
    return rows
