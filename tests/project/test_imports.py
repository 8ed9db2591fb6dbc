"""Imports run downwards only, without circles: the layers of architecture.md hold, also inside functions."""

import ast
from graphlib import CycleError, TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

import pytest
from machine import ROOT

from cinema_fast.common.views import VIEWS
from cinema_fast.tasks.registry import TASKS

# from the lowest up: each knows only those before it; the root has the version, and loads the others by name
LAYERS = (
    "root", "kernels", "common", "phantom", "data.formats", "data.store", "data.loading", "data.prepare",
    "data.datasets", "metrics", "figures", "models", "train", "methods", "tasks", "cohort", "evaluation", "prediction",
    "commands",
)  # fmt: skip
NARROW = {"kernels": {"kernels"}, "metrics": {"metrics", "common"}}  # these know less than lies below them
MOST_FILES = 20


def found_modules() -> dict[str, Path]:
    """{full name: file} of all modules; `kernels/` is imported as `cinema_fast.kernels`."""
    found = {}
    for folder, prefix in (("cinema_fast", ()), ("kernels", ("cinema_fast",))):
        for path in (ROOT / folder).rglob("*.py"):
            parts = (*prefix, *path.relative_to(ROOT).with_suffix("").parts)
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


MODULES = found_modules()


def imported(name: str) -> set[str]:
    """The modules of this project that one imports anywhere, but for the sake of types alone."""
    package = name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]
    found, todo = set(), [ast.parse(MODULES[name].read_text(encoding="utf-8"))]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo += node.orelse
            continue
        todo += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = resolve_name("." * node.level + (node.module or ""), package)
            names = [f"{source}.{alias.name}" for alias in node.names]
            found.update(full if full in MODULES else source for full in names)
    if name == "cinema_fast.tasks.registry":  # which names its modules, and imports them when they are asked for
        found.update(home.partition(":")[0] for home in TASKS.values())
    return {other for other in found if other.split(".")[0] == "cinema_fast"} - {name}


IMPORTS = {name: imported(name) for name in MODULES}


def layer(name: str) -> str:
    """The layer of a module; those beside the packages are commands."""
    parts = name.split(".")[1:]
    return next((of for of in (".".join(parts[:2]), *parts[:1], *["root"] * (not parts)) if of in LAYERS), "commands")


def test_it_sees_the_imports():
    """Of modules, of names, of the root, and inside functions; each is there."""
    assert set().union(*IMPORTS.values()) <= MODULES.keys() and IMPORTS["cinema_fast"] == set()
    assert {"cinema_fast.train.checkpoint", "cinema_fast.common.parsed_file"} <= IMPORTS["cinema_fast.cohort.embed"]
    assert {"cinema_fast", "cinema_fast.data.store.store"} <= IMPORTS["cinema_fast.train.setup"]
    assert "cinema_fast.kernels.sparse_attention" in IMPORTS["cinema_fast.models.layers"]


def test_imports_run_downwards():
    wrong = set()
    for name, others in IMPORTS.items():
        here = layer(name)
        allowed = NARROW.get(here, LAYERS[: LAYERS.index(here) + 1])
        wrong |= {(name, other) for other in others if layer(other) not in allowed}
    assert wrong == set()


def test_there_are_no_circles():
    graph = IMPORTS
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"modules import each other: {' <- '.join(error.args[1])}")


def test_names_of_views_are_imported_from_their_definition():
    wrong = set()
    for name, file in MODULES.items():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = {alias.name for alias in node.names} if isinstance(node, ast.ImportFrom) else set()
            if names & {"VIEWS", "CLIP"} and node.module.rpartition(".")[2] != "views":
                wrong.add(name)
            if isinstance(node, ast.Tuple) and ast.unparse(node) == str(VIEWS) and name != "cinema_fast.common.views":
                wrong.add(name)
    assert wrong == set()


def test_one_module_locks():
    found = {name for name, file in MODULES.items() if "fcntl" in file.read_text(encoding="utf-8")}
    assert found == {"cinema_fast.common.lock"}


def test_no_folder_has_many_files():
    folders = {path.parent for name, path in MODULES.items() if layer(name) != "kernels"}
    assert {folder.name: n for folder in folders if (n := len(list(folder.glob("[!_]*.py")))) > MOST_FILES} == {}
