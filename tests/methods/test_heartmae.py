"""Pre-training on clips: by the same command, resumed to the bit, judged and drawn as CineMA is."""

import json
import math

import numpy as np
import pytest
import torch
import yaml
from tiny_runs import FOUR, metrics, write_store

import cinema_fast as cf
from cinema_fast.data.loading.augment import model_input
from cinema_fast.data.loading.sampler import Sampler
from cinema_fast.data.store.clips import ClipStore
from cinema_fast.data.store.store import CineStore
from cinema_fast.methods import mae as module
from cinema_fast.methods.mae_evaluation import PHASES, evaluate, fixed_batches, fixed_plan, mean_patches
from cinema_fast.methods.pretrain import pretrain
from cinema_fast.methods.pretrain_config import PretrainConfig
from cinema_fast.train import loop

SIZE = (8, 48, 48)
CPU = torch.device("cpu")


def config_of(store, out, **changes) -> PretrainConfig:
    options = {
        "data": store, "out": out, "steps": 6, "preset": "heartmae-tiny", "batch_size": 3, "seed": 11, "log_every": 1,
        "precision": "fp32", "device": "cpu", "warmup": 0.0, "checkpoint_every": 2,
    }  # fmt: skip
    return PretrainConfig(**options | changes)


def stored_clip(store: CineStore, study: str, plane, phase: float) -> np.ndarray:
    """(8, 48, 48) by direct slicing: frames of 32 x 32 in the middle of zeros."""
    cine = np.load(store.info(study, plane.view).path)
    cine = cine if plane.slice is None else cine[..., plane.slice]
    at = [int(phase * len(cine) + k * len(cine) / 8) % len(cine) for k in range(8)]
    return np.pad(cine[at], ((0, 0), (8, 8), (8, 8)))


def tubelets(clip: np.ndarray) -> np.ndarray:
    """(144, 128) by plain loops: tokens of 2 x 8 x 8 row-major, pixels in axis order."""
    return np.stack([
        clip[2 * t : 2 * t + 2, 8 * x : 8 * x + 8, 8 * y : 8 * y + 8].ravel() for t, x, y in np.ndindex(4, 6, 6)
    ])


def test_the_first_step_is_the_loss_of_the_clips_drawn(tiny_store, tmp_path, no_report):
    pretrain(config_of(tiny_store, tmp_path / "run", steps=1))
    cines = CineStore(tiny_store)
    store = ClipStore(cines)
    planes = {study: len(store.planes(study)) for study in store.ids}
    draw = Sampler(dict.fromkeys(store.ids, ("clip",)), seed=11, batch_size=3, planes=planes).draw(0)
    frames = np.stack([
        stored_clip(cines, study, store.planes(study)[plane], phase)
        for study, plane, phase in zip(draw.ids, draw.plane, draw.phase)
    ])
    clips = model_input(
        torch.from_numpy(frames), torch.tensor([SIZE] * 3), draw.augment["clip"].map(torch.from_numpy), clip=True
    )
    torch.manual_seed(11)
    model = cf.CineMA(cf.preset("heartmae-tiny"))
    plan = cf.sample_mask(batch=3, n=144, keep=36, seed=11, step=0, stream=0, sample_ids=torch.arange(3))
    pred = model({"clip": clips}, {"clip": plan}).pred["clip"].detach().numpy()
    truth = np.stack([tubelets(clip[0].numpy()) for clip in clips])
    truth = np.take_along_axis(truth, plan.masked.numpy()[..., None].astype(int), 1)
    assert metrics(tmp_path / "run")[0]["loss"] == pytest.approx(np.mean((pred - truth) ** 2), rel=1e-5)


def test_a_run_is_evaluated_and_drawn(tiny_store, tmp_path):
    out = tmp_path / "run"
    outcome = pretrain(config_of(tiny_store, out, steps=40, holdout=0.25, lr=4e-3, log_every=5))
    losses = [line["loss"] for line in metrics(out)]
    assert losses[-1] < 0.6 * losses[0]
    assert outcome.exit_code == 0 and outcome.evaluation.studies == 3
    assert json.loads((out / "report" / "evaluation.json").read_text())["ratio"] == outcome.evaluation.ratio
    run_info = yaml.safe_load((out / "config.yaml").read_text())
    assert run_info["model"]["views"] == ["clip"] and run_info["model"]["image_size"] == {"clip": list(SIZE)}
    assert "9 studies (3 held out), clips of every view" in (out / "run.log").read_text()
    from matplotlib.image import imread

    picture = imread(out / "report" / "reconstruction.png")
    assert picture.shape[:2] == (1188, 1650)  # four kinds of picture by six frames of the clip
    assert picture[..., :3].std() > 0.1


