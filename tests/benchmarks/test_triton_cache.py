"""What gpu/triton_cache.py compiles without a GPU is what a launch finds, once it is unpacked on another machine."""

import os
from contextlib import suppress
from unittest import mock

import pytest

triton = pytest.importorskip("triton")
audit_launches, triton_cache = pytest.importorskip("audit_launches"), pytest.importorskip("triton_cache")
gpu_work = pytest.importorskip("gpu_work")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
def test_launches_find_what_was_compiled(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", "")  # restored at the end
    (case,) = (c for c in triton_cache.step_cases() if (c.operation, c.name) == ("masked_mse", "awkward bf16"))
    triton_cache.pack(list(audit_launches.record([case], 90).values()), tmp_path / "here" / "triton.tar.gz")
    said = gpu_work.unpack(tmp_path / "here" / "triton.tar.gz", tmp_path / "there")
    assert said.startswith("2 launches for sm_90 by triton") and "not this one" not in said
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "there" / "triton"))
    found = []

    def listen(*, cache_hit, **_):
        found.append(cache_hit)

    listener = mock.patch.object(triton.knobs.compilation, "listener", listen)
    # the driver's launcher is missing, so the first launch is the last
    with listener, audit_launches._instead_of_a_gpu(90, lambda **_: False), suppress(Exception):
        case.call()
    for kernel in audit_launches.kernels_of(audit_launches.kernel_modules()).values():
        kernel.device_caches.clear()  # what this process now has would not be compiled for another test
    assert found == [True]
