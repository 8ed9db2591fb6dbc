"""Every task learns a small set by heart, in seconds: far better than what one could say without the images."""

import numpy as np
import pytest
from labelled_discs import DISTINCT, heart
from tiny_runs import metrics

from cinema_fast.data.loading.augmentation import AugmentConfig
from cinema_fast.data.store.store import CineStore
from cinema_fast.tasks.finetune import finetune
from cinema_fast.tasks.finetuned_run import load_run

SIMPLE = {
    "views": ("lax_4c",), "n_frames": 1, "batch_size": 6, "augment": AugmentConfig(zoom=(1.0, 1.0)), "cutout": 0.0,
    "dropout": 0.0, "drop_path": 0.0, "layer_decay": 1.0, "warmup": 0.1, "validate_every": 1000,
}  # fmt: skip


@pytest.fixture
def learnt(discs, tmp_path):
    """Train on six studies; the other six, which look the same, are for validation. Returns its last figures."""

    def train(task: str, **options) -> dict:
        split = tmp_path / "split.csv"
        parts = [f"s{n:02d},{'train' if n < DISTINCT else 'val'}" for n in range(2 * DISTINCT)]
        split.write_text("\n".join(["study,split", *parts]))
        finetune(discs.config(tmp_path / "run", task, split=split, **SIMPLE | options))
        last = metrics(tmp_path / "run")[-1]
        # what is kept, read back, says the same
        run = load_run(tmp_path / "run", device="cpu")
        assert run.step == options["steps"] == last["step"]
        return last

    return train


def test_segmentation(learnt, discs, tmp_path):
    figures = learnt("segmentation", steps=45, lr=1e-2)
    assert figures["val_dice"] > 0.9
    run, store = load_run(tmp_path / "run", device="cpu"), CineStore(discs.store)
    dice = []
    for study in run.split.val:
        info = store.info(study, "lax_4c")
        predicted = run.predict_frames("lax_4c", store.read_frames(study, "lax_4c", info.labels.frames)).argmax(1)
        for t, found in zip(info.labels.frames, predicted.numpy()):
            truth = store.read_labels(study, "lax_4c", t)
            pairs = [(found == value, truth == value) for value in (1, 2, 3)]
            dice += [2 * (one & other).sum() / (one.sum() + other.sum()) for one, other in pairs]
    assert np.mean(dice) == pytest.approx(figures["val_dice"], abs=2e-3)  # pixels of padding apart


def spread_mm() -> float:
    """Mean distance of the middles from their mean: what the best guess without images errs by."""
    middles = np.array([heart(n, "lax_4c")[0] for n in range(DISTINCT)]) * [1.5, 1.2]
    return float(np.linalg.norm(middles - middles.mean(0), axis=1).mean())


@pytest.mark.slow
def test_landmarks_as_heatmaps(learnt):
    assert learnt("landmarks", steps=90, lr=1e-2)["val_distance_mm"] < 0.6 * spread_mm()


@pytest.mark.slow
def test_landmarks_as_coordinates(learnt):
    figures = learnt("landmarks", landmarks="coordinates", steps=200, lr=5e-3)
    assert figures["val_distance_mm"] < 0.5 * spread_mm()


@pytest.mark.slow
def test_regression(learnt):
    radii = np.arange(5.0, 11.0)
    assert learnt("regression", steps=60, lr=3e-3)["val_radius_mae"] < 0.2 * np.abs(radii - radii.mean()).mean()


@pytest.mark.slow
def test_classification(learnt):
    figures = learnt("classification", steps=80, lr=3e-3)
    assert figures["val_big_accuracy"] == 1.0 and -figures["score"] < 0.1 * np.log(2)


@pytest.mark.slow
def test_several_at_once(learnt):
    figures = learnt("multitask", steps=80, lr=3e-3)
    assert figures["val_size_accuracy"] == 1.0
    assert figures["val_radius_mae"] < 0.4 and figures["val_some_mae"] < 0.4  # of 1.5 and 1.3
