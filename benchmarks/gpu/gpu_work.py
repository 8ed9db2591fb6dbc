"""What a run on a GPU begins with and what it leaves: the folder that is kept between runs, and what is brought home.

In the folder: caches, which operations were checked against float64 (checks.json), the tiles that were measured
(tuned.json), and the Triton kernels that were compiled ahead (triton.tar.gz).
"""

import argparse
import importlib.util
import json
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import conditions
import torch
from checkout import ROOT
from report_schema import Report
from sections import Task

from cinema_fast.kernels import OPERATIONS, tuning

FILES_HOME, FILE_BYTES = 8, 16 * 2**20  # what is brought home of a run: at most so many files, each at most so large
NEEDED = {  # what is not there, and what is missing without it
    "triton": "the Triton kernels", "cupy": "the flow's CUDA kernels", "pytest": "the tests", "xdist": "the tests",
    "pytest_timeout": "the tests", "hypothesis": "the tests", "timm": "the reference", "einops": "the reference",
}  # fmt: skip


@dataclass
class Checks:
    """Operations that were held to float64 on a GPU, at a commit, and what replaces those that failed."""

    gpu: str
    commit: str
    checked: list[str] = field(default_factory=list)
    replaced: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, work: Path, gpu: str, commit: str) -> "Checks":
        """Those of the folder; none, and a line that says why, where they are of another GPU or make no sense."""
        path, new = work / "checks.json", cls(gpu, commit)
        if not path.exists():
            return new
        try:
            found = cls(**json.loads(path.read_text()))
            names = {*found.checked, *found.replaced}
            if names - set(OPERATIONS) or set(found.replaced.values()) - {"torch", "sdpa"}:
                raise ValueError(f"it names {', '.join(sorted(names - set(OPERATIONS))) or found.replaced}")
        except (ValueError, TypeError, AttributeError) as error:
            print(f"{path}: not what a run writes ({error}): no operation counts as checked")
            return new
        if found.gpu != gpu:
            print(f"{path}: is of {found.gpu}, this is {gpu}: no operation counts as checked")
            return new
        return found

    def write(self, work: Path) -> None:
        """For the next run."""
        conditions.write_json(work / "checks.json", vars(self))

    def forget(self, op: str) -> None:
        """It is about to be checked."""
        self.checked = [other for other in self.checked if other != op]
        self.replaced.pop(op, None)

    def keep(self, op: str) -> None:
        """It was checked, to the end."""
        self.checked.append(op)

    def replace(self, op: str) -> None:
        """It computes wrongly, or did not end."""
        self.replaced[op] = "sdpa" if op == "sparse_attention" else "torch"

    def unchecked(self) -> list[str]:
        """Operations that nothing is known of."""
        return [op for op in OPERATIONS if op not in self.checked and op not in self.replaced]


def start(device: str, args: argparse.Namespace, *, quick: bool) -> tuple[Report, Task, Checks]:
    """The report of a run that begins now, what its sections are told, and what is known of the operations.

    OSError where a folder cannot be made or written.
    """
    out, work = args.out.resolve(), args.work.resolve()
    for folder in (out, work):
        folder.mkdir(parents=True, exist_ok=True)
    name, about = describe_device(device)
    about["triton_cache"] = unpack(work / "triton.tar.gz", work)
    about["missing"] = missing(args.reference is not None)
    for what in about["missing"]:
        print(f"missing: {what}")
    print(f"Triton cache: {about['triton_cache']}", flush=True)
    date, commit = conditions.now(), conditions.commit()
    slug = "smoke" if args.smoke else tuning.slug(name)
    checks = Checks.read(work, name, commit)
    put_aside(work / "tuned.json", name)
    report = Report(
        path=out / f"{slug}-{date}.json", device=name, date=date, versions=conditions.versions(), commit=commit,
        conditions=about, smoke=args.smoke, unreached=[], fallbacks=dict(checks.replaced),
        unchecked=checks.unchecked(),
    )  # fmt: skip
    report.write()
    task = Task(
        device=device, out=str(out), work=str(work), logs=str(work / "logs" / report.path.stem),
        lock=str(work / "gpu.lock"), commit=commit,
        reference=str(args.reference.resolve()) if args.reference else None, fallbacks=dict(checks.replaced),
        quick=quick, smoke=args.smoke,
    )  # fmt: skip
    return report, task, checks


def missing(with_reference: bool) -> list[str]:
    """Packages that are not installed, each with what is left out without it."""
    wanted = {name: what for name, what in NEEDED.items() if with_reference or what != "the reference"}
    found = [f"{name} ({what})" for name, what in wanted.items() if importlib.util.find_spec(name) is None]
    if not list((ROOT / "kernels").glob("_*_cuda.fatbin")):
        found.append("kernels/_*_cuda.fatbin (CUDA kernels are compiled at first use)")
    return found


