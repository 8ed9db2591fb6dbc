"""Out-of-memory errors: one line with the amount requested and the options to change, instead of a traceback."""

import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .options import RunOptions
from .setup import pick_device, pick_precision

_WORDS = ("out of memory", "annot allocate memory", "can't allocate memory", "not enough memory")
_ASKED = re.compile(r"(?:tried|unable) to allocate ([\d.]+) (bytes|[KMGTPE]iB)", re.IGNORECASE)


class OutOfMemory(ValueError):
    """A run does not fit into memory; the message says which options would."""


def ran_out(error: BaseException) -> bool:
    """Whether an error is a failed allocation of the host or a device, from any library."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return not isinstance(error, ValueError) and any(words in str(error) for words in _WORDS)


@contextmanager
def memory_advice(
    config: RunOptions,
    *,
    model: str | None = None,
    recomputes: bool = True,
    smaller: str = "with a smaller --preset, or --parallel fsdp on more GPUs",
) -> Iterator[None]:
    """Raise OutOfMemory, with the amount requested and the options to change, where memory runs out in the block.

    Args:
        model: description of the model; None: the preset. recomputes: whether it supports --recompute. smaller: how
            another run would need less memory.
    """
    try:
        yield
    except Exception as error:
        if not ran_out(error):
            raise
        device = pick_device(config.device)
        precision = pick_precision(config.precision, device)
        advice = _advice(config, precision, recomputes=recomputes) or f"Another run (--out) needs less: {smaller}"
        raise OutOfMemory(
            f"out of memory on the {device.type}: {_asked(error)}{_used(device)}, in training "
            f"{model or config.preset} with --batch-size {config.batch_size} --accumulate {config.accumulate} --mode "
            f"{config.mode} --recompute {config.recompute} in {str(precision)[6:]}. {advice}"
        ) from error


def _asked(error: BaseException) -> str:
    found = _ASKED.search(str(error))
    if not found:
        return ""
    amount = f"{float(found[1]) / 2**30:.2f} GiB" if found[2] == "bytes" else f"{found[1]} {found[2]}"
    return f"{amount} more was requested; "


def _used(device: torch.device) -> str:
    if device.type == "cuda":
        most, total = torch.cuda.max_memory_allocated(device), torch.cuda.get_device_properties(device).total_memory
        return f"peak use was {most / 2**30:.2f} of {total / 2**30:.2f} GiB"
    return f"peak use of this process was {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB"


def _advice(config: RunOptions, precision: torch.dtype, *, recomputes: bool) -> str:
    """Options with which the run can continue in less memory; empty where there are none."""
    size, same = config.batch_size, []
    if size > 1 and recomputes:  # the baselines normalise over the studies of a batch
        parts = next(n for n in range(2, size + 1) if size % n == 0)
        same.append(f"--batch-size {size // parts} --accumulate {config.accumulate * parts}")
    if recomputes and config.recompute != "full":
        same.append("--recompute full")
    if precision == torch.float32:
        same.append("--precision bf16")
    if not same:
        return ""
    return f"To continue with less memory (results equal up to rounding), add --resume and {', or '.join(same)}"
