"""Options are checked by one rule: an error names the option as the command line spells it, and what was given."""

import math
from dataclasses import dataclass

import pytest

from cinema_fast.common.checks import check, check_at_least, check_seeds


@dataclass
class Options:
    batch_size: int = 1
    max_skips: int = 0
    seed: int = 0
    dropout: float = 0.0
    shots: int | None = None


def checked(**given) -> None:
    options = Options(**given)
    check_at_least(options, 1, "batch_size", "shots")
    check_at_least(options, 0, "max_skips")
    check_seeds(options, "seed", bits=32)
    check(options, "dropout", valid=lambda x: 0 <= x < 1, must="is a share, at least 0 and below 1", prefix="model.")


def test_what_is_in_range_and_what_is_not_given_pass():
    checked()
    checked(batch_size=1, max_skips=0, seed=2**32 - 1, dropout=0.99, shots=1)


@pytest.mark.parametrize(("given", "message"), [
    ({"batch_size": 0}, "--batch-size must be at least 1, got 0"),
    ({"shots": 0}, "--shots must be at least 1, got 0"),
    ({"max_skips": -1}, "--max-skips must not be negative, got -1"),
    ({"seed": 2**32}, "--seed must lie in 0..2**32 - 1, got 4294967296"),
    ({"seed": -1}, "--seed must lie in 0..2**32 - 1, got -1"),
    ({"dropout": 1.0}, "--model.dropout is a share, at least 0 and below 1, got 1.0"),
    ({"dropout": math.nan}, "--model.dropout is a share, at least 0 and below 1, got nan"),
])  # fmt: skip
def test_the_error_names_the_option_and_the_value(given, message):
    with pytest.raises(ValueError) as caught:
        checked(**given)
    assert str(caught.value) == message
