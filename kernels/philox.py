"""Philox4x32-10: a random word as a pure function of a key and a counter.

All random numbers of this project come from here. Which mask, frame or zoom a sample gets therefore depends only on
(seed, sample, step, stream), and not on a generator's state, on the rest of its batch, or on the rank that draws it.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011 (rounds, constants, known answers).
"""

import numpy as np

WORD = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10


def _mul_hi_lo(constant: int, x):
    """High and low words of constant * x. The product is below 2**64; int64 may wrap, but its bits are right."""
    product = x * constant
    return (product >> 32) & WORD, product & WORD


def philox4x32(seed: int, c0, c1, c2, c3):
    """Four random words for each counter.

    Args:
        seed: 64-bit key: an int, taken modulo 2**64, or an int64 array, whose bits are used.
        c0, c1, c2, c3: the counter's words, int64 torch tensors, int64 numpy arrays or ints that broadcast against
            one another (at least one an array); taken modulo 2**32.

    Returns:
        Four arrays of the broadcast shape and c0..c3's kind, int64, in [0, 2**32).
    """
    k0, k1 = seed & WORD, (seed >> 32) & WORD
    c0, c1, c2, c3 = c0 & WORD, c1 & WORD, c2 & WORD, c3 & WORD
    for _ in range(ROUNDS):
        hi0, lo0 = _mul_hi_lo(MULTIPLIERS[0], c0)
        hi1, lo1 = _mul_hi_lo(MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0, k1 = (k0 + WEYL[0]) & WORD, (k1 + WEYL[1]) & WORD
    return c0, c1, c2, c3


def philox_numpy(seed: int, c0, c1=0, c2=0, c3=0) -> np.ndarray:
    """`philox4x32` on numpy integers: (4, *broadcast shape) uint32."""
    with np.errstate(over="ignore"):  # numpy warns where scalars wrap
        words = philox4x32(seed, *np.broadcast_arrays(*(np.asarray(c, dtype=np.int64) for c in (c0, c1, c2, c3))))
    return np.stack(words).astype(np.uint32)
