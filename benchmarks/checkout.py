"""Importing this module makes `cinema_fast` come from this checkout, installed or not, and finds the benchmarks.

Files in the folders here, and the helpers in tests/support/, are imported by their names alone. The source tree keeps
`cinema_fast.kernels` in kernels/, which only an installation maps; here an import finder does. It also serves
`python -m pytest -p checkout`, with this folder on PYTHONPATH.
"""

import importlib.util
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parent
ROOT = BENCHMARKS.parent
PACKAGES = {"cinema_fast": ROOT / "cinema_fast", "cinema_fast.kernels": ROOT / "kernels"}


class CheckoutFinder:
    """Answers for the two packages; what lies in them is found along their paths as usual."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        """The spec of a package in PACKAGES; None leaves the module to the other finders."""
        if name not in PACKAGES:
            return None
        folder = PACKAGES[name]
        return importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )


sys.meta_path.insert(0, CheckoutFinder)
sys.path[:0] = [*sorted({str(path.parent) for path in BENCHMARKS.rglob("*.py")}), str(ROOT / "tests" / "support")]
