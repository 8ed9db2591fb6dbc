"""A section of the report in a process of its own: python benchmarks/gpu/sections.py NAME TASK LINES [ARGUMENT]

TASK is a file of JSON (`Task`); what is found goes into LINES, a JSON value a line, the moment it is known. The first
line names the rows that are to come.
"""

import os

os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # before torch: ways of all sizes share a GPU

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, fields, is_dataclass
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import checkout
import gpu_turn

if TYPE_CHECKING:
    from report_schema import Row

Rows = Iterator[tuple[str, "Row | dict | str"]]
PARENT = "GPU_SECTION_PARENT"  # the environment's name of the process that waits for this one
BATCHES = (64, 16)


@dataclass
class Task:
    """What a section is told.

    device: "cuda" or "cpu". out: for files that are to be kept. work: between runs (caches, the tuned table). logs: of
    this run. lock: the file by which processes take turns on the GPU. reference: a checkout of the CineMA reference.
    fallbacks: {operation: backend} for what computes wrongly here. quick: no peers that compile, few rounds of slow
    ones. smoke: toy sizes.
    """

    device: str
    out: str
    work: str
    logs: str
    lock: str
    commit: str
    reference: str | None
    fallbacks: dict[str, str]
    quick: bool
    smoke: bool

    @property
    def preset(self) -> str:
        """The model whose step is timed."""
        return "toy" if self.smoke else "cinema-base"

    def batches(self) -> tuple[int, ...]:
        """Largest first."""
        return (4,) if self.smoke else BATCHES

    def effort(self) -> dict[str, int]:
        """Rounds, and steps a round."""
        return {"rounds": 1, "steps": 1} if self.smoke else {"rounds": 7, "steps": 3}

    @property
    def tuned(self) -> Path:
        """The table of tiles that was measured here."""
        return Path(self.work) / "tuned.json"


def machine(task: Task) -> tuple[list[str], Rows]:
    """Rates of the GPU at hand."""
    gpu_machine = import_module("gpu_machine")
    return gpu_machine.names(), gpu_machine.measure(task.device, task.smoke)


def errors(task: Task, op: str) -> tuple[list[str], Rows]:
    """An operation against float64."""
    gpu_errors = import_module("gpu_errors")
    return gpu_errors.names(op, task.smoke), gpu_errors.measure(op, task.smoke)


def compile_step(task: Task, ratio: str) -> tuple[list[str], Rows]:
    """Compiles the step of a decode ratio into the caches on disk, for `compiled`; graphs run in this one's turn."""
    gpu_step = import_module("gpu_step")
    steps = gpu_step.Steps(task.preset, task.batches()[0], task.device, rounds=1, steps=1)
    what = f"compilation of {steps.preset} b{steps.batch}, decode ratio {ratio}"
    return [f"machine {what}"], _compile(task, steps, float(ratio), what)


def _compile(task: Task, steps, ratio: float, what: str) -> Rows:
    gpu_step, report_schema = import_module("gpu_step"), import_module("report_schema")
    take_turns(task)
    model = gpu_step.cf.CineMA(steps.config).to(task.device)
    images = gpu_step.workload.random_images(steps.config, steps.batch, task.device)
    step = steps.way("compiled", model, gpu_step.adamw(model), images)(ratio)
    start = time.monotonic() + gpu_turn.waited
    outcome = gpu_step.attempt(step)
    row = report_schema.MachineRow(what, time.monotonic() - gpu_turn.waited - start, "s")
    yield row.name, outcome if isinstance(outcome, str) else row


def take_turns(task: Task) -> None:
    """From now on every compiled graph of this process, forward or backward, waits for its turn: the first time it
    also tries out its kernels."""
    torch, output_code = import_module("torch"), import_module("torch._inductor.output_code")
    every = output_code.CompiledFxGraph.__call__

    def in_turn(graph, inputs):
        with gpu_turn.turn():
            result = every(graph, inputs)
            if task.device == "cuda":
                torch.cuda.synchronize()
        return result

    output_code.CompiledFxGraph.__call__ = in_turn


