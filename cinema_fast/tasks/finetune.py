"""`cinema-fast finetune`: supervised training of a task, usually on a pre-trained encoder."""

from functools import partial

from ..train.loop import Outcome, train
from ..train.run_info import read_run_info
from .finetune_config import FinetuneConfig
from .supervised import Supervised, starting_options


def finetune(config: FinetuneConfig) -> Outcome:
    """Fine-tune, or with `config.resume` continue a run that was stopped.

    For files and errors see `loop.train`. OUT/config.yaml also holds the task and the data split, best/ the weights of
    the validation with the best score. After a validation, the line of metrics.jsonl has its figures: `score` (higher
    is better) and the task's own.
    """
    before = read_run_info(config.out) if config.resume else None
    config = starting_options(config, before)
    return train(config, partial(Supervised, config, before))
