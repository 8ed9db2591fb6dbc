"""The whole pipeline in minutes without a GPU: synthetic hearts, a store, pre-training, held-out evaluation."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from .common.checks import check_at_least
from .common.naming import counted
from .methods.pretrain_config import PretrainConfig
from .models.config import preset

PRESET = "cinema-demo"
PIXEL_MM = 2.0  # images of 64 mm: the left ventricle and its surroundings
TARGET = 0.6  # target ratio of the model's loss to that of the baseline (mean patch)


@dataclass(frozen=True)
class DemoConfig:
    """Options of the demonstration."""

    # folder for the cohort, the store and the run, new or empty
    out: Path
    # number of synthetic studies; one in eight is held out
    studies: int = 160
    # training steps
    steps: int = 2000
    # random seed
    seed: int = 0

    def __post_init__(self):
        for name, least in (("studies", 2), ("steps", 1), ("seed", 0)):
            check_at_least(self, least, name)


def demo(config: DemoConfig) -> int:
    """Run the demonstration; print both losses and the paths of the pictures. Returns 0 if the target is met, else 1.

    Raises ValueError where `out` is a file or not empty.
    """
    import torch

    from .data.prepare.prepare import PrepareConfig, prepare
    from .methods.pretrain import pretrain
    from .phantom.cohort import write_cohort

    if config.out.exists() and (not config.out.is_dir() or any(config.out.iterdir())):
        raise ValueError(f"{config.out} is a file or not empty: choose another --out")
    model_config = preset(PRESET)
    began = time.perf_counter()

    def heading(text: str) -> None:
        print(f"[{time.perf_counter() - began:3.0f} s] {text}", file=sys.stderr, flush=True)

    cohort, store, run = (config.out / name for name in ("cohort", "store", "run"))
    heading(f"{config.studies} synthetic studies into {cohort}")
    small = {"in_plane_mm": 3.0, "n_frames": 12, "n_slices": 8}
    write_cohort(cohort, config.studies, config.seed, workers=2, progress=True, **small)
    heading(f"prepare the store {store}")
    report = prepare(
        PrepareConfig(
            src=cohort,
            dst=store,
            sax_size=model_config.image_size["sax"],
            lax_size=model_config.image_size["lax_2c"],
            sax_spacing=(PIXEL_MM, PIXEL_MM, 10.0),
            lax_spacing=(PIXEL_MM, PIXEL_MM),
        )
    )
    print(report, file=sys.stderr)
    if report.exit_code:
        return report.exit_code
    heading(f"pre-train into {run}")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a step of small operations takes 60 ms on one thread, 110 ms on two
    outcome = pretrain(
        PretrainConfig(
            data=store,
            out=run,
            steps=config.steps,
            preset=PRESET,
            batch_size=8,
            seed=config.seed,
            holdout=1 / 8,
            lr=4e-3,
            weight_decay=0.01,
            warmup=0.05,
            log_every=100,
            precision="fp32",
            device="auto",
        )
    )
    torch.set_num_threads(threads)
    if outcome.evaluation is None:
        return outcome.exit_code or 1
    heading("done")
    result = outcome.evaluation
    met = result.ratio < TARGET
    better = "" if met else "; give more --steps"
    print(
        f"{counted(result.studies, 'held-out study', 'held-out studies')}, 75 % of the patches masked:\n"
        f"  masked loss of the model                  {result.loss:.5f}\n"
        f"  masked loss of the baseline (mean patch)  {result.baseline_loss:.5f}\n"
        f"  ratio {result.ratio:.3f}, {'below' if met else 'NOT below'} the target of {TARGET}{better}\n"
        f"pictures: {run / 'report' / 'reconstruction.png'}, {run / 'report' / 'loss.png'}"
    )
    return 0 if met else 1
