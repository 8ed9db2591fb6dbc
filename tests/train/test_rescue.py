"""Where a run's data cannot be read any more, what has been trained is saved before it ends."""

import pytest
from marks import slow
from tiny_runs import FOUR, metrics, write_store

from cinema_fast.data.loading.loader import LoaderError
from cinema_fast.data.store.store import CineStore
from cinema_fast.methods.pretrain import pretrain
from cinema_fast.methods.pretrain_config import PretrainConfig
from cinema_fast.tasks.finetune import finetune
from cinema_fast.train import loop


@pytest.fixture
def losing(monkeypatch):
    """A function of n: from step n (counted from 1) on no frame can be read, as of a file server that has gone."""
    state = {"made": 0, "from": None}
    read, take = CineStore.read_frames, loop._Run._take

    def counted(run, *arguments):
        take(run, *arguments)
        state["made"] = run.done

    def lost(store, *arguments):
        if state["from"] is not None and state["made"] >= state["from"] - 1:
            raise OSError(116, "Stale file handle", store.path)
        return read(store, *arguments)

    monkeypatch.setattr(loop._Run, "_take", counted)
    monkeypatch.setattr(CineStore, "read_frames", lost)

    def plan(n: int | None) -> None:
        state["made"], state["from"] = 0, n

    return plan


def pretraining(store, out, **changes) -> PretrainConfig:
    options = {
        "data": store, "out": out, "steps": 12, "preset": "cinema-tiny", "batch_size": 3, "log_every": 1, "workers": 1,
        "device": "cpu", "precision": "fp32", "checkpoint_every": 100,
    }  # fmt: skip
    return PretrainConfig(**options | changes)


@pytest.mark.parametrize("strict", [slow(False), True])
def test_a_store_that_goes_away_costs_no_step(tiny_store, tmp_path, losing, strict):
    store, out = tiny_store, tmp_path / "run"
    pretrain(pretraining(store, tmp_path / "whole"))
    losing(4)
    with pytest.raises(LoaderError, match="Stale file handle"):
        pretrain(pretraining(store, out, strict=strict))
    made = metrics(out)[-1]["step"]
    log = (out / "run.log").read_text()
    assert made >= 3 and f"LoaderError: saved after step {made}; continue with --resume" in log
    losing(None)
    assert pretrain(pretraining(store, out, resume=True)).step == 12
    assert f"resuming from step {made}" in (out / "run.log").read_text()
    assert metrics(out) == metrics(tmp_path / "whole")
    ends = [path / "checkpoints" / "step-00000012.safetensors" for path in (out, tmp_path / "whole")]
    assert ends[0].read_bytes() == ends[1].read_bytes()


def test_before_the_first_step_there_is_nothing_to_save(tiny_store, tmp_path, losing):
    losing(1)
    with pytest.raises(LoaderError):
        pretrain(pretraining(tiny_store, tmp_path / "run"))
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("step", [slow(3), 4, slow(5)])
def test_fine_tuning_too(discs, tmp_path, losing, step):
    """Also where the studies of validation can no longer be read, which is made up for as soon as they can."""
    options = {"steps": 8, "validate_every": 4, "log_every": 1, "batch_size": 3, "workers": 1}
    finetune(discs.config(tmp_path / "whole", "regression", **options))
    losing(step)
    with pytest.raises(LoaderError):
        finetune(discs.config(tmp_path / "run", "regression", strict=True, **options))
    assert "LoaderError: saved after step" in (tmp_path / "run" / "run.log").read_text()
    losing(None)
    assert finetune(discs.config(tmp_path / "run", "regression", strict=True, resume=True, **options)).step == 8
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")
    for part in ("best", "checkpoints"):
        ends = [max((tmp_path / run / part).glob("*.safetensors")) for run in ("run", "whole")]
        assert ends[0].name == ends[1].name and ends[0].read_bytes() == ends[1].read_bytes()


def test_what_cannot_be_saved_hides_nothing(tmp_path, losing, monkeypatch):
    """Store and run folder on one disk that has gone: the error is that of the store, and the log has the other."""
    store = write_store(tmp_path / "store", {f"s{i}": FOUR for i in range(6)})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(loop.WholeCheckpoints, "save", full)
    losing(3)
    with pytest.raises(LoaderError, match="Stale"):
        pretrain(pretraining(store, tmp_path / "run"))
    assert "could not be saved: [Errno 28] No space left" in (tmp_path / "run" / "run.log").read_text()


def test_the_first_line_comes_after_the_first_step(tiny_store, tmp_path):
    """With the time that it took; metrics.jsonl is as without, also after a resume."""
    pretrain(pretraining(tiny_store, tmp_path / "run", steps=4, log_every=4))
    log = (tmp_path / "run" / "run.log").read_text()
    assert log.count("the first step took ") == 1 and " s; 3 to go" in log
    assert [line["step"] for line in metrics(tmp_path / "run")] == [4]
