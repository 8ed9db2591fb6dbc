"""Whatever lists the operations is built from their registry; a new one is its file, its test and its benchmark."""

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import gpu_report
import pytest
import readme_tables
import torch
from gpu_work import Checks

from cinema_fast import kernels
from cinema_fast.info import describe
from cinema_fast.kernels import OPERATIONS, BackendError
from cinema_fast.kernels.registry import Call, Code, Operation, register

ROOT = Path(__file__).resolve().parents[1]
MOST = 2 * len(OPERATIONS) // 3  # naming more of them than this is listing them


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_has_its_test_and_its_benchmark(name):
    assert (ROOT / "tests" / f"test_{name}.py").exists()
    bench = importlib.import_module(f"bench_{name}")
    assert OPERATIONS[name].passes == bench.PASSES
    assert bench.build(bench.CHECKED[0]).name == name
    assert getattr(kernels, name) is OPERATIONS[name].function


def listed(tree: ast.AST) -> Iterator[tuple[int, set[str]]]:
    """(line, operations) of literals, and of the file's imports together."""
    imported: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Tuple | ast.List | ast.Set | ast.Dict):
            texts = [c.value for c in ast.walk(node) if isinstance(c, ast.Constant) and isinstance(c.value, str)]
            yield node.lineno, {word for text in texts for word in text.split()} & OPERATIONS.keys()
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
            imported |= {word for name in names for word in re.split(r"[.]|bench_", name)} & OPERATIONS.keys()
    yield 1, imported


def test_no_other_file_lists_the_operations():
    assert any(len(names) > MOST for _, names in listed(ast.parse((ROOT / "kernels" / "__init__.py").read_text())))
    made = ast.parse(f"OPERATIONS = {tuple(OPERATIONS)}")
    assert any(len(names) > MOST for _, names in listed(made))
    found = [
        f"{path.relative_to(ROOT)}:{line} names {len(names)} operations"
        for folder in ("kernels", "cinema_fast", "benchmarks", "tests")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if path != ROOT / "kernels" / "__init__.py"
        for line, names in listed(ast.parse(path.read_text()))
        if len(names) > MOST
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
        doubled, computes="twice its input", unsupported=lambda x: {"triton": lambda: ["of no use"]},
        launches=("doubled", "doubled_bwd"), calls=lambda: [Call("rows bf16", lambda inputs: [inputs.floats(3)])],
        code={"_double": code},
    ))  # fmt: skip
    return code


def test_a_new_operation_is_everywhere(doubled):
    assert ("doubled", "torch", "triton: of no use") in kernels.table()
    assert "doubled                  torch     triton: of no use" in describe()
    with kernels.use("torch", "doubled"):
        pass
    with pytest.raises(BackendError, match=r"unknown operation 'trebled'; want some of .*doubled"):
        kernels.use("torch", "trebled").__enter__()
    row = readme_tables.kernels_section([]).splitlines()[-1]
    assert "| twice its input | fwd, bwd | triton, torch | not measured on a GPU |" in row
    assert "doubled" in Checks("GPU", "commit").unchecked()
    importlib.reload(gpu_report)
    try:
        parts = {section.name: section.parts for section in gpu_report.SECTIONS}
        assert "doubled" in parts["errors"] and "doubled" in parts["kernels"]
    finally:
        del OPERATIONS["doubled"]
        importlib.reload(gpu_report)


def test_a_new_operation_is_audited(doubled):
    pytest.importorskip("triton", reason="the audit compiles Triton kernels")
    audit, audit_launches = importlib.import_module("audit"), importlib.import_module("audit_launches")
    assert audit.expected()["doubled._double"] is doubled
    (case,) = (case for case in audit_launches.cases() if case.operation == "doubled")
    assert case.name == "rows bf16" and isinstance(case.call()[0], torch.Tensor)
