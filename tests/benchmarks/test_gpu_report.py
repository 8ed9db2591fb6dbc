"""The GPU report on the CPU: its budget, faults of a peer, the tests that it runs, kernels' rows."""

import json
import os
import subprocess
import sys
from itertools import pairwise

import checkout
import gpu_report
import gpu_tests
import pytest
import sections
from fake_reference import write_fake_reference
from machine import ROOT
from report_schema import KernelRow, Report, kernel_sha

SCRIPT = ROOT / "benchmarks" / "gpu" / "gpu_report.py"
PEERS = ("reference as published", "reference compiled, no checkpointing")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def smoke(out, *options):
    """Run it; (exit status, the file's content, what it printed)."""
    command = [sys.executable, SCRIPT, "--smoke", "--out", out, "--work", out / "work", *options]
    done = subprocess.run(command, env=ENVIRONMENT, cwd=out, capture_output=True, text=True, timeout=600)
    (file,) = out.glob("*.json")
    return done.returncode, json.loads(file.read_text()), done.stdout


def test_no_budget_leaves_everything_unreached(tmp_path):
    status, report, _ = smoke(tmp_path, "--budget", "0")
    assert status == 0
    assert report["unreached"] == [f"section {s.name} {part}".strip() for s in gpu_report.SECTIONS for part in s.parts]
    assert report["step"] == report["kernels"] == report["failed"] == []
    assert report["tests"] is None


def test_every_operation_with_rows_is_benched():
    (section,) = (section for section in gpu_report.SECTIONS if section.name == "kernels")
    benches = (checkout.BENCHMARKS / "operations").glob("bench_*.py")
    assert set(section.parts) == {path.stem.removeprefix("bench_") for path in benches}


@pytest.mark.slow
def test_faults_of_a_peer_are_recorded_and_the_rest_goes_on(tmp_path):
    fault = """
        if self.grad_ckpt and torch.is_grad_enabled():
            raise torch.OutOfMemoryError("tried to allocate 70 GiB")
        loss = loss if self.grad_ckpt else 1.001 * loss
"""
    reference = write_fake_reference(tmp_path / "reference", fault)
    status, report, _ = smoke(
        tmp_path, "--only", "reference", "reference compiled", "waterfall", "--reference", reference
    )
    assert status == 1
    failed = {f["row"]: f["reason"] for f in report["failed"]}
    assert len(failed) == 3
    for name, reason in failed.items():
        if PEERS[0] in name:
            assert reason == "out of memory: tried to allocate 70 GiB"
        else:
            assert reason.startswith("GateError: ours against the reference")
    assert report["unreached"] == []
    assert {(row["mode"], row["decode_ratio"]) for row in report["step"]} == {
        (mode, ratio) for mode in ("eager", "compiled") for ratio in (1.0, 0.25)
    }
    assert all(row["speedup"] is None for row in report["step"])
    rungs = report["waterfall"]
    assert rungs[0]["technique"] == "no checkpointing"
    for before, rung in pairwise(rungs):
        assert rung["times_faster"] == pytest.approx(before["ms"] / rung["ms"])
    assert all(rung["loss"] == pytest.approx(rungs[1]["loss"], rel=1e-2) for rung in rungs[2:-1])
    assert rungs[-1]["loss"] == pytest.approx(rungs[1]["loss"], rel=0.1)  # the mean over other tokens


def test_a_folder_that_is_no_reference_is_named(tmp_path, monkeypatch, capsys):
    nothing = tmp_path / "nothing"
    monkeypatch.setattr(sys, "argv", ["x", "--smoke", "--out", str(tmp_path), "--reference", str(nothing)])
    with pytest.raises(SystemExit):
        gpu_report.main()
    assert f"{nothing}: no cinema/mae/mae.py there" in capsys.readouterr().err


