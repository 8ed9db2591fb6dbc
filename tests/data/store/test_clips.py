"""Clips against direct numpy slicing of the store: which frames, which planes, how often, and how they are zoomed."""

import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, chisquare
from tiny_runs import FOUR, write_store

from cinema_fast.data.loading.augment import model_input
from cinema_fast.data.loading.augmentation import Augmentation
from cinema_fast.data.loading.loader import Loader
from cinema_fast.data.loading.sampler import Sampler, frame_at
from cinema_fast.data.store.clips import ClipStore, Plane, clip_frames
from cinema_fast.data.store.store import CineStore
from cinema_fast.kernels.augment_images.torch_form import zoom_images

SIZE = {"clip": (6, 24, 40)}  # of frames of 32 x 32: cropped along one axis, padded along the other


def expected_clip(store: CineStore, study: str, plane: Plane, phase: float, n: int) -> np.ndarray:
    """(n, 24, 40) from the .npy file: rows 4..27, and columns in the middle of zeros."""
    cine = np.load(store.info(study, plane.view).path)
    frames = [cine[int(phase * len(cine) + k * len(cine) / n) % len(cine)] for k in range(n)]
    out = np.zeros((n, 24, 40), np.uint8)
    for k, frame in enumerate(frames):
        out[k, :, 4:36] = (frame if plane.slice is None else frame[:, :, plane.slice])[4:28]
    return out


@settings(max_examples=200, deadline=None)
@given(phase=st.floats(0, 1, exclude_max=True), n=st.integers(1, 20), n_frames=st.integers(1, 60))
def test_frames_show_phases_spread_evenly_over_the_cycle(phase, n, n_frames):
    found = clip_frames(phase, n, n_frames)
    assert found.shape == (n,) and found.min() >= 0 and found.max() < n_frames
    assert found[0] == frame_at(phase, n_frames) or phase * n_frames >= n_frames - 1e-9
    late = (phase + np.arange(n) / n - found / n_frames) % 1.0  # a frame lasts until the next begins
    assert np.all((late < 1 / n_frames + 1e-9) | (late > 1 - 1e-9))


