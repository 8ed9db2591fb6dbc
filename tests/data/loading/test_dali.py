"""The DALI loader against the plain one: the same batches to the bit.

Starting its processes takes seconds, so a test compares many steps at once. Which loader is picked, and how a batch
travels, is tested without DALI too; what goes wrong in test_dali_faults.py.
"""

import pytest
import torch
from forked import run
from loader_cases import CPU, GPU, equal, loader_of, needs_dali, readers
from marks import slow
from tiny_runs import FOUR, metrics

from cinema_fast.cli import main
from cinema_fast.data.loading import dali
from cinema_fast.data.loading.batch import Batch
from cinema_fast.data.loading.dali import DaliLoader, pack, pick_loader, unpack
from cinema_fast.data.loading.loader import LoaderError


def test_equality_sees_every_part(mapped):
    """Of the comparison below: a batch equals itself read again, and no batch of another step or maps."""
    (batch,), (later,) = list(loader_of("torch", mapped, stop=2))
    assert equal(batch, next(iter(loader_of("torch", mapped)))[0])
    assert not equal(batch, later) and not equal(batch, next(iter(loader_of("torch", mapped, motion=True)))[0])


@needs_dali
@pytest.mark.parametrize(
    "options",
    [
        slow({"accumulate": 2, "workers": 3}),
        slow({"start": 5, "stop": 13, "world": 2, "rank": 1, "motion": True}),
        {"clips": True, "motion": True, "workers": 1},
    ],
    ids=["micro-batches", "second rank, resumed, with maps", "clips with maps"],
)
def test_batches_are_those_of_the_plain_loader(mapped, options):
    """All are kept to the end: none may lie in memory that is used again."""
    loader = loader_of("dali", mapped, **options)
    assert isinstance(loader, DaliLoader)
    expected, found = list(loader_of("torch", mapped, **options)), list(loader)
    assert len(found) == 8 and loader.waited > 0
    assert all(isinstance(batch, Batch) for step in found for batch in step)
    assert equal(found, expected)
    views = {batch.draw.views for step in found for batch in step}
    assert views == ({("clip",)} if options.get("clips") else {FOUR, ("sax",)})
    assert readers() == []


@pytest.mark.slow
@needs_dali
def test_a_run_by_dali_is_the_run_by_threads(tiny_store, tmp_path):
    """And it says who reads, and resumes with the other loader."""
    common = ("--data", tiny_store, "--preset", "cinema-demo", "--steps", "3", "--batch-size", "2", "--device", "cpu")
    done = run("pretrain", *common, "--out", tmp_path / "dali", "--loader", "dali")
    assert done.returncode == 0, done.stderr
    options = [str(option) for option in (*common, "--loader", "torch", "--out")]
    assert main(["pretrain", *options, str(tmp_path / "torch")]) == 0
    for kind in ("dali", "torch"):
        readers = f"loader {kind} (requested), 2 reading {'processes' if kind == 'dali' else 'threads'}"
        assert readers in (tmp_path / kind / "run.log").read_text()
    assert metrics(tmp_path / "dali") == metrics(tmp_path / "torch")
    assert main(["pretrain", *options, str(tmp_path / "dali"), "--resume"]) == 0


def test_auto_says_what_it_chose_and_why(monkeypatch):
    assert pick_loader("auto", CPU) == ("torch", "on a CPU, reading threads are faster than DALI")
    assert pick_loader("torch", GPU) == ("torch", "requested")
    monkeypatch.setattr(dali, "why_not_dali", lambda: "")
    assert pick_loader("auto", GPU)[0] == "dali" and pick_loader("dali", CPU) == ("dali", "requested")
    monkeypatch.setattr(dali, "why_not_dali", lambda: "No module named 'nvidia'")
    assert pick_loader("auto", GPU) == ("torch", "the extra dali is not installed (No module named 'nvidia')")
    with pytest.raises(ValueError, match=r"--loader dali: the extra dali is not installed .* pip install --no-deps nv"):
        pick_loader("dali", CPU)


def test_without_dali_the_command_says_what_to_install_in_one_line(tiny_store, tmp_path):
    hide = "sys.modules['nvidia.dali'] = None"
    options = ("--data", tiny_store, "--out", tmp_path / "run", "--steps", 1, "--preset", "cinema-demo")
    done = run("pretrain", *options, "--loader", "dali", code=hide)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("cinema-fast: --loader dali: the extra dali is not installed")
    assert not (tmp_path / "run").exists()


def test_a_batch_travels_as_one_block(mapped):
    """Every tensor is a view of it, aligned as a device aligns; what is no tensor comes by the header."""
    (batch,) = next(iter(loader_of("torch", mapped, motion=True)))
    for content in (batch, LoaderError("study x"), {"nothing": torch.zeros(0), "number": torch.tensor(3)}):
        header, block = pack(content)
        block = torch.from_numpy(block)
        found = unpack(header, block)
        assert equal(found, content) or (isinstance(found, LoaderError) and str(found) == "study x")
        if isinstance(found, Batch):
            tensors = [*found.frames.values(), *found.extent.values(), *found.motion.values(), found.slot]
            for tensor in tensors:
                assert tensor.untyped_storage().data_ptr() == block.data_ptr()
                assert tensor.storage_offset() * tensor.element_size() % dali.ALIGN == 0
