"""The GPU report on the CPU: its file is whole at any moment, faults are told of, and it runs from a bare checkout."""

import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from fake_reference import write_fake_reference

from cinema_fast.data.dali import why_not_dali

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "benchmarks" / "gpu" / "gpu_report.py"
TOP = {
    "device", "date", "versions", "commit", "conditions", "smoke", "kernels", "step", "waterfall", "breakdown", "data",
    "tests", "failed", "unreached",
}  # fmt: skip
STEP = {
    "preset", "batch", "dtype", "mode", "decode_ratio", "ms", "studies_per_s", "mfu", "peak_mib", "peer", "peer_ms",
    "speedup",
}  # fmt: skip
KERNEL = {
    "op", "pass", "shape", "dtype", "us", "limit_us", "percent_of_limit", "peer", "peer_us", "speedup", "rel_err",
    "err_budget", "kernel_sha", "per_s", "unit",
}  # fmt: skip
DATA = {
    "loader", "preset", "batch", "workers", "cores", "studies_per_s", "augmentation_ms", "transfer_ms", "times_step",
}  # fmt: skip
PEERS = ("reference as published", "reference compiled, no checkpointing")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def smoke(out, *options):
    """Run it; (exit status, the file's content, what it printed)."""
    command = [sys.executable, SCRIPT, "--smoke", "--out", out, *options]
    done = subprocess.run(command, env=ENVIRONMENT, cwd=out, capture_output=True, text=True, timeout=300)
    files = list(out.glob("*.json"))
    assert len(files) == 1, done.stderr
    return done.returncode, json.loads(files[0].read_text()), done.stdout


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of everything, with a reference."""
    out = tmp_path_factory.mktemp("whole")
    return smoke(out, "--reference", write_fake_reference(tmp_path_factory.mktemp("reference")))


def test_file_has_the_schema(whole):
    status, report, _ = whole
    assert status == 0
    assert set(report) == TOP
    assert report["failed"] == []
    assert report["unreached"] == []
    assert set(report["tests"]) == {"passed", "failed", "skipped"}
    assert report["smoke"] is True
    assert report["device"] == "cpu-smoke"
    assert all(set(row) == STEP for row in report["step"])
    assert all(set(row) == KERNEL for row in report["kernels"])
    assert len(report["commit"].removesuffix("-dirty")) >= 16


def test_every_way_is_timed_against_both_peers(whole):
    _, report, _ = whole
    modes = ("eager", "compiled")
    ours = {(r["batch"], r["mode"], r["decode_ratio"], r["peer"]): r for r in report["step"] if r["mode"] in modes}
    ways = [("eager", PEERS[0]), ("eager", PEERS[1]), ("compiled", PEERS[1])]
    assert set(ours) == {(4, mode, ratio, peer) for ratio in (1.0, 0.25) for mode, peer in ways}
    theirs = {(r["batch"], r["mode"]): r for r in report["step"] if r["mode"] not in modes}
    assert set(theirs) == {(4, peer) for peer in PEERS}
    for (batch, _, _, peer), row in ours.items():
        assert row["studies_per_s"] == pytest.approx(1000 * batch / row["ms"])
        assert row["peer_ms"] == theirs[batch, peer]["ms"]
        assert 0 < row["speedup"] < 100
        assert row["mfu"] is None  # of no GPU
        assert row["peak_mib"] is None


def test_waterfall_climbs_from_the_same_loss(whole):
    _, report, _ = whole
    rungs = report["waterfall"]
    assert [rung["technique"] for rung in rungs] == [
        "reference as published", "no checkpointing", "visible tokens only, in PyTorch", "kernels", "torch.compile",
        "a quarter of the masked tokens decoded",
    ]  # fmt: skip
    assert rungs[0]["times_faster"] is None
    for before, rung in itertools.pairwise(rungs):
        assert rung["times_faster"] == pytest.approx(before["ms"] / rung["ms"])
    assert all(rung["loss"] == pytest.approx(rungs[0]["loss"], rel=1e-2) for rung in rungs[1:-1])
    assert rungs[-1]["loss"] == pytest.approx(rungs[0]["loss"], rel=0.1)  # the mean over other tokens


def test_breakdown_covers_the_step(whole):
    _, report, _ = whole
    share = {row["component"]: row["share"] for row in report["breakdown"]}
    # a difference of two timings: at toy size either may be the longer one
    assert abs(share.pop("guided masks, beyond masks by chance")) < 1
    assert sum(share.values()) == pytest.approx(1)
    assert all(share[name] > 0 for name in ("matrix products", "attention", "optimiser", "depthwise convolution"))
    assert list(share.values()) == sorted(share.values(), reverse=True)


def test_table_is_printed_last(whole):
    _, report, printed = whole
    table = printed[printed.rindex("| step |") :]
    assert table.count("\n| toy bf16") == len(report["step"]) == 8
    assert "SMOKE: not a timing" in printed


@pytest.mark.slow
def test_faults_of_a_peer_are_recorded_and_the_rest_goes_on(tmp_path):
    fault = """
        if self.grad_ckpt and torch.is_grad_enabled():
            raise torch.OutOfMemoryError("tried to allocate 70 GiB")
        loss = loss if self.grad_ckpt else 1.001 * loss
