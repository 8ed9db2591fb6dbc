"""Motion maps through the loader and the zoom, where they stay with their images."""

import shutil

import numpy as np
import pytest
import torch
from motion_stores import with_maps
from tiny_runs import FOUR, write_store

from cinema_fast.data.loading.augment import model_input, motion_input
from cinema_fast.data.loading.augmentation import AS_STORED, Augmentation
from cinema_fast.data.loading.loader import Loader, LoaderError, read_batch
from cinema_fast.data.loading.sampler import Sampler
from cinema_fast.data.store.clips import ClipStore
from cinema_fast.data.store.store import CineStore

ROOM = {"sax": (32, 32, 4), "lax_2c": (40, 32), "lax_3c": (32, 32), "lax_4c": (32, 32)}
CLIP = {"clip": (6, 24, 40)}


@pytest.fixture(scope="module")
def mapped(tmp_path_factory):
    studies = {f"s{i}": FOUR if i % 3 else ("sax",) for i in range(6)}
    return with_maps(write_store(tmp_path_factory.mktemp("mapped") / "store", studies))


def loader_of(path, *, clips=False, **options) -> Loader:
    store = CineStore(path)
    store = ClipStore(store) if clips else store
    planes = {study: len(store.planes(study)) for study in store.ids} if clips else None
    sampler = Sampler({s: store.views(s) for s in store.ids}, seed=3, batch_size=3, planes=planes)
    return Loader(store, sampler, CLIP if clips else ROOM, start=0, stop=6, **{"motion": True, **options})


def test_batches_hold_the_maps_of_their_frames(mapped):
    views = set()
    for (batch,) in loader_of(mapped):
        assert set(batch.motion) == set(batch.frames) and batch.notes == ()
        for view, maps in batch.motion.items():
            assert maps.shape == (3, *ROOM[view]) and maps.dtype == torch.uint8
            for study, found in zip(batch.draw.ids, maps):
                expected = np.load(mapped / f"studies/{study}/{view}.motion.npy")
                inside = tuple(slice(n) for n in expected.shape)
                assert np.array_equal(found[inside], expected) and expected.any()
                assert int(found.long().sum()) == int(expected.astype(int).sum())  # zeros everywhere else
        views |= set(batch.motion)
    assert views == set(FOUR)


def test_batches_of_clips_hold_the_map_of_their_plane(mapped):
    loader = loader_of(mapped, clips=True)
    for (batch,) in loader:
        assert set(batch.motion) == {"clip"} and batch.motion["clip"].shape == (3, 24, 40)
        for study, plane, found in zip(batch.draw.ids, batch.draw.plane, batch.motion["clip"]):
            view, at = loader.store.planes(study)[plane]
            expected = np.load(mapped / f"studies/{study}/{view}.motion.npy")[..., slice(None) if at is None else at]
            assert np.array_equal(found[:, 4:36], expected[4:28])
            assert not found[:, :4].any() and not found[:, 36:].any()


def test_without_being_asked_for_nothing_changes(mapped, tiny_store):
    """Nor where the store has no maps."""
    for path in (mapped, tiny_store):
        for clips in (False, True):
            assert all(batch.motion == {} for (batch,) in loader_of(path, clips=clips, motion=False))
    for (one,), (other,) in zip(loader_of(mapped), loader_of(mapped, motion=False)):
        assert one.draw.ids == other.draw.ids
        assert all(torch.equal(one.frames[view], other.frames[view]) for view in one.frames)


def test_the_whole_batch_moves(mapped):
    ((batch,), *_) = loader_of(mapped)
    moved = batch.to(torch.device("meta"))
    assert moved.draw is batch.draw and moved.notes == batch.notes
    for part in ("frames", "extent", "motion"):
        before, after = getattr(batch, part), getattr(moved, part)
        assert before.keys() == after.keys() and all(tensor.is_meta for tensor in after.values())
        assert all(after[view].shape == before[view].shape for view in before)
    assert moved.slot.is_meta and all(drawn.zoom.is_meta for drawn in moved.augment.values())


@pytest.mark.parametrize("clips", [False, True])
def test_a_study_whose_map_fails_is_replaced_with_its_map_or_ends_a_strict_run(mapped, tmp_path, clips):
    path = shutil.copytree(mapped, tmp_path / "store")
    loader, strict = loader_of(path, clips=clips), loader_of(path, clips=clips, strict=True)
    for view in FOUR if clips else FOUR[3:]:  # the last of its views: the others' maps have been read by then
        (path / f"studies/s1/{view}.motion.npy").unlink()  # under a loader that is already open
    notes = []
    for (batch,), (before,) in zip(loader, loader_of(mapped, clips=clips)):
        assert "s1" not in batch.draw.ids
        notes += batch.notes
        for i, (study, was) in enumerate(zip(batch.draw.ids, before.draw.ids)):
            assert (study != was) == (was == "s1")
            for view in batch.motion:
                if clips:
                    expected = loader.store.read_motion(study, batch.draw.plane[i], CLIP["clip"])
                else:
                    expected = np.zeros(ROOM[view], np.uint8)
                    stored = loader.store.read_motion(study, view)
                    expected[tuple(slice(n) for n in stored.shape)] = stored
                assert np.array_equal(batch.motion[view][i], expected)
    assert notes and all("study s1 replaced" in note and ".motion.npy: No such file" in note for note in notes)
    with pytest.raises(LoaderError, match=r"study s1: .*\.motion\.npy: No such file"):
        list(strict)


