"""The experiment on self-distillation: its probe for scar on slices with a known answer, and the script."""

import subprocess
import sys

import numpy as np
import pytest
import self_distillation as experiment
import torch


def slices(n: int, seed: int, *, marked: bool) -> experiment.Slices:
    """Noise, every second slice with a bright spot of 8 x 8 pixels, which the labels call scar; two slices a study.
    marked: the spot is where the labels say, else somewhere else and in any slice."""
    rng = np.random.default_rng(seed)
    images, scar = [], []
    for number in range(n):
        image, label = rng.integers(0, 120, (64, 64)), np.zeros((64, 64), bool)
        x, y = rng.integers(0, 57, 2)
        label[x : x + 8, y : y + 8] = number % 2
        if not marked:
            x, y = rng.integers(0, 57, 2)
        if number % 2 if marked else rng.random() < 0.5:
            image[x : x + 8, y : y + 8] = 250
        images.append(torch.from_numpy(image.astype(np.uint8)))
        scar.append(torch.from_numpy(label))
    return experiment.Slices(images, scar, np.arange(n) // 4 * 2 + np.arange(n) % 2)


def test_a_probe_finds_what_tokens_show_and_nothing_else():
    vit = experiment.random_vit(0)
    found = experiment.scar_probe(vit, slices(80, 0, marked=True), slices(40, 1, marked=True))
    assert min(found.values()) > 0.9 and set(found) == {"token", "slice", "study"}
    blind = experiment.scar_probe(vit, slices(80, 2, marked=False), slices(40, 3, marked=False))
    assert 0.4 < blind["token"] < 0.6 and 0.2 < blind["slice"] < 0.8


def test_tokens_lie_where_their_pixels_are():
    """A token's label is that of its pixels: of the token whose embedding the brightest pixels change most."""
    vit, (images, scar, study) = experiment.random_vit(0), slices(2, 0, marked=True)
    scar[1][:] = False
    scar[1][9, 50] = True
    images[1][:] = 0
    images[1][8:12, 48:52], images[1][0, 0] = 255, 1
    _, injured = experiment.patch_tokens(vit, experiment.Slices(images, scar, study))
    grid = experiment.SEEN_SIDE // vit.config.patch_size
    assert not injured[0].any() and injured[1].nonzero()[0].tolist() == [9 * grid // 64 * grid + 50 * grid // 64]
    squares = experiment.central_squares(*experiment.padded(images[1:]), experiment.SEEN_SIDE)
    embedded = vit.patch_embed(squares, grid**2)[0]
    far = (embedded - embedded.median(0).values).norm(dim=1)
    assert far.argmax().item() == injured[1].argmax()


def test_minutes_add_up_over_lines():
    lines = [{"step": 10, "studies_per_s": 4.0}, {"step": 40, "studies_per_s": 2.0}]
    assert experiment.minutes_of(lines) == pytest.approx((10 + 60) / 60)


@pytest.mark.long
def test_the_script_runs_and_goes_on(tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, experiment.__file__, "--out", out, "--smoke"]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    text = (out / "page.md").read_text()
    assert all(title in text for title in experiment.TITLES.values())
    results, made = (out / "results.json").read_text(), sorted((out / "run/checkpoints").glob("*"))
    times = [path.stat().st_mtime_ns for path in made]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    assert (out / "results.json").read_text() == results
    assert times and [path.stat().st_mtime_ns for path in made] == times  # nothing is trained again
    other = subprocess.run(command[:-1], capture_output=True, text=True, timeout=60)
    assert other.returncode and "holds an experiment of another size" in other.stderr
