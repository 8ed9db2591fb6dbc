"""`cinema-fast pretrain`: self-supervised pre-training from a cine store."""

from functools import partial

from ..train.loop import Outcome, train
from .pretrain_config import PretrainConfig
from .registry import make_method


def pretrain(config: PretrainConfig) -> Outcome:
    """Pre-train by the method of the preset, or with `config.resume` continue a run that was stopped.

    For files and errors see `loop.train`. Where motion guides the masks, lines of metrics.jsonl also have `guidance`:
    the share of the time spent on their weights (not where a step is one graph). For lines of self-distillation see
    `SelfDistillation.figures`. At the end report/ is written: held-out studies are evaluated, by masked autoencoders on
    the views that some training study has; other views are named before the first step. Studies that cannot be read are
    left out and named; with `config.strict` they end the run. Any other error in the evaluation or the pictures is
    logged, and the run counts as finished.
    """
    return train(config, partial(make_method, config))
