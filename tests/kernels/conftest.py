"""The CUDA kernels of the flow, compiled for the CPU."""

import pytest
from flow_cases import CSRC, poisoned
from flow_kernels import OnCpu, for_cpu

from cinema_fast.kernels.optical_flow import cuda_form


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return for_cpu(CSRC / "optical_flow.cu", tmp_path_factory.mktemp("flow"))


@pytest.fixture
def on_cpu(library, monkeypatch):
    module = OnCpu(library)
    monkeypatch.setattr(cuda_form, "cuda_module", lambda operation: module)
    return module


@pytest.fixture
def poison():
    with poisoned():
        yield
