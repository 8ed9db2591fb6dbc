"""Files that are damaged under a loader of either kind: what is named, what is read instead, and what ends a run."""

import os

import pytest
from loader_cases import equal, loader_of, needs_dali
from training_fixtures import FOUR, write_store

from cinema_fast.data.loader import REPLACEMENTS, Loader, LoaderError

both_loaders = pytest.mark.parametrize("kind", ["torch", pytest.param("dali", marks=needs_dali)])
HEADER, FRAME = 128, 32 * 32  # bytes of a long-axis file


def lax(path, study):
    return path / "studies" / study / "lax_2c.npy"


@both_loaders
def test_one_damaged_file_of_a_rare_set_of_views(tmp_path, kind):
    """Of two studies with long axes only, the other stands in each time, however the draws fall."""
    path = write_store(tmp_path / "store", {f"s{i}": ("lax_2c",) if i < 2 else FOUR for i in range(6)})
    loader = loader_of(kind, path, stop=120)
    lax(path, "s0").unlink()
    steps = [batch for (batch,) in loader]
    rare = [batch for batch in steps if batch.draw.views == ("lax_2c",)]
    assert len(steps) == 120 and len(rare) == 40 and all(set(batch.draw.ids) == {"s1"} for batch in rare)
    assert sum(len(batch.notes) for batch in steps) == 60  # once for each time that it was drawn
    assert all(batch.notes == () for batch in steps if batch not in rare)


@both_loaders
def test_a_study_alone_in_its_group_gives_the_frames_that_it_still_has(tmp_path, kind):
    """Its last frames are cut off: samples of these become other samples of the batch, whole, in their own slots."""
    path = write_store(tmp_path / "store", {"s0": ("lax_2c",)})
    loader, whole = loader_of(kind, path, batch_size=8), loader_of("torch", path, batch_size=8)
    before = [batch for (batch,) in whole]
    os.truncate(lax(path, "s0"), HEADER + 2 * FRAME)
    found = [batch for (batch,) in loader]
    assert equal(found, [batch for (batch,) in loader_of_open(loader)])
    for batch, was in zip(found, before):
        lost = [i for i, phase in enumerate(was.draw.phase) if phase >= 0.5]
        kept = [i for i in range(8) if i not in lost]
        assert lost and kept and len(batch.notes) == len(lost) and all("cut short" in note for note in batch.notes)
        assert batch.draw.slot.tolist() == list(range(8))
        for i in range(8):
            origin = i if i in kept else next(k for k in kept if was.draw.phase[k] == batch.draw.phase[i])
            assert equal(sample(batch, i), sample(was, origin))
        assert len({batch.draw.phase[i] for i in lost}) > 1 or min(len(lost), len(kept)) == 1  # not all the same one


def sample(batch, i: int) -> tuple:
    """All that a batch holds of a sample, as it was drawn and as it was read."""
    drawn = [part[i] for part in batch.draw.augment["lax_2c"] if part is not None]
    tensors = [part[i] for part in batch.augment["lax_2c"] if part is not None]
    pixels = batch.frames["lax_2c"][i], batch.extent["lax_2c"][i]
    return batch.draw.ids[i], batch.draw.phase[i], batch.draw.plane[i], *drawn, *tensors, *pixels


def loader_of_open(loader):
    """The plain loader of the same open store and sampler."""
    return Loader(loader.store, loader.sampler, loader.sizes, start=loader.start, stop=loader.stop)


@both_loaders
@pytest.mark.parametrize("count", [1, 2, REPLACEMENTS + 3])
def test_a_group_that_cannot_be_read_at_all_ends_the_run(tmp_path, kind, count):
    path = write_store(tmp_path / "store", dict.fromkeys((f"s{i:02}" for i in range(count)), ("lax_2c",)))
    loader = loader_of(kind, path, workers=1)
    for study in loader.store.ids:
        lax(path, study).unlink()
    tried = min(count - 1, REPLACEMENTS)
    with pytest.raises(LoaderError, match=rf"study s\d+ and {tried} drawn in its place cannot be read; the last, s"):
        next(iter(loader))
