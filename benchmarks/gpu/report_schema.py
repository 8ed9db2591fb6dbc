"""What a report of a GPU run holds: the rows, and the file that is written anew after each of them."""

import ast
import dataclasses
import hashlib
import math
from dataclasses import dataclass, field
from pathlib import Path

import conditions
from checkout import PACKAGES, ROOT
from predictions_results import read_predictions

PREDICTIONS = ROOT / "benchmarks" / "results" / "predictions.json"


@dataclass
class KernelRow:
    """One pass of one operation at one shape, beside the fastest peer.

    us: median; limit_us: the larger of bytes over bandwidth and FLOPs over peak; rel_err: ||out - ref|| / ||ref||
    against float64, err_budget: what is allowed of it; kernel_sha: of the operation's source files, as they ran; per_s:
    units that it works off a second, where the operation counts any; predicted_us: what predictions/predict.py says of
    it.
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
    predicted_us: float | None = None

    @property
    def name(self) -> str:
        """Names the row in `failed` and `unreached`."""
        return f"kernel {self.op} {self.pass_} {self.shape} {self.dtype} against {self.peer}"


@dataclass
class StepRow:
    """One way of running a whole training step, beside a peer timed in the same rounds.

    ms: median; studies_per_s and mfu follow from it; peak_mib: most device memory that this way alone holds during a
    step (weights, gradients, optimiser, activations); speedup: median of the rounds' ratios; attention: the backend of
    sparse_attention, "auto" for its own choice; predicted_ms: what predictions/predict.py says, expected, low and
    high. None: not measurable here.
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
    attention: str = "auto"
    predicted_ms: list[float] | None = None

    @property
    def name(self) -> str:
        """Names the row in `failed` and `unreached`."""
        return step_name(self.preset, self.batch, self.dtype, self.mode, self.decode_ratio, self.peer, self.attention)


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
    """What a component takes of a training step on the device, a study; predicted_ms: what predictions/predict.py says;
    budget_ms: what it may take (None: no limit set).

    The components of a step add up to what its kernels take; what a step takes beyond that, the device idles.
    """

    component: str
    preset: str
    batch: int
    ms: float
    share: float
    budget_ms: float | None
    predicted_ms: float | None = None

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


@dataclass
class MachineRow:
    """What the GPU itself reaches, beside which the rest is judged."""

    what: str
    value: float
    unit: str

    @property
    def name(self) -> str:
        """Names the row in `failed` and `unreached`."""
        return f"machine {self.what}"


@dataclass
class ErrorRow:
    """An operation held to its float64 oracle on the device: the relative RMS error of one pass at one shape.

    backend: what computed it: "torch" is no kernel of ours.
    right: whether it is within the budget; one that is not is replaced by PyTorch's form in the sections that follow.
    seconds: of the comparison with compilation and oracle.
    """

    op: str
    pass_: str
    shape: str
    dtype: str
    backend: str
    rel_err: float
    err_budget: float
    right: bool
    seconds: float

    @property
    def name(self) -> str:
        """Names the row in `failed` and `unreached`."""
        return error_name(self.op, self.pass_, self.shape)


@dataclass
class TileRow:
    """sparse_attention's pass at one tile, or a peer's; us: median; tflops: of the useful products.

    tile: "ROWSxCOLS wWARPS sSTAGES", or the peer's name, whose "bwd" is one pass. best: the fastest tile of the pass.
    """

    shape: str
    pass_: str
    tile: str
    us: float
    tflops: float
    best: bool = False

    @property
    def name(self) -> str:
        """Names the row in `failed` and `unreached`."""
        return f"tile {self.shape} {self.pass_} {self.tile}"


@dataclass
class ProfileRow:
    """A kernel of the step's trace: how often a step launches it, and what it takes of the step's time on the GPU."""

    mode: str
    kernel: str
    launches: float
    us: float
    share: float

    @property
    def name(self) -> str:
        """Names the row in `failed` and `unreached`."""
        return f"profile {self.mode} {self.kernel}"


