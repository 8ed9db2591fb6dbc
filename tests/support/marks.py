"""Marks of single parameters."""

import pytest


def slow(*values):
    """The values of one case of `parametrize`, which only `make test-all` runs."""
    return pytest.param(*values, marks=pytest.mark.slow)
