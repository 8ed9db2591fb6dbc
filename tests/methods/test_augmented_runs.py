"""Pre-training with everything drawn: what the model sees, resume to the bit, and the options."""

import pytest
import torch
import yaml
from forked import run
from motion_stores import with_maps
from tiny_runs import FOUR, metrics, write_store

from cinema_fast.data.loading.augment import model_input, motion_input
from cinema_fast.data.loading.augmentation import AugmentConfig
from cinema_fast.data.loading.loader import read_batch
from cinema_fast.data.loading.sampler import Sampler
from cinema_fast.data.store.store import CineStore
from cinema_fast.kernels.motion_score import patch_means, relative_to_mean
from cinema_fast.methods.guidance import stored_score
from cinema_fast.methods.pretrain import pretrain
from cinema_fast.methods.pretrain_config import MaskConfig, PretrainConfig
from cinema_fast.models.config import preset
from cinema_fast.train import loop
from cinema_fast.train.setup import fit_to_store

FULL = AugmentConfig(rotation=40.0, translation=6.0, flip=0.3, gamma=(0.5, 1.5), noise=0.1)


@pytest.fixture(scope="module")
def mapped(tmp_path_factory):
    studies = {f"s{i}": FOUR if i % 3 else ("sax",) for i in range(6)}
    return with_maps(write_store(tmp_path_factory.mktemp("augmented") / "store", studies))


def config_of(store, out, **changes) -> PretrainConfig:
    options = {
        "data": store, "out": out, "steps": 4, "preset": "cinema-tiny", "batch_size": 3, "seed": 5, "log_every": 1,
        "precision": "fp32", "device": "cpu", "checkpoint_every": 2, "augment": FULL,
    }  # fmt: skip
    return PretrainConfig(**options | changes)


def watched_run(monkeypatch, config: PretrainConfig, fail_at: int | None = None) -> list[dict]:
    """The images of each step, as the model gets them."""
    seen, make = [], loop.make_train_step

    def watched(loss, model, *args, **how):
        model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        train_step = make(loss, model, *args, **how)

        def step(batches, number, lr):
            if number == fail_at:
                raise OSError("the power fails")
            return train_step(batches, number, lr)

        return step

    with monkeypatch.context() as patch:
        patch.setattr(loop, "make_train_step", watched)
        pretrain(config)
    return seen


def test_the_model_sees_what_the_sampler_drew(mapped, tmp_path, monkeypatch, no_report):
    config = config_of(mapped, tmp_path / "run", steps=2)
    seen, store = watched_run(monkeypatch, config), CineStore(mapped)
    model_config = fit_to_store(preset("cinema-tiny"), store, (), "cinema-tiny")
    sampler = Sampler({s: store.views(s) for s in store.ids}, seed=5, batch_size=3, augment=FULL)
    for step, images in enumerate(seen):
        batch = read_batch(store, sampler.draw(step), model_config.image_size)
        assert set(images) == set(batch.frames)
        for view, frames in batch.frames.items():
            expected = model_input(frames, batch.extent[view], batch.augment[view])
            assert torch.equal(images[view], expected)
            assert not torch.equal(expected, model_input(frames, batch.extent[view]))


@pytest.mark.parametrize("preset_name", ["cinema-tiny", "heartmae-tiny"])
def test_a_run_that_was_cut_off_resumes_to_the_bit(mapped, tmp_path, monkeypatch, no_report, preset_name):
    """With masks by stored motion, which moves along; more threads read after the cut."""
    how = {"preset": preset_name, "mask": MaskConfig(guidance="motion", strength=0.8)}
    pretrain(config_of(mapped, tmp_path / "whole", **how))
    with pytest.raises(OSError, match="power"):
        watched_run(monkeypatch, config_of(mapped, tmp_path / "cut", workers=1, **how), fail_at=3)
    with pytest.raises(ValueError, match=r"augment\.rotation: was 40\.0, now 0\.0"):
        pretrain(config_of(mapped, tmp_path / "cut", resume=True, augment=AugmentConfig(), **how))
    pretrain(config_of(mapped, tmp_path / "cut", workers=3, resume=True, **how))
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    whole, cut = (tmp_path / name / "checkpoints" / "step-00000004.safetensors" for name in ("whole", "cut"))
    assert whole.read_bytes() == cut.read_bytes()


