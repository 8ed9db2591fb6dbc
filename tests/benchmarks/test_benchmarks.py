"""The benchmarks run: every gate holds at toy sizes, and what they write adds up. No time is judged here."""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from fake_reference import write_fake_reference
from machine import ROOT

BENCHMARKS = ROOT / "benchmarks"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def test_pytest_benchmarks_at_toy_sizes(tmp_path):
    results = tmp_path / "results.json"
    command = [sys.executable, "-m", "pytest", BENCHMARKS, "--smoke", "--benchmark-only", f"--benchmark-json={results}"]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider"], env=ENVIRONMENT, cwd=BENCHMARKS.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    found = json.loads(results.read_text())["benchmarks"]
    groups = {row["group"]: 0 for row in found}
    for row in found:
        groups[row["group"]] += 1
    assert groups["step-toy-b1-fp32"] == groups["step-toy-b1-bf16"] == 5
    assert groups["stem-fwd+bwd-toy-sax-b1-fp32"] == groups["stem-fwd+bwd-toy-lax_2c-b1-fp32"] == 3
    assert groups["conv_vit-toy-b1-fp32"] == groups["conv_unetr-sax-toy-b1-bf16"] == 1
    gflop = {row["params"]["part"]: row["extra_info"]["gflop"] for row in found if "part" in row["params"]}
    assert gflop["step"] == pytest.approx(gflop["stem"] + gflop["encoder"] + gflop["decoder"])
    assert "shares of the step's parts: stem" in done.stdout
    assert groups["compiled-toy-b2-fp32"] == groups["compiled-toy-b2-bf16"] == 1
    (row,) = (row for row in found if row["group"] == "compiled-toy-b2-fp32")
    ((eager,), (compiled,)) = row["extra_info"]["eager_seconds"], row["extra_info"]["compiled_seconds"]
    assert f"toy-b2-fp32: eager {eager:.3f} s, compiled {compiled:.3f} s, {eager / compiled:.2f} times" in done.stdout


def test_a_compiled_model_with_other_gradients_is_not_timed():
    program = f"""
import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); import checkout
from types import SimpleNamespace
import bench_step, torch
step = bench_step.Step("toy")
def steeper(images, plan):
    loss = step.model(images, plan).loss
    return SimpleNamespace(loss=loss + 0.01 * (loss - loss.detach()))
step.check_compiled(step.model, torch.float32)
try:
    step.check_compiled(steeper, torch.float32)
except AssertionError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert "gradients: largest error" in done.stdout


LINUX = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")


def compare(tmp_path, reference, *options):
    script = BENCHMARKS / "step" / "compare_reference.py"
    command = [sys.executable, script, "--reference", reference, "--preset", "toy", "--out", tmp_path / "out"]
    return subprocess.run([*command, *options], env=ENVIRONMENT, capture_output=True, text=True)


@LINUX
def test_comparison_with_the_reference_adds_up(tmp_path):
    done = compare(tmp_path, write_fake_reference(tmp_path / "reference"), "--rounds", "3", "--memory")
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "out").glob("cpu-*.json")
    result = json.loads(file.read_text())
    assert {k for k in result["loss"] if "quarter" not in k} == {
        "reference fp32", "ours fp32", "reference bf16", "ours bf16"
    }  # fmt: skip
    for row in result["speedups"]:
        pairs = zip(result["seconds"][row["reference"]], result["seconds"][row["ours"]])
        assert row["speedup"] == pytest.approx(statistics.median(theirs / ours for theirs, ours in pairs))
        assert row["low"] <= row["speedup"] <= row["high"]
    assert [row["target"] for row in result["speedups"]] == [1.25, 2.2, 1.3, None, None, None]
    assert [row["target"] for row in result["memory"]] == [0.65, 0.55]
    assert all(row["ratio"] == row["ours_mib"] / row["reference_mib"] for row in result["memory"])
    assert result["conditions"]["threads"] == 1
    assert "| ours bf16, a quarter decoded | reference fp32 |" in done.stdout


@LINUX
def test_comparison_of_self_distillation_adds_up(tmp_path):
    script = BENCHMARKS / "step" / "compare_dino.py"
    command = [sys.executable, script, "--presets", "toy", "--rounds", "3", "--memory", "--out", tmp_path]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.glob("dino-*.json")
    (result,) = json.loads(file.read_text())["presets"]
    for row in result["speedups"]:
        pairs = zip(result["seconds"][row["reference"]], result["seconds"][row["ours"]])
        assert row["speedup"] == pytest.approx(statistics.median(theirs / ours for theirs, ours in pairs))
    assert [row["target"] for row in result["speedups"]] == [1.3, 2.0, None, 1.3, 2.0, None, None]
    assert all(seconds > 0 for parts in result["parts"].values() for seconds in parts.values())
    assert [row["target"] for row in result["memory"]] == [None, 0.5]
    assert all(row["ratio"] == row["ours_mib"] / row["reference_mib"] for row in result["memory"])


@LINUX
def test_peak_memory_of_a_known_step():
    program = f"""
import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); import checkout
import compare_reference, torch
kept = torch.ones(32, 2**18)  # 32 MiB that are resident before and after
def step():
    return torch.ones(48, 2**18), torch.ones(16, 2**18)
step()
print(compare_reference.peak_above_resident(step))
"""
    done = subprocess.run([sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(64, abs=4)


def test_a_reference_that_computes_something_else_is_not_timed(tmp_path):
    done = compare(tmp_path, write_fake_reference(tmp_path / "reference", "loss = 1.0001 * loss"))
    assert done.returncode == 1
    assert "GateError: ours fp32" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_reference_is_named(tmp_path):
    done = compare(tmp_path, tmp_path / "nothing")
    assert done.returncode == 2
    assert f"{tmp_path / 'nothing'}: no cinema/mae/mae.py there" in done.stderr