def test_measured_stands_beside_predicted(tmp_path, monkeypatch):
    row = KernelRow("sample_mask", "fwd", "B2", "float32", 2.0, 1.0, 50.0, None, None, None, 0.0, 1e-5, "sha")
    prediction = {"gpu": "a GPU", "op": "sample_mask", "pass": "fwd", "shape": "B2", "dtype": "float32", "us": 1.5}
    others = [prediction | {"gpu": "another", "us": 9.0}, prediction | {"shape": "B4", "us": 9.0}]
    monkeypatch.setattr("report_schema.predicted", lambda: {"steps": [], "kernels": [*others, prediction]})
    report = Report(tmp_path / "r.json", "a GPU", "2030", {}, "c", {}, False, [])
    report.add(row.name, row)
    (found,) = json.loads(report.path.read_text())["kernels"]
    assert found["predicted_us"] == 1.5
    assert "| 2.0 | 1.5 | 50 % |" in report.table()


CONFTEST = """
import pytest

def pytest_generate_tests(metafunc):
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", [pytest.param("triton", marks=pytest.mark.gpu)])
"""
TESTS = """
import time
import pytest, cinema_fast

@pytest.mark.gpu
def test_a():
    pass

@pytest.mark.gpu
def test_b():
    assert 0, "no luck"

@pytest.mark.gpu
def test_c():
    pytest.skip()

@pytest.mark.gpu
def test_hangs():
    time.sleep(100)

@pytest.mark.gpu
@pytest.mark.recompiles
def test_too_long_for_a_gpu():
    assert 0

def test_not_one():
    assert 0
"""


def test_gpu_tests_are_chosen_by_marker_and_each_has_a_time_limit(tmp_path):
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    gpu\n    slow\n    recompiles\n")
    (tmp_path / "test_on_gpu.py").write_text(TESTS)
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_an_operation.py").write_text("def test_it(backend):\n    pass\n")
    (tmp_path / "test_other.py").write_text("import a_package_that_is_not_there")
    (tmp_path / "test_broken.py").write_text("1 / 0")
    found = list(gpu_tests.run(tmp_path, tmp_path, processes=2, seconds_a_test=3))
    name, counts = found[-1]
    assert name == "tests" and counts == {"passed": 2, "failed": 3, "skipped": 2}
    reasons = {name.removeprefix("test ").rpartition("::")[2]: reason for name, reason in found if name != "tests"}
    assert reasons.keys() == {"test_b", "test_hangs", "test_broken.py"}
    assert "no luck" in reasons["test_b"] and "crashed while running" in reasons["test_hangs"]
    assert "test_b" in (tmp_path / "tests.log").read_text()


def test_kernel_rows_and_their_faults_are_recorded(tmp_path, monkeypatch):
    sha = kernel_sha("philox")

    def row(rel_err):
        return KernelRow("philox", "fwd", "B2", "fp32", 2.0, 1.0, 50.0, "peer", 4.0, 2.0, rel_err, 1e-5, sha)

    module = type(sys)("bench_of_a_kernel")
    module.kernel_rows = lambda device, smoke: {
        "good": lambda: row(1e-6), "bad": lambda: row(float("nan")), "worse": lambda: 1 / 0
    }  # fmt: skip
    monkeypatch.setitem(sys.modules, "bench_of_a_kernel", module)
    monkeypatch.setattr(sections, "prepare", lambda *_: None)
    task = sections.Task("cpu", "", "", "", "", "c", None, {}, False, True)
    sections.main("kernels", task, tmp_path / "lines", ["of_a_kernel"])
    names, good, bad, worse = map(json.loads, (tmp_path / "lines").read_text().splitlines())
    assert names == {"rows": ["good", "bad", "worse"]}
    assert good["row"]["kernel_sha"] == sha and good["section"] == "kernels"
    assert bad == {"name": "bad", "failed": "rel_err not finite"}
    assert worse == {"name": "worse", "failed": "ZeroDivisionError: division by zero"}
