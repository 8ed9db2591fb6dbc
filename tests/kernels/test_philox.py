"""Philox4x32-10 against published known answers and against the paper's rounds in unbounded integers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cinema_fast.kernels.philox import philox4x32, philox_numpy

# counter, key, answer: the known-answer vectors of Random123 for philox4x32 with 10 rounds
KNOWN = {
    "zeros": ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    "ones": ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    "pi": (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
}
WORD = st.integers(0, 2**32 - 1)


def paper_rounds(key, counter):
    k, c = list(key), list(counter)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 % 2**32, (p0 >> 32) ^ c[3] ^ k[1], p0 % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


@pytest.mark.parametrize("name", KNOWN)
def test_known_answers(name):
    counter, key, answer = KNOWN[name]
    seed = key[0] | key[1] << 32
    words = philox4x32(seed, *(torch.tensor([c]) for c in counter))
    assert [int(w) for w in words] == list(answer)
    assert all(w.dtype == torch.int64 for w in words)
    words = philox_numpy(seed, *counter)
    assert words.dtype == np.uint32 and words.tolist() == list(answer)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(key=st.tuples(WORD, WORD), counter=st.tuples(WORD, WORD, WORD, WORD))
def test_torch_and_numpy_follow_the_paper(key, counter):
    seed, expected = key[0] | key[1] << 32, paper_rounds(key, counter)
    assert [int(w) for w in philox4x32(seed, *map(torch.tensor, counter))] == expected
    assert philox_numpy(seed, *counter).tolist() == expected


def test_counters_broadcast_and_numpy_equals_torch():
    tokens, samples = np.arange(7).reshape(1, 7), np.arange(3).reshape(3, 1)
    words = philox_numpy(99, tokens, samples, 5, 6)
    assert words.shape == (4, 3, 7)
    same = philox4x32(99, torch.from_numpy(tokens), torch.from_numpy(samples), 5, 6)
    assert np.array_equal(np.stack([w.numpy() for w in same]), words)
    for sample, token in ((0, 0), (2, 6)):
        assert words[:, sample, token].tolist() == paper_rounds((99, 0), (token, sample, 5, 6))


def test_seed_and_counters_wrap_as_unsigned_words():
    base = philox_numpy(7, 1, 2, 3, 4)
    assert np.array_equal(philox_numpy(7 + 2**64, 1 + 2**32, 2, 3, 4), base)
    assert philox_numpy(-1, -1, -1, -1, -1).tolist() == list(KNOWN["ones"][2])
    assert not np.array_equal(philox_numpy(7 + 2**32, 1, 2, 3, 4), base)