def test_scores_of_masks_move_with_the_image(mapped, tmp_path):
    store = CineStore(mapped)
    model_config = fit_to_store(preset("cinema-tiny"), store, (), "cinema-tiny")
    sampler = Sampler({s: store.views(s) for s in store.ids}, seed=5, batch_size=3, augment=FULL)
    batch = read_batch(store, sampler.draw(0), model_config.image_size, motion=True)
    for view, maps in batch.motion.items():
        token = model_config.token_size(view)
        found = stored_score(batch, view, model_config)
        moved = motion_input(maps, batch.extent[view], batch.augment[view])
        assert torch.equal(found, relative_to_mean(patch_means(moved, token)))
        assert not torch.equal(found, relative_to_mean(patch_means(maps.float(), token)))


def test_runs_of_before_there_was_a_choice_go_on_by_default(mapped, tmp_path, no_report):
    out = tmp_path / "run"
    pretrain(config_of(mapped, out, steps=1, augment=AugmentConfig()))
    values = yaml.safe_load((out / "config.yaml").read_text())
    assert values["run"].pop("augment") == AugmentConfig().to_dict()
    (out / "config.yaml").write_text(yaml.safe_dump(values))
    assert pretrain(config_of(mapped, out, steps=1, augment=AugmentConfig(), resume=True)).exit_code == 0
    with pytest.raises(ValueError, match=r"augment\.noise: was 0\.0, now 0\.1"):
        pretrain(config_of(mapped, out, steps=1, resume=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"zoom": (1.1, 0.9)}, "--augment.zoom takes LOW HIGH with 0 < LOW <= HIGH, got 1.1 0.9"),
        ({"zoom": (0.0, 1.0)}, "--augment.zoom takes LOW HIGH"),
        ({"gamma": (0.5, float("inf"))}, "--augment.gamma takes LOW HIGH"),
        ({"rotation": -1.0}, "--augment.rotation must lie in 0..180, got -1.0"),
        ({"rotation": float("nan")}, "--augment.rotation must lie in 0..180, got nan"),
        ({"translation": float("inf")}, "--augment.translation must be a number of at least 0, got inf"),
        ({"noise": 1.5}, "--augment.noise must lie in 0..1, got 1.5"),
        ({"flip": 1.1}, "--augment.flip is a share of the images, between 0 and 1, got 1.1"),
        ({"zoom_share": -0.1}, "--augment.zoom-share is a share of the images"),
        ({"noise": 0.1, "noise_share": float("nan")}, "--augment.noise-share is a share of the images"),
        ({"rotation_share": 0.5}, "--augment.rotation-share has no effect without --augment.rotation"),
        ({"gamma_share": 0.5}, "--augment.gamma-share has no effect without --augment.gamma"),
        ({"zoom": (1.0, 1.0), "zoom_share": 1.0}, "--augment.zoom-share has no effect without --augment.zoom"),
    ],
    ids=str,
)
def test_bad_options_are_named(tmp_path, options, message):
    with pytest.raises(ValueError) as error:
        config_of(tmp_path, tmp_path / "run", augment=AugmentConfig(**options))
    assert str(error.value).startswith(message) and len(str(error.value).splitlines()) == 1


def test_options_of_the_command_line(tmp_path):
    asked = ["--data", tmp_path, "--out", tmp_path / "r", "--steps", 1, "--augment.gamma", 0.5, 1.5]
    printed = run("pretrain", *asked, "--augment.rotation", 30, "--augment.rotation-share", 0.5, "--print-config")
    expected = AugmentConfig(gamma=(0.5, 1.5), rotation=30.0, rotation_share=0.5)
    assert yaml.safe_load(printed.stdout)["augment"] == expected.to_dict()
    refused = run("pretrain", *asked, "--augment.noise", -1)
    assert refused.returncode == 1 and refused.stderr == "cinema-fast: --augment.noise must lie in 0..1, got -1.0\n"