def test_frames_of_whole_cycles():
    for n in (5, 16, 100):
        for start in range(n):
            assert clip_frames((start + 0.5) / n, n, n).tolist() == [(start + k) % n for k in range(n)]
        assert clip_frames(0.0, n, 2 * n).tolist() == list(range(0, 2 * n, 2))
        assert clip_frames(0.0, 2 * n, n).tolist() == [k // 2 for k in range(2 * n)]


def test_planes_are_the_slices_and_the_long_axis_views_of_what_beats(tmp_path):
    path = write_store(tmp_path / "store", {"a": FOUR, "b": ("lax_2c",), "c": ("sax", "lax_2c")})
    index = json.loads((path / "index.json").read_text())
    for view, shape in (("sax", (1, 32, 32, 3)), ("lax_2c", (4, 32, 32))):  # c's stack becomes a single frame
        record = index["studies"]["c"][view]
        np.save(path / record["file"], np.zeros(shape, np.uint8))
        record |= {"shape": list(shape), "window": [[0, 1]] * shape[0]}
    (path / "index.json").write_text(json.dumps(index))
    store = ClipStore(CineStore(path))
    stack = tuple(Plane("sax", at) for at in range(3))
    assert store.planes("a") == (*stack, *(Plane(view, None) for view in FOUR[1:]))
    assert store.planes("b") == store.planes("c") == (Plane("lax_2c", None),)
    record = index["studies"]["b"].pop("lax_2c")  # b's long axis becomes a series of images of another sequence
    renamed = path / record["file"].replace("lax_2c", "t1map_lax_2c")
    (path / record["file"]).rename(renamed)
    index["studies"]["b"]["t1map_lax_2c"] = record | {"file": str(renamed.relative_to(path))}
    (path / "index.json").write_text(json.dumps(index))
    assert ClipStore(CineStore(path)).planes("b") == ()
    chosen = ClipStore(CineStore(path), ("sax",))
    assert chosen.planes("a") == stack and chosen.planes("b") == () == chosen.views("b")
    (remark,) = chosen.remarks()
    assert "fewer than 4 frames, in 1 of 3 studies, 1 of which are left out: c (sax: 1)" in remark
    assert "0 of which are left out" in store.remarks()[0]
    assert chosen.ids == ["a", "b", "c"] and chosen.views("a") == ("clip",)


@pytest.mark.parametrize("phase", [0.0, 0.3, 0.99])
def test_clips_equal_slicing_the_store(tiny_store, phase):
    cines = CineStore(tiny_store)
    store = ClipStore(cines)
    for study in ("s00", "s05"):
        planes = store.planes(study)
        for number, plane in enumerate(planes):
            expected = expected_clip(cines, study, plane, phase, 6)
            assert np.array_equal(store.read_clip(study, number, phase, SIZE["clip"]), expected)
            assert np.array_equal(
                store.read_clips(study, plane.view, phase, SIZE["clip"])[plane.slice or 0], expected
            )


def sampler_of(store: ClipStore, **options) -> Sampler:
    planes = {study: len(store.planes(study)) for study in store.ids}
    return Sampler({study: store.views(study) for study in store.ids}, seed=3, planes=planes, **options)


def test_the_loader_reads_the_clips_that_were_drawn(tiny_store):
    cines = CineStore(tiny_store)
    store = ClipStore(cines)
    loader = Loader(store, sampler_of(store, batch_size=4, accumulate=2), SIZE, start=0, stop=5, workers=3)
    seen = set()
    for step, batches in enumerate(loader):
        for micro, batch in enumerate(batches):
            draw = loader.sampler.draw(step, micro=micro)
            assert batch.draw.ids == draw.ids and batch.frames["clip"].shape == (4, *SIZE["clip"])
            assert batch.extent["clip"].tolist() == [list(SIZE["clip"])] * 4
            for i, study in enumerate(draw.ids):
                plane = store.planes(study)[draw.plane[i]]
                expected = expected_clip(cines, study, plane, draw.phase[i], 6)
                assert np.array_equal(batch.frames["clip"][i].numpy(), expected)
                seen.add(plane)
    assert step == 4 and seen == set(store.planes("s01"))


def test_planes_and_phases_are_drawn_uniformly():
    """Two studies of 3 and 16 planes, 1500 passes: chi-square of the planes, and of planes against phases."""
    planes = {"a": 3, "b": 16}
    sampler = Sampler(dict.fromkeys(planes, ("clip",)), seed=1, batch_size=2, planes=planes)
    draws = [sampler.draw(step) for step in range(1500)]
    for study, n in planes.items():
        found = [(draw.plane[i], draw.phase[i]) for draw in draws for i in range(2) if draw.ids[i] == study]
        assert len(found) == 1500
        at, phase = (np.array(x) for x in zip(*found))
        counts = np.bincount(at, minlength=n)
        assert len(counts) == n and chisquare(counts).pvalue > 1e-3
        table = np.histogram2d(at, phase, bins=(n, 4), range=((0, n), (0, 1)))[0]
        assert chi2_contingency(table).pvalue > 1e-3


def test_any_split_of_the_global_batch_draws_the_same_planes(tiny_store):
    store = ClipStore(CineStore(tiny_store))
    whole = sampler_of(store, batch_size=6)
    split = sampler_of(store, batch_size=1, world=3, accumulate=2)
    for step in (0, 7, 500):
        one = whole.draw(step)
        parts = [split.draw(step, rank=rank, micro=micro) for micro in range(2) for rank in range(3)]
        assert one.plane.tolist() == [int(part.plane[0]) for part in parts]
        assert one.phase.tolist() == [part.phase[0] for part in parts]


def test_a_lost_study_is_replaced_by_a_clip_of_another(tiny_store, tmp_path):
    path = shutil.copytree(tiny_store, tmp_path / "store")
    cines = CineStore(path)
    store = ClipStore(cines)
    for view in ("sax", "lax_2c", "lax_3c", "lax_4c"):
        (path / "studies" / "s05" / f"{view}.npy").unlink()
    batches = [
        batch
        for (batch,) in Loader(store, sampler_of(store, batch_size=6), SIZE, start=0, stop=6)
        if batch.notes
    ]
    assert batches and all("s05" in note for batch in batches for note in batch.notes)
    for batch in batches:
        draw = batch.draw
        for i, study in enumerate(draw.ids):
            plane = store.planes(study)[draw.plane[i]]
            expected = expected_clip(cines, study, plane, draw.phase[i], 6)
            assert np.array_equal(batch.frames["clip"][i].numpy(), expected)


def test_all_frames_of_a_clip_are_zoomed_alike_in_plane_and_scaled_together():
    frames = torch.randint(20, 200, (3, 5, 12, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    zoom = torch.tensor([0.9, 1.0, 1.1])
    found = model_input(frames, torch.tensor([[5, 12, 16]] * 3), Augmentation(zoom=zoom), clip=True)
    assert found.shape == (3, 1, 5, 12, 16)
    for i in range(3):
        by_frame = [
            zoom_images(frames[i, t : t + 1].float(), zoom[i : i + 1], torch.tensor([[12, 16]]))[0] for t in range(5)
        ]
        clip = torch.stack(by_frame)
        expected = (clip - clip.min()) / (clip.max() - clip.min())
        torch.testing.assert_close(found[i, 0], expected, rtol=0, atol=1e-6)
    unzoomed = frames[1].double()
    expected = (unzoomed - unzoomed.min()) / (unzoomed.max() - unzoomed.min())
    torch.testing.assert_close(found[1, 0].double(), expected, rtol=0, atol=1e-6)


def test_a_store_without_a_beating_heart(tmp_path):
    path = write_store(tmp_path / "store", {"a": FOUR}, frames=1)
    with pytest.raises(ValueError, match=r"no cine of any view there has 4 frames .*the longest has 1.*cinema preset"):
        ClipStore(CineStore(path))
    pairs = write_store(tmp_path / "pairs", {"a": FOUR}, frames=2)  # ED and ES
    with pytest.raises(ValueError, match=r"4 frames or more \(the longest has 2\): prepare cines of the whole cycle"):
        ClipStore(CineStore(pairs))
    assert ClipStore(CineStore(pairs), min_frames=2).remarks() == []
    with pytest.raises(ValueError, match="no cine of sax, lax_2c there"):
        ClipStore(CineStore(path), ("sax", "lax_2c"))
