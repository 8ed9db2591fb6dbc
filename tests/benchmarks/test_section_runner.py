"""The runner of a GPU report's sections: limits, crashes and kills cost what they must; the report is always whole."""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from contextlib import contextmanager
from pathlib import Path

import gpu_turn
import gpu_work
import pytest
import sections
from gpu_work import Checks
from report_schema import Report
from section_runner import Runner, Section
from sections import Task

from cinema_fast.kernels import OPERATIONS

GPU = Path(sections.__file__).parent
# in place of sections.py: without torch, it does what its name or argument says
SCRIPT = """
import json, os, sys, time
name, task, lines, *arguments = sys.argv[1:]
task = json.load(open(task))
what = arguments[0] if arguments else name

def write(**value):
    with open(lines, "a") as file:
        file.write(json.dumps(value) + chr(10))

def row(number, right=True):
    values = {"op": what, "pass": "fwd", "shape": str(number), "dtype": "float32", "backend": "triton",
              "rel_err": 1.0, "err_budget": 1.0,
              "right": right, "seconds": 0.0}
    write(name=f"error {what} fwd {number}", section="errors", row=values)

write(rows=[f"error {what} fwd {number}" for number in range(3)])
row(0, right=what != "wrong")
if what == "hangs":
    time.sleep(100)
if what == "crashes":
    os.abort()
if what == "slow":
    time.sleep(0.4)
if what == "half":
    with open(lines, "a") as file:
        file.write('{"name": "error half fwd 1", "sec')
    os._exit(3)
if what == "starts another":
    import subprocess
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    open(task["out"] + "/child", "w").write(str(child.pid))
    time.sleep(100)
row(1)
row(2)
"""


def task_in(folder: Path, out: Path | None = None, reference: str | None = None) -> Task:
    return Task("cpu", str(out or folder), str(folder / "work"), str(folder / "logs"), str(folder / "lock"), "commit",
                reference, {}, True, True)  # fmt: skip


