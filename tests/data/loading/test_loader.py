"""The loader against direct reads of the store, and what it does with studies that cannot be read."""

import shutil
import threading
import time

import numpy as np
import pytest
import torch
from tiny_runs import FOUR

from cinema_fast.data.loading.loader import Loader, LoaderError, read_batch
from cinema_fast.data.loading.sampler import Sampler, frame_at
from cinema_fast.data.store.store import CineStore

ROOM = {"sax": (32, 32, 4), "lax_2c": (40, 32), "lax_3c": (32, 32), "lax_4c": (32, 32)}


def loader_of(path, *, workers=2, strict=False, start=0, stop=6, **options) -> Loader:
    store = CineStore(path)
    sampler = Sampler({s: store.views(s) for s in store.ids}, seed=3, batch_size=4, **options)
    return Loader(store, sampler, ROOM, start=start, stop=stop, workers=workers, strict=strict)


def copied(path, target):
    shutil.copytree(path, target)
    return target


def test_batches_hold_the_frames_that_were_drawn(tiny_store):
    loader = loader_of(tiny_store, accumulate=2)
    steps = list(loader)
    assert len(steps) == 6 and all(len(batches) == 2 for batches in steps)
    seen = set()
    for step, batches in enumerate(steps):
        for micro, batch in enumerate(batches):
            draw = loader.sampler.draw(step, micro=micro)
            assert batch.draw.ids == draw.ids and batch.notes == ()
            assert set(batch.frames) == set(draw.views)
            assert batch.slot.tolist() == list(range(4 * micro, 4 * micro + 4))
            seen.add(draw.views)
            for view, frames in batch.frames.items():
                assert frames.shape == (4, *ROOM[view]) and frames.dtype == torch.uint8
                assert torch.equal(batch.augment[view].zoom, torch.from_numpy(draw.augment[view].zoom))
                for i, study in enumerate(draw.ids):
                    info = loader.store.info(study, view)
                    t = frame_at(draw.phase[i], info.shape[0])
                    inside = tuple(slice(n) for n in info.shape[1:])
                    frame = np.load(info.path)[t]
                    assert np.array_equal(frames[i][inside], frame)
                    assert batch.extent[view][i].tolist() == list(frame.shape)
                    assert int(frames[i].long().sum()) == int(frame.astype(int).sum())  # zeros everywhere else
    assert seen == {FOUR, ("sax",)}


def test_threads_and_starting_point_change_nothing(tiny_store):
    one = list(loader_of(tiny_store, workers=1))
    many = list(loader_of(tiny_store, workers=4))
    late = list(loader_of(tiny_store, workers=3, start=4))
    for expected, found in [*zip(one, many), *zip(one[4:], late)]:
        assert expected[0].draw.ids == found[0].draw.ids
        assert all(torch.equal(expected[0].frames[v], found[0].frames[v]) for v in expected[0].frames)


def test_waiting_is_measured_and_reading_runs_ahead(tiny_store):
    loader = loader_of(tiny_store, stop=8)
    read, slow = loader.store.read_frame, 0.01
    loader.store.read_frame = lambda *a: (time.sleep(slow), read(*a))[1]
    batches = iter(loader)
    next(batches)
    assert loader.waited >= slow
    time.sleep(0.5)  # long enough for every batch that is read ahead
    before = loader.waited
    next(batches)
    assert loader.waited - before < slow


def test_threads_end_with_the_iteration(tiny_store):
    batches = iter(loader_of(tiny_store, stop=50))
    next(batches)
    batches.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("cine-reader")]


def test_a_study_that_fails_is_replaced_and_named(tiny_store, tmp_path):
    path = copied(tiny_store, tmp_path / "store")
    whole = list(loader_of(path))
    loader = loader_of(path)
    victim = next(s for (batch,) in whole for s in batch.draw.ids if "lax_3c" in batch.frames)
    (path / "studies" / victim / "lax_3c.npy").unlink()  # under a loader that is already open
    found = list(loader)
    again = list(loader_of_open(loader))
    notes = [note for (batch,) in found for note in batch.notes]
    assert notes and all(victim in note and "lax_3c.npy" in note for note in notes)
    for (batch,), (repeat,), (before,) in zip(found, again, whole):
        assert victim not in batch.draw.ids
        assert batch.draw.ids == repeat.draw.ids and batch.notes == repeat.notes
        for i, (study, was) in enumerate(zip(batch.draw.ids, before.draw.ids)):
            if was != victim:  # nobody else is touched
                assert study == was
                assert all(torch.equal(batch.frames[v][i], before.frames[v][i]) for v in batch.frames)
            else:
                assert set(loader.store.views(study)) == set(batch.draw.views)
                frame = batch.frames["lax_3c"][i].numpy()
                assert any(np.array_equal(frame, f) for f in np.load(loader.store.info(study, "lax_3c").path))


def loader_of_open(loader: Loader) -> Loader:
    return Loader(loader.store, loader.sampler, ROOM, start=loader.start, stop=loader.stop, workers=1)


def test_a_truncated_study_ends_a_strict_run(tiny_store, tmp_path):
    path = copied(tiny_store, tmp_path / "store")
    loader = loader_of(path, strict=True, stop=20)
    file = path / "studies" / "s01" / "sax.npy"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(LoaderError, match=r"study s01: .*sax\.npy"):
        list(loader)


def test_frames_larger_than_the_model(tiny_store):
    store = CineStore(tiny_store)
    draw = Sampler({"s01": ("sax",)}, seed=0, batch_size=1).draw(0)
    with pytest.raises(LoaderError, match=r"\(32, 32, 3\) do not fit .* \(16, 32, 4\)"):
        read_batch(store, draw, {"sax": (16, 32, 4)})


def test_bad_arguments(tiny_store):
    with pytest.raises(ValueError, match="workers"):
        loader_of(tiny_store, workers=0)
