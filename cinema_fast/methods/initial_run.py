"""The weights of another run of pre-training, from which --init-from starts."""

from torch import Tensor

from ..data.store.orientation import Orientation, orientation_remarks
from ..train.checkpoint import newest_weights
from ..train.ranks import Ranks
from ..train.run_info import read_run_info
from .pretrain_config import PretrainConfig


def initial_run(
    options: PretrainConfig, orientation: Orientation, ranks: Ranks
) -> tuple[dict[str, Tensor], str, list[str]]:
    """The newest weights of the run in the folder --init-from, their description, and remarks about them.

    orientation: of this run's store. Raises ValueError where the folder has no run of `pretrain` of this preset, and as
    `newest_weights`.
    """
    start, size, remarks = options.init_from, options.preset, []
    info = read_run_info(start)
    if info is None:
        raise ValueError(f"--init-from {start}: no run in this folder (no config.yaml)")
    if info.labels:
        raise ValueError(f"--init-from {start}: a run of finetune, whose weights are not those of "
                         "pre-training; expected a run of pretrain")  # fmt: skip
    if (its := info.options["preset"]) != size:
        raise ValueError(f"--init-from {start}: a run of --preset {its}, but this run is of {size}: give "
                         f"--preset {its}, or start from another run")  # fmt: skip
    weights, name = newest_weights(start, remarks.append, ranks)
    return weights, name, remarks + orientation_remarks(start, info.store.orientation, orientation)