@pytest.fixture
def runner(tmp_path):
    """A runner of the script above, with `seconds` for all sections."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)

    def make(seconds: float = 60.0) -> Runner:
        report = Report(tmp_path / "out" / "gpu-2030.json", "a GPU", "2030", {}, "commit", {}, False, [])
        report.path.parent.mkdir(exist_ok=True)
        task = task_in(tmp_path, tmp_path / "out")
        return Runner(report, task, Checks("a GPU", "commit"), time.monotonic() + seconds, script)

    return make


def on_disk(runner: Runner) -> dict:
    return json.loads(runner.report.path.read_text())


def test_rows_of_all_parts_come_in(runner):
    run = runner()
    run.run([Section("errors", 30, parts=("a", "b", "c"), at_once=2), Section("machine", 30)])
    report = on_disk(run)
    assert {(row["op"], row["shape"]) for row in report["errors"]} == {
        (op, str(n)) for op in ("a", "b", "c", "machine") for n in range(3)
    }
    assert report["unreached"] == report["failed"] == []
    assert report["fallbacks"] == {}


@pytest.mark.parametrize(("op", "reason"), [("hangs", "killed: its time was up"), ("crashes", "ended with status -6"),
                                            ("half", "ended with status 3")])  # fmt: skip
def test_a_section_that_does_not_end_well_costs_its_own_rows_only(runner, op, reason):
    run = runner()
    run.run([Section("errors", 2, parts=(op, "sparse_attention"), at_once=2), Section("machine", 30)])
    report = on_disk(run)
    assert [row["shape"] for row in report["errors"] if row["op"] == op] == ["0"]
    assert len([row for row in report["errors"] if row["op"] == "machine"]) == 3
    assert report["unreached"] == [f"error {op} fwd 1", f"error {op} fwd 2"]
    (failed,) = report["failed"]
    assert failed["row"] == f"section errors {op}" and failed["reason"].startswith(reason)
    assert report["fallbacks"] == {op: "torch"}  # what could not be checked is not trusted


def test_an_operation_that_is_wrong_is_replaced_in_what_follows(runner):
    run = runner()
    run.run([Section("errors", 30, parts=("wrong", "a"))])
    assert on_disk(run)["fallbacks"] == {"wrong": "torch"}
    run.run([Section("machine", 30)])
    told = json.loads((run.lines / "machine.json").read_text())
    assert told["fallbacks"] == {"wrong": "torch"}
    assert json.loads((run.work / "checks.json").read_text())["replaced"] == {"wrong": "torch"}  # for command B


def test_what_no_time_is_left_for_is_unreached(runner):
    run = runner(seconds=1.5)
    run.run([Section("hangs", 60), Section("machine", 60)])
    report = on_disk(run)
    assert "section machine" in report["unreached"]
    assert [f["row"] for f in report["failed"]] == ["section hangs"]


def test_the_parts_of_a_section_share_its_time(runner):
    run = runner()
    run.run([Section("errors", 1, parts=("hangs", "a"))])
    assert "section errors a" in on_disk(run)["unreached"]


def test_without_a_reference_its_sections_are_unreached(runner):
    run = runner()
    run.run([Section("reference", 30), Section("machine", 30)])
    assert on_disk(run)["unreached"] == ["section reference"]
    assert len(on_disk(run)["errors"]) == 3


def test_a_background_section_runs_beside_the_others_and_is_waited_for(runner):
    run = runner()
    start = time.monotonic()
    run.run([Section("slow", 30, background=True), Section("machine", 30)])
    assert len(on_disk(run)["errors"]) == 6
    run = runner(seconds=8)
    run.run([Section("hangs", 5, background=True), Section("machine", 30)])
    report = on_disk(run)
    assert len(report["errors"]) == 4 and report["failed"][0]["reason"].startswith("killed: its time was up")
    assert time.monotonic() - start < 30


def wait_for(condition, seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while not (done := condition()) and time.monotonic() < end:
        time.sleep(0.02)
    return bool(done)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


LINUX = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads Linux's /proc")


@LINUX
def test_a_section_that_is_killed_takes_its_own_processes_along(runner):
    run = runner()
    run.run([Section("starts another", 2)])
    child = int((run.out / "child").read_text())
    assert wait_for(lambda: not is_alive(child))


PROGRAM = """
import sys, time
from pathlib import Path
sys.path[:0] = {paths!r}
from report_schema import Report
from gpu_work import Checks
from gpu_work import Checks
from section_runner import Runner, Section
from sections import Task
out = Path({out!r})
report = Report(out / "gpu-2030.json", "a GPU", "2030", {{}}, "commit", {{}}, False, [])
task = Task("cpu", {out!r}, {work!r}, {work!r} + "/logs", {work!r} + "/lock", "commit", None, {{}}, True, True)
runner = Runner(report, task, Checks("a GPU", "commit"), time.monotonic() + 60, Path({script!r}))
runner.run([Section("slow", 30, background=True), *[Section("errors", 30, parts=("slow", "wrong", "a"))] * 20])
"""


def test_a_run_that_is_killed_at_any_moment_leaves_a_whole_report(tmp_path, runner):
    """Every row that had been written when it was looked at is there afterwards, and the first one is waited for."""
    script = tmp_path / "script.py"
    dice = random.Random(16)
    for i in range(3):
        out, work = tmp_path / f"out{i}", tmp_path / f"work{i}"
        out.mkdir()
        program = PROGRAM.format(paths=[str(GPU), str(GPU.parent)], out=str(out), work=str(work), script=str(script))
        process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.DEVNULL)
        path = out / "gpu-2030.json"
        assert wait_for(lambda path=path: path.exists() and json.loads(path.read_text())["errors"], 60)
        time.sleep(dice.uniform(0, 2.0))
        before = json.loads(path.read_text())
        process.send_signal(signal.SIGKILL)
        process.wait()
        report = json.loads(path.read_text())
        assert report["errors"][: len(before["errors"])] == before["errors"]
        assert len(report["errors"]) < 3 + 20 * 3 * 3, "it was not in the middle of the run"


@LINUX
def test_sections_end_when_the_run_is_killed(tmp_path):
    program = f"""
import subprocess, sys, time
code = "import sys, time; sys.path[:0] = {[str(GPU), str(GPU.parent)]}; import sections; sections.end_with_parent(); "
code += "print('ready', flush=True); time.sleep(100)"
import os
os.environ["GPU_SECTION_PARENT"] = str(os.getpid())
child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(100)
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    assert is_alive(child)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert wait_for(lambda: not is_alive(child))


