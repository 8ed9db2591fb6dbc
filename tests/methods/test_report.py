"""Evaluation and pictures against sums over pixels written out here."""

import math

import numpy as np
import pytest
import torch
from tiny_runs import FOUR, write_store

import cinema_fast as cf
from cinema_fast.data.loading.sampler import frame_at
from cinema_fast.data.store.store import CineStore
from cinema_fast.methods.mae_evaluation import (
    PHASES,
    Evaluation,
    evaluate,
    fixed_batches,
    fixed_plan,
    images_of,
    mean_patches,
)
from cinema_fast.methods.mae_report import draw_loss, draw_reconstruction, fill_in
from cinema_fast.methods.pretrain_config import PretrainConfig
from cinema_fast.train.setup import fit_to_store

CPU = torch.device("cpu")


def model_of(store: CineStore, tmp_path, **changes) -> cf.CineMA:
    config = PretrainConfig(data=store.path, out=tmp_path, steps=1, preset="cinema-tiny")
    model_config = fit_to_store(cf.preset(config.preset), store, config.views, config.preset)
    torch.manual_seed(0)
    fields = {name: getattr(model_config, name) for name in model_config.__slots__}
    return cf.CineMA(cf.CineMAConfig(**fields | changes))


def scaled(store: CineStore, study: str, view: str, phase: float, size) -> np.ndarray:
    """A frame as the model takes it: min-max to [0, 1], zeros at the end."""
    frame = np.load(store.info(study, view).path)[frame_at(phase, 4)].astype(np.float64)
    frame = (frame - frame.min()) / (frame.max() - frame.min())
    return np.pad(frame, [(0, whole - n) for whole, n in zip(size, frame.shape)])


