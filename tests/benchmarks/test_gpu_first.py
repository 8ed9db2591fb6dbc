"""Both commands of gpu_first.py on the CPU: what they bring home, from a checkout without most packages too."""

import gzip
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import gpu_first
import pytest
from fake_reference import write_fake_reference
from machine import ROOT

from cinema_fast.data.loading.dali import why_not_dali
from cinema_fast.kernels import OPERATIONS, tuning

SCRIPT = ROOT / "benchmarks" / "gpu" / "gpu_first.py"
TOP = {
    "device", "date", "versions", "commit", "conditions", "smoke", "machine", "errors", "step", "breakdown", "profile",
    "tiles", "kernels", "waterfall", "data", "tests", "fallbacks", "unchecked", "failed", "unreached",
}  # fmt: skip
STEP = {
    "preset", "batch", "dtype", "mode", "decode_ratio", "ms", "studies_per_s", "mfu", "peak_mib", "peer", "peer_ms",
    "speedup", "attention", "predicted_ms",
}  # fmt: skip
KERNEL = {
    "op", "pass", "shape", "dtype", "us", "limit_us", "percent_of_limit", "peer", "peer_us", "speedup", "rel_err",
    "err_budget", "kernel_sha", "per_s", "unit", "predicted_us",
}  # fmt: skip
DATA = {
    "loader", "preset", "batch", "workers", "cores", "studies_per_s", "augmentation_ms", "transfer_ms", "times_step",
}  # fmt: skip
PUBLISHED = "reference as published"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def smoke(out: Path, *options, script: Path = SCRIPT, environment=ENVIRONMENT) -> tuple[int, dict, str]:
    """Run it; exit status, the report, and what was printed."""
    command = [sys.executable, script, "--smoke", "--out", out, *options]
    done = subprocess.run(command, env=environment, cwd=out, capture_output=True, text=True, timeout=600)
    files = [path for path in out.glob("*.json") if not path.name.startswith("tuned")]
    assert len(files) == 1, done.stderr
    return done.returncode, json.loads(files[0].read_text()), done.stdout


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """What the second command finds of the first."""
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def first(tmp_path_factory, work):
    """Command A: its folder, status, report and print."""
    out = tmp_path_factory.mktemp("a")
    return out, *smoke(out, "A", "--work", work)


@pytest.fixture(scope="module")
def second(first, tmp_path_factory, work):
    """Command B, after A."""
    out, reference = tmp_path_factory.mktemp("b"), write_fake_reference(tmp_path_factory.mktemp("reference"))
    return out, *smoke(out, "B", "--work", work, "--reference", reference)


def assert_complete(found) -> None:
    _, status, report, printed = found
    assert set(report) == TOP
    assert report["failed"] == report["unreached"] == []
    assert status == 0
    assert report["smoke"] is True and report["device"] == "cpu-smoke"
    assert len(report["commit"].removesuffix("-dirty")) >= 16
    assert "SMOKE: not a timing" in printed[printed.rindex("cpu-smoke, ") :]  # the table is printed last


def assert_small_with_logs(out: Path) -> None:
    files = list(out.iterdir())
    assert len(files) <= 8 and all(path.stat().st_size < 16 * 2**20 for path in files)
    with tarfile.open(next(out.glob("*-logs.tar.gz"))) as logs:
        names = logs.getnames()
    assert any(name.endswith(".jsonl") for name in names) and any(name.endswith(".log") for name in names)
    (table,) = out.glob("*.md")
    assert "SMOKE" in table.read_text()


def test_the_first_command_reaches_everything(first):
    assert_complete(first)
    assert_small_with_logs(first[0])


@pytest.mark.slow
def test_the_second_command_reaches_everything(second):
    assert_complete(second)
    assert_small_with_logs(second[0])


def test_every_operation_is_held_to_float64(first):
    _, _, report, _ = first
    rows = {(row["op"], row["pass"]): row for row in report["errors"]}
    assert rows.keys() == {(name, pass_) for name, op in OPERATIONS.items() for pass_ in op.passes}
    assert all(row["right"] and 0 <= row["rel_err"] <= row["err_budget"] for row in rows.values())
    assert report["fallbacks"] == {}


def assert_step(row: dict) -> None:
    assert set(row) == STEP
    assert row["studies_per_s"] == pytest.approx(1000 * row["batch"] / row["ms"])
    assert row["mfu"] is row["peak_mib"] is row["predicted_ms"] is None  # of no GPU


def test_eager_steps_are_timed_with_both_attentions(first):
    rows = first[2]["step"]
    ways = {(r["mode"], r["attention"], r["decode_ratio"]) for r in rows}
    assert ways == {("eager", attention, ratio) for attention in ("auto", "sdpa") for ratio in (1.0, 0.25)}
    for row in rows:
        assert_step(row)


@pytest.mark.slow
def test_compiled_steps_are_timed_and_the_reference_beside_ours(second):
    rows = second[2]["step"]
    compiled = {(r["mode"], r["decode_ratio"]) for r in rows if r["peer"] is None}
    assert compiled == {("compiled", 1.0), ("compiled", 0.25), (PUBLISHED, 1.0)}
    for row in rows:
        assert_step(row)
    theirs = next(r for r in rows if r["mode"] == PUBLISHED)
    beside = [r for r in rows if r["peer"] == PUBLISHED]
    assert {(r["mode"], r["decode_ratio"]) for r in beside} == {("eager", 1.0), ("eager", 0.25)}
    assert all(r["peer_ms"] == theirs["ms"] and 0 < r["speedup"] < 100 for r in beside)


