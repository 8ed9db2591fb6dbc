"""What ranks agree on about checkpoints: which to go on from, which are whole, and that one of them could not write."""

import re
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from damage import cut, flip
from sharded import Trained

from cinema_fast.train import checkpoint
from cinema_fast.train.checkpoint import CheckpointError, WholeCheckpoints, newest_weights
from cinema_fast.train.meter import Meter, NonFiniteError, check_weights
from cinema_fast.train.ranks import Ranks
from cinema_fast.train.sharded_checkpoint import ShardedCheckpoints

pytestmark = pytest.mark.usefixtures("group")

WHOLE = {"kind": WholeCheckpoints, "async_save": False}


@pytest.fixture
def saved(tmp_path):
    """A folder with whole checkpoints of the steps 1 and 2."""
    torch.manual_seed(0)
    trained = Trained(tmp_path / "c", **WHOLE)
    for _ in range(2):
        trained.train()
        trained.save()
    return tmp_path / "c"


def both(act) -> list:
    """What `act` gives for each of two ranks side by side, or the CheckpointError that it raises."""

    def caught(rank: int):
        try:
            return act(rank)
        except CheckpointError as error:
            return error

    with ThreadPoolExecutor(2) as beside:
        return list(beside.map(caught, range(2)))


def restored(ranks, *folders) -> tuple[list, list[list[str]]]:
    """The steps that two ranks go on from, with the same tensors, or the words in which they refuse; what each said."""
    trained = [Trained(folder, ranks=rank, **WHOLE) for folder, rank in zip(folders, ranks)]
    said = [[], []]

    def restore(rank: int) -> dict | None:
        of = trained[rank]
        return of.checkpoints.restore(of.model, of.optimizer, said[rank].append)

    found = both(restore)
    if all(isinstance(state, dict) for state in found):
        assert all(torch.equal(*pair) for pair in zip(*(of.tensors() for of in trained), strict=True))
    return [state["step"] if isinstance(state, dict) else state and str(state) for state in found], said


def test_a_run_starts_from_the_same_weights_on_all_ranks(two_ranks, saved, tmp_path):
    """Of a run that goes on writing, where the main rank's choice is gone from the other's folder."""
    folders = []
    for name in ("one", "two"):
        shutil.copytree(saved, tmp_path / name / "checkpoints")
        folders.append(tmp_path / name)

    def start(rank: int):
        return newest_weights(folders[rank], print, two_ranks[rank])

    (one, called), (two, _) = both(start)
    assert called == f"{folders[0]}, step 2" and all(torch.equal(one[name], two[name]) for name in one)
    (folders[1] / "checkpoints" / "step-00000002.json").unlink()
    main, other = both(start)
    assert "rank 1 does not see the checkpoint of rank 0: put --out" in str(other)
    assert "rank 0 sees step-00000002, others do not" in str(main)


def test_the_main_rank_checks_for_all(two_ranks, saved, monkeypatch):
    flip(saved / "step-00000002.pt")
    summed, file_sum = [], checkpoint.file_sum

    def note(path):
        summed.append((threading.get_ident(), path.name))
        return file_sum(path)

    monkeypatch.setattr(checkpoint, "file_sum", note)
    found, said = restored(two_ranks, saved, saved)
    assert found == [1, 1]
    assert len(said[0]) == 1 and "step-00000002 is damaged" in said[0][0] and not said[1]
    assert sorted(name for _, name in summed) == [
        f"step-0000000{step}.{kind}" for step in (1, 2) for kind in ("pt", "safetensors")
    ]
    assert len({thread for thread, _ in summed}) == 1


def test_none_yet(two_ranks, tmp_path):
    assert restored(two_ranks, tmp_path, tmp_path) == ([None, None], [[], []])


def test_all_damaged(two_ranks, saved):
    for file in saved.glob("*.pt"):
        cut(file)
    (main, other), said = restored(two_ranks, saved, saved)
    assert "every checkpoint in" in main and "rank 0 found no intact checkpoint" in other
    assert len(said[0]) == 2


@pytest.mark.parametrize("whose", ["missing", "another run's"])
def test_ranks_that_find_different_checkpoints_do_not_go_on(two_ranks, saved, tmp_path, whose):
    other = tmp_path / "other"
    if whose == "missing":
        shutil.copytree(saved, other, ignore=lambda _, names: [name for name in names if "2." in name])
    else:
        trained = Trained(other, **WHOLE)
        trained.train(2)
        trained.save()
    (main, refused), _ = restored(two_ranks, saved, other)
    assert re.search("rank 0 sees step-00000002, others do not: put --out .* on storage that all machines share", main)
    assert re.search("rank 1 does not see the checkpoint of rank 0: put --out", refused)


def test_a_rank_that_cannot_read_what_the_main_one_did(two_ranks, saved, tmp_path):
    shutil.copytree(saved, tmp_path / "other")
    (tmp_path / "other" / "step-00000002.safetensors").unlink()
    found, _ = restored(two_ranks, saved, tmp_path / "other")
    assert found == [2, "rank 1 cannot read step-00000002, which rank 0 could: step-00000002.safetensors is missing"]


def test_all_ranks_raise_where_one_could_not_write(two_ranks, tmp_path, full_disk):
    trained = [Trained(tmp_path / "c", ranks=ranks) for ranks in two_ranks]
    full_disk("state.pt")
    main, other = map(str, both(lambda rank: trained[rank].save()))
    assert "step 0 could not be written" in main and "No space left on device" in main
    assert "step 0 could not be written" in other and "another rank could not write its part" in other


def by_a_weight(trained) -> None:
    trained.model[0].weight.data[0, 0] = torch.nan
    check_weights(trained.model, 3, trained.checkpoints.newest, Ranks())


def by_skipped_steps(trained) -> None:
    meter = Meter(max_skips=0, newest=trained.checkpoints.newest)
    meter.add(3, ("s",), torch.tensor([torch.nan, 1.0, 0.0]), 1.0)
    meter.read()


@pytest.mark.parametrize("end", [by_a_weight, by_skipped_steps])
@pytest.mark.parametrize("full", [False, True], ids=["room", "full disk"])
@pytest.mark.parametrize(("kind", "how"), [(WholeCheckpoints, {"async_save": True}), (ShardedCheckpoints, {})])
def test_advice_names_a_checkpoint_that_is_whole(tmp_path, monkeypatch, full_disk, kind, how, full, end):
    """While the one of step 2 is being written."""
    trained = Trained(tmp_path / "c", kind, **how)
    trained.train()
    trained.save()
    trained.checkpoints.finish()
    trained.train()
    write = checkpoint.save_state
    monkeypatch.setattr(checkpoint, "save_state", lambda *arguments: (time.sleep(0.2), write(*arguments)))
    if full:
        full_disk(".json")
    trained.save()
    with pytest.raises(NonFiniteError, match=f"--resume goes back to step {1 if full else 2}, whose"):
        end(trained)
    assert (len(list((tmp_path / "c").glob("*-00000002.json"))) == 0) == full
