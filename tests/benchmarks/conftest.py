"""What measures the code is tested by `make test-all`; a few files that are quick, also by `make test`."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent
QUICK = {"test_plain_dino", "test_readme_tables", "test_timing"}


def pytest_ignore_collect(collection_path, config):
    """The other files are not even imported by `make test`: torch's compiler alone takes seconds."""
    not_slow = "not slow" in config.option.markexpr
    return True if not_slow and collection_path.suffix == ".py" and collection_path.stem not in QUICK else None


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent == HERE and item.path.stem not in QUICK:
            item.add_marker(pytest.mark.slow)
