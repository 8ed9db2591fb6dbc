"""`cinema-fast finetune`: learning a task from labelled studies, by default on a pre-trained encoder."""

from functools import partial

from ..train.loop import Outcome, train
from ..train.run_info import read_run_info
from .finetune_config import FinetuneConfig
from .supervised import Supervised, starting_options


def finetune(config: FinetuneConfig) -> Outcome:
    """Fine-tune, or with `config.resume` go on with a run that was stopped.

    What is written, and errors: `loop.train`. OUT/config.yaml has the task and the split too, best/ the weights of the
    validation with the best score; where a validation was made a line of metrics.jsonl has its figures: `score` (higher
    is better) and the task's own.
    """
    before = read_run_info(config.out) if config.resume else None
    config = starting_options(config, before)
    return train(config, partial(Supervised, config, before))
