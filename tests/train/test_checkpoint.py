"""Checkpoints: what is read is what was written; what was cut, altered or half-written is found and skipped."""

import json
import os
import stat

import pytest
import torch
from damage import cut, flip
from safetensors.torch import load_file

from cinema_fast.train.checkpoint import CheckpointError, newest_checkpoint, save_checkpoint


def content(step: int) -> tuple[dict, dict]:
    generator = torch.Generator().manual_seed(step)
    weights = {"a.weight": torch.randn(40, 30, generator=generator), "b": torch.randn(7, generator=generator)}
    state = {
        "optimizer": {"state": {0: {"step": torch.tensor(float(step)), "exp_avg": torch.randn(40, 30)}}},
        "rng": {"python": [3, [1, 2, 3], None]},
        "nothing": None,
    }
    return weights, state


def save(folder, *steps: int, keep: int = 2) -> None:
    for step in steps:
        save_checkpoint(folder, step, *content(step), keep=keep)


def test_round_trip(tmp_path):
    weights, state = content(5)
    path = save_checkpoint(tmp_path, 5, weights, state, keep=2)
    found = newest_checkpoint(tmp_path, pytest.fail)
    assert found.step == 5
    assert all(torch.equal(found.weights[name], weights[name]) for name in weights)
    assert found.state["rng"] == state["rng"] and found.state["nothing"] is None
    moment = found.state["optimizer"]["state"][0]["exp_avg"]
    assert torch.equal(moment, state["optimizer"]["state"][0]["exp_avg"])
    assert torch.equal(load_file(path)["b"], weights["b"])  # the weights are an ordinary safetensors file
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask()
    assert {p.name for p in tmp_path.iterdir()} == {f"step-00000005{s}" for s in (".safetensors", ".pt", ".json")}


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_only_the_newest_are_kept(tmp_path):
    save(tmp_path, 1, 2, 30, 400, keep=3)
    assert sorted(p.stem for p in tmp_path.glob("*.json")) == ["step-00000002", "step-00000030", "step-00000400"]
    assert len(list(tmp_path.iterdir())) == 9


def test_no_checkpoint(tmp_path):
    assert newest_checkpoint(tmp_path / "none", pytest.fail) is None
    assert newest_checkpoint(tmp_path, pytest.fail) is None


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".json"])
@pytest.mark.parametrize("damage", [cut, flip, os.unlink])
def test_damage_is_found_and_the_one_before_is_used(tmp_path, suffix, damage):
    save(tmp_path, 10, 20)
    damage(tmp_path / f"step-00000020{suffix}")
    said = []
    assert newest_checkpoint(tmp_path, said.append).step == 10
    if (damage, suffix) == (os.unlink, ".json"):
        assert not said  # never finished, as after a kill
    else:
        assert len(said) == 1 and "step-00000020" in said[0] and "skipped" in said[0]


def test_every_bit_of_a_manifest_counts(tmp_path):
    save(tmp_path, 10, 20)
    path = tmp_path / "step-00000020.json"
    whole = path.read_bytes()
    for at in range(0, len(whole) - 1, 7):
        changed = bytearray(whole)
        changed[at] ^= 1
        path.write_bytes(changed)
        said = []
        found = newest_checkpoint(tmp_path, said.append)
        try:
            harmless = json.loads(changed) == json.loads(whole)  # white space
        except ValueError:
            harmless = False
        assert found.step == (20 if harmless else 10)
        assert bool(said) != harmless


def test_a_damaged_newer_one_never_crowds_out_a_sound_one(tmp_path):
    save(tmp_path, 10, 20)
    cut(tmp_path / "step-00000020.pt")
    save(tmp_path, 15, keep=1)  # stopped early, after going on from 10
    assert [p.stem for p in tmp_path.glob("*.json")] == ["step-00000015"]
    assert newest_checkpoint(tmp_path, pytest.fail).step == 15


def test_all_damaged(tmp_path):
    save(tmp_path, 10, 20)
    for path in tmp_path.glob("*.pt"):
        cut(path)
    said = []
    with pytest.raises(CheckpointError, match="every checkpoint"):
        newest_checkpoint(tmp_path, said.append)
    assert len(said) == 2


class Payload:
    def __reduce__(self):
        return (os.mkdir, ("executed",))


def test_nothing_in_a_checkpoint_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_checkpoint(tmp_path / "c", 1, content(1)[0], {"optimizer": Payload()}, keep=2)
    said = []
    with pytest.raises(CheckpointError):
        newest_checkpoint(tmp_path / "c", said.append)
    assert not (tmp_path / "executed").exists()
    held = f"{os.mkdir.__module__}.mkdir"  # of PyTorch's advice to load it all the same nothing is passed on
    assert said[0].endswith(f"is damaged and is skipped: it holds {held}, and only tensors are accepted")


@pytest.mark.parametrize("at", [".safetensors", ".pt", ".json"])
def test_a_write_that_fails_leaves_the_others_sound(tmp_path, monkeypatch, at):
    save(tmp_path, 10)
    replace = os.replace

    def full(source, target):
        if str(target).endswith(at):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(CheckpointError, match=r"step 20 .*No space left on device.*--resume"):
        save(tmp_path, 20)
    monkeypatch.undo()
    assert newest_checkpoint(tmp_path, pytest.fail).step == 10
    assert not list(tmp_path.glob(".tmp*"))
    save(tmp_path, 20)
    assert newest_checkpoint(tmp_path, pytest.fail).step == 20


def test_leftovers_of_a_kill_are_cleared(tmp_path):
    for name in ("step-00000007.pt.tmp", ".tmp-step-00000007.pt", ".tmpAbC123"):
        (tmp_path / name).write_bytes(b"half")
    save(tmp_path, 8)
    assert len(list(tmp_path.iterdir())) == 3


def test_another_version(tmp_path, monkeypatch):
    monkeypatch.setattr("cinema_fast.train.checkpoint.VERSION", 2)
    save(tmp_path, 3)
    monkeypatch.undo()
    said = []
    with pytest.raises(CheckpointError):
        newest_checkpoint(tmp_path, said.append)
    assert "version 2" in said[0]
