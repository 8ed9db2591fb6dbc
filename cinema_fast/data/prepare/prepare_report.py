"""The report of `prepare`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from ...common.naming import count_studies, counted
from ..store.orientation import AS_STORED_STORE, remark_lines
from .failure import Failure, failure_lines
from .shards import Shard
from .sources import series_lines, unmatched_line

MOST_CUT = 6  # at most this many views whose labels are cut off by the crop are named


@dataclass(slots=True)
class PrepareReport:
    """The result of `prepare`.

    prepared, unchanged: numbers of studies. n_studies: studies now in the store; for a shard, in its part. files:
    (studies, files) of NIfTI by (view, its spelling in file names). unmatched_files: NIfTI files that do not match the
    pattern. series: numbers of DICOM series by (description, view or None, why left out). labelled: studies of the
    store with label maps; None where none were requested. cut: (share of the labelled volume, study, view) of maps that
    the crop cuts, largest first. remarks: on headers, each with its cines as "study view". as_stored: the store's
    images keep the axes of their files. tables: a line on the table and the split of a public data set. motion_maps:
    number computed; None where none were requested. without_motion: studies that lack a motion map, in a store that has
    some.
    """

    prepared: int = 0
    unchanged: int = 0
    n_studies: int = 0
    files: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)
    unmatched_files: list[str] = field(default_factory=list)
    series: Counter[tuple[str, str | None, str]] = field(default_factory=Counter)
    shard: Shard | None = None
    labelled: int | None = None
    cut: list[tuple[float, str, str]] = field(default_factory=list)
    remarks: dict[str, list[str]] = field(default_factory=dict)
    as_stored: bool = False
    tables: str = ""
    motion_maps: int | None = None
    without_motion: int = 0
    failures: list[Failure] = field(default_factory=list)

    @property
    def unmatched(self) -> int:
        """Number of NIfTI files that do not match the pattern."""
        return len(self.unmatched_files)

    @property
    def exit_code(self) -> int:
        """0: everything was prepared; 1: something failed, the rest was prepared; 3: nothing was prepared.

        A shard without any study (more shards than studies) has prepared everything.
        """
        if not self.prepared + self.unchanged and (self.failures or not self.shard):
            return 3
        return 1 if self.failures else 0

    def __str__(self) -> str:
        failures = counted(len(self.failures), "failure")
        lines = [f"{count_studies(self.prepared)} prepared, {self.unchanged} unchanged, {failures}; "
                 f"the store holds {count_studies(self.n_studies)}" + (f" of shard {self.shard}" if self.shard else "")]
        if self.labelled is not None:
            lines[0] += f", {self.labelled or 'none'} of them labelled"
        if self.motion_maps is not None:
            lines[0] += f"; {counted(self.motion_maps, 'motion map')} made"
        if self.cut:
            most = [f"{study} {view} {100 * share:.3g} %" for share, study, view in self.cut[:MOST_CUT]]
            more = ["..."] * (len(self.cut) > MOST_CUT)
            lines.append(f"labels are cut off by the crop in {count_studies(len({study for _, study, _ in self.cut}))} "
                         f"(share of the labelled volume lost: {', '.join(most + more)}). "
                         "To keep them, prepare with a larger --sax-size or --lax-size")
        lines += [self.tables] * bool(self.tables) + remark_lines(self.remarks)
        if self.as_stored:
            lines.append(AS_STORED_STORE)
        if self.without_motion:
            lines.append(f"{count_studies(self.without_motion)} without a motion map of every view: give the same "
                         "command with --motion to add them")
        lines += [f"{view}: {counted(n_files, 'file')} from {count_studies(n)} (in file names: {spelling!r})"
                  for (view, spelling), (n, n_files) in sorted(self.files.items())]
        lines += series_lines(self.series)
        if self.unmatched_files:
            lines.append(unmatched_line(self.unmatched_files))
        if self.shard:
            lines.append("when all shards have ended, --merge instead of --shard writes the index")
        return "\n".join(lines + failure_lines(self.failures, "failures.jsonl"))