def test_a_store_without_maps_is_refused_with_what_to_do(tiny_store):
    for clips in (False, True):
        with pytest.raises(LoaderError, match=r"no motion map of '\w+'; `cinema-fast prepare SRC .* --motion` adds it"):
            next(iter(loader_of(tiny_store, clips=clips)))
    store = CineStore(tiny_store)
    draw = Sampler({"s01": ("sax",)}, seed=0, batch_size=1).draw(0)
    with pytest.raises(LoaderError, match=r"study s01: .*--motion"):
        read_batch(store, draw, ROOM, motion=True)


def blob(size, centre, width) -> torch.Tensor:
    """(*size) uint8: a Gaussian of peak 200."""
    at = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in size), indexing="ij")
    squares = sum(((a - c) / w) ** 2 for a, c, w in zip(at, centre, width))
    return (200 * torch.exp(-squares / 2)).round().to(torch.uint8)


def middle(image: torch.Tensor) -> torch.Tensor:
    """(axes,) centre of mass of what is brighter than half the peak."""
    image = (image - image.max() / 2).clamp(min=0)
    at = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in image.shape), indexing="ij")
    return torch.stack([(a * image).sum() / image.sum() for a in at])


CASES = {  # extent, padded size, where the blob is, how wide it is
    "2-D": ((48, 40), (52, 44), (30.0, 13.0), (3.0, 4.0)),
    "3-D": ((48, 40, 12), (52, 44, 16), (30.0, 13.0, 7.0), (3.0, 4.0, 1.5)),
}


@pytest.mark.parametrize("zoom", [None, 0.9, 1.0, 1.1])
@pytest.mark.parametrize("shift", [0, 6])
@pytest.mark.parametrize("kind", [*CASES, "clip"])
def test_a_shifted_and_zoomed_image_shifts_its_map_alike(kind, shift, zoom):
    """A blob lies in image and map where the zoom about the image's centre puts it, and so on top of each other."""
    extent, size, centre, width = CASES["2-D" if kind == "clip" else kind]
    inside = tuple(slice(n) for n in extent)
    centre = (centre[0] - shift, centre[1] + shift, *centre[2:])
    image = torch.zeros(size, dtype=torch.uint8)
    image[inside] = blob(extent, centre, width)
    drawn = AS_STORED if zoom is None else Augmentation(zoom=torch.tensor([zoom]))
    if kind == "clip":
        frames, room = image.expand(1, 5, *size), torch.tensor([[5, *extent]])
        frames = model_input(frames, room, drawn, clip=True)[0, 0].mean(0)
        maps = motion_input(image[None], room, drawn, clip=True)[0]
    else:
        frames = model_input(image[None], torch.tensor([extent]), drawn)[0, 0]
        maps = motion_input(image[None], torch.tensor([extent]), drawn)[0]
    expected = [(n - 1) / 2 + (c - (n - 1) / 2) * (zoom or 1) for n, c in zip(extent, centre)]
    for found in (frames, maps):
        torch.testing.assert_close(middle(found), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=0.1)
    assert maps.shape == size and maps.dtype == torch.float32 and maps.min() >= 0
    assert 0.9 * 200 < maps.max() <= 200  # in the map's own units: no min-max
    beyond = maps.clone()
    beyond[inside] = 0
    assert not beyond.any()


def test_padding_beyond_a_bright_edge_stays_zero():
    """What lies at the end of the extent does not run into the padding, however it is magnified."""
    maps = torch.zeros(2, 20, 16, dtype=torch.uint8)
    maps[:, :15, :10] = 255
    extent = torch.tensor([[15, 10], [15, 10]])
    for zoom in (None, torch.tensor([0.9, 1.1])):
        found = motion_input(maps, extent, Augmentation(zoom=zoom))
        assert not found[:, 15:].any() and not found[:, :, 10:].any()
        torch.testing.assert_close(found[1, :15, :10], torch.full((15, 10), 255.0))


def test_bad_shapes_are_named():
    maps, extent = torch.zeros(2, 8, 8, dtype=torch.uint8), torch.full((2, 3), 8)
    with pytest.raises(ValueError, match=r"motion_input: .*got \(2, 8, 8\) and \(2, 3\), clip=False"):
        motion_input(maps, extent)
    with pytest.raises(ValueError, match=r"motion_input: .*got \(2, 8, 8\) and \(2, 2\), clip=True"):
        motion_input(maps, extent[:, :2], clip=True)
