"""Marks of tests that cost more than they find beside the others."""

import pytest
from machine import INTERPRET


def slow(*values):
    """The values of one case of `parametrize`, which only `make test-all` runs."""
    return pytest.param(*values, marks=pytest.mark.slow)


def slow_in_interpreter(test):
    """Only `make test-all` runs this test in Triton's interpreter, which takes a second or more a launch."""
    return pytest.mark.slow(test) if INTERPRET else test


def in_full(values):
    """All cases of `parametrize`; of those in Triton's interpreter `make test` runs the first alone."""
    rest = values[1:]
    if INTERPRET:
        rest = [slow(*value) if type(value) is tuple else slow(value) for value in rest]
    return [values[0], *rest]
