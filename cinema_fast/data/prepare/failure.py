"""Files and studies that could not be prepared, and the lines that report them."""

from dataclasses import dataclass
from pathlib import Path

from ...common.naming import named


@dataclass(frozen=True, slots=True)
class Failure:
    """One file that could not be prepared, or a whole study where `view` is None."""

    study: str
    view: str | None
    file: str
    reason: str


def failure_lines(failures: list[Failure], listed_in: str) -> list[str]:
    """A line for each failure. Lines of a table share one; files without a known view share one per study, or per
    folder where the study is not known. It refers to `listed_in`, the file that lists them all."""
    groups: dict[tuple, list[Failure]] = {}
    for n, failure in enumerate(failures):
        whose = f"study {failure.study}" if failure.study else f"folder {Path(failure.file).parent.as_posix()}"
        if failure.file.endswith(".csv"):
            whose = failure.file
        groups.setdefault((n,) if failure.view else (whose,), []).append(failure)
    lines = []
    for (whose, *_), (first, *others) in groups.items():
        reason = first.reason
        if others and whose == first.file:
            reasons = [failure.reason for failure in (first, *others)]
            lines.append(f"failed: {whose}: {len(reasons)} faults: {named(reasons, '; ')} (all in {listed_in})")
            continue
        if others:
            kinds: dict[str, list[str]] = {}  # reasons that differ only in numbers or bracketed names are one kind
            for failure in (first, *others):
                kinds.setdefault(failure.reason.split(" (")[0], []).append(failure.reason)
            if len(kinds) > 1:
                most = sorted(kinds.values(), key=len, reverse=True)
                reason = "; ".join([f"{len(kind)} {kind[0]}" for kind in most[:3]] + ["..."] * (len(most) > 3))
            reason = f"and {len(others)} more files of {whose}: {reason} (all in {listed_in})"
        lines.append(f"failed: {first.file}{' ' if others else ': '}{reason}")
    return lines
