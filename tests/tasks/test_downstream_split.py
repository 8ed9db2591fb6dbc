"""Which studies are for what: a function of their ids; and which few of them have labels to use."""

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cinema_fast.data.loading.sampler import held_out
from cinema_fast.tasks.split import Split, split_studies, subsample

IDS = [f"p{n:03d}" for n in range(200)]
names = st.sets(st.text("abcdef0123456789", min_size=1, max_size=6), min_size=5, max_size=60)


@given(names, st.floats(0, 0.3), st.floats(0, 0.3))
def test_every_study_is_in_one_part(ids, val, test):
    split = split_studies(ids, val=val, test=test)
    assert sorted(sum(split, ())) == sorted(ids) and all(list(part) == sorted(part) for part in split)
    assert split == split_studies(sorted(ids, reverse=True), val=val, test=test)
    assert bool(split.val) == bool(val) and bool(split.test) == bool(test) and split.train


def test_shares_in_the_order_of_their_sums():
    split = split_studies(IDS, val=0.15, test=0.2)
    assert [len(part) for part in split] == [130, 30, 40]
    order = sorted(IDS, key=lambda study: sha256(study.encode()).hexdigest())
    assert set(split.test) == set(order[:40]) and set(split.val) == set(order[40:70])


@given(names, st.floats(0.01, 0.45), st.floats(0.0, 0.3))
def test_the_test_part_is_held_out_of_pretraining(ids, test, more):
    split = split_studies(ids, val=0.1, test=test)
    assert set(split.test) <= held_out(ids, min(test + more, 0.75))
    assert set(split.test) == held_out(ids, test)


def test_too_few_studies():
    with pytest.raises(ValueError, match=r"2 studies cannot be split with --val 0\.15 --test 0\.2: none"):
        split_studies(["a", "b"], val=0.15, test=0.2)


def test_what_a_file_says(tmp_path):
    file = tmp_path / "split.csv"
    file.write_text("study,split\np1,test\np0,train\np2,train\nelsewhere,val\n")
    split = split_studies(["p2", "p1", "p0", "p3"], val=0.5, test=0.4, path=file)
    assert split == Split(train=("p0", "p2"), val=(), test=("p1",))
    assert split.labelled({"p2", "p1"}, "regression") == Split(train=("p2",), val=(), test=("p1",))
    with pytest.raises(ValueError, match=r"no training study \(of 2\) has images and labels for --task regression"):
        split.labelled({"p1"}, "regression")


@pytest.mark.parametrize(("text", "told"), [
    ("study,split\np0,train\np1,training\n", r"split\.csv: study p1 has the split 'training'; expected one of train,"),
    ("study,part\np0,train\n", r"no column 'split'"),
    ("study,split\np000,val\np001,test\n", r"no study of the store has the split train; they have: test 1, val 1"),
    ("study,split\np0,train\n", r"names no study of the store \(its first study is 'p0', the store's 'p000'\)"),
    ("study,split\np0,train\np0,val\n", r"line 3: the study 'p0' is on line 2 already"),
])  # fmt: skip
def test_files_that_do_not_fit(tmp_path, text, told):
    file = tmp_path / "split.csv"
    file.write_text(text)
    with pytest.raises(ValueError, match=told):
        split_studies(IDS[:2], val=0.1, test=0.1, path=file)


def test_no_file(tmp_path):
    with pytest.raises(ValueError, match=r"^--split .*: Is a directory$"):
        split_studies(IDS, val=0.1, test=0.1, path=tmp_path)


@given(names, st.floats(0.01, 1), st.floats(0.01, 1), st.integers(0, 3))
def test_a_smaller_share_is_part_of_a_larger_one(ids, one, other, seed):
    ids = sorted(ids)
    few, many = (subsample(ids, fraction=share, shots=None, seed=seed) for share in sorted((one, other)))
    assert set(few) <= set(many) <= set(ids) and len(few) >= 1
    assert len(many) == max(round(max(one, other) * len(ids)), 1)
    assert subsample(ids, fraction=1.0, shots=None, seed=seed) == tuple(ids)


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 3))
def test_fewer_shots_are_among_more_and_every_class_has_as_many(one, other, seed):
    class_of = {study: "abc"[n % 3] for n, study in enumerate(IDS)}
    few, many = (subsample(IDS, fraction=1, shots=n, seed=seed, class_of=class_of) for n in sorted((one, other)))
    assert set(few) <= set(many)
    assert sorted(class_of[study] for study in few) == sorted("abc" * min(one, other))
    plain_few, plain_many = (subsample(IDS, fraction=1, shots=n, seed=seed) for n in sorted((one, other)))
    assert set(plain_few) <= set(plain_many) and len(plain_few) == min(one, other)


def test_another_seed_takes_others():
    taken = {subsample(IDS, fraction=0.1, shots=None, seed=seed) for seed in range(5)}
    assert len(taken) == 5


def test_too_few_for_the_shots():
    with pytest.raises(ValueError, match=r"--shots 4: only 3 labelled training studies$"):
        subsample(IDS[:3], fraction=1, shots=4, seed=0)
    class_of = {"a": "ill", "b": "well", "c": "well"}
    with pytest.raises(ValueError, match=r"--shots 2: only 1 labelled training study of class 'ill'"):
        subsample("abc", fraction=1, shots=2, seed=0, class_of=class_of)
