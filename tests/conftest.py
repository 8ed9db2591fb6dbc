"""Fixtures that every test file may use."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


def shared_path(part: str) -> Path:
    """Path of real data or golden files that lie beside the checkout, or a skip where they do not."""
    path = SHARED / part
    if not path.exists():
        pytest.skip(f"../shared/{part} is not beside this checkout")
    return path


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of golden files and real cines beside the checkout; absent in a user's clone."""
    return shared_path(".")
