"""The kernels of a training step, by component: in eager as counted, compiled with what Inductor writes in its place.

Matrix products and operations of ours are the same in both; masks, clipping and update are never compiled.
"""

import hashlib
import sys
from collections import Counter
from collections.abc import Iterable

import torch
from compiled_traffic import CompiledTraffic, compiled_traffic
from faked_gpu import faked_gpu
from operation_work import Compiler, works
from step_cost import Work
from step_traffic import OURS, FakedStep, Operator, Step, eager_step

from cinema_fast.models.precision import autocast

GEMMS = ("aten::mm", "aten::addmm", "aten::bmm")
REST, OPTIMISER = "norm, GELU, residual and the rest", "optimiser"
COMPONENTS = {  # names of the GPU reports' breakdown; the first that fits
    "depthwise convolution": lambda op: op.name.startswith(f"{OURS}sparse_depthwise"),
    "attention": lambda op: op.name.startswith(f"{OURS}sparse_attention"),
    "our other kernels": lambda op: op.name.startswith(OURS),
    "matrix products": lambda op: op.flops > 0,
    REST: lambda op: True,
}

Parts = dict[str, Counter[Work]]


def component_of(operator: Operator, model: bool) -> str:
    """What an operator of the model (or of the rest of the step) belongs to."""
    if not model and not operator.name.startswith(OURS):
        return OPTIMISER
    return next(name for name, fits in COMPONENTS.items() if fits(operator))


class StepWork:
    """A step's kernels by component, in eager and compiled.

    RuntimeError where Inductor calls other matrix products than eager does.
    """

    def __init__(self, step: Step, traffic: CompiledTraffic, code_of: Compiler):
        self.flops = sum(n * o.flops for o, n in step.model.items())
        kept = Counter({o: n for o, n in step.model.items() if o.flops or o.name.startswith(OURS)})
        rest = _by_component(step.rest, code_of, False)
        self.eager = _together(_by_component(step.model, code_of, True), rest)
        self.compiled = _together(_by_component(kept, code_of, True), rest, {REST: written(traffic)})
        eager = sum(n for o, n in step.model.items() if o.flops)
        compiled = sum(n for (name, _), n in traffic.extern.items() if name in GEMMS)
        if eager != compiled:
            raise RuntimeError(f"{eager} matrix products in eager, {compiled} compiled: step_work takes them as alike")

    def of(self, mode: str) -> Parts:
        """By component; mode as in the report's rows."""
        return self.eager if mode.startswith("eager") else self.compiled


def _by_component(operators: Counter[Operator], code_of: Compiler, model: bool) -> Parts:
    parts: dict[str, Counter] = {}
    for operator, n in operators.items():
        parts.setdefault(component_of(operator, model), Counter())[operator] += n
    return {name: works(part, code_of) for name, part in parts.items()}


def _together(*parts: Parts) -> Parts:
    return {name: sum((p.get(name, Counter()) for p in parts), Counter()) for name in sorted(set().union(*parts))}


def written(traffic: CompiledTraffic) -> Counter[Work]:
    """Inductor's kernels, and what it calls of PyTorch's beside matrix products."""
    found = Counter({Work(size): n for size, n in traffic.generated.items()})
    for (name, size), n in traffic.extern.items():
        if name not in GEMMS and not name.startswith(OURS):
            found[Work(size)] += n
    return found


def digest(operators: Counter[Operator]) -> str:
    """Of what a model does, operator by operator; the same for sources that do the same."""
    text = "\n".join(sorted(f"{operator} {n}" for operator, n in operators.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def compiled_step(preset: str, batch: int, ratio: float) -> CompiledTraffic:
    """The model of a step, through Inductor."""
    with faked_gpu():
        step = FakedStep(preset, batch, ratio)
        plan = step.masks()

        def call(model):
            with autocast("cuda", torch.bfloat16):
                return model(step.images, plan).loss

        return compiled_traffic(step.model, call)


def remembered(traffic: CompiledTraffic) -> dict:
    """For JSON."""
    return {"generated": sorted(traffic.generated.items()), "extern": sorted(map(_flat, traffic.extern.items()))}


def _flat(item):
    (name, n_bytes), n = item
    return name, n_bytes, n


def recalled(values: dict) -> CompiledTraffic:
    """Of `remembered`."""
    extern = {(name, n_bytes): n for name, n_bytes, n in values["extern"]}
    return CompiledTraffic(Counter(dict(map(tuple, values["generated"]))), Counter(extern))


def steps_work(
    preset: str, batches: Iterable[int], ratios: Iterable[float], known: dict[str, dict], code_of: Compiler
) -> tuple[dict[tuple[int, float], StepWork], dict[str, dict]]:
    """Steps by (batch, decode ratio), and what Inductor made of each by key, from `known` where it is there."""
    steps, compiled = {}, {}
    for batch in batches:
        for ratio in ratios:
            step = eager_step(preset, batch, ratio)
            key = f"{preset} batch {batch} decoded {ratio:g} {digest(step.model)} torch {torch.__version__}"
            if key not in known:
                print(f"through Inductor: {key}", file=sys.stderr)
            compiled[key] = known.get(key) or remembered(compiled_step(preset, batch, ratio))
            steps[batch, ratio] = StepWork(step, recalled(compiled[key]), code_of)
    return steps, compiled