def step(task: Task) -> tuple[list[str], Rows]:
    """The eager step and its CUDA graph, of the larger batch and with cuDNN's attention first."""
    gpu_step = import_module("gpu_step")
    by_cudnn = "sdpa" if task.device == "cpu" else "cudnn"
    every = [_steps(task, batch, attention) for batch in task.batches() for attention in (_attention(task), by_cudnn)]
    names = [name for steps in every for name in steps.names(gpu_step.EAGER)]
    return names, (pair for steps in every for pair in steps.measure(gpu_step.EAGER))


def compiled(task: Task) -> tuple[list[str], Rows]:
    """The compiled step and its CUDA graph, with their kernels and traces; of the batch that is compiled ahead."""
    gpu_step = import_module("gpu_step")
    every = [_steps(task, batch, _attention(task)) for batch in task.batches()[: 1 if task.quick else None]]
    found, modes = _profile(task), gpu_step.COMPILING
    names = [*every[0].names(modes), *found.names(modes), *(n for steps in every[1:] for n in steps.names(modes))]
    then = [found.of_step, *[lambda *_: iter(())] * len(every)]
    return names, (pair for steps, more in zip(every, then) for pair in steps.measure(modes, more))


def _attention(task: Task) -> str:
    """What runs where attention is not asked for by name."""
    return task.fallbacks.get("sparse_attention", "auto")


def _steps(task: Task, batch: int, attention: str):
    return import_module("gpu_step").Steps(task.preset, batch, task.device, attention=attention, **task.effort())


def reference(task: Task) -> tuple[list[str], Rows]:
    """The reference as published, in turn with ours."""
    return _beside(task, "PUBLISHED", "EAGER")


def reference_compiled(task: Task) -> tuple[list[str], Rows]:
    """The reference compiled and without checkpointing, in turn with ours compiled."""
    return _beside(task, "COMPILED", "COMPILING")


def _beside(task: Task, peer: str, modes: str) -> tuple[list[str], Rows]:
    gpu_step, peers = import_module("gpu_step"), import_module("reference")
    steps = gpu_step.Steps(
        task.preset, task.batches()[0], task.device, reference=peers.Reference(Path(task.reference)), **task.effort()
    )
    named, mode = getattr(gpu_step, peer), getattr(gpu_step, modes)[:1]  # a graph would be no fair way to launch
    names = [*steps.names(mode, named), *steps.names((named,))[:1]]
    return names, steps.beside(named, mode)


def profile(task: Task) -> tuple[list[str], Rows]:
    """Where the eager step's time goes, and traces of it and its graph."""
    modes, found = import_module("gpu_step").EAGER, _profile(task)
    return found.names(modes), found.measure(modes)


def _profile(task: Task):
    return import_module("gpu_profile").StepProfile(
        task.preset, task.batches()[0], task.device, steps=1 if task.smoke else 2, folder=Path(task.out)
    )


def tiles(task: Task) -> tuple[list[str], Rows]:
    """Attention's tiles; the fastest are kept for the sections that follow and as a table to be committed."""
    gpu_tiles, tuning = import_module("gpu_tiles"), import_module("cinema_fast.kernels.tuning")
    conditions = import_module("conditions")

    def keep(table: dict) -> None:
        conditions.write_json(task.tuned, table)
        conditions.write_json(Path(task.out) / f"tuned-{tuning.slug(table['gpu'])}.json", table)

    return gpu_tiles.names(task.smoke), gpu_tiles.measure(task.smoke, task.commit, keep)


def kernels(task: Task, operations: str) -> tuple[list[str], Rows]:
    """The rows of operations (names with spaces between them), as bench_<op>.py defines them."""
    attempt = import_module("gpu_step").attempt
    if task.quick:
        timing = import_module("timing")
        timing.ROW_SECONDS, timing.LEFT_OUT = 2, {"compiled peer"}
    rows, broken = {}, {}
    for op in operations.split():
        defined = attempt(lambda op=op: import_module(f"bench_{op}").kernel_rows(task.device, task.smoke))
        if isinstance(defined, str):
            broken[f"kernels of {op}"] = defined
        else:
            rows |= defined
    found = ((name, attempt(measure)) for name, measure in rows.items())
    return [*broken, *rows], chain(broken.items(), found)


def tests(task: Task) -> tuple[list[str], Rows]:
    """The tests marked `gpu`."""
    gpu_tests = import_module("gpu_tests")
    processes = 2 if task.smoke else max(min(12, (os.cpu_count() or 2) - 2), 1)
    return ["tests"], gpu_tests.run(checkout.ROOT / "tests", Path(task.out), processes=processes, seconds_a_test=60)


