"""The sampler against its promises: every study once a pass, whatever the batch, the ranks, the order of asking."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cinema_fast.common.views import VIEWS
from cinema_fast.data.loading.sampler import Sampler, frame_at, held_out


def cohort(*sizes: int) -> dict[str, tuple[str, ...]]:
    """Groups of the given sizes, each with a view set of its own."""
    sets = [VIEWS, ("sax",), ("lax_2c", "lax_4c")]
    return {f"g{g}s{i:03d}": sets[g] for g, n in enumerate(sizes) for i in range(n)}


def drawn(sampler: Sampler, steps: int) -> list[tuple[int, str, int, tuple]]:
    """(step, study, pass, everything random about it) of every sample of the first steps."""
    found = []
    for step in range(steps):
        for micro in range(sampler.accumulate):
            for rank in range(sampler.world):
                draw = sampler.draw(step, rank=rank, micro=micro)
                for i, study in enumerate(draw.ids):
                    random = (draw.phase[i], *(draw.augment[v].zoom[i] for v in draw.views), draw.slot[i])
                    found.append((step, study, int(draw.epoch[i]), random))
    return found


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 13), min_size=1, max_size=3),
    batch_size=st.integers(1, 9),
    world=st.integers(1, 3),
    accumulate=st.integers(1, 2),
    seed=st.integers(0, 2**64 - 1),
)
def test_no_study_is_lost_or_repeated_in_a_pass(sizes, batch_size, world, accumulate, seed):
    views = cohort(*sizes)
    sampler = Sampler(views, seed=seed, batch_size=batch_size, world=world, accumulate=accumulate)
    steps = 2 * sum(sizes)
    samples = drawn(sampler, steps)
    for group in {study[:2] for study in views}:
        members = {study for study in views if study.startswith(group)}
        passes = [(epoch, study) for _, study, epoch, _ in samples if study in members]
        counts = Counter(passes)
        assert set(counts.values()) == {1}
        last = max(epoch for epoch, _ in passes)
        for epoch in range(last):  # all but the pass that the steps end in
            assert {study for e, study in passes if e == epoch} == members
    # sum(sizes) turns are a whole period of the groups: each has had its share of the samples to the last one
    share = Counter(study[:2] for _, study, _, _ in samples)
    assert share == {f"g{g}": 2 * n * sampler.global_batch for g, n in enumerate(sizes)}


def test_a_batch_has_one_set_of_views():
    sampler = Sampler(cohort(7, 3, 2), seed=1, batch_size=4, world=2)
    for step in range(12):
        draws = [sampler.draw(step, rank=rank) for rank in range(2)]
        assert len({draw.views for draw in draws}) == 1
        for draw in draws:
            assert all(cohort(7, 3, 2)[study] == draw.views for study in draw.ids)
            assert set(draw.augment) == set(draw.views)


def test_any_split_of_the_global_batch_draws_the_same():
    whole = Sampler(cohort(11, 4), seed=9, batch_size=12)
    for batch_size, world, accumulate in ((4, 3, 1), (4, 1, 3), (2, 3, 2), (1, 12, 1)):
        split = Sampler(cohort(11, 4), seed=9, batch_size=batch_size, world=world, accumulate=accumulate)
        assert drawn(split, 10) == drawn(whole, 10)


def test_a_draw_depends_on_the_step_alone():
    fresh = Sampler(cohort(11, 4), seed=3, batch_size=5)
    used = Sampler(cohort(11, 4), seed=3, batch_size=5)
    for step in (40, 3, 17):
        used.draw(step)
    for step in (0, 17, 1000):
        a, b = fresh.draw(step), used.draw(step)
        assert a.ids == b.ids and np.array_equal(a.phase, b.phase)
        assert all(np.array_equal(a.augment[v].zoom, b.augment[v].zoom) for v in a.views)


def test_seeds_and_passes_differ():
    one, other = (Sampler(cohort(40), seed=seed, batch_size=40) for seed in (0, 1))
    orders = [one.draw(0).ids, one.draw(1).ids, other.draw(0).ids]
    assert len(set(orders)) == 3
    assert len({tuple(sampler.draw(step).phase) for sampler in (one, other) for step in range(2)}) == 4


def test_distributions():
    """Orders, frames and zooms are uniform: 4-sigma bounds of 20,000 samples."""
    sampler = Sampler(cohort(50), seed=7, batch_size=50)
    draws = [sampler.draw(step) for step in range(400)]
    first = Counter(draw.ids[0] for draw in draws)
    assert max(first.values()) < 400 / 50 + 4 * np.sqrt(400 / 50)
    phase = np.concatenate([draw.phase for draw in draws])
    assert phase.min() >= 0 and phase.max() < 1
    assert abs(phase.mean() - 0.5) < 4 / np.sqrt(12 * len(phase))
    for view in VIEWS:
        zoom = np.concatenate([draw.augment[view].zoom for draw in draws])
        assert zoom.dtype == np.float32
        zoomed = zoom[zoom != 1]
        assert abs(len(zoomed) / len(zoom) - 0.5) < 4 * 0.5 / np.sqrt(len(zoom))
        assert zoomed.min() >= np.float32(0.9) and zoomed.max() <= np.float32(1.1)
        assert abs(zoomed.mean() - 1.0) < 4 * 0.2 / np.sqrt(12 * len(zoomed))
    sax, lax = (np.concatenate([draw.augment[view].zoom for draw in draws]) for view in ("sax", "lax_2c"))
    assert abs(np.corrcoef(sax, lax)[0, 1]) < 4 / np.sqrt(len(sax))
    assert all(np.array_equal(draw.augment["lax_2c"].zoom, draw.augment["lax_4c"].zoom) for draw in draws)


def test_phase_maps_to_every_frame_evenly():
    assert [frame_at(phase, 4) for phase in (0.0, 0.249, 0.25, 0.5, 0.999999)] == [0, 0, 1, 2, 3]
    assert frame_at(np.nextafter(1.0, 0.0), 50) == 49
    assert frame_at(0.7, 1) == 0
    # views with different frame counts show the same part of the cycle
    assert all(abs(frame_at(p, 25) / 25 - frame_at(p, 40) / 40) < 1 / 25 for p in np.linspace(0, 0.999, 200))


def test_replacements_are_each_other_study_of_the_group_once():
    """In an order that is the same again, and another for another study or pass."""
    sampler = Sampler(cohort(9, 4), seed=5, batch_size=4)
    orders = set()
    for step in range(8):
        draw = sampler.draw(step)
        group = {sampler.ids[i] for i in sampler.groups[draw.views]}
        for sample, lost in enumerate(draw.ids):
            found = list(sampler.replacements(draw, sample))
            ids = tuple(one.ids[0] for one in found)
            assert ids == tuple(one.ids[0] for one in sampler.replacements(draw, sample))
            assert len(ids) == len(group) - 1 and set(ids) == group - {lost}
            assert all(one.views == draw.views and one.slot[0] == draw.slot[sample] for one in found)
            assert all(one.epoch[0] == draw.epoch[sample] for one in found)
            orders.add((lost, ids) if draw.views == VIEWS else None)
    assert len(orders - {None}) > 9  # more than one order for each study lost


def test_a_study_alone_in_its_group_has_no_replacement():
    sampler = Sampler({"a": ("sax",), "b": ("lax_2c",)}, seed=0, batch_size=2)
    assert [list(sampler.replacements(sampler.draw(step), 0)) for step in (0, 1)] == [[], []]


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
def test_held_out_studies(share):
    ids = [f"study-{i}" for i in range(200)]
    chosen = held_out(ids, share)
    assert len(chosen) == round(share * 200) and chosen < set(ids)
    assert held_out(reversed(ids), share) == chosen
    assert held_out(ids, 0.0) == set()
    assert held_out(["a", "b"], 0.01) in ({"a"}, {"b"})


def test_bad_arguments():
    with pytest.raises(ValueError, match="at least 1"):
        Sampler(cohort(3), seed=0, batch_size=0)
    with pytest.raises(ValueError, match="no study"):
        Sampler({"a": ()}, seed=0, batch_size=1)
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        held_out(["a"], 1.0)
    with pytest.raises(ValueError, match="leaves none"):
        held_out(["a", "b"], 0.9)
