"""Which test files cover a file of the project: those that import it, at most by two other modules.

A name that a package hands on counts as its own module's: `from cinema_fast.kernels import motion_map` imports
kernels/motion_score.py. What a helper beside the tests imports counts for the tests that use it.
"""

import re
from collections.abc import Iterator
from functools import cached_property
from importlib.util import resolve_name
from pathlib import Path

# anywhere, also inside functions and in the text of programs that a test starts
_IMPORT = re.compile(r"^[ \t]*(?:from ([\w.]+) import (\([^)]*\)|[^\n(]+)|import (cinema_fast[\w.]*))", re.MULTILINE)
_NAMED = re.compile(r"""["'](cinema_fast[\w.]+)[:"']""")  # a module that is loaded by its name
FURTHEST = 2  # modules between a file and the tests that cover it


class Covering:
    """Of a checkout at `root`."""

    def __init__(self, root: Path):
        self._root = root
        self._files: dict[str, Path] = {}  # by full name; kernels/ is imported as cinema_fast.kernels
        for folder, prefix in (("cinema_fast", ()), ("kernels", ("cinema_fast",))):
            for path in sorted((root / folder).rglob("*.py")):
                parts = (*prefix, *path.relative_to(root).with_suffix("").parts)
                self._files[".".join(parts).removesuffix(".__init__")] = path
        self._handed_on: dict[str, dict[str, str]] = {}

    def tests_of(self, file: str) -> list[str]:
        """Test files that cover `file`, relative to the root; none where nothing does.

        That of its name comes first, then those that import it, those in the folder that mirrors its own, and the
        others, the nearest first; of these, first those of whose imports the largest share lies in its folder.
        """
        reached, distances = self._modules_of(file), {}
        for distance in range(1 + FURTHEST):
            for test, names in self._tests.items():
                if names & reached:
                    distances.setdefault(test, distance)
            reached = reached | {name for name, names in self._imports.items() if names & reached}
        path = Path(file)
        name = "test_" + (path.parent.name if path.stem == "operation" else path.stem.removesuffix("_cpu"))
        inside = ("kernels",) if path.parts[0] == "csrc" else tuple(p for p in path.parent.parts if p != "cinema_fast")
        mirrored, package = Path("tests", *inside), ".".join(("cinema_fast", *inside, ""))

        def order(test: str) -> tuple:
            stem, distance = Path(test).stem, distances[test]
            here = stem.startswith(f"{name}_") or (bool(inside) and Path(test).is_relative_to(mirrored))
            share = sum(module.startswith(package) for module in self._tests[test]) / len(self._tests[test])
            return stem != name, distance > 0, not here, distance, -share, test

        return sorted(distances, key=order)

    def _modules_of(self, file: str) -> set[str]:
        """Those of a Python file, or of the operation that a file in csrc/ belongs to."""
        if not file.startswith("csrc/"):
            return {name for name, path in self._files.items() if path == self._root / file}
        operation = f"cinema_fast.kernels.{Path(file).stem.removesuffix('_cpu')}"
        return {name for name in self._files if f"{name}.".startswith(f"{operation}.")}

    @cached_property
    def _tests(self) -> dict[str, set[str]]:
        """{test file: the modules that it imports}."""
        files = [path for path in sorted((self._root / "tests").rglob("*.py")) if path.parent.name != "mutants"]
        helpers = {path.stem: path for path in files if not path.stem.startswith("test_")}
        found = {}
        for path in (path for path in files if path.stem.startswith("test_")):
            text = path.read_text(encoding="utf-8")
            used = {module for module, *_ in _IMPORT.findall(text)} & helpers.keys()
            texts = [text, *(helpers[name].read_text(encoding="utf-8") for name in sorted(used))]
            found[path.relative_to(self._root).as_posix()] = {name for one in texts for name in self._imported(one)}
        return found

    @cached_property
    def _imports(self) -> dict[str, set[str]]:
        """{module: the modules that it imports}."""
        return {
            name: set(self._imported(path.read_text(encoding="utf-8"), self._package(name)))
            for name, path in self._files.items()
        }

    def _package(self, name: str) -> str:
        return name if self._files[name].name == "__init__.py" else name.rpartition(".")[0]

    def _imported(self, text: str, package: str = "") -> Iterator[str]:
        """The modules that a file of `package` imports."""
        for source, names, whole in _IMPORT.findall(text):
            if whole:
                yield whole
            elif source.startswith("cinema_fast") or (package and source.startswith(".")):
                source = resolve_name(source, package)
                yield from (self._home(source, name) for name in _names(names))
        yield from (name for name in _NAMED.findall(text) if name in self._files)

    def _home(self, source: str, name: str) -> str:
        """The module that `from source import name` has its name from."""
        if f"{source}.{name}" in self._files:
            return f"{source}.{name}"
        if source not in self._files or self._files[source].name != "__init__.py":
            return source
        if source not in self._handed_on:
            text = self._files[source].read_text(encoding="utf-8")
            self._handed_on[source] = {
                one: resolve_name(module, source)
                for module, names, _ in _IMPORT.findall(text) if module.startswith(".")
                for one in _names(names)
            }  # fmt: skip
        there = self._handed_on[source].get(name)
        return self._home(there, name) if there else source


def _names(names: str) -> list[str]:
    """The names of an import statement, as they are called where they come from."""
    plain = re.sub(r"#[^\n]*|[()\\]", "", names)
    return [words[0] for part in plain.split(",") if (words := part.split())]
