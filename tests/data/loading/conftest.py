"""A store with motion maps, for both loaders."""

import pytest
from motion_stores import with_maps
from tiny_runs import FOUR, write_store


@pytest.fixture(scope="module")
def mapped(tmp_path_factory):
    """Studies of two sets of views, with motion maps."""
    studies = {f"s{i}": FOUR if i % 3 else ("sax",) for i in range(6)}
    return with_maps(write_store(tmp_path_factory.mktemp("mapped") / "store", studies))
