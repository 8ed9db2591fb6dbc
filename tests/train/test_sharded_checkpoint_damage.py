"""Sharded checkpoints, cut, altered or half-written, are found and skipped, and run nothing that is in them."""

import json
import os
import pickle
import shutil

import pytest
import torch
from damage import cut, flip, no_room
from sharded import Trained

from cinema_fast.train.checkpoint import CheckpointError, WholeCheckpoints, file_sum, manifest_sum

pytestmark = pytest.mark.usefixtures("group")


@pytest.fixture
def saved(tmp_path):
    """A folder with checkpoints of the steps 1 and 2, and what was trained at each."""
    torch.manual_seed(0)
    trained = Trained(tmp_path / "c")
    at = {}
    for step in (1, 2):
        trained.train()
        trained.save()
        at[step] = trained.tensors()
    trained.checkpoints.finish()
    return tmp_path / "c", at


def restored(folder, at) -> tuple[int, list[str]]:
    """The step that is gone on from, whose tensors are those that were saved, and what was said."""
    fresh, said = Trained(folder), []
    state = fresh.checkpoints.restore(fresh.model, fresh.optimizer, said.append)
    assert all(torch.equal(a, b) for a, b in zip(fresh.tensors(), at[state["step"]], strict=True))
    assert state["meter"] == {"skipped": state["step"]}
    return state["step"], said


def test_nothing_befalls_it(saved):
    assert restored(*saved) == (2, [])


def shard(folder):
    (file,) = (folder / "shards-00000002").glob("*.safetensors")
    return file


def reword(path):
    """Other sums than those that were written, in a manifest that is JSON still."""
    manifest = json.loads(path.read_text())
    manifest["files"][0]["bytes"] += 1
    path.write_text(json.dumps(manifest))


DAMAGE = {
    "a shard cut": lambda folder: cut(shard(folder)),
    "a bit of a shard": lambda folder: flip(shard(folder)),
    "a shard missing": lambda folder: shard(folder).unlink(),
    "a shard renamed": lambda folder: shard(folder).rename(shard(folder).with_name("shard-7.safetensors")),
    "the state cut": lambda folder: cut(folder / "shards-00000002" / "state.pt"),
    "a bit of the state": lambda folder: flip(folder / "shards-00000002" / "state.pt"),
    "the folder missing": lambda folder: shutil.rmtree(folder / "shards-00000002"),
    "the manifest cut": lambda folder: cut(folder / "shards-00000002.json"),
    "a bit of the manifest": lambda folder: flip(folder / "shards-00000002.json"),
    "the manifest reworded": lambda folder: reword(folder / "shards-00000002.json"),
    "a file more": lambda folder: (folder / "shards-00000002" / "more.safetensors").write_bytes(b"more"),
    "a folder more": lambda folder: (folder / "shards-00000002" / "more").mkdir(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found_and_the_one_before_is_used(saved, damage):
    DAMAGE[damage](saved[0])
    step, said = restored(*saved)
    assert step == 1 and len(said) == 1
    assert said[0].startswith("checkpoint shards-00000002 is damaged and is skipped: ")


def test_all_damaged(saved):
    for file in saved[0].glob("*/state.pt"):
        cut(file)
    with pytest.raises(CheckpointError, match=r"every checkpoint in .* is damaged"):
        restored(*saved)


def test_killed_before_it_counts(saved):
    (saved[0] / "shards-00000002.json").unlink()
    assert restored(*saved) == (1, [])


def test_a_damaged_newer_one_never_crowds_out_a_sound_one(saved):
    folder, at = saved
    cut(shard(folder))
    trained = Trained(folder, keep=1)
    trained.checkpoints.restore(trained.model, trained.optimizer, lambda _: None)
    trained.checkpoints.save(1, trained.model, trained.optimizer, {"meter": {"skipped": 1}})
    trained.checkpoints.finish()
    assert sorted(path.name for path in folder.iterdir()) == ["shards-00000001", "shards-00000001.json"]
    assert restored(folder, at) == (1, [])


class Payload:
    def __reduce__(self):
        return (os.mkdir, ("executed",))


@pytest.mark.parametrize("name", ["state.pt", ".metadata", "shard"])
def test_nothing_in_it_is_executed(saved, tmp_path, monkeypatch, name):
    """Not even where all sums are right: of what the state is, what torch's own format has, or a shard in disguise."""
    monkeypatch.chdir(tmp_path)
    folder = saved[0] / "shards-00000002"
    target = shard(saved[0]) if name == "shard" else folder / name
    if name == "state.pt":
        torch.save({"step": 2, "meter": Payload()}, target)
    else:
        target.write_bytes(pickle.dumps(Payload()))
    path = folder.with_suffix(".json")
    manifest = json.loads(path.read_text())
    manifest["files"] = [file_sum(file) for file in sorted(folder.iterdir())]
    path.write_text(json.dumps(manifest | {"sha256": manifest_sum(manifest)}))
    step, said = restored(*saved)
    assert not (tmp_path / "executed").exists()
    assert (step, len(said)) == ((2, 0) if name == ".metadata" else (1, 1))


@pytest.mark.parametrize("at", ["state.pt", ".json", "a shard"])
def test_a_full_disk(saved, full_disk, monkeypatch, at):
    """While it is written behind, or before, it is told by `save` or `finish`; the earlier ones are as they were."""
    folder, tensors = saved
    trained = Trained(folder)
    trained.checkpoints.restore(trained.model, trained.optimizer, pytest.fail)
    trained.step = 2
    trained.train()
    if at == "a shard":
        monkeypatch.setattr("torch.distributed.checkpoint.filesystem._write_item", no_room)
    else:
        full_disk(at)
    with pytest.raises(CheckpointError, match=r"step 3 .*: \[Errno 28\] No space left on device; earlier .*--resume"):
        trained.save()
        trained.checkpoints.finish()
    monkeypatch.undo()
    assert restored(folder, tensors) == (2, [])
    trained.train()  # there is room again
    trained.save()
    trained.checkpoints.finish()
    assert restored(folder, tensors | {4: trained.tensors()})[0] == 4
    assert len(list(folder.glob("shards-*/"))) == 2  # what was not finished is gone


@pytest.mark.parametrize("at", [".safetensors", ".pt", ".json"])
@pytest.mark.parametrize("told_by", ["save", "finish"])
def test_a_full_disk_under_a_whole_one_written_asynchronously(tmp_path, full_disk, monkeypatch, at, told_by):
    """The step that it fails in goes on; what comes next tells."""
    torch.manual_seed(0)
    trained = Trained(tmp_path / "c", WholeCheckpoints, async_save=True)
    trained.train()
    trained.save()
    trained.checkpoints.finish()
    first = {path: path.read_bytes() for path in (tmp_path / "c").iterdir()}
    trained.train()
    full_disk(at)
    trained.save()
    trained.train()
    with pytest.raises(CheckpointError, match=r"step 2 .*No space left on device.*earlier .* untouched.*--resume"):
        trained.save() if told_by == "save" else trained.checkpoints.finish()
    monkeypatch.undo()
    counting = {path: path.read_bytes() for path in first}
    assert counting == first and not list((tmp_path / "c").glob(".tmp-*"))
    assert [path.name for path in (tmp_path / "c").glob("*.json")] == ["step-00000001.json"]
    trained.save()
    trained.checkpoints.finish()
    assert len(list((tmp_path / "c").glob("*.json"))) == 2
