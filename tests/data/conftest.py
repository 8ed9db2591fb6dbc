"""Stores that tests may damage."""

import pytest
from cine_files import write_study
from prepared import run


@pytest.fixture
def prepared(tmp_path):
    """Sources of three studies and a store of them."""
    for n in range(3):
        write_study(tmp_path / "src", f"p{n}", seed=n)
    run(tmp_path / "src", tmp_path / "store")
    return tmp_path / "src", tmp_path / "store"