def data(task: Task) -> tuple[list[str], Rows]:
    """Every loader that is installed."""
    bench_data = import_module("bench_data")
    return bench_data.data_names(), _in_one_turn(bench_data.data_rows(task.device, task.smoke))


def _in_one_turn(rows: Rows) -> Rows:
    with gpu_turn.turn():
        yield from rows


def waterfall(task: Task) -> tuple[list[str], Rows]:
    """From the reference as published to the fastest step."""
    peers = import_module("reference")
    ladder = import_module("gpu_waterfall").Waterfall(
        task.preset, 4 if task.smoke else 16, task.device,
        peers.Reference(Path(task.reference)) if task.reference else None, steps=4 if task.smoke else 200,
    )  # fmt: skip
    return ladder.names, ladder.measure()


SECTIONS: dict[str, Callable[..., tuple[list[str], Rows]]] = {
    "machine": machine,
    "errors": errors,
    "compile": compile_step,
    "step": step,
    "profile": profile,
    "tiles": tiles,
    "compiled": compiled,
    "reference": reference,
    "kernels": kernels,
    "tests": tests,
    "data": data,
    "reference compiled": reference_compiled,
    "waterfall": waterfall,
}
WITH_REFERENCE = ("reference", "reference compiled")  # which there are not without one


def end_with_parent() -> None:
    """End this process, whose work nobody waits for, once that which started it is gone."""
    parent = os.environ[PARENT]

    def watch() -> None:
        while str(os.getppid()) == parent:
            time.sleep(0.5)
        os.killpg(0, 9)

    threading.Thread(target=watch, daemon=True).start()


def main(name: str, task: Task, lines: Path, arguments: list[str]) -> None:
    """Write the lines of a section."""
    from report_schema import SECTION_OF, to_json

    with lines.open("a") as file:

        def write(value: dict) -> None:
            file.write(json.dumps(value, allow_nan=False) + "\n")
            file.flush()

        left = [name]
        try:
            with ExitStack() as stack:
                prepare(task, stack, name)
                left, rows = SECTIONS[name](task, *arguments)
                write({"rows": left})
                for row, outcome in rows:
                    left = [other for other in left if other != row]
                    if is_dataclass(outcome):
                        bad = [f.name for f in fields(outcome) if _not_finite(getattr(outcome, f.name))]
                        if bad:
                            write({"name": row, "failed": f"{', '.join(bad)} not finite"})
                            continue
                        write({"name": row, "section": SECTION_OF[type(outcome)], "row": to_json(outcome)})
                    elif isinstance(outcome, dict):
                        write({"name": row, "tests": outcome})
                    else:
                        write({"name": row, "failed": outcome})
        except Exception as error:  # the rows that it did not come to
            import traceback

            traceback.print_exc()
            for row in left:
                write({"name": row, "failed": f"{type(error).__name__}: {error}"[:500]})


def prepare(task: Task, stack: ExitStack, name: str) -> None:
    """PyTorch's switches, what replaces operations that compute wrongly, and the tiles that were measured here."""
    import torch

    from cinema_fast import kernels
    from cinema_fast.kernels import tuning

    gpu_turn.lock = Path(task.lock)
    if name == "compile":
        os.nice(10)  # what is launched from this machine is timed meanwhile
    torch.backends.cudnn.benchmark = True  # as the reference pre-trains
    torch.backends.cudnn.allow_tf32 = False  # float32 is the oracle here
    if name in ("errors", "tiles", "kernels"):
        return
    for op, backend in task.fallbacks.items():  # of attention each step says itself what it uses
        stack.enter_context(kernels.use(backend, op))
    if task.tuned.exists() and not task.smoke:
        table = tuning.read(task.tuned)  # of this GPU, which was looked at before
        for entry in table["sparse_attention"]:
            entry["backend"] = "triton"  # a peer has rows of its own
        stack.enter_context(tuning.override(table))


def _not_finite(value: object) -> bool:
    return isinstance(value, float) and not abs(value) < float("inf")


if __name__ == "__main__":
    end_with_parent()
    name, task, lines, *arguments = sys.argv[1:]
    main(name, Task(**json.loads(Path(task).read_text())), Path(lines), arguments)
