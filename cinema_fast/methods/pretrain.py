"""`cinema-fast pretrain`: self-supervised pre-training from a cine store."""

from functools import partial

from ..train.loop import Outcome, train
from .pretrain_config import PretrainConfig
from .registry import make_method


def pretrain(config: PretrainConfig) -> Outcome:
    """Pre-train by the method of the preset, or with `config.resume` go on with a run that was stopped.

    What is written, and errors: `loop.train`. Where motion guides the masks, a line of metrics.jsonl has `guidance` too
    (share of the time that went into their weights; not where a step is one graph), and report/ is written at the end:
    held-out studies are evaluated on the views that some training study has (views only they have are named before the
    first step). Studies that cannot be read are left out and named, with `config.strict` they end the run; whatever
    else keeps a finished run from its evaluation or pictures is logged, and the run counts as finished.
    """
    return train(config, partial(make_method, config))
