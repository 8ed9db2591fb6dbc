"""Fixtures that every test file may use.

A test that takes the fixture `backend` is about an operation, whatever runs it: by default it runs on the PyTorch
form; with TRITON_INTERPRET=1 in the environment (`make test` does that in a second process) on the Triton kernel in
its interpreter, and then nothing else is collected; on a machine with a GPU on both, on the device. A test file names
what else its operation has for a CPU in CPU_BACKENDS.
"""

import gc
from pathlib import Path

import pytest
from labelled_discs import Discs
from machine import INTERPRET, has_gpu, shared_path
from tiny_runs import FOUR, write_store

gc.disable()  # until the tests are collected


def pytest_collection_finish():
    """The modules stay to the end: the garbage collector need not look through them, which takes 5 % of the time."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure():
    gc.unfreeze()  # else libraries report at exit what was not freed


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of golden files and real cines beside the checkout; absent in a user's clone."""
    return shared_path(".")


def pytest_generate_tests(metafunc):
    if "backend" in metafunc.fixturenames:
        on_cpu = ["torch", *getattr(metafunc.module, "CPU_BACKENDS", ())]
        backends = ["triton"] if INTERPRET else ["torch", "triton"] if has_gpu() else on_cpu
        marks = [pytest.mark.gpu] if has_gpu() else []
        metafunc.parametrize("backend", [pytest.param(b, marks=marks) for b in backends], indirect=True)


def pytest_collection_modifyitems(config, items):
    if INTERPRET:
        others = [item for item in items if "backend" not in item.fixturenames]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if "backend" in item.fixturenames]


@pytest.fixture
def backend(request):
    """Name of the backend under test. Uninitialised memory is NaN meanwhile, and a Triton test must launch a kernel."""
    import torch

    from cinema_fast.kernels.backend import launches

    before = sum(launches().values())
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield request.param
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = filled
    if request.param == "triton":
        assert sum(launches().values()) > before, "the test passed without launching a kernel"


@pytest.fixture
def device():
    """Where operations are tested: the GPU where there is one."""
    return "cuda" if has_gpu() else "cpu"


@pytest.fixture
def no_report(monkeypatch):
    """Pre-training runs write no pictures and no evaluation, which take longer than a few steps."""
    for method in ("mae", "dino"):
        monkeypatch.setattr(f"cinema_fast.methods.{method}.write_report", lambda *_, **__: [])


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory) -> Path:
    """Nine studies with four views, three with the short axis only."""
    studies = {f"s{i:02d}": FOUR if i % 4 else ("sax",) for i in range(12)}
    return write_store(tmp_path_factory.mktemp("tiny") / "store", studies)


@pytest.fixture(scope="session")
def discs(tmp_path_factory) -> Discs:
    return Discs(tmp_path_factory.mktemp("discs"))
