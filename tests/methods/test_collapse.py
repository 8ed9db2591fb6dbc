"""Collapse of self-distillation: named soon where it happens, and never where it does not."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_dino import TINY, config_of
from tiny_runs import metrics

from cinema_fast.data.loading.crops import CropOptions
from cinema_fast.data.store.store import write_index, write_study
from cinema_fast.methods.collapse import CollapseWatch
from cinema_fast.methods.pretrain import pretrain
from cinema_fast.methods.pretrain_config import DistillConfig
from cinema_fast.models import config as presets
from cinema_fast.models.config import ViTConfig

SAID = "the outputs collapse"
PRESET = "cmrfm-patterns"
VIT = ViTConfig(embed_dim=32, depth=2, n_heads=2, image_size=32)
presets._PRESETS[PRESET] = replace(TINY, vit=VIT, prototypes=512, head_hidden=64, bottleneck=32, local_size=16)


def watched(lines, prototypes=4096, centring=True) -> list[tuple[int, str]]:
    """(step, warning) for lines of (step, teacher entropy, KL to the mean)."""
    watch = CollapseWatch(prototypes, centring=centring)
    said = [(step, watch.add(step, teacher_entropy=h, kl_to_mean=kl)) for step, h, kl in lines]
    return [(step, warning) for step, warning in said if warning]


@pytest.mark.parametrize("every", [1, 10, 50])
def test_one_prototype_for_all_images_is_named_once(every):
    lines = [(s, 5 * math.exp(-s / 30), 0.6 * math.exp(-s / 60)) for s in range(every, 401, every)]
    for centring, cure in ((True, "--dino.teacher-temp"), (False, "--dino.centring on")):
        ((step, warning),) = watched(lines, centring=centring)
        assert 40 < step <= 200 and "of 4096 prototypes" in warning and cure in warning


@pytest.mark.parametrize(
    "entropy, kl, every",
    [(lambda s: 5 * math.exp(-s / 250), lambda s: 0.9 * math.exp(-s / 200), every) for every in (1, 10, 50)]
    + [(lambda s: 4.7 * math.exp(-s / 700), lambda s: 0.28 + 0.45 * math.exp(-s / 50), every) for every in (1, 10)],
)
def test_a_slow_collapse_is_named(entropy, kl, every):
    """As those of cmrfm-demo with its defaults, but without centring: far from one prototype after 200 steps."""
    lines = [(s, entropy(s), kl(s)) for s in range(every, 401, every)]
    ((step, warning),) = watched(lines, centring=False)
    assert 100 < step <= 200 and "of 4096 prototypes" in warning


@pytest.mark.parametrize("every", [1, 10, 50])
def test_the_same_flat_output_for_all_images_is_named_once(every):
    lines = [(s, 8 - math.exp(-s / 30), 0.4 * math.exp(-s / 30)) for s in range(every, 401, every)]
    ((step, warning),) = watched(lines)
    assert 80 < step <= 200 and "nearly the same output" in warning and "--dino.teacher-temp" in warning


@pytest.mark.parametrize("entropy, kl, said", [(1e-6, 1e-7, "share about 1 of"), (8.3, 1e-5, "nearly the same")])
def test_a_run_that_begins_collapsed_is_named(entropy, kl, said):
    ((step, warning),) = watched([(s, entropy, kl) for s in range(10, 201, 10)])
    assert step == 50 and said in warning


@pytest.mark.parametrize(
    "entropy, kl",
    [
        (lambda s: 7.5, lambda s: 0.02 + s / 4000),  # all alike at first, as a large network's
        (lambda s: 5 - 4.6 * min(s / 300, 1), lambda s: 0.6 + 2 * min(s / 300, 1)),  # sharper, and more to tell
        (lambda s: 0.5 + 2.5 * math.exp(-s / 40), lambda s: 0.8 + 0.4 * math.exp(-s / 40)),  # sharper at first
        (lambda s: 8 - 3 * math.exp(-s / 100), lambda s: 0.2 + 0.7 * math.exp(-s / 100)),  # flatter at first
        (lambda s: 4 + math.sin(s / 7), lambda s: 0.5 + 0.2 * math.cos(s / 11)),
    ],
)
def test_outputs_that_tell_images_apart_are_not(entropy, kl):
    assert watched([(s, entropy(s), kl(s)) for s in range(10, 1001, 10)]) == []


def test_continues_from_its_state():
    watch, again = CollapseWatch(64), CollapseWatch(64)
    for step in range(10, 60, 10):
        watch.add(step, teacher_entropy=3.0, kl_to_mean=0.5)
    again.restore(watch.state())
    said = [(w.add(step, teacher_entropy=0.0, kl_to_mean=0.0)) for step in (70, 120) for w in (watch, again)]
    assert said[0] == said[1] and said[2] == said[3] and any(said)


def test_numbers_that_are_not_finite_are_passed_over():
    assert watched([(10, 5.0, 0.5), (20, math.nan, math.nan), (30, math.nan, 0.0)]) == []


def patterned_store(path: Path) -> Path:
    """Stripes of another direction in each view, and of another place and width in each study."""
    rng, views, index = np.random.default_rng(0), ("lax_2c", "lax_3c", "lax_4c", "lge_lax_4c"), {}
    x, y = np.meshgrid(*[np.linspace(-1, 1, 32)] * 2, indexing="ij")
    for number in range(8):
        cines = {}
        for turn, view in enumerate(views):
            along = x * np.cos(turn * np.pi / 4) + y * np.sin(turn * np.pi / 4)
            image = 0.5 + 0.5 * np.sin(rng.uniform(8, 12) * along + rng.uniform(0, 2 * np.pi))
            cine = (rng.uniform(150, 255) * image).astype(np.uint8)[None]
            record = {
                "spacing_mm": [1.0, 1.0], "frame_time_ms": 30.0, "window": [[0, 1000]], "affine": np.eye(4).tolist(),
                "source": {"file": f"{number}_{view}.nii.gz", "sha256": "0" * 64, "files": []}, "centred_on": "image",
            }  # fmt: skip
            cines[view] = cine, record
        index[f"study-{number}"] = write_study(path / "studies" / f"study-{number}", f"study-{number}", cines)
    write_index(path, {"sax_size": [32, 32, 4], "lax_size": [32, 32]}, index)
    return path


@pytest.mark.parametrize("centring", ["off", pytest.param("on", marks=pytest.mark.slow)])
def test_a_run_without_centring_is_named_within_200_steps(tmp_path, no_report, centring):
    store, run = patterned_store(tmp_path / "store"), tmp_path / "run"
    dino = DistillConfig(images=4, momentum=0.999, teacher_temp=(0.01, 0.01), centring=centring)
    crop = CropOptions(local_area=(0.2, 0.4), brightness=0.1, contrast=0.1, blur_sigma=(0.1, 0.7), solarise=0)
    changes = {"preset": PRESET, "steps": 200, "lr": 5e-4, "log_every": 10, "checkpoint_every": 200}
    pretrain(config_of(store, run, **changes, dino=dino, crop=crop))
    assert (SAID in (run / "run.log").read_text()) == (centring == "off")
    assert (metrics(run)[-1]["kl_to_mean"] > 0.3) == (centring == "on")
