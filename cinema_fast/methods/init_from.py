"""The run of pre-training whose weights another one starts from."""

from pathlib import Path

from ..train.run_info import RunInfo, read_run_info


def run_to_start_from(folder: Path, preset: str) -> RunInfo:
    """The RunInfo of the run in a folder. Raises ValueError where there is none, or one that is not of pre-training or
    of another preset."""
    info = read_run_info(folder)
    if info is None:
        raise ValueError(f"--init-from {folder}: no run in this folder (no config.yaml)")
    if info.labels:
        raise ValueError(f"--init-from {folder}: a run of finetune, whose weights have no teacher and no decoder; "
                         "expected a run of pretrain")  # fmt: skip
    if (its := info.options["preset"]) != preset:
        raise ValueError(f"--init-from {folder}: a run of --preset {its}, but this run is of {preset}: give "
                         f"--preset {its}, or start from another run")  # fmt: skip
    return info