def patches(image: np.ndarray, token) -> np.ndarray:
    """(N, P) by plain loops: tokens row-major, pixels in axis order."""
    grid = [n // t for n, t in zip(image.shape, token)]
    cut = [image[tuple(slice(i * t, (i + 1) * t) for i, t in zip(at, token))].ravel() for at in np.ndindex(*grid)]
    return np.stack(cut)


def test_a_model_worse_than_the_mean_patch_is_called_bad():
    good, bad = Evaluation(3, loss=0.02, baseline_loss=0.04), Evaluation(3, loss=0.116, baseline_loss=0.04)
    assert str(good).endswith("ratio 0.500")
    assert "ratio 2.900, which is poor: the model predicts no better than the mean patch" in str(bad)
    assert "Train longer (--steps)" in str(bad)
    for undefined in (Evaluation(3, loss=math.nan, baseline_loss=0.04), Evaluation(3, loss=0.0, baseline_loss=0.0)):
        assert str(undefined).endswith("ratio nan, which is undefined: a loss is not finite, or the baseline's is 0")


@pytest.mark.parametrize("norm_target", [False, True])
def test_mean_patches_and_evaluation(tiny_store, tmp_path, norm_target):
    store = CineStore(tiny_store)
    model = model_of(store, tmp_path, norm_target=norm_target)
    model_config, training, held_out = model.config, store.ids[:8], store.ids[8:]

    def targets(study: str, view: str, phase: float) -> np.ndarray:
        cut = patches(scaled(store, study, view, phase, model_config.image_size[view]), model_config.token_size(view))
        if norm_target:
            cut = (cut - cut.mean(1, keepdims=True)) / (cut.std(1, ddof=1, keepdims=True) + 1e-6)
        return cut

    baseline = mean_patches(store, model_config, training, batch_size=3, device=CPU)
    for view in FOUR:
        has = [study for study in training if view in store.views(study)]
        expected = np.mean([targets(study, view, phase) for study in has for phase in PHASES], axis=0)
        np.testing.assert_allclose(baseline[view].numpy(), expected, rtol=0, atol=2e-5)

    found = evaluate(
        model, store, held_out, baseline, mask_ratio=0.75, batch_size=3, device=CPU, precision=torch.float32
    )
    losses, unseen = [], []
    for batch in fixed_batches(store, model_config, held_out, batch_size=1):
        (study,), phase = batch.draw.ids, batch.draw.phase[0]
        plan = fixed_plan(model_config, batch, 0.75)
        with torch.no_grad():
            losses.append(float(model(images_of(batch), plan).loss))
        by_view = []
        for view in batch.draw.views:
            at = plan[view].masked[0].numpy()
            by_view.append(np.mean((targets(study, view, phase)[at] - baseline[view].numpy()[at]) ** 2))
        unseen.append(np.mean(by_view))
    assert len(losses) == len(held_out) * len(PHASES) and found.studies == len(held_out)
    assert found.loss == pytest.approx(np.mean(losses), rel=1e-4)
    assert found.baseline_loss == pytest.approx(np.mean(unseen), rel=1e-4)
    assert found.ratio == found.loss / found.baseline_loss
    assert f"{found.loss:.5f}" in str(found)


def test_masks_of_an_evaluation_are_fixed_and_apart(tiny_store, tmp_path):
    store = CineStore(tiny_store)
    model_config = model_of(store, tmp_path).config
    whole, single = (
        {
            (study, batch.draw.step): plan
            for batch in fixed_batches(store, model_config, store.ids, batch_size=n)
            for study, plan in zip(batch.draw.ids, fixed_plan(model_config, batch, 0.75)["sax"].keep.tolist())
        }
        for n in (5, 1)
    )
    assert whole == single and len(whole) == 12 * len(PHASES)
    assert len({tuple(plan) for plan in whole.values()}) > 20


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(("size", "patch"), [((12, 8), (4, 4)), ((8, 12, 3), (4, 4, 1))])
def test_fill_in(size, patch, norm):
    """With the truth as its prediction the reconstruction is the image; what is masked is zero before."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 1, *size, generator=generator)
    n = int(np.prod([s // p for s, p in zip(size, patch)]))
    plan = cf.sample_mask(batch=2, n=n, keep=n // 4, seed=1)
    truth = np.stack([patches(x[0].numpy(), patch) for x in image])
    pred = torch.from_numpy(np.take_along_axis(truth, plan.masked.numpy()[..., None].astype(int), 1))
    if norm:
        pred = (pred - pred.mean(-1, keepdim=True)) / (pred.std(-1, keepdim=True) + 1e-6)
    seen, filled = fill_in(image, pred, plan, patch, norm=norm)
    torch.testing.assert_close(filled, image, rtol=0, atol=1e-6)
    for sample in range(2):
        cut = patches(seen[sample, 0].numpy(), patch)
        assert not cut[plan.masked[sample].long()].any()
        assert np.array_equal(cut[plan.keep[sample].long()], truth[sample][plan.keep[sample].long()])


def pixels_of(path) -> np.ndarray:
    from matplotlib.image import imread

    return imread(path)


def test_the_reconstruction_shows_every_view(tiny_store, tmp_path):
    store = CineStore(tiny_store)
    model = model_of(store, tmp_path)
    options = {"mask_ratio": 0.75, "device": CPU, "precision": torch.float32}
    draw_reconstruction(tmp_path / "four.png", model, store, "s01", **options)
    draw_reconstruction(tmp_path / "one.png", model, store, "s00", **options)
    four, one = pixels_of(tmp_path / "four.png"), pixels_of(tmp_path / "one.png")
    assert four.shape[:2] == (1188, 1100) and one.shape[:2] == (330, 1100)  # 2.6 inches a row and 0.4, at 110 dpi
    assert four[..., :3].std() > 0.1  # there is something in it


def test_the_loss_curve_takes_gaps_and_empty_runs(tmp_path):
    lines = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": None}, {"step": 3, "loss": 0.5}]
    for name, content in (("some", lines), ("none", []), ("only gaps", lines[1:2])):
        draw_loss(tmp_path / f"{name}.png", content)
        assert pixels_of(tmp_path / f"{name}.png").shape[:2] == (480, 840)
    assert not np.array_equal(pixels_of(tmp_path / "some.png"), pixels_of(tmp_path / "none.png"))


def test_a_view_that_nobody_trained_on_is_not_judged(tmp_path):
    store = CineStore(write_store(tmp_path / "store", {"a": ("sax",), "b": FOUR}))
    model = model_of(store, tmp_path)
    baseline = mean_patches(store, model.config, ["a"], batch_size=1, device=CPU)
    assert set(baseline) == {"sax"}
    options = {"mask_ratio": 0.75, "batch_size": 1, "device": CPU, "precision": torch.float32}
    found = evaluate(model, store, ["b"], baseline, **options)
    losses = []
    for batch in fixed_batches(store, model.config, ["b"], batch_size=1):
        sax = {"sax": images_of(batch)["sax"]}
        with torch.no_grad():
            losses.append(float(model(sax, {"sax": fixed_plan(model.config, batch, 0.75)["sax"]}).loss))
    assert found.studies == 1 and found.loss == pytest.approx(np.mean(losses), rel=1e-5)
    for ids, means in (([], baseline), (["a"], {"lax_2c": baseline["sax"]})):
        with pytest.raises(ValueError, match="no held-out study can be evaluated"):
            evaluate(model, store, ids, means, **options)


def test_the_mean_patch_of_a_rare_view_is_found(tmp_path, monkeypatch):
    """However few studies are read, some of each view are among them."""
    monkeypatch.setattr("cinema_fast.methods.mae_evaluation.BASELINE_STUDIES", 2)
    store = CineStore(write_store(tmp_path / "store", {f"s{i}": FOUR if i == 3 else ("sax",) for i in range(7)}))
    model = model_of(store, tmp_path)
    assert set(mean_patches(store, model.config, store.ids, batch_size=4, device=CPU)) == set(FOUR)
