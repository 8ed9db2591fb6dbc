"""Shares of studies by their names alone: the same for every seed, on every machine."""

from collections.abc import Iterable
from hashlib import sha256


def digest(name: str) -> bytes:
    """SHA-256 of a name, whose bytes need not be text."""
    return sha256(name.encode("utf-8", "surrogateescape")).digest()


def cut(studies: Iterable[str], *shares: float) -> tuple[list[str], ...]:
    """The studies in the order of their digests: a part for each share, and what is left.

    At least one study is in a part whose share is above 0, as long as there are any left.
    """
    left, parts = sorted(studies, key=digest), []
    counts = [max(round(share * len(left)), 1) if share else 0 for share in shares]
    for count in counts:
        parts.append(left[:count])
        left = left[count:]
    return *parts, left