def test_one_process_at_a_time_has_its_turn(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_turn, "lock", tmp_path / "lock")
    program = f"""
import sys; sys.path.append({str(GPU)!r})
import gpu_turn
from pathlib import Path
gpu_turn.lock = Path({str(tmp_path / "lock")!r})
print("waits", flush=True)
with gpu_turn.turn():
    print("in", gpu_turn.waited, flush=True)
"""
    with gpu_turn.turn(), gpu_turn.turn():  # again inside itself
        other = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        assert other.stdout.readline() == "waits\n"
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(timeout=0.5)
    said, _ = other.communicate(timeout=30)
    assert said.startswith("in ") and float(said.removeprefix("in ")) > 0.3


def test_what_compiles_beside_runs_its_graphs_in_its_turn(tmp_path, monkeypatch):
    """Forward and backward, both of which Inductor makes."""
    torch = pytest.importorskip("torch")
    from torch._inductor.output_code import CompiledFxGraph

    monkeypatch.setattr(CompiledFxGraph, "__call__", CompiledFxGraph.__call__)  # as it was, at the end
    monkeypatch.setattr(gpu_turn, "lock", tmp_path / "lock")
    turns = []

    @contextmanager
    def turn():
        turns.append(1)
        yield

    monkeypatch.setattr(gpu_turn, "turn", turn)
    sections.take_turns(task_in(tmp_path))
    x = torch.ones(3, requires_grad=True)
    torch.compile(lambda x: (x.sin() * 2).sum())(x).backward()
    assert len(turns) == 2
    assert torch.allclose(x.grad, 2 * torch.ones(3).cos())


def test_an_operation_that_was_mended_is_no_longer_replaced(runner):
    run = runner()
    run.checks.replaced["sample_mask"] = "torch"
    run.run([Section("errors", 30, parts=("sample_mask",))])
    assert on_disk(run)["fallbacks"] == {}
    kept = Checks.read(run.work, "a GPU", "commit")
    assert kept.replaced == {} and kept.checked == ["sample_mask"]
    assert "sample_mask" not in on_disk(run)["unchecked"] and "masked_mse" in on_disk(run)["unchecked"]


NOT_CHECKS = {
    "no JSON": "{",
    "a list": '["x"]',
    "an unknown operation": '{"gpu": "a GPU", "commit": "c", "replaced": {"no_such_op": "torch"}}',
    "another GPU": '{"gpu": "another", "commit": "c", "checked": ["sample_mask"]}',
}


@pytest.mark.parametrize("content", NOT_CHECKS.values(), ids=NOT_CHECKS)
def test_checks_that_cannot_be_read_or_are_of_another_gpu_are_not_believed(tmp_path, capsys, content):
    (tmp_path / "checks.json").write_text(content)
    assert Checks.read(tmp_path, "a GPU", "commit") == Checks("a GPU", "commit")
    assert str(tmp_path / "checks.json") in capsys.readouterr().out


def test_tiles_of_another_gpu_are_put_aside(tmp_path, capsys):
    path = tmp_path / "tuned.json"
    path.write_text(json.dumps({"gpu": "NVIDIA A100", "sparse_attention": []}))
    gpu_work.put_aside(path, "NVIDIA A100")
    assert path.exists()
    gpu_work.put_aside(path, "NVIDIA H200")
    assert not path.exists() and "is of NVIDIA A100, this is NVIDIA H200" in capsys.readouterr().out
    path.write_text(json.dumps({"gpu": "CPU", "sparse_attention": []}))  # of a smoke test
    gpu_work.put_aside(path, "cpu-smoke")
    assert path.exists()
    gpu_work.put_aside(path, "NVIDIA H200")
    assert not path.exists()


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=str)
def test_a_run_that_is_stopped_kills_its_sections_and_prints_its_table(tmp_path, sent):
    out, work = tmp_path / "out", tmp_path / "work"
    command = [
        sys.executable,
        GPU / "gpu_first.py",
        "--only",
        "errors",
        "tiles",
        "--smoke",
        "--out",
        out,
        "--work",
        work,
    ]
    out.mkdir()
    (out / "of_before").mkdir()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in the background
    )  # fmt: skip
    said = []
    for line in process.stdout:
        said.append(line)
        if line.startswith("error "):
            break
    process.send_signal(sent)
    said.append(process.communicate(timeout=60)[0])
    assert process.returncode == 130
    (path,) = out.glob("*.json")
    report = json.loads(path.read_text())
    assert "section tiles" in report["unreached"] and report["errors"]
    mentioned = " ".join([*report["unreached"], *(f["row"] for f in report["failed"])]).split()
    operations = {row["op"] for row in report["errors"]} | set(mentioned)
    assert operations >= set(OPERATIONS), "an operation is mentioned nowhere"
    assert "unreached: section tiles" in said[-1] and path.with_suffix(".md").exists()
    assert (out / "of_before").is_dir()
    alive = subprocess.run(["pgrep", "-f", str(work)], capture_output=True, text=True).stdout.split()
    assert not alive