def test_evaluation_equals_sums_written_out(tiny_store):
    cines = CineStore(tiny_store)
    store = ClipStore(cines)
    torch.manual_seed(0)
    model = cf.CineMA(cf.preset("heartmae-tiny"))
    training, held_out = store.ids[:8], store.ids[8:]

    def target(study: str, at: int) -> np.ndarray:
        planes = store.planes(study)
        number = {3: [1, 1, 2, 0], 6: [3, 4, 0, 1]}[len(planes)][at]  # from the middle on, spread over all
        clip = stored_clip(cines, study, planes[number], PHASES[at]).astype(np.float64)
        return tubelets((clip - clip.min()) / (clip.max() - clip.min()))

    baseline = mean_patches(store, model.config, training, batch_size=3, device=CPU)["clip"].numpy()
    expected = np.mean([target(study, at) for study in training for at in range(4)], axis=0)
    np.testing.assert_allclose(baseline, expected, rtol=0, atol=2e-5)
    found = evaluate(
        model, store, held_out, {"clip": torch.from_numpy(baseline)}, mask_ratio=0.75, batch_size=3, device=CPU,
        precision=torch.float32,
    )  # fmt: skip
    unseen = []
    for batch in fixed_batches(store, model.config, held_out, batch_size=1):
        at = fixed_plan(model.config, batch, 0.75)["clip"].masked[0].numpy()
        unseen.append(np.mean((target(batch.draw.ids[0], batch.draw.step)[at] - baseline[at]) ** 2))
    assert found.studies == 4 and len(unseen) == 16
    assert found.baseline_loss == pytest.approx(np.mean(unseen), rel=1e-4)


def test_a_run_that_is_cut_off_goes_on_to_the_same_bits(tiny_store, tmp_path, monkeypatch, no_report):
    pretrain(config_of(tiny_store, tmp_path / "whole"))
    make = loop.make_train_step

    def failing(*arguments, **options):
        train_step = make(*arguments, **options)

        def step(batches, number, lr):
            if number == 5:
                raise OSError("the power fails")
            return train_step(batches, number, lr)

        return step

    with monkeypatch.context() as patch:
        patch.setattr(loop, "make_train_step", failing)
        with pytest.raises(OSError, match="power"):
            pretrain(config_of(tiny_store, tmp_path / "cut", workers=1))
    assert len(metrics(tmp_path / "cut")) == 5
    outcome = pretrain(config_of(tiny_store, tmp_path / "cut", resume=True, workers=3))
    assert outcome.step == 6 and metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    whole, cut = (tmp_path / name / "checkpoints" / "step-00000006.safetensors" for name in ("whole", "cut"))
    assert whole.read_bytes() == cut.read_bytes()


def test_views_choose_where_clips_come_from(tiny_store, tmp_path, no_report):
    pretrain(config_of(tiny_store, tmp_path / "run", views=("lax_4c", "lax_2c"), steps=1))
    assert "on 9 studies (0 held out), clips of lax_4c, lax_2c" in (tmp_path / "run" / "run.log").read_text()
    with pytest.raises(ValueError, match=r"was started with other options:\n  views: was \['lax_4c', 'lax_2c'\]"):
        pretrain(config_of(tiny_store, tmp_path / "run", steps=1, resume=True))


def test_a_bad_number_is_skipped_and_a_lost_study_replaced(tmp_path, monkeypatch, no_report, capfd):
    store = write_store(tmp_path / "store", {f"s{i}": FOUR for i in range(5)})

    class Losing(CineStore):
        def read_frames(self, study, view, ts):
            if study == "s3":
                raise OSError(5, "Input/output error", f"{study}/{view}.npy")
            return super().read_frames(study, view, ts)

    monkeypatch.setattr(module, "CineStore", Losing)
    forward, count = cf.CineMA.forward, iter(range(1, 100))

    def poisoned(self, *arguments):
        out = forward(self, *arguments)
        return out._replace(loss=out.loss * math.nan) if next(count) == 2 else out

    monkeypatch.setattr(cf.CineMA, "forward", poisoned)
    pretrain(config_of(store, tmp_path / "run", steps=3, batch_size=5))
    errors = capfd.readouterr().err
    assert "study s3 replaced" in errors and "step 2: loss nan is not finite, update skipped" in errors
    last = metrics(tmp_path / "run")[-1]
    assert last["skipped"] == 1 and last["replaced"] >= 3 and math.isfinite(last["loss"])
    with pytest.raises(ValueError, match="study s3"):
        pretrain(config_of(store, tmp_path / "strict", steps=3, batch_size=5, strict=True))


def test_bad_input_ends_before_anything_is_written(tiny_store, tmp_path):
    still = write_store(tmp_path / "still", {"a": FOUR, "b": ("sax",)}, frames=1)
    flat = write_store(tmp_path / "flat", {"a": ("lax_2c",), "b": ("lax_2c",)})
    index = flat / "index.json"
    index.write_text(index.read_text().replace("lax_2c", "sax"))
    for file in flat.glob("studies/*/lax_2c.npy"):
        file.rename(file.with_name("sax.npy"))
    for change, match in (
        ({"store": still}, "no cine of any view there has 4 frames or more"),
        ({"views": ("sax", "lax_2d")}, "no view 'lax_2d'; did you mean 'lax_2c'"),
        ({"views": ("clip",)}, "no view 'clip'"),
        ({"store": flat, "preset": "cinema-tiny"}, "sax frames have 2 axes, preset 'cinema-tiny' needs 3"),
        ({"preset": "heartmae-tin"}, "did you mean 'heartmae-tiny'"),
    ):
        with pytest.raises(ValueError, match=match):
            pretrain(config_of(**{"store": tiny_store, "out": tmp_path / "run"} | change))
    assert not (tmp_path / "run").exists()
