"""What a report of a GPU run holds: the rows, and the file that is written anew after each of them."""

import dataclasses
import hashlib
import math
import re
from dataclasses import dataclass, field
from pathlib import Path

import conditions
from checkout import PACKAGES, ROOT


@dataclass
class KernelRow:
    """One pass of one operation at one shape, beside the fastest peer.

    us: median; limit_us: the larger of bytes over bandwidth and FLOPs over peak; rel_err: ||out - ref|| / ||ref||
    against float64, err_budget: what is allowed of it; kernel_sha: of the operation's source files, as they ran; per_s:
    units that it works off a second, where the operation counts any.
    """

    op: str
    pass_: str  # "pass" in the file: "fwd", "bwd", "fwd+bwd"
    shape: str
    dtype: str
    us: float
    limit_us: float
    percent_of_limit: float
    peer: str | None
    peer_us: float | None
    speedup: float | None
    rel_err: float
    err_budget: float
    kernel_sha: str
    per_s: float | None = None
    unit: str | None = None

    @property
    def name(self) -> str:
        """Names the row in `failed` and `unreached`."""
        return f"kernel {self.op} {self.pass_} {self.shape} {self.dtype} against {self.peer}"


@dataclass
class StepRow:
    """One way of running a whole training step, beside a peer timed in the same rounds.

    ms: median; studies_per_s and mfu follow from it; peak_mib: most device memory that this way alone holds during a
    step (weights, gradients, optimiser, activations); speedup: median of the rounds' ratios. None: not measurable here.
    """

    preset: str
    batch: int
    dtype: str
    mode: str
    decode_ratio: float
    ms: float
    studies_per_s: float
    mfu: float | None
    peak_mib: float | None
    peer: str | None
    peer_ms: float | None
    speedup: float | None

    @property
    def name(self) -> str:
        """Names the row in `failed` and `unreached`."""
        return step_name(self.preset, self.batch, self.dtype, self.mode, self.decode_ratio, self.peer)


@dataclass
class WaterfallRow:
    """One rung of the ladder from the reference as published to the fastest step; each adds one technique.

    ms: median of a training step; peak_mib: most device memory of a step; loss: mean over the last tenth of the same
    steps on the same data under the same masks; times_faster: than the rung before (None: the first).
    """

    technique: str
    preset: str
    batch: int
    dtype: str
    steps: int
    ms: float
    peak_mib: float | None
    loss: float
    times_faster: float | None

    @property
    def name(self) -> str:
        """Names the row in `failed` and `unreached`."""
        return f"waterfall {self.technique}"


@dataclass
class BreakdownRow:
    """What a component takes of a training step on the device, a study; budget_ms: what it should (None: no limit set).

    The components of a step add up to what its kernels take; what a step takes beyond that, the device idles.
    """

    component: str
    preset: str
    batch: int
    ms: float
    share: float
    budget_ms: float | None

    @property
    def name(self) -> str:
        """Names the row in `failed` and `unreached`."""
        return f"breakdown {self.component}"


@dataclass
class DataRow:
    """A loader from a store to the device, alone, its files in the system's cache.

    workers: threads or processes that read; cores: of the CPU, that they and all else may use. augmentation_ms: of a
    batch, on the device, which takes it from the step; transfer_ms: of a batch from page-locked memory, which a step
    overlaps with (None: nothing to transfer). times_step: studies/s over those of the fastest training step of that
    preset in the same report (None: it has none).
    """

    loader: str
    preset: str
    batch: int
    workers: int
    cores: int
    studies_per_s: float
    augmentation_ms: float
    transfer_ms: float | None
    times_step: float | None = None

    @property
    def name(self) -> str:
        """Names the row in `failed` and `unreached`."""
        return f"data {self.loader}"


def step_name(preset: str, batch: int, dtype: str, mode: str, decode_ratio: float, peer: str | None) -> str:
    """The name of a step's row, known before it is measured."""
    against = f" against {peer}" if peer else ""
    return f"step {preset} batch {batch} {dtype} {mode}, decode ratio {decode_ratio:g}{against}"


Row = KernelRow | StepRow | WaterfallRow | BreakdownRow | DataRow
SECTION_OF = {
    KernelRow: "kernels", StepRow: "step", WaterfallRow: "waterfall", BreakdownRow: "breakdown", DataRow: "data",
}  # fmt: skip


def kernel_sha(op: str) -> str:
    """SHA-256 of kernels/<op>.py, of the files there that it takes code from, and of csrc/ by the names of all."""
    folder, names, seen = PACKAGES["cinema_fast.kernels"], [op], []
    while names:
        name = names.pop()
        if name not in seen and name != "backend":  # which says what runs, not what it computes
            seen.append(name)
            names += re.findall(r"^from \.(\w+) import", (folder / f"{name}.py").read_text(), re.MULTILINE)
    sources = [folder / f"{name}.py" for name in sorted(seen)]
    sources += sorted({path for name in seen for path in (ROOT / "csrc").glob(f"{name}*")})
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()


