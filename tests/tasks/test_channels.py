"""Views of several channels: read together by segmentation and by tasks of a table, one by one in pre-training."""

import json

import numpy as np
import pytest
import torch
from described import redescribe, with_channels
from labelled_discs import write_discs

from cinema_fast.data.loading.loader import read_batch
from cinema_fast.data.loading.sampler import fixed_draw
from cinema_fast.data.store.clips import ClipStore
from cinema_fast.data.store.store import CineStore
from cinema_fast.evaluation.evaluate import evaluate_run
from cinema_fast.evaluation.evaluate_config import EvaluateConfig
from cinema_fast.methods.pretrain import pretrain
from cinema_fast.methods.pretrain_config import PretrainConfig
from cinema_fast.metrics.rows import read_rows
from cinema_fast.tasks.finetune import finetune
from cinema_fast.tasks.finetuned_run import load_run
from cinema_fast.tasks.segmentation import SegmentationLabels
from cinema_fast.train.checkpoint import newest_weights

NAMES = "C0", "DE", "T2", "T1"
FEW = {"steps": 2, "validate_every": 2}
FIRST = "enc_down_dict.sax.conv_blocks.0.patch_embed.conv.weight"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Four images of one grid, and one label map."""
    return with_channels(write_discs(tmp_path_factory.mktemp("channels") / "store", labels=(0,)), *NAMES)


@pytest.fixture(scope="module")
def start(store, tmp_path_factory):
    """A pre-training run, which reads the channels one by one."""
    out = tmp_path_factory.mktemp("start") / "run"
    done = pretrain(PretrainConfig(data=store, out=out, steps=2, preset="cinema-demo", batch_size=2, device="cpu",
                                   precision="fp32", holdout=0.25))  # fmt: skip
    assert done.exit_code == 0
    return out


@pytest.fixture(scope="module")
def run(discs, store, start, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    still = {"lr": 1e-12, "min_lr": 0.0, "layer_decay": 1.0}
    finetune(discs.config(out, "segmentation", data=store, init_from=start, **still, **FEW))
    return out


def test_the_network_has_a_channel_for_each(run, start):
    """The first convolution of the pre-trained weights is repeated over them, not divided."""
    assert "first convolutions repeated 4 times" in (run / "run.log").read_text()
    loaded, before = load_run(run, device="cpu"), load_weights(start)
    assert (loaded.task.n_frames, loaded.task.channels) == (4, dict.fromkeys(("sax", "lax_4c"), NAMES))
    weight = loaded.model.state_dict()[FIRST]
    torch.testing.assert_close(weight, before[FIRST].repeat(1, 4, 1, 1, 1), atol=1e-6, rtol=0)
    assert loaded.model.dec_image_conv_block_dict["sax"].conv1.in_channels == 4


def load_weights(folder):
    return newest_weights(folder, print)[0]


def test_a_batch_has_all_channels_and_the_label_map_of_the_first(discs, store, run):
    cines = CineStore(store)
    labels = SegmentationLabels(cines, ("sax", "lax_4c"), ("RV", "MYO", "LV"))
    draw = fixed_draw(["s02", "s05"], ("sax", "lax_4c"), step=0, phase=[0.7, 0.2], slot=[0, 1], plane=[0, 0])
    batch = read_batch(cines, draw, load_run(run, device="cpu").model_config.image_size, labels=labels)
    assert batch.frames["sax"].shape == (2, 4, 32, 32, 4) and batch.target["sax"].shape == (2, 32, 32, 4)
    for k, study in enumerate(draw.ids):
        np.testing.assert_array_equal(batch.frames["sax"][k, ..., :3], cines.read_frames(study, "sax", range(4)))
        np.testing.assert_array_equal(batch.target["sax"][k, ..., :3], cines.read_labels(study, "sax", 0))


def test_evaluate_gives_one_map(run, store, tmp_path):
    pytest.importorskip("jinja2")
    other = with_channels(write_discs(tmp_path / "other", 14, labels=(0,)), *NAMES)
    swapped = ("DE", "C0", "T2", "T1")
    redescribe(other, lambda study, view, record: record.update(channels=swapped) if study == "s13" else None)
    results = evaluate_run(EvaluateConfig(run, tmp_path / "eval", data=other, device="cpu", resamples=10))
    rows = read_rows(tmp_path / "eval" / "rows.csv")
    assert {row["frame"] for row in rows if row["kind"] == "segmentation"} == {"0"}
    assert not [row for row in rows if row["kind"] in ("function", "cycle")]  # one volume has no EF
    assert [row["pred_ml"] for row in rows if row["study"] == "s12" and row["view"] == "sax"]
    assert "s12" not in {line["study"] for line in results["left_out"]}
    (why, *_) = [line["why"] for line in results["left_out"] if line["study"] == "s13"]
    assert why == ("sax is made of the channels DE, C0, T2, T1, and in the run's other studies it is made of the "
                   "channels C0, DE, T2, T1")  # fmt: skip
    loaded, cines = load_run(run, device="cpu"), CineStore(other)
    frames = cines.read_frames("s12", "sax", range(4))
    found = loaded.predict_frames("sax", frames)
    assert found.shape == (1, 4, *frames.shape[1:])
    padded = np.zeros((1, 4, 32, 32, 4), np.float32)
    low, high = frames.min((1, 2, 3), keepdims=True).astype(float), frames.max((1, 2, 3), keepdims=True)
    padded[0, ..., :3] = (frames - low) / (high - low)  # each channel by its own range
    right = loaded.task.predict(loaded.model, {"sax": torch.from_numpy(padded)})["sax"][..., :3]
    torch.testing.assert_close(found, right, atol=1e-4, rtol=0)


def test_studies_with_other_channels_are_named(discs, store, tmp_path):
    def swap(study: str, view: str, record: dict) -> None:
        if (study, view) == ("s04", "sax"):
            record["channels"] = ["DE", "C0", "T2", "T1"]

    other = redescribe(with_channels(write_discs(tmp_path / "swapped", labels=(0,)), *NAMES), swap)
    for task in ("segmentation", "regression"):
        with pytest.raises(ValueError, match=r"swapped: study s04: sax is made of the channels DE, C0, T2, T1, and "
                                             r".* made of the channels C0, DE, T2, T1: prepare all studies with the "
                                             r"same --channels, or leave out sax \(--views\)"):  # fmt: skip
            finetune(discs.config(tmp_path / "run", task, data=other, **FEW | {"n_frames": 4}))
    mixed = with_channels(write_discs(tmp_path / "mixed", labels=(0,)), *NAMES, views=("sax",))
    with pytest.raises(ValueError, match=r"the same number of channels, .* have sax 4, lax_4c 1: choose by --views"):
        finetune(discs.config(tmp_path / "run", "segmentation", data=mixed, **FEW))
    finetune(discs.config(tmp_path / "cines", "segmentation", data=mixed, views=("lax_4c",), steps=1, validate_every=1))
    with pytest.raises(ValueError, match=r"--n-frames 2: sax of .*mixed has 4 channels, which are read together "
                                         r"\(C0, DE, T2, T1\): give --n-frames 4, or other --views"):  # fmt: skip
        finetune(discs.config(tmp_path / "run", "regression", data=mixed, **FEW))


def test_tables_read_all_channels(discs, store, tmp_path):
    finetune(discs.config(tmp_path / "run", "regression", data=store, **FEW | {"n_frames": 4}))
    loaded, cines = load_run(tmp_path / "run", device="cpu"), CineStore(store)
    assert loaded.task.channels["sax"] == NAMES
    assert loaded.task.frames_of(cines.info("s00", "sax")) == (0, 1, 2, 3)
    cine = CineStore(discs.store)
    with pytest.raises(ValueError, match=r"sax is a cine, and in .* it is made of the channels C0, DE, T2, T1"):
        loaded.views_of(cine, "s00")


def test_channels_give_no_clips(store, tmp_path):
    with pytest.raises(ValueError, match="no cine of any view there has 4 frames or more"):
        ClipStore(CineStore(store))
    mixed = with_channels(write_discs(tmp_path / "mixed", 4, labels=()), *NAMES, views=("sax",))
    assert {plane.view for plane in ClipStore(CineStore(mixed)).planes("s00")} == {"lax_4c"}


def test_pretraining_reads_each_channel(start):
    lines = [json.loads(line) for line in (start / "metrics.jsonl").read_text().splitlines()]
    assert lines and all(np.isfinite(line["loss"]) for line in lines if "loss" in line)
    assert load_weights(start)[FIRST].shape[1] == 1
