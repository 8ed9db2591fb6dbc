"""What `setup.py` builds from csrc/: with a compiler, without one, and with one that has no OpenMP."""

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from machine import ROOT

LIBRARIES = sorted(f"cinema_fast/kernels/_{path.stem}.so" for path in (ROOT / "csrc").glob("*_cpu.cpp"))


def build(folder: Path, **environment) -> list[str]:
    """Names of what `setup.py build_ext` leaves, in a copy of what it reads."""
    pytest.importorskip("setuptools")
    for name in ("csrc", "kernels", "cinema_fast"):
        (folder / name).symlink_to(ROOT / name)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", "lib", "--build-temp", "temp"],
        cwd=folder, env=os.environ | environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return sorted(str(path.relative_to(folder / "lib")) for path in (folder / "lib").rglob("*") if path.is_file())


def compiler(folder: Path, script: str) -> dict[str, str]:
    """An environment in which `script` is the compiler and there is no nvcc."""
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return {"CC": str(path), "CXX": str(path), "LDSHARED": f"{path} -shared", "LDCXXSHARED": f"{path} -shared",
            "PATH": "/usr/bin:/bin"}  # fmt: skip


def test_no_compiler_is_no_error(tmp_path):
    assert build(tmp_path, **compiler(tmp_path, "exit 1")) == []


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="no g++ to compile with")
def test_a_compiler_without_openmp_gives_the_libraries_all_the_same(tmp_path):
    without = 'for word; do case "$word" in -fopenmp*) exit 1;; esac; done; exec g++ "$@"'
    built = build(tmp_path, **compiler(tmp_path, without))
    assert built == LIBRARIES and built
    assert all(ctypes.CDLL(str(tmp_path / "lib" / name), mode=os.RTLD_NOW) for name in built)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("nvcc") or not shutil.which("g++"), reason="no nvcc and g++ to compile with")
def test_with_both_compilers_all_are_built(tmp_path):
    assert build(tmp_path) == sorted([*LIBRARIES, "cinema_fast/kernels/_optical_flow_cuda.fatbin"])
