"""Masks guided by motion in pre-training: of which tokens, from where, since when, and what is refused beforehand."""

import itertools
import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from marks import slow
from motion_stores import with_maps
from tiny_runs import FOUR, metrics, write_store

import cinema_fast as cf
from cinema_fast.cli import main
from cinema_fast.data.loading.augment import model_input, motion_input
from cinema_fast.data.loading.augmentation import AS_STORED, AugmentConfig
from cinema_fast.data.loading.loader import read_batch
from cinema_fast.data.loading.sampler import Draw, Sampler
from cinema_fast.data.store.clips import ClipStore
from cinema_fast.data.store.store import CineStore
from cinema_fast.kernels import optical_flow
from cinema_fast.methods import mae as module
from cinema_fast.methods.guidance import Guidance, check_guidance
from cinema_fast.methods.pretrain import pretrain
from cinema_fast.methods.pretrain_config import MaskConfig, PretrainConfig
from cinema_fast.models.config import preset
from cinema_fast.train import loop

CPU = torch.device("cpu")
GUIDED = MaskConfig(guidance="motion", strength=0.8, temperature=0.7)


@pytest.fixture(scope="module")
def mapped(tmp_path_factory):
    """Six studies with maps, four of them with all views."""
    studies = {f"s{i}": FOUR if i % 3 else ("sax",) for i in range(6)}
    return with_maps(write_store(tmp_path_factory.mktemp("mapped") / "store", studies))


def config_of(store, out, **changes) -> PretrainConfig:
    options = {
        "data": store, "out": out, "steps": 4, "preset": "cinema-demo", "batch_size": 3, "seed": 5, "log_every": 1,
        "precision": "fp32", "device": "cpu", "warmup": 0.0, "checkpoint_every": 2, "mask": GUIDED,
    }  # fmt: skip
    return PretrainConfig(**options | changes)


def token_means(image: np.ndarray, token: tuple[int, ...]) -> np.ndarray:
    """(N,) means of tokens by loops."""
    grid = [range(0, size, t) for size, t in zip(image.shape, token)]
    return np.array([
        image[tuple(slice(at, at + t) for at, t in zip(corner, token))].mean() for corner in itertools.product(*grid)
    ])


def formula(score: np.ndarray, mask: MaskConfig) -> np.ndarray:
    weight = (1 - mask.strength) + mask.strength * score / score.mean()
    return np.maximum(weight, 1e-6) ** ((-1 if mask.mode == "keep" else 1) / mask.temperature)


def first_plans(monkeypatch, config) -> list[dict]:
    """The plans of the first step of a run, as its model gets them."""
    plans, draw = [], loop.make_train_step

    def watched(loss, model, *args, **how):
        model.register_forward_pre_hook(lambda _, inputs: plans.append(inputs[1]))
        return draw(loss, model, *args, **how)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "make_train_step", watched)
        patch.setattr(module, "write_report", lambda *_, **__: [])
        pretrain(config)
    return plans


@pytest.mark.parametrize("mode", ["mask", "keep"])
def test_masks_of_frames_are_drawn_by_the_stored_maps(mapped, tmp_path, monkeypatch, mode):
    mask = MaskConfig(guidance="motion", mode=mode, strength=0.8, temperature=0.7)
    unzoomed = AugmentConfig(zoom_share=0.0)  # so that the maps are those of the store
    plans = first_plans(monkeypatch, config_of(mapped, tmp_path / "run", steps=1, mask=mask, augment=unzoomed))
    store, model_config = CineStore(mapped), preset("cinema-demo")
    draw = Sampler({s: store.views(s) for s in store.ids}, seed=5, batch_size=3, augment=unzoomed).draw(0)
    for view in draw.views:
        room = {"sax": (32, 32, 4)}.get(view, (32, 32))
        weights = []
        for study in draw.ids:
            found = np.load(mapped / f"studies/{study}/{view}.motion.npy").astype(float)
            padded = np.zeros(room)
            padded[tuple(slice(n) for n in found.shape)] = found
            weights.append(formula(token_means(padded, model_config.token_size(view)), mask))
        n = model_config.n_tokens(view)
        expected = cf.sample_mask(
            torch.tensor(np.stack(weights), dtype=torch.float32), batch=3, n=n, keep=n // 4, seed=5, step=0,
            stream=model_config.views.index(view), sample_ids=torch.arange(3),
        )  # fmt: skip
        assert torch.equal(plans[0][view].keep, expected.keep)