@dataclass
class Report:
    """The report at `path`, which exists and is valid from the first moment on, whenever the run is killed.

    failed: rows that were tried, with the reason (out of memory, a wrong result); unreached: rows that were not, or not
    to their end. smoke: toy sizes on a CPU, whose times mean nothing.
    """

    path: Path = field(metadata={"written": False})
    device: str
    date: str
    versions: dict[str, str]
    commit: str
    conditions: dict
    smoke: bool
    unreached: list[str]
    kernels: list[KernelRow] = field(default_factory=list)
    step: list[StepRow] = field(default_factory=list)
    waterfall: list[WaterfallRow] = field(default_factory=list)
    breakdown: list[BreakdownRow] = field(default_factory=list)
    data: list[DataRow] = field(default_factory=list)
    tests: dict[str, int] | None = None
    failed: list[dict[str, str]] = field(default_factory=list)

    def add(self, name: str, outcome: Row | dict[str, int] | str) -> None:
        """Take in a row, the counts of the tests, or the reason for which `name` could not be had; and write."""
        if dataclasses.is_dataclass(outcome):
            values = dataclasses.asdict(outcome).items()
            wrong = [f"{key} is {v}" for key, v in values if isinstance(v, float) and not math.isfinite(v)]
            outcome = ", ".join(wrong) or outcome
        if isinstance(outcome, Row):
            section = SECTION_OF[type(outcome)]
            getattr(self, section).append(outcome)
            for row in self.data:
                eaten = max((step.studies_per_s for step in self.step if step.preset == row.preset), default=None)
                row.times_step = eaten and row.studies_per_s / eaten
        elif isinstance(outcome, dict):
            self.tests = outcome
        else:
            self.failed.append({"row": name, "reason": outcome})
        self.unreached = [n for n in self.unreached if n != name]
        self.write()

    def write(self) -> None:
        """Replace the file."""
        content = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.metadata.get("written", True)}
        for section in SECTION_OF.values():
            content[section] = [
                {key.rstrip("_"): value for key, value in dataclasses.asdict(row).items()} for row in content[section]
            ]
        conditions.write_json(self.path, content)

    def table(self) -> str:
        """The rows as markdown."""
        lines = [f"{self.device}, {self.date}, {self.commit}" + (", SMOKE: not a timing" if self.smoke else "")]
        if self.step:
            lines += ["", "| step | batch | decoded | ms | studies/s | MFU | peak MiB | peer | times faster |"]
            lines.append("|---|---|---|---|---|---|---|---|---|")
            for r in self.step:
                mfu = "" if r.mfu is None else f"{r.mfu:.1%}"
                lines.append(
                    f"| {r.preset} {r.dtype} {r.mode} | {r.batch} | {r.decode_ratio:g} | {r.ms:.1f} | "
                    f"{r.studies_per_s:.1f} | {mfu} | {_number(r.peak_mib, 0)} | {r.peer or ''} | "
                    f"{_number(r.speedup, 2)} |"
                )
        if self.waterfall:
            lines += ["", "| with | ms | peak MiB | loss | times faster than the row above |", "|---|---|---|---|---|"]
            for w in self.waterfall:
                memory, faster = _number(w.peak_mib, 0), _number(w.times_faster, 2)
                lines.append(f"| {w.technique} | {w.ms:.1f} | {memory} | {w.loss:.4f} | {faster} |")
        if self.breakdown:
            lines += ["", "| part of the step | ms a study | share | budget ms |", "|---|---|---|---|"]
            for b in self.breakdown:
                lines.append(f"| {b.component} | {b.ms:.3f} | {b.share:.0%} | {_number(b.budget_ms, 2)} |")
        if self.data:
            heads = "batch | workers | cores | studies/s | times the fastest step | augmentation ms | transfer ms"
            lines += ["", f"| loader | {heads} |"]
            lines.append("|---|---|---|---|---|---|---|---|")
            for d in self.data:
                lines.append(
                    f"| {d.loader} | {d.batch} | {d.workers} | {d.cores} | {d.studies_per_s:.0f} | "
                    f"{_number(d.times_step, 1)} | {d.augmentation_ms:.2f} | {_number(d.transfer_ms, 2)} |"
                )
        if self.kernels:
            lines += ["", "| kernel | pass | shape | dtype | us | of limit | peer | times faster | rel. error | rate |"]
            lines.append("|---|---|---|---|---|---|---|---|---|---|")
            for k in self.kernels:
                rate = "" if k.per_s is None else f"{k.per_s:.3g} {k.unit}/s"
                lines.append(
                    f"| {k.op} | {k.pass_} | {k.shape} | {k.dtype} | {k.us:.1f} | {k.percent_of_limit:.0f} % | "
                    f"{k.peer or ''} | {_number(k.speedup, 2)} | {k.rel_err:.1g} | {rate} |"
                )
        if self.tests is not None:
            lines += ["", "tests: " + ", ".join(f"{n} {what}" for what, n in self.tests.items())]
        lines += [f"failed: {f['row']}: {f['reason']}" for f in self.failed]
        lines += [f"unreached: {name}" for name in self.unreached]
        return "\n".join(lines)


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
