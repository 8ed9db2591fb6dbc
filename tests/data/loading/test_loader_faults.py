"""Files that are damaged under a loader of either kind: what is named, what is read instead, and what ends a run."""

import os

import numpy as np
import pytest
from forked import run
from loader_cases import equal, loader_of, needs_dali
from tiny_runs import FOUR, metrics, write_store

from cinema_fast.data.loading.loader import REPLACEMENTS, Loader, LoaderError
from cinema_fast.data.loading.sampler import frame_at

both_loaders = pytest.mark.parametrize("kind", ["torch", pytest.param("dali", marks=[needs_dali, pytest.mark.slow])])
HEADER, FRAME = 128, 32 * 32  # bytes of a long-axis file


def lax(path, study):
    return path / "studies" / study / "lax_2c.npy"


def exchange(file, content: bytes | np.ndarray) -> None:
    """Put another file in a file's place at once, as one under a reader would be."""
    other = file.with_name("other.npy")
    np.save(other, content) if isinstance(content, np.ndarray) else other.write_bytes(content)
    os.replace(other, file)


DAMAGE = {  # what befalls a file, and what is said of it
    "deleted": (lambda file: file.unlink(), "No such file"),
    "cut short": (lambda file: os.truncate(file, HEADER + FRAME // 2), "cut short"),
    "emptied": (lambda file: os.truncate(file, 0), "not the .npy file that was prepared"),
    "other shape": (lambda file: exchange(file, np.zeros((4, 32, 31), np.uint8)), "holds uint8 (4, 32, 31)"),
    "other dtype": (lambda file: exchange(file, np.load(file).view(np.int8)), "holds int8"),
    "damaged header": (lambda file: exchange(file, file.read_bytes().replace(b"(", b"[", 1)), "not the .npy file"),
    "pipe": (lambda file: (file.unlink(), os.mkfifo(file)), "not a regular file"),
    "folder": (lambda file: (file.unlink(), file.mkdir()), "not a regular file"),
}


@pytest.fixture
def cohort(tmp_path):
    return write_store(tmp_path / "store", dict.fromkeys((f"s{i:02}" for i in range(14)), FOUR))


def check_damage(steps, path, damages) -> None:
    """Damage a study each after the first of the steps: each is named with its reason and read no more, and all that
    is handed out is as it was stored."""
    stored = {study.name: np.load(study / "lax_2c.npy") for study in (path / "studies").iterdir()}
    found = [*next(steps)]
    victims = dict(zip(sorted(stored), damages))
    for study, (damage, _) in victims.items():
        damage(lax(path, study))
    found += [batch for (batch,) in steps]
    notes = [note for batch in found for note in batch.notes]
    for study, (_, reason) in victims.items():
        assert any(f"study {study} replaced: {lax(path, study)}: " in n and reason in n for n in notes), (study, reason)
    for batch in found:
        for image, study, phase in zip(batch.frames["lax_2c"], batch.draw.ids, batch.draw.phase):
            np.testing.assert_array_equal(image[:32, :32], stored[study][frame_at(phase, 4)])
    assert all(not victims.keys() & set(batch.draw.ids) for batch in found[len(found) // 2 :])


@both_loaders
def test_damage_under_a_running_loader(cohort, kind):
    check_damage(iter(loader_of(kind, cohort, stop=80)), cohort, DAMAGE.values())


@both_loaders
def test_a_file_that_may_not_be_read(cohort, kind):
    file = lax(cohort, "s00")
    file.chmod(0)
    if os.access(file, os.R_OK):
        pytest.skip("who runs this may read everything")
    file.chmod(0o600)
    check_damage(iter(loader_of(kind, cohort, stop=80)), cohort, [(lambda file: file.chmod(0), "Permission denied")])


@pytest.mark.slow
@needs_dali
def test_damage_is_replaced_alike(cohort):
    """By both loaders, where it happens between opening the store and the first batch."""
    loaders = [loader_of(kind, cohort, stop=40, workers=1) for kind in ("dali", "torch")]
    for study, (damage, _) in zip(loaders[0].store.ids, DAMAGE.values()):
        damage(lax(cohort, study))
    found, expected = (list(loader) for loader in loaders)
    assert equal(found, expected) and any(batch.notes for (batch,) in found)


@both_loaders
@pytest.mark.parametrize("kind_of_damage", ["other dtype", "damaged header", "pipe"])
def test_damage_ends_a_strict_run(cohort, kind, kind_of_damage):
    loader = loader_of(kind, cohort, stop=40, strict=True, workers=1)
    damage, reason = DAMAGE[kind_of_damage]
    damage(lax(cohort, "s03"))
    with pytest.raises(LoaderError, match=rf"^study s03: .*s03/lax_2c\.npy: .*{reason}"):
        list(loader)


READ_ONLY = """
import errno, os, sys
STORE = {store!r}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
CHANGES = {{"os." + name for name in
           ("mkdir", "rename", "remove", "rmdir", "chmod", "utime", "truncate", "link", "symlink", "setxattr")}}

def refuse(event, arguments):
    if event in CHANGES or (event == "open" and arguments[2] & WRITES):
        for path in arguments:
            if isinstance(path, (str, bytes, os.PathLike)) and os.path.abspath(os.fsdecode(path)).startswith(STORE):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)

sys.addaudithook(refuse)
for change in (lambda: open(STORE + "/.lock", "a+"), lambda: os.mkdir(STORE + "/new"), lambda: os.remove(STORE)):
    try:
        change()
        sys.exit("the store can be written")
    except OSError as error:
        assert error.errno == errno.EROFS
"""


@pytest.mark.slow
def test_pretraining_from_a_read_only_store(tiny_store, tmp_path):
    (tmp_path / "hook.py").write_text(READ_ONLY.format(store=str(tiny_store)))
    code = f"exec(open({str(tmp_path / 'hook.py')!r}).read())"
    common = ("--data", tiny_store, "--preset", "cinema-demo", "--steps", 2, "--batch-size", 2, "--device", "cpu")
    for name, before in (("plain", None), ("read-only", code)):
        done = run("pretrain", *common, "--loader", "torch", "--out", tmp_path / name, code=before)
        assert done.returncode == 0, done.stderr
    assert metrics(tmp_path / "read-only") == metrics(tmp_path / "plain")


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
    with pytest.raises(LoaderError, match=rf"study s\d+ and {tried} drawn instead cannot be read; the last was s"):
        next(iter(loader))