def test_the_profile_covers_the_step_and_its_trace_opens(first):
    out, _, report, _ = first
    share = {row["component"]: row["share"] for row in report["breakdown"]}
    # a difference of two timings: at toy size either may be the longer one
    assert abs(share.pop("guided masks, beyond masks by chance")) < 1
    assert sum(share.values()) == pytest.approx(1)
    assert all(share[name] > 0 for name in ("matrix products", "attention", "optimiser", "depthwise convolution"))
    assert list(share.values()) == sorted(share.values(), reverse=True)
    everything, *kernels = report["profile"]
    assert (everything["kernel"], everything["share"]) == ("all kernels", 1)
    assert [k["us"] for k in kernels] == sorted((k["us"] for k in kernels), reverse=True)
    assert sum(k["share"] for k in kernels) <= 1 + 1e-9
    with gzip.open(out / "trace-eager.json.gz") as file:
        assert len(json.load(file)["traceEvents"]) > 100


def test_every_tile_is_timed_and_the_fastest_become_a_table(first, work):
    out, _, report, _ = first
    table = tuning.read(out / "tuned-cpu.json")
    assert table == tuning.read(work / "tuned.json")
    (entry,) = table["sparse_attention"]
    assert (entry["queries"], entry["keys"], entry["head_dim"]) == (13, 37, 24)
    for pass_ in ("fwd", "dq", "dkv"):
        rows = [row for row in report["tiles"] if row["pass"] == pass_ and row["tile"] != "sdpa"]  # a peer
        assert len(rows) >= 4
        (best,) = (row for row in rows if row["best"])
        assert best["us"] == min(row["us"] for row in rows)
        rows_, cols, warps, stages = entry["tiles"][pass_]
        assert best["tile"] == f"{rows_}x{cols} w{warps} s{stages}"


@pytest.mark.slow
def test_kernels_loaders_and_tests_are_there(second):
    _, _, report, _ = second
    assert {row["op"] for row in report["kernels"]} == {
        "sparse_depthwise_conv", "patch_embed", "masked_mse", "sample_mask"
    }  # fmt: skip
    assert all(set(row) == KERNEL for row in report["kernels"])
    assert {row["loader"] for row in report["data"]} == {"torch"} | ({"dali"} if not why_not_dali() else set())
    for row in report["data"]:
        assert set(row) == DATA and 1 <= row["cores"] <= 4
        assert row["studies_per_s"] > 0 and row["augmentation_ms"] > 0
        assert row["times_step"] is None  # steps of another preset
        assert row["transfer_ms"] is None  # on a CPU there is nothing to transfer
    assert set(report["tests"]) == {"passed", "failed", "skipped"}


@pytest.mark.parametrize("options", [[], ["A", "--only", "machine"], ["--only", "nothing"]], ids=str)
def test_options_that_do_not_fit_are_refused(tmp_path, monkeypatch, capsys, options):
    monkeypatch.setattr(sys, "argv", ["gpu_first.py", "--smoke", "--out", str(tmp_path / "out"), *options])
    with pytest.raises(SystemExit) as end:
        gpu_first.main()
    assert end.value.code == 2
    assert (
        "invalid choice: 'nothing'" if "nothing" in options else "expected either A or B, or --only"
    ) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


WITHOUT = ("nibabel", "tyro", "rich", "matplotlib", "yaml", "scipy", "safetensors", "omegaconf", "monai", "torchvision")


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A copy of the sources without their history, and an environment in which most packages cannot be imported."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    copy = tmp_path_factory.mktemp("checkout")
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    site = tmp_path_factory.mktemp("site")
    (site / "sitecustomize.py").write_text(f"import sys\nfor name in {WITHOUT}:\n    sys.modules[name] = None\n")
    return copy, ENVIRONMENT | {"PYTHONPATH": str(site)}


def bare_run(bare, out: Path, *options) -> tuple[int, dict, str]:
    copy, environment = bare
    script = copy / "benchmarks" / "gpu" / "gpu_first.py"
    return smoke(out, "--work", out / "work", *options, script=script, environment=environment)


@pytest.mark.slow
def test_it_runs_from_a_checkout_that_is_not_installed(tmp_path, bare):
    """And it is that checkout's code which is timed: an operation that is wrong there is found, and replaced."""
    copy, _ = bare
    source = copy / "kernels" / "masked_mse.py"
    whole = source.read_text()
    assert "def masked_mse_bytes" in whole
    source.write_text(whole + "\n\n_right = masked_mse\n\n\ndef masked_mse(*args, **how):\n"
                      "    return 1.001 * _right(*args, **how)\n")  # fmt: skip
    try:
        status, report, _ = bare_run(bare, tmp_path, "--only", "errors")
    finally:
        source.write_text(whole)
    assert status == 0  # it is measured, and said; nothing failed to run
    assert [row["op"] for row in report["errors"] if not row["right"]] == ["masked_mse", "masked_mse"]
    assert report["fallbacks"] == {"masked_mse": "torch"}
    assert report["commit"].startswith("sources-sha256:")
    assert len(report["errors"]) == 16
