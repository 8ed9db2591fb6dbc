"""A part of the studies, which one of many jobs prepares."""

import re
from typing import NamedTuple

from ...common.shares import digest


class Shard(NamedTuple):
    """Part `k` of `n`, counted from 1."""

    k: int
    n: int

    def __str__(self) -> str:
        return f"{self.k}/{self.n}"

    @property
    def name(self) -> str:
        """Prefix of its files in STORE/.shards."""
        return f"{self.k}-of-{self.n}"

    def holds(self, study: str) -> bool:
        """Whether a study belongs to this part; the same on every machine."""
        return int.from_bytes(digest(study)[:8]) % self.n == self.k - 1


def parse_shard(text: str) -> Shard:
    """The Shard of "k/n". Raises ValueError."""
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise ValueError(f"shard is {text!r}, expected k/n with k from 1 to n, for instance 3/16")
    return Shard(int(match[1]), int(match[2]))