def step_name(
    preset: str, batch: int, dtype: str, mode: str, decode_ratio: float, peer: str | None, attention: str = "auto"
) -> str:
    """The name of a step's row, known before it is measured."""
    by = "" if attention == "auto" else f", attention by {attention}"
    against = f" against {peer}" if peer else ""
    return f"step {preset} batch {batch} {dtype} {mode}{by}, decode ratio {decode_ratio:g}{against}"


def error_name(op: str, pass_: str, shape: str) -> str:
    """The name of an operation's error, known before it is measured."""
    return f"error {op} {pass_} {shape}"


Row = KernelRow | StepRow | WaterfallRow | BreakdownRow | DataRow | MachineRow | ErrorRow | TileRow | ProfileRow
SECTION_OF = {
    KernelRow: "kernels", StepRow: "step", WaterfallRow: "waterfall", BreakdownRow: "breakdown", DataRow: "data",
    MachineRow: "machine", ErrorRow: "errors", TileRow: "tiles", ProfileRow: "profile",
}  # fmt: skip


def to_json(row: Row) -> dict:
    """A row as the report's file holds it."""
    return {key.rstrip("_"): value for key, value in dataclasses.asdict(row).items()}


def from_json(section: str, values: dict) -> Row:
    """The row of a section of the file."""
    kind = next(kind for kind, name in SECTION_OF.items() if name == section)
    return kind(**{"pass_" if key == "pass" else key: value for key, value in values.items()})


def predicted(path: Path = PREDICTIONS) -> dict:
    """What predictions/predict.py wrote; without rows where it is not there."""
    return read_predictions(path) or {"steps": [], "kernels": []}


# modules of kernels/ that say what runs, or describe operations, not what is computed; and the line of an operation's
# file after which it describes itself
NOT_COMPUTING, DESCRIPTION = {"backend", "registry", "inputs", "shapes"}, "# Registration\n"


def kernel_sha(op: str) -> str:
    """SHA-256 of kernels/<op>.py or all of kernels/<op>/, of what else there they take code from, and of csrc/ by the
    names of all; without what the operation says of itself."""
    folder, names, texts = PACKAGES["cinema_fast.kernels"], [op], {}
    while names:
        name = names.pop()
        if name not in texts and name not in NOT_COMPUTING:
            paths = sorted((folder / name).rglob("*.py")) or [folder / f"{name}.py"]
            texts[name] = [path.read_text().partition(DESCRIPTION)[0] for path in paths]
            for path, text in zip(paths, texts[name]):
                names += _modules(text, len(path.relative_to(folder).parts))
    sources = [text.encode() for name in sorted(texts) for text in texts[name]]
    sources += [path.read_bytes() for path in sorted({p for name in texts for p in (ROOT / "csrc").glob(f"{name}*")})]
    return hashlib.sha256(b"".join(sources)).hexdigest()


def _modules(text: str, dots: int) -> list[str]:
    """Files and folders of kernels/ that a file which lies `dots` - 1 folders deep imports."""
    found = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom) and node.level == dots]
    return [name for node in found for name in
            ([node.module.partition(".")[0]] if node.module else [alias.name for alias in node.names])]  # fmt: skip


