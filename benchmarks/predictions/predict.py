"""Predicts, without a GPU, what one will measure: training steps and kernels, on an H100 and an H200.

    .venv-gpu/bin/python benchmarks/predictions/predict.py [--check]

Counts what a step launches, in eager and compiled, reads the kernels' machine code, and turns both into time by the
assumptions of step_cost.py. Writes benchmarks/results/predictions.json and docs/reference/predictions.md, from which
gpu_report sets predicted beside measured. What depends only on code that did not change (Inductor's part, minutes a
step, and the machine code) is taken from the last results. --check writes nothing: it says what of the results is not
of this tree (exit status 1), as far as seconds allow.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
from collections import Counter

from checkout import ROOT

# isort: split
import audit_launches
import conditions
from attention_time import constants
from dino_step import dino_rows
from kernel_work import kernel_work
from machine_cycles import MachineCode
from operation_work import ARCH, Compiler
from predictions_document import document
from predictions_results import read_predictions, write_predictions
from step_cost import Assumptions, assumptions, device_total, host_seconds, rates, spread, step_seconds
from step_traffic import eager_step
from step_work import StepWork, steps_work
from timing import PEAKS
from tutorial_attention import tutorial_launch

COMMAND = ".venv-gpu/bin/python benchmarks/predictions/predict.py"
RESULTS, DOCUMENT = ROOT / "benchmarks/results/predictions.json", ROOT / "docs/reference/predictions.md"
GPUS = {"NVIDIA H200": "H200", "NVIDIA H100 80GB HBM3": "H100"}  # as PyTorch names them: in timing.PEAKS
PRESET, BATCHES, RATIOS = "cinema-base", (64, 16), (1.0, 0.25)
MODES = ("eager", "eager graph", "compiled", "graph")
CHECKED = ("toy", 4)  # counted anew by --check, in seconds
CALIBRATION_TILE = {"head_dim": 64, "rows": 128, "cols": 64, "warps": 4, "stages": 3}
NOT_MODELLED = {"sample_mask": 3.0, "augment_images": 3.0}  # their arithmetic: the high end is so many times as high


def step_rows(steps: dict[tuple[int, float], StepWork], gpu: str, given) -> list[dict]:
    """Rows of one GPU."""
    rows = []
    for (batch, ratio), step in steps.items():
        for mode in MODES:
            parts = step.of(mode)
            every = sum(parts.values(), Counter())
            middle, low, high = spread(lambda at, every=every, mode=mode: step_seconds(every, at, mode), given)
            alone = {
                name: 1e3 / batch * device_total(part, rates(given), "graph" in mode) for name, part in parts.items()
            }
            rows.append({
                "gpu": gpu, "preset": PRESET, "batch": batch, "dtype": "bf16", "mode": mode, "decode_ratio": ratio,
                "launches": sum(n * work.launches for work, n in every.items()),
                "gemm_flops": step.flops,
                "bytes": round(sum(n * work.n_bytes for work, n in every.items())),
                "ms": _short(middle * 1e3), "ms_low": _short(low * 1e3), "ms_high": _short(high * 1e3),
                "studies_per_s": _short(batch / middle), "ms_a_study": _short(middle * 1e3 / batch),
                "host_ms": _short(1e3 * host_seconds(every, rates(given), mode)),
                "device_ms_a_study_by_component": {name: _short(ms) for name, ms in alone.items()},
            })  # fmt: skip
    return rows


def kernel_rows(found: dict, gpu: str, given) -> list[dict]:
    """Rows of one GPU."""
    rows = []
    for (op, pass_, shape, dtype), kernels in found.items():
        middle, low, high = spread(lambda at, kernels=kernels: device_total(kernels, at, graph=False), given)
        rows.append({
            "gpu": gpu, "op": op, "pass": pass_, "shape": shape, "dtype": dtype, "us": _short(middle * 1e6),
            "us_low": _short(low * 1e6), "us_high": _short(high * NOT_MODELLED.get(op, 1.0) * 1e6),
            "launches": sum(n * work.launches for work, n in kernels.items()),
        })  # fmt: skip
        cycles = [round(work.cycles) for work in kernels.elements() if work.cycles]
        if cycles:
            rows[-1]["cycles_by_launch"] = cycles
    return rows


def _short(value: float) -> float:
    """Three digits, at which a change is a change."""
    return float(f"{value:.3g}")


def machine_rows(code_of: Compiler) -> dict[str, dict]:
    """By launch: what it was compiled for and its code."""
    rows = {}
    for key, code in sorted(code_of.used.items()):
        launch = code_of.launches[key]
        rows[key] = {**compiled_for(launch), "programs": code.programs, **code.as_dict()}
    return rows


def compiled_for(launch: audit_launches.Launch) -> dict:
    """What a launch's code depends on, whatever the version of Triton."""
    passed = launch.specialisation
    return {
        "kernel": launch.name, "source": audit_launches.source_hash(launch.kernel), "passed": passed["constants"],
        "types": passed["types"], "warps": passed["warps"], "stages": passed["stages"],
    }  # fmt: skip


class Read(Compiler):
    """The code that was read before, for launches of today by any version of Triton; LookupError for another one."""

    def __init__(self, rows: dict[str, dict]):
        super().__init__({})
        self.rows = rows.values()

    def __call__(self, launch: audit_launches.Launch) -> MachineCode:
        wanted = compiled_for(launch)
        for row in self.rows:
            if row.items() >= wanted.items():
                return MachineCode.from_dict({name: row[name] for name in MachineCode.__dataclass_fields__})
        tile = f"{wanted['passed']}, {wanted['warps']} warps, {wanted['stages']} stages"
        raise LookupError(f"{launch.name} is launched otherwise than what was read: {tile}")


