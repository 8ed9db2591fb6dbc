"""The whole way in minutes without a GPU: synthetic hearts, a store, pre-training, and a verdict on unseen studies."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from .config import PretrainConfig

TARGET = 0.6  # of the loss of the best predictor that does not look


@dataclass(frozen=True)
class DemoConfig:
    """What the demonstration makes."""

    # folder for the cohort, the store and the run; new or empty
    out: Path
    # synthetic studies; one in eight is held out
    studies: int = 40
    # training steps
    steps: int = 300
    # key of everything random
    seed: int = 0


def demo(config: DemoConfig) -> int:
    """Run it and print both losses and where the pictures are; 0 if the target is met, else 1.

    Raises ValueError where `out` holds anything.
    """
    from ..data.phantom import write_cohort
    from ..data.prepare import PrepareConfig, prepare
    from .pretrain import pretrain

    if config.out.exists() and any(config.out.iterdir()):
        raise ValueError(f"{config.out} is not empty: choose another --out")
    began = time.perf_counter()

    def heading(text: str) -> None:
        print(f"[{time.perf_counter() - began:3.0f} s] {text}", file=sys.stderr, flush=True)

    cohort, store, run = (config.out / name for name in ("cohort", "store", "run"))
    heading(f"{config.studies} synthetic studies into {cohort}")
    write_cohort(cohort, config.studies, config.seed)
    heading(f"prepare the store {store}")
    report = prepare(
        PrepareConfig(
            src=cohort,
            dst=store,
            sax_size=(96, 96, 6),
            lax_size=(128, 128),
            sax_spacing=(2.0, 2.0, 16.0),
            lax_spacing=(2.0, 2.0),
        )
    )
    print(report, file=sys.stderr)
    if report.exit_code:
        return report.exit_code
    heading(f"pre-train into {run}")
    outcome = pretrain(
        PretrainConfig(
            data=store,
            out=run,
            steps=config.steps,
            preset="cinema-demo",
            batch_size=8,
            seed=config.seed,
            holdout=1 / 8,
            warmup=0.1,
            checkpoint_every=100,
            device="auto",
        )
    )
    if outcome.evaluation is None:
        return outcome.exit_code
    heading("done")
    result = outcome.evaluation
    met = result.ratio < TARGET
    print(
        f"{result.studies} studies the model has never seen, 75 % of their patches hidden:\n"
        f"  masked loss of the model                     {result.loss:.5f}\n"
        f"  best predictor that does not look (mean patch) {result.blind_loss:.5f}\n"
        f"  ratio {result.ratio:.3f}, {'below' if met else 'NOT below'} the target of {TARGET}\n"
        f"pictures: {run / 'report' / 'reconstruction.png'}, {run / 'report' / 'loss.png'}"
    )
    return 0 if met else 1
