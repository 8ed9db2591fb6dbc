"""What the sampler draws for the images: its distributions, and that it is a pure function of study and epoch."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy import stats

from cinema_fast.common.views import VIEWS
from cinema_fast.data.loading.augmentation import Augmentation, AugmentConfig
from cinema_fast.data.loading.loader import augmentation_tensors, read_batch
from cinema_fast.data.loading.sampler import Draw, Sampler, exchanged
from cinema_fast.data.store.store import CineStore

FULL = AugmentConfig(rotation=40.0, translation=6.0, flip=0.3, gamma=(0.5, 1.5), noise=0.1)
SHARED = dataclasses.replace(FULL, rotation_share=0.6, translation_share=0.2, gamma_share=0.7, noise_share=0.4)
STUDIES = {f"s{i:02d}": VIEWS for i in range(50)}
ROOM = {"sax": (32, 32, 4), "lax_2c": (32, 32), "lax_3c": (32, 32), "lax_4c": (32, 32)}


def sampler_of(augment: AugmentConfig, batch_size: int = 50, **how) -> Sampler:
    return Sampler(STUDIES, seed=7, batch_size=batch_size, augment=augment, **how)


def columns(augment: AugmentConfig, view: str) -> dict[str, np.ndarray]:
    """{part: 20,000 of what was drawn of it, (n,) or (n, 2)}."""
    sampler = Sampler({f"s{i}": VIEWS for i in range(2000)}, seed=7, batch_size=2000, augment=augment)
    draws = [sampler.draw(step).augment[view] for step in range(10)]
    return {name: np.concatenate([getattr(d, name) for d in draws]) for name in Augmentation._fields}


def bits(augment: Augmentation, sample: int) -> tuple[bytes, ...]:
    return tuple(part[sample].tobytes() for part in augment)


@pytest.mark.parametrize("view", ["sax", "lax_3c"])
@pytest.mark.parametrize("recipe", [FULL, SHARED], ids=["all", "shares"])
def test_parameters_are_uniform_on_the_share_of_images_that_was_asked_for(recipe, view):
    found = columns(recipe, view)
    kinds = {"zoom": np.float32, "angle": np.float64, "shift": np.float32, "flip": np.bool_, "gamma": np.float32,
             "noise": np.float32, "noise_key": np.int64}  # fmt: skip
    assert {name: values.dtype for name, values in found.items()} == kinds
    turn = math.radians(40)
    expected = {  # low, width, value of an image that is left alone, share
        "zoom": (0.9, 0.2, 1.0, recipe.zoom_share), "angle": (-turn, 2 * turn, 0.0, recipe.rotation_share),
        "shift": (-6, 12, 0.0, recipe.translation_share), "gamma": (0.5, 1.0, 1.0, recipe.gamma_share),
        "noise": (0.0, 0.1, 0.0, recipe.noise_share),
    }  # fmt: skip
    for name, (low, width, untouched, share) in expected.items():
        values = found[name].reshape(len(found[name]), -1)
        chosen = (values != untouched).any(1)
        assert abs(chosen.mean() - share) <= 4 * math.sqrt(share * (1 - share) / len(chosen))
        for column in values[chosen].T:
            assert stats.kstest(column, "uniform", args=(low, width)).pvalue > 1e-3, name
    assert abs(found["flip"].mean(0) - 0.3).max() < 4 * math.sqrt(0.21 / len(found["flip"]))
    assert len(set(found["noise_key"])) == len(found["noise_key"])
    assert stats.kstest(found["noise_key"] / 2.0**64 + 0.5, "uniform").pvalue > 1e-3


def test_parameters_are_independent_of_each_other():
    sax, lax = columns(FULL, "sax"), columns(FULL, "lax_2c")
    numbers = [part.T.astype(float) for found in (sax, lax) for part in found.values()]
    correlation = np.corrcoef(np.vstack(numbers))
    bound = 4.5 / math.sqrt(len(sax["zoom"]))
    assert np.abs(correlation - np.eye(len(correlation))).max() < bound


def test_long_axis_views_are_changed_alike_but_for_the_noise_itself():
    draw = sampler_of(FULL).draw(0)
    first, *others = (draw.augment[view] for view in VIEWS[1:])
    for other in others:
        assert all(np.array_equal(a, b) for a, b in zip(first[:-1], other[:-1]))
        assert not np.isin(first.noise_key, other.noise_key).any()


def test_any_split_of_the_global_batch_draws_the_same():
    def drawn(**how) -> set:
        sampler, found = sampler_of(SHARED, **how), set()
        for step in range(6):
            for rank in range(sampler.world):
                for micro in range(sampler.accumulate):
                    draw = sampler.draw(step, rank=rank, micro=micro)
                    for i, study in enumerate(draw.ids):
                        changes = tuple(bits(draw.augment[view], i) for view in VIEWS)
                        found.add((step, int(draw.slot[i]), study, changes))
        return found

    whole = drawn(batch_size=12)
    assert len(whole) == 72
    for batch_size, world, accumulate in ((4, 3, 1), (4, 1, 3), (2, 3, 2)):
        assert drawn(batch_size=batch_size, world=world, accumulate=accumulate) == whole


def test_each_parameter_is_what_it_is_whatever_else_is_drawn():
    full = sampler_of(FULL).draw(3)
    for name in ("rotation", "translation", "flip", "gamma", "noise"):
        alone = dataclasses.replace(AugmentConfig(zoom=(1.0, 1.0)), **{name: getattr(FULL, name)})
        draw = sampler_of(alone).draw(3)
        assert draw.ids == full.ids and np.array_equal(draw.phase, full.phase)
        for view in VIEWS:
            there = {part: x for part, x in draw.augment[view]._asdict().items() if x is not None}
            assert len(there) == 1 + (name == "noise")
            assert all(np.array_equal(x, getattr(full.augment[view], part)) for part, x in there.items())


def test_parameters_change_from_epoch_to_epoch():
    sampler = sampler_of(FULL)
    first, second = sampler.draw(0), sampler.draw(1)  # a pass each
    order = [second.ids.index(study) for study in first.ids]
    for part, (now, later) in zip(Augmentation._fields, zip(first.augment["sax"], second.augment["sax"])):
        if part not in ("flip", "zoom"):  # which are often the same
            assert (now != later[order]).all()


def test_a_replacement_brings_its_own_parameters():
    sampler = sampler_of(FULL, batch_size=5)
    draw = sampler.draw(2)
    one = next(sampler.replacements(draw, 3))
    found = exchanged(draw, 3, one)
    assert found.ids == (*draw.ids[:3], one.ids[0], draw.ids[4])
    for view in VIEWS:
        assert bits(found.augment[view], 3) == bits(one.augment[view], 0) != bits(draw.augment[view], 3)
        for other in (0, 1, 2, 4):
            assert bits(found.augment[view], other) == bits(draw.augment[view], other)
    assert (found.phase[3], found.plane[3]) == (one.phase[0], one.plane[0])


def test_a_batch_holds_what_was_drawn(tiny_store):
    store = CineStore(tiny_store)
    studies = {study: store.views(study) for study in store.ids}
    for recipe in (SHARED, AugmentConfig(zoom=(1.0, 1.0))):
        draw = Sampler(studies, seed=1, batch_size=4, augment=recipe).draw(1)
        batch = read_batch(store, draw, ROOM)
        for found in (batch.augment, augmentation_tensors(draw)):
            assert set(found) == set(draw.views)
            for view, parts in found.items():
                for tensor, drawn in zip(parts, draw.augment[view]):
                    assert (tensor is None) if drawn is None else torch.equal(tensor, torch.from_numpy(drawn))


def test_a_study_that_cannot_be_read_takes_its_parameters_with_it(tiny_store):
    store = CineStore(tiny_store)
    sampler = Sampler({s: store.views(s) for s in store.ids}, seed=1, batch_size=4, augment=FULL)
    draw: Draw = sampler.draw(0)
    read, lost = store.read_frame, draw.ids[2]

    def failing(study, *where):
        if study == lost:
            raise OSError("lost")
        return read(study, *where)

    store.read_frame = failing
    batch = read_batch(store, draw, ROOM, sampler=sampler)
    one = next(sampler.replacements(draw, 2))
    for view in draw.views:
        found = batch.augment[view].map(lambda tensor: tensor.numpy())
        assert bits(found, 2) == bits(one.augment[view], 0) and bits(found, 1) == bits(draw.augment[view], 1)


def test_views_of_one_plane_share_their_augmentation():
    """lge_sax with sax; names without a plane with the long axis, as ever."""
    views = ("sax", "lax_4c", "lge", "lge_sax", "t1_lax_2c")
    drawn = Sampler(dict.fromkeys(STUDIES, views), seed=7, batch_size=9, augment=FULL).draw(3).augment
    for view, like in (("lge_sax", "sax"), ("lge", "lax_4c"), ("t1_lax_2c", "lax_4c")):
        for name in ("zoom", "angle", "shift", "flip", "gamma", "noise"):
            assert np.array_equal(getattr(drawn[view], name), getattr(drawn[like], name)), (view, name)
    assert not np.array_equal(drawn["sax"].angle, drawn["lax_4c"].angle)