def predictions(last: dict) -> dict:
    """The contents of RESULTS; `last`: those that are there."""
    known = {key: {k: v for k, v in row.items() if k in MachineCode.__dataclass_fields__}
             for key, row in last.get("machine_code", {}).items()}  # fmt: skip
    code_of = Compiler(known)
    steps, compiled = steps_work(PRESET, BATCHES, RATIOS, last.get("compiled", {}), code_of)
    kernels = kernel_work(code_of)
    calibration = code_of(tutorial_launch(**CALIBRATION_TILE, arch=ARCH))
    for launch in [launch for launch in code_of.launches.values() if is_forward(launch)]:
        code_of(peer_launch(launch))
    (turn,) = calibration.matrix_loops
    tutorial_cycles = 1000 * turn.serial / (CALIBRATION_TILE["rows"] * CALIBRATION_TILE["cols"])
    contents = {
        "command": COMMAND, "commit": conditions.commit(), "versions": conditions.versions(),
        "tutorial_cycles": tutorial_cycles, "assumptions": {}, "steps": [], "kernels": [], "counted": counted(*CHECKED),
    }  # fmt: skip
    for gpu, given in of_gpus(tutorial_cycles).items():
        contents["assumptions"][gpu] = _as_dict(given)
        contents["steps"] += step_rows(steps, gpu, given)
        contents["kernels"] += kernel_rows(kernels, gpu, given)
    contents["self_distillation"] = dino_rows(of_gpus(tutorial_cycles), kernels, compiled, _short)
    return contents | {"machine_code": machine_rows(code_of), "compiled": compiled}


def of_gpus(tutorial_cycles: float) -> dict[str, Assumptions]:
    """By GPU, as PyTorch names it."""
    return {gpu: assumptions(PEAKS[sheet][0], tutorial_cycles) for gpu, sheet in GPUS.items()}


def _as_dict(given) -> dict:
    return {
        name: {k: _short(v) if isinstance(v, float) else v for k, v in getattr(given, name)._asdict().items()}
        for name in given.__dataclass_fields__
    }


def is_forward(launch: audit_launches.Launch) -> bool:
    """Attention's, of a head with a power of two channels, as the tutorial's kernel wants."""
    return launch.kernel.__name__ == "_attention_fwd" and _head_dim(launch) in (32, 64, 128)


def _head_dim(launch: audit_launches.Launch) -> int:
    return constants(launch)["HEAD"][0]


def peer_launch(launch: audit_launches.Launch) -> audit_launches.Launch:
    """The tutorial's kernel in the tile of a launch of ours."""
    tile, options = constants(launch), launch.options
    return tutorial_launch(
        _head_dim(launch), tile["ROWS"], tile["COLS"], options["num_warps"], options["num_stages"], ARCH
    )


def counted(preset: str, batch: int) -> dict:
    """An eager step's sums: what --check counts anew."""
    step = eager_step(preset, batch, 1.0)
    return {
        "preset": preset, "batch": batch,
        "launches": sum(n * o.launches for part in step for o, n in part.items()),
        "bytes": sum(n * o.n_bytes for part in step for o, n in part.items()),
        "gemm_flops": sum(n * o.flops for part in step for o, n in part.items()),
    }  # fmt: skip


def _name(row: dict) -> tuple[str, ...]:
    return tuple(row[key] for key in ("gpu", "op", "pass", "shape", "dtype"))


def check(contents: dict) -> list[str]:
    """What of the results is not of this tree."""
    wrong = []
    if DOCUMENT.read_text() != document(contents):
        wrong.append(f"{DOCUMENT.relative_to(ROOT)} is not what {RESULTS.relative_to(ROOT)} gives")
    if (now := counted(*CHECKED)) != contents["counted"]:
        wrong.append(f"a step of {CHECKED[0]} was {contents['counted']}, is now {now}")
    given = of_gpus(contents["tutorial_cycles"])
    wrong += [f"other assumptions of {gpu}" for gpu in GPUS if contents["assumptions"][gpu] != _as_dict(given[gpu])]
    try:
        kernels = kernel_work(Read(contents["machine_code"]))
        distilled = dino_rows(given, kernels, contents["compiled"], _short, only_known=True)
    except LookupError as error:
        wrong.append(str(error))
    else:
        now = {_name(row): row for gpu in GPUS for row in kernel_rows(kernels, gpu, given[gpu])}
        was = {_name(row): row for row in contents["kernels"]}
        wrong += [f"another prediction of {' '.join(name)}" for name in now | was if now.get(name) != was.get(name)]
        if contents["self_distillation"] != distilled:
            wrong.append("another prediction of a step of self-distillation")
    return [f"{fault}: run {COMMAND}" for fault in sorted(set(wrong))]


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with what is committed, in seconds")
    args = parser.parse_args()
    last = read_predictions(RESULTS)
    if args.check:
        wrong = check(last)
        print("\n".join(wrong) or "the predictions are those of this tree")
        return 1 if wrong else 0
    contents = predictions(last)
    write_predictions(RESULTS, contents)
    DOCUMENT.write_text(document(contents))
    return 0


if __name__ == "__main__":
    sys.exit(main())