@pytest.mark.parametrize("motion", ["stored", "online"])
def test_masks_of_clips(mapped, tmp_path, monkeypatch, motion):
    config = config_of(mapped, tmp_path / "run", steps=1, preset="heartmae-tiny", motion=motion)
    (plan,) = first_plans(monkeypatch, config)
    store = ClipStore(CineStore(mapped))
    planes = {study: len(store.planes(study)) for study in store.ids}
    draw = Sampler(dict.fromkeys(store.ids, ("clip",)), seed=5, batch_size=3, planes=planes).draw(0)
    batch = read_batch(store, draw, {"clip": (8, 48, 48)}, motion=True)
    clips = model_input(batch.frames["clip"], batch.extent["clip"], batch.augment["clip"], clip=True)
    weights = []
    for sample in range(3):
        if motion == "online":
            flow = optical_flow(clips[sample] * 255, backend="torch")[0].norm(dim=1).double().numpy()  # (7, X, Y)
            frames = np.stack([flow[max(t - 1, 0) : t + 1].mean(0) for t in range(8)])
            score = token_means(frames, (2, 8, 8))
        else:
            one = [part["clip"][sample : sample + 1] for part in (batch.motion, batch.extent)]
            drawn = batch.augment["clip"].map(lambda values, at=sample: values[at : at + 1])
            moved = motion_input(*one, drawn, clip=True)
            score = np.tile(token_means(moved[0].double().numpy(), (8, 8)), 4)
        weights.append(formula(score, GUIDED))
    expected = cf.sample_mask(
        torch.tensor(np.stack(weights), dtype=torch.float32), batch=3, n=144, keep=36, seed=5, step=0
    )
    agree = ((plan["clip"].slot >= 0) == (expected.slot >= 0)).float().mean()
    # online, by two forms of the flow: a token whose noise ties within rounding may differ
    assert agree > 0.98 if motion == "online" else agree == 1


def test_a_shifted_image_shifts_its_mask(tmp_path):
    """A cine and its map, and both one token to the right, wrapping round: each token's weight moves along."""
    store = with_maps(write_store(tmp_path / "store", {"a": ("lax_2c",), "b": ("lax_2c",)}))
    for name in ("lax_2c.npy", "lax_2c.motion.npy"):
        here, there = (store / f"studies/{study}/{name}" for study in "ab")
        there.write_bytes(here.read_bytes()[:128] + np.roll(np.load(here), 8, axis=-1).tobytes())
    zeros = np.zeros(2, np.int64)
    draw = Draw(0, ("a", "b"), ("lax_2c",), zeros, zeros.astype(float), {"lax_2c": AS_STORED}, zeros, zeros)
    model_config = preset("cinema-demo")
    batch = read_batch(CineStore(store), draw, model_config.image_size, motion=True)
    images = {"lax_2c": model_input(batch.frames["lax_2c"], batch.extent["lax_2c"])}
    guidance = Guidance(GUIDED, model_config, steps=1, online=False, device=CPU)
    first, second = guidance.weights(batch, images, 0)["lax_2c"].view(2, 4, 4)
    assert first.max() > 1.5 * first.min()
    torch.testing.assert_close(second, first.roll(1, 1))


def test_strength_rises_over_the_warm_up():
    mask = MaskConfig(guidance="motion", strength=0.9, warmup=0.1)
    guidance = Guidance(mask, preset("cinema-demo"), steps=100, online=False, device=CPU)
    assert [guidance.strength(step) for step in (0, 5, 10, 99)] == pytest.approx([0, 0.45, 0.9, 0.9])
    at_once = Guidance(MaskConfig(guidance="motion"), preset("cinema-demo"), steps=100, online=False, device=CPU)
    assert at_once.strength(0) == 1


