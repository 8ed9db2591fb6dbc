"""Whatever becomes of a header, a reader gives the right array or an error that names the file; prepare mends it."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from loader_cases import equal, loader_of, needs_dali
from prepared import content, overwrite, run
from tiny_runs import FOUR, write_store

from cinema_fast.data.store.check import read_studies
from cinema_fast.data.store.npy import header_fault, npy_header
from cinema_fast.data.store.store import CineStore, StoreError

TEXT = b"(4, 32, 32)"
# What numpy's parser raises for them: TokenError, SyntaxError, TypeError, ValueError; and nothing, for the last two.
DAMAGE = {
    "open bracket": lambda head: head.replace(TEXT, b"((, 32, 32 "),
    "no Python": lambda head: head.replace(b"'shape'", b"'sh pe "),
    "odd keys": lambda head: head.replace(b"'shape'", b"4444444"),
    "no magic": lambda head: b"P" + head[1:],
    "other shape": lambda head: head.replace(TEXT, b"(4, 31, 32)"),
    "other space": lambda head: head.replace(b", }", b" ,}"),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return CineStore(write_store(tmp_path_factory.mktemp("header") / "store", {"s0": ("lax_2c",)}))


@st.composite
def mutations(draw) -> bytes:
    """Headers with bytes changed, dropped, put in, or a piece of another text in them."""
    head = bytearray(npy_header((4, 32, 32)))
    for _ in range(draw(st.integers(0, 3))):
        at, length = draw(st.integers(0, 127)), draw(st.integers(0, 3))
        new = draw(st.binary(max_size=3) | st.text("()[]{}'\"\\,:| 0123456789TFu", max_size=3).map(str.encode))
        head[at : at + length] = new
    return bytes(head[:128]).ljust(128)


@pytest.mark.filterwarnings("ignore")  # those of numpy and Python at the text
@settings(max_examples=300, deadline=None)
@given(head=mutations())
@example(head=DAMAGE["open bracket"](npy_header((4, 32, 32))))
@example(head=DAMAGE["no Python"](npy_header((4, 32, 32))))
@example(head=DAMAGE["odd keys"](npy_header((4, 32, 32))))
@example(head=npy_header((4, 32, 32)))
def test_any_header(store, head):
    """By a reader, and by what prepare looks with."""
    file = store.path / "studies/s0/lax_2c.npy"
    right, expected = file.read_bytes()[:128], np.load(file)
    overwrite(file, 0, head)
    try:
        reader = CineStore(store.path)
        ((_, found),) = read_studies(store.path)
        if head == right:
            np.testing.assert_array_equal(reader.read_frames("s0", "lax_2c", range(4)), expected)
            assert set(found) == {"lax_2c"}
        else:
            with pytest.raises(StoreError) as caught:
                reader.read_frames("s0", "lax_2c", [1])
            assert str(caught.value).startswith(f"{file}: ") and str(found).startswith(f"{file}: ")
    finally:
        overwrite(file, 0, right)


def test_each_kind_of_damage_is_reported():
    right = npy_header((4, 32, 32))
    assert header_fault(right, (4, 32, 32)) == ""
    for kind, damage in DAMAGE.items():
        assert damage(right) != right and len(damage(right)) == 128
        said = header_fault(damage(right), (4, 32, 32))
        said_of = {"other shape": r"holds uint8 (4, 31, 32), the index says uint8 (4, 32, 32): the file was replaced",
                   "other space": "its header was altered"}
        assert said.startswith(said_of.get(kind, "not the .npy file that was prepared (")), kind


@pytest.mark.parametrize("kind", ["torch", pytest.param("dali", marks=[needs_dali, pytest.mark.slow])])
def test_loaders_replace_the_studies(tmp_path, kind):
    path = write_store(tmp_path / "store", dict.fromkeys((f"s{i}" for i in range(9)), FOUR))
    loader, plain = (loader_of(name, path, stop=20, workers=1) for name in (kind, "torch"))
    victims = dict(zip(("s0", "s1", "s3", "s4", "s6", "s8"), DAMAGE.values()))
    for study, damage in victims.items():
        file = path / "studies" / study / "lax_3c.npy"
        overwrite(file, 0, damage(file.read_bytes()[:128]))
    found = list(loader)
    assert equal(found, list(plain))
    assert all(not victims.keys() & set(batch.draw.ids) for (batch,) in found)
    notes = [note for (batch,) in found for note in batch.notes]
    for study in victims:
        assert any(f"study {study} replaced: " in note and f"{study}/lax_3c.npy: " in note for note in notes)


@pytest.mark.parametrize("kind", ["open bracket", "no Python", "odd keys", "other space"])
def test_preparing_again_mends_the_study(prepared, kind):
    src, path = prepared
    before = content(path)
    file = path / "studies/p1/lax_2c.npy"
    head = file.read_bytes()[:128]
    damaged = DAMAGE[kind](head.replace(b"(4, 40, 40)", TEXT)).replace(TEXT, b"(4, 40, 40)")
    assert damaged != head and len(damaged) == 128
    overwrite(file, 0, damaged)
    report = run(src, path)
    assert (report.prepared, report.unchanged, report.exit_code) == (1, 2, 0)
    assert content(path) == before