def put_aside(path: Path, gpu: str) -> None:
    """A table of tiles that makes no sense, or of another GPU, is not used."""
    if not path.exists():
        return
    try:
        of, here = tuning.read(path)["gpu"], "CPU" if gpu == "cpu-smoke" else gpu
        why = "" if of == here else f"is of {of}, this is {gpu}"
    except ValueError as error:
        why = str(error)
    if why:
        path.replace(path.with_suffix(".aside"))
        print(f"{path}: {why}: put aside as {path.with_suffix('.aside').name}")


def unpack(archive: Path, folder: Path) -> str:
    """What triton_cache.py packed, once; says what there is. Triton wants a kernel's files by their whole paths."""
    if not archive.exists():
        return "none was compiled ahead"
    target, stamp = folder / "triton", f"{archive.stat().st_mtime_ns} {archive.stat().st_size}"
    mark = target / "unpacked"
    if not mark.exists() or mark.read_text() != stamp:
        try:
            with tarfile.open(archive) as file:
                file.extractall(folder, filter="data")
        except (tarfile.TarError, EOFError, OSError) as error:
            return f"{archive} cannot be read ({error}): kernels are compiled here"
        for group in target.rglob("__grp__*.json"):
            names = json.loads(group.read_text())["child_paths"]
            group.write_text(json.dumps({"child_paths": {name: str(group.with_name(name)) for name in names}}))
        mark.write_text(stamp)
    made = json.loads((target / "made.json").read_text())
    from triton.runtime.cache import triton_key

    said = f"{made['launches']} launches for sm_{made['arch']} by triton {made['triton']}"
    return said if made["key"] == triton_key() else f"{said}, which is not this one: kernels are compiled here"


def describe_device(device: str) -> tuple[str, dict]:
    """The device's name, and under what conditions it runs."""
    about = {"cpu": conditions.cpu_model(), "threads": torch.get_num_threads()}
    if device != "cuda":
        return "cpu-smoke", about
    properties = torch.cuda.get_device_properties(0)
    about |= {"memory_mib": properties.total_memory // 2**20, "multiprocessors": properties.multi_processor_count}
    fields = "power.limit,clocks.max.sm,clocks.max.memory"
    about["power_and_clocks"] = conditions.output("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader")
    return properties.name, about


def finish(report: Report, task: Task, before: set[Path], *, stopped: bool) -> int:
    """Print the table, bring the logs together and keep to what may come home.

    before: what lay in the folder when the run began, which is not touched. The exit status: 130 where the run was
    stopped, 1 where anything failed, or a test did.
    """
    out, work = Path(task.out), Path(task.work)
    table = report.table()
    (out / f"{report.path.stem}.md").write_text(table + "\n")
    print(f"\n{table}\n")
    with tarfile.open(out / f"{report.path.stem}-logs.tar.gz", "w:gz") as archive:
        for path in sorted(Path(task.logs).iterdir()):
            archive.add(path, path.name)
    for path, why in too_much(set(out.iterdir()) - before):
        shutil.move(path, work / path.name)
        print(f"left behind in {work}: {path.name} ({why})")
    print(f"written to {report.path} and, as a table, {report.path.with_suffix('.md').name}")
    if stopped:
        return 130
    return 1 if report.failed or (report.tests and report.tests["failed"]) else 0


def too_much(files: set[Path]) -> Iterator[tuple[Path, str]]:
    """Of a run's files those beyond what is brought home, the largest of too many first."""
    ordered = sorted((path for path in files if path.is_file()), key=lambda path: path.stat().st_size)
    large = [path for path in ordered if path.stat().st_size > FILE_BYTES]
    yield from ((path, f"more than {FILE_BYTES // 2**20} MiB") for path in large)
    kept = [path for path in ordered if path not in large]
    yield from ((path, f"more than {FILES_HOME} files") for path in kept[FILES_HOME:])


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those of every report."""
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for the report, traces and logs")
    parser.add_argument("--work", type=Path, metavar="DIR", help="kept between runs (build/gpu_first)")
    parser.add_argument("--reference", type=Path, metavar="DIR", help="checkout of the CineMA reference")
    parser.add_argument("--smoke", action="store_true", help="toy sizes on the CPU, to test this script")


def checked(parser: argparse.ArgumentParser, args: argparse.Namespace) -> str:
    """ "cpu" for a smoke test, else "cuda"; ends with the parser's message where the options cannot be used."""
    args.work = args.work or ROOT / "build" / ("gpu_smoke" if args.smoke else "gpu_first")
    if not args.smoke and not torch.cuda.is_available():
        parser.error("PyTorch sees no GPU here; --smoke runs on the CPU")
    if args.reference:
        from reference import Reference

        try:
            Reference(args.reference)
        except (FileNotFoundError, ImportError, SyntaxError) as error:
            parser.error(f"--reference: {error}")
    for name in ("out", "work"):
        folder = getattr(args, name)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / ".writable"
            probe.write_text("")
            probe.unlink()
        except OSError as error:
            parser.error(f"--{name} {folder}: cannot be written ({error.strerror})")
    return "cpu" if args.smoke else "cuda"
