"""A step of self-distillation on a GPU that is not there: counted as other steps are, in eager.

Of operations of ours attention is charged the cycles of its machine code for 577 tokens, in proportion to the logits;
patch_embed and prototype_loss are charged bytes and FLOPs alone. Cutting the crops is left out.
"""

from collections import Counter
from collections.abc import Callable

import torch
import workload
from faked_gpu import faked_gpu, to_faked
from operation_work import sequences
from step_cost import Assumptions, Work, device_total, host_seconds, rates, spread, step_seconds
from step_traffic import OURS, Operator, Step, Traffic
from step_work import component_of

import cinema_fast as cf
from cinema_fast.kernels.shapes import ATTENTION_SHAPES
from cinema_fast.models.config import DINOConfig
from cinema_fast.models.flops import dino_step_flops

PRESET, BATCHES, MODES = "cmrfm-small8", (64, 256), ("eager", "eager graph")
MEASURED_SHAPE = "vit-small8-b64"  # of the attention whose machine code is read
LOSS = f"{OURS}prototype_loss"
LOSS_PRODUCTS = 4  # with the prototypes: logits twice, the weighted means, the gradient of the prototypes


def eager_dino_step(config: DINOConfig, batch: int) -> Step:
    """Of the second step, of `batch` images; the first also makes the optimiser's state."""
    sizes = [config.vit.image_size] * 2 + [config.local_size] * config.n_local
    with faked_gpu():
        with torch.device("meta"):
            model = cf.DINO(config)
        model = to_faked(model)
        model.centre = torch.empty(model.centre.shape, device="cuda")
        optimizer, temperature = model.optimizer(), torch.empty((), device="cuda")
        crops = [torch.empty(batch, config.vit.in_chans, size, size, device="cuda") for size in sizes]

        def forward_backward():
            outputs = []

            def loss_of():
                outputs.append(model(crops, temperature, update_centre=False))
                return outputs[0].loss

            return workload.forward_backward(model, loss_of, torch.bfloat16), outputs[0].teacher_mean

        def update(loss, teacher_mean):
            optimizer.step(lr=0.0, weight_decay=0.0, clip=3.0, loss=loss)
            model.update_centre(teacher_mean)
            model.update_teacher(0.996)

        update(*forward_backward())
        counted, rest = Traffic(), Traffic()
        with counted:
            results = forward_backward()
        with rest:
            update(*results)
    return Step(counted.operators, rest.operators)


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


def dino_rows(
    gpus: dict[str, Assumptions], kernels: dict[tuple, Counter[Work]], short: Callable[[float], float]
) -> list[dict]:
    """Rows of the document. kernels: as `kernel_work` gives them. short: rounds a figure."""
    config, rows = cf.preset(PRESET), []
    attention = {name: kernels["sparse_attention", name, MEASURED_SHAPE, "bfloat16"] for name in ("fwd", "bwd")}
    for batch in BATCHES:
        step, parts = eager_dino_step(config, batch), {}
        for operators, model in ((step.model, True), (step.rest, False)):
            for operator, n in operators.items():
                parts.setdefault(component_of(operator, model), Counter())[operator] += n
        parts = {name: _works(part, config, batch, attention) for name, part in parts.items()}
        every = sum(parts.values(), Counter())
        for gpu, given in gpus.items():
            for mode in MODES:
                middle, low, high = spread(lambda at, mode=mode, every=every: step_seconds(every, at, mode), given)
                rows.append({
                    "gpu": gpu, "preset": PRESET, "batch": batch, "dtype": "bf16", "mode": mode,
                    "launches": sum(n * work.launches for work, n in every.items()),
                    "bytes": round(sum(n * work.n_bytes for work, n in every.items())),
                    "useful_flops": batch * dino_step_flops(config),
                    "ms": short(middle * 1e3), "ms_low": short(low * 1e3), "ms_high": short(high * 1e3),
                    "images_per_s": short(batch / middle),
                    "host_ms": short(1e3 * host_seconds(every, rates(given), mode)),
                    "device_ms_by_component": {
                        name: short(1e3 * device_total(part, rates(given), "graph" in mode))
                        for name, part in parts.items()
                    },
                })  # fmt: skip
    return rows
