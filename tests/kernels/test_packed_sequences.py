"""Runs of packed sequences against their lengths written out."""

import itertools

import pytest
import torch

from cinema_fast.kernels.packed_sequences import Runs

CASES = [((3, 5),), ((2, 5), (3, 2)), ((1, 1), (4, 3), (2, 7)), ((0, 4), (2, 3)), ((2, 3), (0, 4))]


@pytest.mark.parametrize("of", CASES, ids=str)
def test_offsets_and_values_of_rows(of):
    runs, lengths = Runs(of), [length for count, length in of for _ in range(count)]
    offsets = runs.offsets(torch.device("cpu"))
    assert offsets.dtype == torch.int32
    assert offsets.tolist() == [0, *itertools.accumulate(lengths)]
    assert runs.sequences == len(lengths) and sum(runs.rows) == sum(lengths)
    each = torch.arange(2 * len(lengths)).view(-1, 2)
    assert runs.spread(each).tolist() == [[2 * n, 2 * n + 1] for n, length in enumerate(lengths) for _ in range(length)]
    assert runs.shortened(2).offsets(offsets.device).tolist() == list(range(0, 2 * len(lengths) + 1, 2))


def test_the_longest():
    assert Runs(((2, 5), (3, 7), (1, 2))).longest == 7