@pytest.mark.parametrize(
    "how",
    [{}, slow({"preset": "heartmae-tiny"}), slow({"preset": "heartmae-tiny", "motion": "online"})],
    ids=["frames", "clips", "online"],
)
def test_a_run_says_draws_and_resumes_to_the_bit(mapped, tmp_path, monkeypatch, how):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    pretrain(config_of(mapped, whole, holdout=0.2, **how))
    assert (whole / "report/motion.png").stat().st_size > 10_000
    assert "motion guidance: mask the patches that move" in (whole / "run.log").read_text()
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < line["guidance"] < 1 for line in lines)
    monkeypatch.setattr(module, "write_report", lambda *_, **__: [])
    pretrain(config_of(mapped, parts, holdout=0.2, **how))
    for file in sorted((parts / "checkpoints").glob("*00000004*")):
        file.unlink()
    pretrain(config_of(mapped, parts, holdout=0.2, resume=True, **how))
    assert metrics(whole) == metrics(parts)


def test_guided_runs_differ_from_others_and_say_so_on_resume(mapped, tmp_path, no_report):
    out = tmp_path / "run"
    pretrain(config_of(mapped, out, mask=MaskConfig()))
    with pytest.raises(ValueError, match=r"mask\.guidance: was none, now motion"):
        pretrain(config_of(mapped, out, resume=True))
    values = yaml.safe_load((out / "config.yaml").read_text())
    del values["run"]["mask"], values["run"]["motion"]
    (out / "config.yaml").write_text(yaml.safe_dump(values))  # as before there was guidance
    assert pretrain(config_of(mapped, out, mask=MaskConfig(), resume=True)).exit_code == 0


def test_a_store_without_maps_or_motion_is_refused(mapped, tmp_path):
    bare = write_store(tmp_path / "bare", {"s0": FOUR, "s1": ("sax",)})
    missing = r"2 of 2 studies have no motion map \(s0, s1\): add them .*prepare SRC .*--motion"
    with pytest.raises(ValueError, match=missing):
        pretrain(config_of(bare, tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    still = with_maps(write_store(tmp_path / "still", {"s0": FOUR, "s1": ("sax",)}, frames=1))
    with pytest.raises(ValueError, match="no motion to guide masks by: no cine there has more than one frame"):
        pretrain(config_of(still, tmp_path / "run"))
    with pytest.raises(ValueError, match="no cine of any view there has 4 frames or more"):
        pretrain(config_of(still, tmp_path / "run", preset="heartmae-tiny"))
    partly = tmp_path / "partly"
    shutil.copytree(mapped, partly)
    index = json.loads((partly / "index.json").read_text())
    del index["studies"]["s4"]["lax_3c"]["motion"]
    (partly / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"1 of 6 studies have no motion map \(s4\)"):
        pretrain(config_of(partly, tmp_path / "run"))
    store = CineStore(partly)
    check_guidance(store, {"s4": ("sax",), "s0": ("sax",)})  # of views that are not trained on none is needed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mask.temperature", "0"], "--mask.temperature must be above 0, got 0.0"),
        (["--mask.strength", "1.5"], "--mask.strength must lie in 0..1, got 1.5"),
        (["--mask.warmup", "-1"], "--mask.warmup is a share of the steps"),
        (["--motion", "online", "--preset", "cinema-base"], "reads single frames, which do not move"),
    ],
)
def test_bad_options_are_one_line(tmp_path, capsys, options, message):
    asked = ["--data", tmp_path, "--out", tmp_path / "r", "--steps", 1, "--mask.guidance", "motion", *options]
    assert main(["pretrain", *map(str, asked)]) == 1
    shown = capsys.readouterr().err
    assert message in shown and len(shown.splitlines()) == 1


@pytest.mark.parametrize(
    "options", [{"mask": {"mode": "keep"}}, {"mask": {"strength": 0.5}}, {"motion": "online"}], ids=str
)
def test_options_without_guidance_are_refused(tmp_path, options):
    with pytest.raises(ValueError, match=r"has no effect without --mask\.guidance motion"):
        mask = MaskConfig(**options.get("mask", {}))
        config_of(tmp_path, tmp_path / "r", preset="heartmae-tiny", **options | {"mask": mask})
