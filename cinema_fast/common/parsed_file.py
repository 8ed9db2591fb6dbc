"""Parses JSON and YAML that others wrote: too deeply nested brackets are a ValueError, like any other syntax error."""

import json
from pathlib import Path

from .regular_file import read_regular


def parse_json(text: str | bytes, **options) -> object:
    """`json.loads`. Raises ValueError for anything that it cannot read."""
    try:
        return json.loads(text, **options)
    except RecursionError:
        raise ValueError("not JSON of this program: its brackets are nested too deeply") from None


def read_json(path: Path | str) -> object:
    """The JSON in a regular file. Raises OSError, and ValueError as `parse_json`."""
    return parse_json(read_regular(path))


def parse_yaml(text: str) -> object:
    """`yaml.safe_load`. Raises yaml.YAMLError, and ValueError where brackets are nested too deeply."""
    import yaml

    try:
        return yaml.safe_load(text)
    except RecursionError:
        raise ValueError("not YAML of this program: its brackets are nested too deeply") from None
