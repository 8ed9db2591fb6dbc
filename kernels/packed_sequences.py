"""Sequences packed one after another in the rows of a tensor: offsets (B + 1,) int32 from 0 to the number of rows."""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor


class Runs(NamedTuple):
    """Packed sequences of lengths that the host knows: ((count, length), ...), `count` sequences of `length` rows."""

    of: tuple[tuple[int, int], ...]

    @property
    def sequences(self) -> int:
        """All sequences."""
        return sum(count for count, _ in self.of)

    @property
    def longest(self) -> int:
        """Rows of the longest sequence."""
        return max(length for _, length in self.of)

    @property
    def rows(self) -> list[int]:
        """Rows of each run."""
        return [count * length for count, length in self.of]

    def offsets(self, device: torch.device) -> Tensor:
        """(sequences + 1,) int32: where each sequence starts, and the number of all rows."""
        parts, start = [], 0
        for number, (count, length) in enumerate(self.of):
            last = number == len(self.of) - 1
            end = start + count * length
            parts.append(torch.arange(start, end + last, length, dtype=torch.int32, device=device))
            start = end
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def spread(self, each: Tensor) -> Tensor:
        """(sequences, ...), a value for each sequence -> (all rows, ...), a value for each row."""
        parts = each.split([count for count, _ in self.of])
        return torch.cat([part.repeat_interleave(length, 0) for part, (_, length) in zip(parts, self.of)])

    def shortened(self, length: int) -> "Runs":
        """As many sequences of `length` rows, in the same runs."""
        return Runs(tuple((count, length) for count, _ in self.of))


def is_uniform(offsets: Tensor, longest: int, n_rows: int) -> bool:
    """Whether sequences of at most `longest` rows must all be that long to make up `n_rows`."""
    return longest * (len(offsets) - 1) == n_rows


def sequence_lengths(offsets: Tensor, longest: int, n_rows: int) -> list[int]:
    """Rows of each sequence; `offsets` are read back from the device only where not all sequences are `longest`."""
    if is_uniform(offsets, longest, n_rows):
        return [longest] * (len(offsets) - 1)
    return offsets.diff().tolist()


def longest_sequence(what: str, offsets: Tensor, longest: int | None, n_rows: int) -> int:
    """A bound on the sequences' lengths: `longest`, or where it is None the length of the longest sequence.

    Offsets are read and checked. With a given `longest` they are trusted on a GPU, where the host would have to wait
    for them, and in compiled code.

    Raises:
        ValueError: offsets that do not rise from 0 to n_rows; sequences longer than `longest`.
    """
    batch = len(offsets) - 1
    if longest is not None:
        if longest * batch < n_rows:
            raise ValueError(f"{what}: {batch} sequences of at most {longest} rows cannot hold {n_rows} rows")
        if offsets.is_cuda or torch.compiler.is_compiling():
            return longest
    starts = offsets.tolist()
    if starts[0] != 0 or starts[-1] != n_rows or sorted(starts) != starts:
        raise ValueError(f"{what} must rise from 0 to {n_rows} (the rows), got {starts}")
    found = max(end - start for start, end in pairwise(starts))
    if longest is not None and found > longest:
        raise ValueError(f"{what}: a sequence has {found} rows, more than the {longest} that were given as the most")
    return found if longest is None else longest


def check_packed(what: str, q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor) -> None:
    """Raises ValueError unless q is (Tq, H, D), k and v (Tk, H, D) of q's floating dtype, cu_q and cu_k (B + 1,) int32
    with B >= 1, D a multiple of 8, and all are on one device."""
    tensors = {"q": q, "k": k, "v": v, "cu_q": cu_q, "cu_k": cu_k}

    def got(of) -> str:
        return ", ".join(f"{name} {of(x)}" for name, x in tensors.items())

    if q.ndim != 3 or k.ndim != 3 or k.shape != v.shape or q.shape[1:] != k.shape[1:]:
        raise ValueError(f"{what}: expected q (Tq, H, D) and k, v (Tk, H, D), got {got(lambda x: tuple(x.shape))}")
    if q.shape[2] % 8 or not q.shape[2]:
        raise ValueError(f"{what}: the head dim must be a multiple of 8, got {q.shape[2]} (q {tuple(q.shape)})")
    if cu_q.ndim != 1 or cu_q.shape != cu_k.shape or len(cu_q) < 2:
        raise ValueError(f"{what}: expected cu_q and cu_k (B + 1,), B >= 1, got {got(lambda x: tuple(x.shape))}")
    if not (q.is_floating_point() and q.dtype == k.dtype == v.dtype and cu_q.dtype == cu_k.dtype == torch.int32):
        raise ValueError(
            f"{what}: expected q, k, v of one floating dtype and cu_q, cu_k in int32, "
            f"got {got(lambda x: str(x.dtype)[6:])}"
        )
    if any(x.device != q.device for x in tensors.values()):
        raise ValueError(f"{what}: all tensors must be on one device, got {got(lambda x: x.device)}")