def test_at_most_eight_files_of_sixteen_mib_come_home(tmp_path):
    for i in range(10):
        (tmp_path / f"{i}").write_bytes(b"x" * i)
    with (tmp_path / "trace").open("wb") as file:
        file.truncate(17 * 2**20)
    (tmp_path / "folder").mkdir()
    left = {path.name: why for path, why in gpu_work.too_much(set(tmp_path.iterdir()))}
    assert left == {"trace": "more than 16 MiB", "8": "more than 8 files", "9": "more than 8 files"}


def test_a_row_that_is_not_finite_is_a_failure(tmp_path, monkeypatch):
    from report_schema import MachineRow

    rows = [("machine a", MachineRow("a", float("nan"), "s")), ("machine b", MachineRow("b", 1.0, "s"))]
    monkeypatch.setitem(sections.SECTIONS, "machine", lambda task: (["machine a", "machine b", "c"], iter(rows)))
    monkeypatch.setattr(sections, "prepare", lambda *_: None)
    task = task_in(tmp_path)
    sections.main("machine", task, tmp_path / "lines", [])
    first, *values = map(json.loads, (tmp_path / "lines").read_text().splitlines())
    assert first == {"rows": ["machine a", "machine b", "c"]}
    assert values[0] == {"name": "machine a", "failed": "value not finite"}
    assert values[1]["row"]["value"] == 1.0


def test_an_error_in_the_middle_is_the_reason_of_all_rows_that_are_missing(tmp_path, monkeypatch):
    def rows():
        yield "a", "no luck"
        raise RuntimeError("the device is gone")

    monkeypatch.setitem(sections.SECTIONS, "machine", lambda task: (["a", "b", "c"], rows()))
    monkeypatch.setattr(sections, "prepare", lambda *_: None)
    sections.main("machine", task_in(tmp_path), tmp_path / "lines", [])
    _, *values = map(json.loads, (tmp_path / "lines").read_text().splitlines())
    gone = "RuntimeError: the device is gone"
    assert values == [{"name": n, "failed": why} for n, why in (("a", "no luck"), ("b", gone), ("c", gone))]


def test_the_cache_that_was_compiled_ahead_is_unpacked_once(tmp_path):
    work, made = tmp_path / "work", tmp_path / "made"
    work.mkdir()
    made.write_text("kernel")
    with tarfile.open(work / "triton.tar.gz", "w:gz") as archive:
        archive.add(made, "triton/key/kernel.cubin")
        made.write_text('{"launches": 1, "arch": 90, "triton": "2.0", "key": "another"}')
        archive.add(made, "triton/made.json")
    options = argparse.Namespace(out=tmp_path / "out", work=work, reference=None, smoke=True)
    report, task, _ = gpu_work.start("cpu", options, quick=True)
    assert report.conditions["triton_cache"].startswith("1 launches for sm_90 by triton 2.0, which is not this one")
    unpacked = work / "triton" / "key" / "kernel.cubin"
    assert unpacked.read_text() == "kernel" and report.path.exists() and task.quick
    unpacked.write_text("newer")
    gpu_work.start("cpu", options, quick=True)
    assert unpacked.read_text() == "newer"