"""
    reference = write_fake_reference(tmp_path / "reference", fault)
    status, report, _ = smoke(tmp_path, "--only", "step", "--reference", reference)
    assert status == 1
    failed = {f["row"]: f["reason"] for f in report["failed"]}
    assert len(failed) == 3
    for name, reason in failed.items():
        if PEERS[0] in name:
            assert reason == "out of memory: tried to allocate 70 GiB"
        else:
            assert reason.startswith("GateError: ours against the reference")
    assert report["unreached"] == []
    assert len(report["step"]) == 6
    assert all(row["mode"] in ("eager", "compiled") and row["speedup"] is None for row in report["step"])
    assert report["waterfall"][0]["technique"] == "no checkpointing"


def test_no_budget_leaves_everything_unreached(tmp_path):
    status, report, _ = smoke(tmp_path, "--budget", "0")
    assert status == 0
    assert report["step"] == report["kernels"] == report["failed"] == []
    assert report["tests"] is None
    steps = [name for name in report["unreached"] if name.startswith("step toy")]
    assert len(steps) == 4  # modes and decode ratios, without a peer
    assert {"tests", "data torch"} <= set(report["unreached"])


@pytest.mark.slow
def test_killed_in_the_middle_leaves_a_whole_file(tmp_path):
    fault = """
        if not self.grad_ckpt:
            import time

            print("in the second group", flush=True)
            time.sleep(100)
"""
    reference = write_fake_reference(tmp_path / "reference", fault)
    command = [sys.executable, SCRIPT, "--smoke", "--out", tmp_path, "--only", "step", "--reference", reference]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    assert any("in the second group" in line for line in process.stdout)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    (file,) = tmp_path.glob("*.json")
    report = json.loads(file.read_text())
    assert len(report["step"]) == 3
    assert len([name for name in report["unreached"] if name.startswith("step")]) == 5


def test_loaders_are_timed(whole):
    _, report, printed = whole
    rows = {row["loader"]: row for row in report["data"]}
    assert "torch" in rows and set(rows) == {"torch"} | ({"dali"} if not why_not_dali() else set())
    for row in rows.values():
        assert set(row) == DATA and 1 <= row["cores"] <= 4
        assert row["studies_per_s"] > 0 and row["augmentation_ms"] > 0
        assert row["times_step"] is None  # steps of another preset
        assert row["transfer_ms"] is None  # on a CPU there is nothing to transfer
    assert printed.count("| torch | 2 |") == 1


def test_a_folder_that_is_no_reference_is_named(tmp_path):
    command = [sys.executable, SCRIPT, "--smoke", "--out", tmp_path, "--reference", tmp_path / "nothing"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"{tmp_path / 'nothing'}: no cinema/mae/mae.py there" in done.stderr


CONFTEST = """
import pytest

def pytest_generate_tests(metafunc):
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", [pytest.param("triton", marks=pytest.mark.gpu)])

@pytest.fixture
def device():
    return "cuda"
"""
WAYS = """
import pytest

WAYS = [pytest.param("cuda", marks=getattr(pytest.mark, "gpu"))]

@pytest.fixture(params=WAYS)
def way(request):
    return request.param

def test_it(way):
    pass
