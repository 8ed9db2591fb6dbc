"""Renamed options: the command line accepts an old name for one version; in older runs old names are always read."""

from collections.abc import Mapping, Sequence
from typing import Any

from .checks import flag

UNTIL = "0.2"  # from this version on the command line refuses the old names
_OF_RUNS = {"clip": "clip_grad", "keep": "keep_checkpoints"}
RENAMED: Mapping[str, Mapping[str, str]] = {  # {command: {old name: new name}}
    "prepare": {"check": "repair"},
    "pretrain": _OF_RUNS,
    "finetune": _OF_RUNS | {"blank": "cutout", "frozen": "freeze", "weights": "loss_weights"},
    "evaluate": {"about": "study_table"},
    "cluster": {"most": "max_clusters"},
}


def current_arguments(command: str, arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """A command's arguments with the new names, and a warning for each old one."""
    flags = {flag(old): flag(new) for old, new in RENAMED.get(command, {}).items()}
    current, warnings = [], []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name in flags:
            warnings.append(f"{name} is now {flags[name]}; the old name works until version {UNTIL}")
        current.append(flags.get(name, name) + equals + value)
    return current, warnings


def current_options(command: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that an older run saved, under the new names."""
    names = RENAMED.get(command, {})
    return {names.get(name, name): value for name, value in options.items()}
