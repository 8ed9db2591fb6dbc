"""Whatever lists the operations is built from their registry; a new one is its file, its test and its benchmark."""

import importlib
import re
from contextlib import suppress

import pytest
import readme_tables
import torch
from gpu_work import Checks
from machine import ROOT

from cinema_fast import kernels
from cinema_fast.info import describe
from cinema_fast.kernels import OPERATIONS, BackendError
from cinema_fast.kernels import backend as backend_module
from cinema_fast.kernels.inputs import RandomInputs
from cinema_fast.kernels.registry import Call, Code, Operation, register

LINES, MOST = 12, 5  # naming more operations than that within so many lines is listing them


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_has_its_test_and_its_benchmark(name):
    assert (ROOT / "tests" / "kernels" / f"test_{name}.py").exists()
    bench = importlib.import_module(f"bench_{name}")
    assert OPERATIONS[name].passes == bench.PASSES
    assert bench.build(bench.CHECKED[0]).name == name
    assert bool(list(OPERATIONS[name].calls())) == (hasattr(bench, "predicted") or hasattr(bench, "predicted_traffic"))
    assert getattr(kernels, name) is OPERATIONS[name].function


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_backends_it_declares_are_those_it_chooses_from(name, monkeypatch):
    module, asked = importlib.import_module(OPERATIONS[name].function.__module__), []

    def noted(operation, backend, reasons, **how):
        asked.append((operation, *reasons))
        return backend_module.choose(operation, backend, reasons, **how)

    monkeypatch.setattr(module, "choose", noted)
    with suppress(BackendError):
        OPERATIONS[name].small(RandomInputs("cpu"), torch.float32)
    assert asked and set(asked) == {(name, *OPERATIONS[name].backends[:-1])}


def listed(text: str) -> list[int]:
    """Lines from which on a text lists operations."""
    pattern, lines = re.compile("|".join(OPERATIONS)), text.splitlines()
    named = [set(pattern.findall(line)) for line in lines]
    return [i + 1 for i in range(len(lines)) if len(set().union(*named[i : i + LINES])) > MOST]


def test_no_other_file_lists_the_operations():
    some = list(OPERATIONS)[:6]
    in_two, imports = f"FIRST = {some[:3]}\n\nTHEN = {some[3:]}", "import bench_".join(["", *some])
    for text in (str(some), in_two, imports, "|".join(some)):
        assert listed(text) == [1], text
    assert listed((ROOT / "kernels" / "__init__.py").read_text())
    found = [
        f"{path.relative_to(ROOT)}:{lines[0]}"
        for folder in ("kernels", "cinema_fast", "benchmarks", "tests")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if path != ROOT / "kernels" / "__init__.py" and (lines := listed(path.read_text()))
    ]
    assert not found


@pytest.fixture
def doubled(monkeypatch):
    """An operation that registers itself, as a new file in kernels/ would."""

    def doubled(x, *, backend="auto"):
        return 2 * x

    monkeypatch.setitem(OPERATIONS, "doubled", None)  # and out again
    code = Code(False, True, True, "rows in, rows out")
    register(Operation(
        doubled, computes="twice its input", unsupported={"triton": lambda x: ["of no use"]}, launches=("doubled",),
        backward=("doubled_bwd",), small=lambda inputs, dtype: [inputs.floats(3)],
        calls=lambda: [Call("rows bf16", lambda inputs: [inputs.floats(3)])], code={"_double": code},
    ))  # fmt: skip
    return code


def test_a_new_operation_is_everywhere(doubled):
    assert ("doubled", "torch", "triton: of no use") in kernels.table()
    assert "doubled                  torch     triton: of no use" in describe()
    with kernels.use("torch", "doubled"):
        pass
    with pytest.raises(BackendError, match=r"unknown operation 'trebled'; expected one or more of .*doubled"):
        kernels.use("torch", "trebled").__enter__()
    row = readme_tables.kernels_section([]).splitlines()[-1]
    assert "| twice its input | fwd, bwd | triton, torch | not measured on a GPU |" in row
    assert "doubled" in Checks("GPU", "commit").unchecked()
    modules = [importlib.import_module(name) for name in ("gpu_first", "gpu_report", "gpu_profile")]
    try:
        gpu_first, gpu_report, gpu_profile = map(importlib.reload, modules)
        for sections in (gpu_first.COMMANDS["A"], gpu_report.SECTIONS):
            (errors,) = (section for section in sections if section.name == "errors")
            assert "doubled" in errors.parts
        assert gpu_profile.component_of("_doubled_fwd") == gpu_profile.OTHERS
    finally:
        del OPERATIONS["doubled"]
        for module in modules:
            importlib.reload(module)


def test_a_new_operation_is_audited(doubled):
    pytest.importorskip("triton", reason="the audit compiles Triton kernels")
    audit, audit_launches = importlib.import_module("audit"), importlib.import_module("audit_launches")
    assert audit.expected()["doubled._double"] is doubled
    (case,) = (case for case in audit_launches.cases() if case.operation == "doubled")
    assert case.name == "rows bf16" and isinstance(case.call()[0], torch.Tensor)