@dataclass
class Report:
    """The report at `path`, which exists and is valid from the first moment on, whenever the run is killed.

    failed: rows that were tried, with the reason (out of memory, a wrong result); unreached: rows that were not, or not
    to their end. fallbacks: operations that were replaced, and by what; unchecked: of which nothing is known. smoke:
    toy sizes on a CPU, whose times mean nothing.
    """

    path: Path = field(metadata={"written": False})
    device: str
    date: str
    versions: dict[str, str]
    commit: str
    conditions: dict
    smoke: bool
    unreached: list[str]
    machine: list[MachineRow] = field(default_factory=list)
    errors: list[ErrorRow] = field(default_factory=list)
    step: list[StepRow] = field(default_factory=list)
    breakdown: list[BreakdownRow] = field(default_factory=list)
    profile: list[ProfileRow] = field(default_factory=list)
    tiles: list[TileRow] = field(default_factory=list)
    kernels: list[KernelRow] = field(default_factory=list)
    waterfall: list[WaterfallRow] = field(default_factory=list)
    data: list[DataRow] = field(default_factory=list)
    tests: dict[str, int] | None = None
    fallbacks: dict[str, str] = field(default_factory=dict)
    unchecked: list[str] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self):
        predictions = predicted()
        steps = [p for p in predictions["steps"] if p["gpu"] == self.device]
        self._steps = {(p["preset"], p["batch"], p["dtype"], p["mode"], p["decode_ratio"]): p for p in steps}
        ours = [p for p in predictions["kernels"] if p["gpu"] == self.device]
        self._kernels = {(p["op"], p["pass"], p["shape"], p["dtype"]): p["us"] for p in ours}

    def add(self, name: str, outcome: Row | dict[str, int] | str) -> None:
        """Take in a row, the counts of the tests, or the reason for which `name` could not be had; and write."""
        if dataclasses.is_dataclass(outcome):
            values = dataclasses.asdict(outcome).items()
            wrong = [f"{key} is {v}" for key, v in values if isinstance(v, float) and not math.isfinite(v)]
            outcome = ", ".join(wrong) or outcome
        if isinstance(outcome, Row):
            getattr(self, SECTION_OF[type(outcome)]).append(outcome)
            self._relate(outcome)
        elif isinstance(outcome, dict):
            self.tests = outcome
        else:
            self.failed.append({"row": name, "reason": outcome})
        self.unreached = [n for n in self.unreached if n != name]
        self.write()

    def _relate(self, row: Row) -> None:
        """Set it beside other rows and what was predicted."""
        if isinstance(row, StepRow):
            step = self._steps.get((row.preset, row.batch, row.dtype, row.mode, row.decode_ratio))
            row.predicted_ms = step and [step[key] for key in ("ms", "ms_low", "ms_high")]
        if isinstance(row, BreakdownRow):
            step = self._steps.get((row.preset, row.batch, "bf16", "eager", 1.0), {})
            row.predicted_ms = step.get("device_ms_a_study_by_component", {}).get(row.component)
        if isinstance(row, KernelRow):
            row.predicted_us = self._kernels.get((row.op, row.pass_, row.shape, row.dtype))
        if isinstance(row, TileRow) and " w" in row.tile:
            tiles = [t for t in self.tiles if (t.shape, t.pass_) == (row.shape, row.pass_) and " w" in t.tile]
            for tile in tiles:
                tile.best = tile.us == min(t.us for t in tiles)
        for loader in self.data:
            eaten = max((step.studies_per_s for step in self.step if step.preset == loader.preset), default=None)
            loader.times_step = eaten and loader.studies_per_s / eaten

    def write(self) -> None:
        """Replace the file."""
        content = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.metadata.get("written", True)}
        for section in SECTION_OF.values():
            content[section] = [to_json(row) for row in content[section]]
        conditions.write_json(self.path, content)

    def table(self) -> str:
        """The rows as markdown, measured beside predicted."""
        lines = [f"{self.device}, {self.date}, {self.commit}" + (", SMOKE: not a timing" if self.smoke else "")]
        lines += [f"{m.what}: {m.value:.4g} {m.unit}" for m in self.machine]
        wrong = [e for e in self.errors if not e.right]
        if self.errors:
            by = ", ".join(dict.fromkeys(f"{e.op} {e.backend}" for e in self.errors))
            lines.append(f"errors against float64: {len(self.errors)} checked, {len(wrong)} beyond the budget ({by})")
        lines += [f"WRONG: {e.op} {e.pass_} {e.shape}: {e.rel_err:.2g}, budget {e.err_budget:.2g}" for e in wrong]
        lines += [f"replaced because it is wrong here: {op}, by {backend}" for op, backend in self.fallbacks.items()]
        if self.unchecked:
            lines.append(f"not checked against float64 here: {', '.join(self.unchecked)}")
        if self.tests is not None:
            lines.append("tests: " + ", ".join(f"{n} {what}" for what, n in self.tests.items()))
        lines += [f"failed: {f['row']}: {f['reason']}" for f in self.failed]
        lines += [f"unreached: {name}" for name in self.unreached]
        lines += _table(
            "step | batch | decoded | ms | predicted | ms a study | studies/s | MFU | peak MiB | peer | times faster",
            [
                (
                    f"{r.preset} {r.dtype} {r.mode}" + f", attention by {r.attention}" * (r.attention != "auto"),
                    r.batch, f"{r.decode_ratio:g}", f"{r.ms:.1f}", _beside(r.ms, r.predicted_ms),
                    f"{r.ms / r.batch:.2f}", f"{r.studies_per_s:.1f}", "" if r.mfu is None else f"{r.mfu:.1%}",
                    _number(r.peak_mib, 0), r.peer or "", _number(r.speedup, 2),
                )
                for r in self.step
            ],
        )  # fmt: skip
        lines += _table(
            "with | ms | peak MiB | loss | times faster than the row above",
            [
                (w.technique, f"{w.ms:.1f}", _number(w.peak_mib, 0), f"{w.loss:.4f}", _number(w.times_faster, 2))
                for w in self.waterfall
            ],
        )
        lines += _table(
            "part of the eager step | ms a study | predicted ms | share of the step | may take ms",
            [
                (b.component, f"{b.ms:.3f}", _number(b.predicted_ms, 3), f"{b.share:.0%}", _number(b.budget_ms, 2))
                for b in self.breakdown
            ],
        )
        lines += _table(
            "mode | kernel | launches a step | us a step | share",
            [(p.mode, p.kernel[:90], f"{p.launches:g}", f"{p.us:.1f}", f"{p.share:.1%}") for p in self.profile],
        )
        lines += _table(
            "attention | pass | tile | us | TFLOP/s | ",
            [
                (t.shape, t.pass_, t.tile, f"{t.us:.1f}", f"{t.tflops:.0f}", "best" if t.best else "")
                for t in self.tiles
            ],
        )
        lines += _table(
            "loader | batch | workers | cores | studies/s | times the fastest step | augmentation ms | transfer ms",
            [
                (
                    d.loader, d.batch, d.workers, d.cores, f"{d.studies_per_s:.0f}", _number(d.times_step, 1),
                    f"{d.augmentation_ms:.2f}", _number(d.transfer_ms, 2),
                )
                for d in self.data
            ],
        )  # fmt: skip
        lines += _table(
            "kernel | pass | shape | dtype | us | predicted us | of limit | peer | times faster | rel. error | rate",
            [
                (
                    k.op, k.pass_, k.shape, k.dtype, f"{k.us:.1f}", _number(k.predicted_us, 1),
                    f"{k.percent_of_limit:.0f} %", k.peer or "", _number(k.speedup, 2), f"{k.rel_err:.1g}",
                    "" if k.per_s is None else f"{k.per_s:.3g} {k.unit}/s",
                )
                for k in self.kernels
            ],
        )  # fmt: skip
        return "\n".join(lines)


