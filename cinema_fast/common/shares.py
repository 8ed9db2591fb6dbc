"""Splits studies by the SHA-256 of their names alone: the same for every seed, on every machine."""

from collections.abc import Iterable
from hashlib import sha256


def digest(name: str) -> bytes:
    """SHA-256 of a name; its bytes need not be valid text."""
    return sha256(name.encode("utf-8", "surrogateescape")).digest()


def cut(studies: Iterable[str], *shares: float) -> tuple[list[str], ...]:
    """Cut the studies, in the order of their digests, into a part for each share, and the rest.

    A part whose share is above 0 has at least one study, as long as there are any. Both the studies held out of
    pre-training and the data split of fine-tuning follow this rule, so equal shares give the same studies.
    """
    rest, parts = sorted(studies, key=digest), []
    counts = [max(round(share * len(rest)), 1) if share else 0 for share in shares]
    for count in counts:
        parts.append(rest[:count])
        rest = rest[count:]
    return *parts, rest
