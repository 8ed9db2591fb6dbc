"""The tests lie in the package's folders, and none imports another."""

import ast

from machine import ROOT

TESTS = sorted((ROOT / "tests").rglob("test_*.py"))
OF_NO_PACKAGE = {"benchmarks", "docs", "kernels", "mutants", "project"}  # folders beside the package, and the whole


def test_folders_are_those_of_the_package():
    folders = {path.parent.relative_to(ROOT / "tests") for path in TESTS}
    assert not [str(folder) for folder in folders
                if folder.parts[:1] == () or (folder.parts[0] not in OF_NO_PACKAGE
                and not (ROOT / "cinema_fast" / folder).is_dir())]  # fmt: skip
    names = [path.name for path in TESTS]
    assert len(set(names)) == len(names), "pytest finds test files by their names alone"


def test_no_file_imports_a_test():
    """What several tests share lies in tests/support, and fixtures in conftest.py."""
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                assert not node.module.startswith("test_") and node.module != "conftest", f"{path}: {node.module}"