def _table(heads: str, rows: list[tuple]) -> list[str]:
    """Markdown's lines, after an empty one; none where there are no rows."""
    if not rows:
        return []
    lines = ["", f"| {heads} |", "|---" * (heads.count("|") + 1) + "|"]
    return lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows]


def brief(outcome: Row | dict[str, int]) -> str:
    """What a row says, in a word or two, for who watches the run."""
    if isinstance(outcome, StepRow):
        beside = _beside(outcome.ms, outcome.predicted_ms)
        return f"{outcome.ms:.1f} ms" + f", predicted {beside}" * bool(beside)
    if isinstance(outcome, KernelRow | TileRow | ProfileRow):
        return f"{outcome.us:.0f} us"
    if isinstance(outcome, MachineRow):
        return f"{outcome.value:.4g} {outcome.unit}"
    if isinstance(outcome, ErrorRow):
        return f"{outcome.rel_err:.1g} by {outcome.backend}{'' if outcome.right else ': WRONG'}"
    if isinstance(outcome, BreakdownRow | WaterfallRow):
        return f"{outcome.ms:.3g} ms"
    if isinstance(outcome, DataRow):
        return f"{outcome.studies_per_s:.0f} studies/s"
    return ", ".join(f"{n} {what}" for what, n in outcome.items())


def _beside(measured: float, predicted: list[float] | None) -> str:
    """A prediction with its range, and whether what was measured lies in it."""
    if predicted is None:
        return ""
    expected, low, high = predicted
    where = "inside" if low <= measured <= high else "slower" if measured > high else "faster"
    return f"{expected:g} ({low:g}-{high:g}): {where}"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