"""


def test_gpu_tests_are_counted(tmp_path):
    marker = "@pytest.mark" + ".gpu\n"  # in one piece it would make this file one of those that are looked for
    tests = ["def test_{}():\n    {}\n".format(*t) for t in (("a", "pass"), ("b", "assert 0"), ("c", "pytest.skip()"))]
    source = "import pytest, cinema_fast\n" + "".join(marker + t for t in tests) + "def test_not_one():\n    assert 0\n"
    (tmp_path / "test_on_gpu.py").write_text(source)
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_an_operation.py").write_text("def test_it(device, backend):\n    pass\n")
    (tmp_path / "test_a_flow.py").write_text(WAYS)
    (tmp_path / "test_other.py").write_text("import a_package_that_is_not_there")
    program = (
        f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); from pathlib import Path; import gpu_report\n"
        f"here = Path({str(tmp_path)!r})\n"
        "print(dict(gpu_report.run_tests(here, here, 100))['tests'])"
    )
    done = subprocess.run([sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True)
    assert eval(done.stdout) == {"passed": 3, "failed": 1, "skipped": 1}, done.stderr
    assert "test_b" in (tmp_path / "tests.log").read_text()


WITHOUT = ("nibabel", "tyro", "rich", "matplotlib", "yaml", "scipy", "safetensors", "omegaconf", "monai", "torchvision")
KERNEL_ROWS = """
from report_schema import KernelRow, kernel_sha

def row(rel_err):
    sha = kernel_sha("philox")
    return KernelRow("philox", "fwd", "B2", "fp32", 2.0, 1.0, 50.0, "peer", 4.0, 2.0, rel_err, 1e-5, sha)

def kernel_rows(device, smoke):
    return {"good": lambda: row(1e-6), "bad": lambda: row(float("nan")), "worse": lambda: 1 / 0}
"""


@pytest.fixture(scope="module")
def bare_checkout(tmp_path_factory):
    """The source tree without its history, in a folder of its own."""
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
    return copy


def run_bare(checkout, out, *options):
    """The report from a checkout that is not installed, on a machine without most packages; as `smoke`."""
    program = f"""
import runpy, sys
for name in {WITHOUT}:
    sys.modules[name] = None  # importing it fails
folder = {str(checkout / "benchmarks" / "gpu")!r}
sys.path.insert(0, folder)
sys.argv = ["gpu_report.py", "--smoke", "--out", {str(out)!r}, *{options}]
try:
    runpy.run_path(folder + "/gpu_report.py", run_name="__main__")
except SystemExit as end:
    import cinema_fast, cinema_fast.kernels.philox
    print(cinema_fast.__file__, cinema_fast.kernels.philox.__file__)
    sys.exit(end.code)
"""
    # -S: site-packages comes by name only, so that no .pth file in it brings an editable installation back
    paths = dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
    environment = ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [sys.executable, "-S", "-c", program], env=environment, cwd=out, capture_output=True, text=True
    )
    (file,) = out.glob("*.json")
    return done.returncode, json.loads(file.read_text()), done.stdout


def test_runs_from_a_checkout_that_is_not_installed(tmp_path, bare_checkout):
    reference = write_fake_reference(tmp_path / "reference")
    status, report, printed = run_bare(
        bare_checkout, tmp_path, "--only", "step", "--budget", "1e-9", "--reference", str(reference)
    )
    assert status == 0
    imported = [bare_checkout / "cinema_fast" / "__init__.py", bare_checkout / "kernels" / "philox.py"]
    assert printed.splitlines()[-1].split() == [str(path) for path in imported]
    assert report["commit"].startswith("sources-sha256:")
    assert len([name for name in report["unreached"] if name.startswith("step")]) == 8


def test_kernel_rows_are_collected_and_faults_are_recorded(tmp_path, bare_checkout):
    (bare_checkout / "benchmarks" / "bench_of_a_kernel.py").write_text(KERNEL_ROWS)
    (bare_checkout / "benchmarks" / "bench_broken.py").write_text("import a_package_that_is_not_there")
    status, report, _ = run_bare(bare_checkout, tmp_path, "--only", "kernels")
    assert status == 1
    assert {"masked_mse", "patch_embed", "assemble_queries", "sample_mask"} <= {r["op"] for r in report["kernels"]}
    assert all(set(row) == KERNEL for row in report["kernels"])
    (row,) = (r for r in report["kernels"] if r["op"] == "philox")
    assert row["kernel_sha"] == hashlib.sha256((ROOT / "kernels" / "philox.py").read_bytes()).hexdigest()
    reasons = {f["row"]: f["reason"] for f in report["failed"]}
    assert reasons == {
        "bad": "rel_err is nan",
        "worse": "ZeroDivisionError: division by zero",
        "kernels of bench_broken.py": "ModuleNotFoundError: No module named 'a_package_that_is_not_there'",
    }
