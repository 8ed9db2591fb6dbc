"""The experiment on guided masks: its own measurements on small cohorts, and the script as a whole."""

import json
import subprocess
import sys

import flow_guidance as experiment
import nibabel
import numpy as np
import pytest

from cinema_fast.data.store.clips import ClipStore
from cinema_fast.data.store.store import CineStore
from cinema_fast.methods.pretrain_config import MaskConfig


@pytest.fixture(scope="module")
def hearts(tmp_path_factory):
    out = tmp_path_factory.mktemp("cohort")
    store = CineStore(experiment.make_store(out, "probing", 8, seed=2))
    return experiment.HeartClips(out / "probing-cohort", ClipStore(store), store)


def test_labels_lie_where_prepare_puts_them(hearts, tmp_path):
    """Cines that are bright on the labels and dark elsewhere, prepared as any other, show the labels."""
    cohort, study = hearts.store.path.parent / "probing-cohort", hearts.store.ids[0]
    rng = np.random.default_rng(0)
    (tmp_path / "src").mkdir()
    for path in (cohort / "labels").glob(f"{study}_*"):
        labels = nibabel.load(path)
        bright = 900 * (np.asarray(labels.dataobj) > 0) + rng.integers(0, 50, labels.shape)
        cine = nibabel.Nifti1Image(bright.astype(np.int16), labels.affine, labels.header)
        nibabel.save(cine, tmp_path / "src" / path.name)
    found = CineStore(experiment.prepare_store(tmp_path / "src", tmp_path / "store"))
    for view in found.views(study):
        shown, labels = found.read_frames(study, view, range(16)) > 127, hearts.labels[study, view]
        assert (shown & labels).sum() > 0.9 * (shown | labels).sum()


@pytest.mark.parametrize("online", [False, True], ids=["stored", "online"])
def test_the_heart_among_visible_tokens(hearts, online):
    """What the guidance promises, with its defaults."""
    share = {arm: experiment.heart_share(hearts, arm, online=online, batches=5, seed=3) for arm in experiment.ARMS}
    assert share["chance"] == pytest.approx(1, abs=0.1)
    assert share["mask what moves"] <= 0.6
    assert share["keep what moves"] >= 1.5


def test_a_stronger_guidance_shows_more_of_the_heart(hearts, monkeypatch):
    shares = []
    for strength in (0.0, 0.3, 0.7, 1.0):
        mask = MaskConfig(guidance="motion", mode="keep", strength=strength)
        monkeypatch.setitem(experiment.ARMS, "keep what moves", mask)
        shares.append(experiment.heart_share(hearts, "keep what moves", online=False, batches=5, seed=3))
    assert shares[0] == pytest.approx(1, abs=0.1) and shares == sorted(shares)


def test_probes_find_what_is_linear_and_nothing_in_noise():
    rng = np.random.default_rng(0)
    ef, kinds = rng.uniform(20, 70, 200), np.repeat(["a", "b", "c", "d"], 50)
    seen = np.c_[ef + rng.normal(0, 2, 200), (kinds[:, None] == ["a", "b", "c", "d"]) + rng.normal(0, 0.1, (200, 4))]
    found = experiment.probe(seen, ef, kinds)
    assert found["ef_mae"] < 2.5 and found["ef_r2"] > 0.95
    assert found["disease_accuracy"] > 0.95 and found["disease_auroc"] > 0.99
    blind = experiment.probe(rng.standard_normal((200, 5)), ef, kinds)
    assert blind["ef_r2"] < 0.1 and blind["disease_accuracy"] < 0.4 and 0.4 < blind["disease_auroc"] < 0.6


@pytest.mark.long
def test_the_script_runs_and_goes_on(tmp_path):
    command = [
        sys.executable, experiment.__file__, "--out", tmp_path / "out", "--document", tmp_path / "doc.md", "--smoke",
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    text = (tmp_path / "doc.md").read_text()
    assert all(arm in text for arm in (*experiment.ARMS, experiment.UNTRAINED)) and (tmp_path / "doc.png").exists()
    first = json.loads((tmp_path / "out/results.json").read_text())
    subprocess.run(command, check=True, capture_output=True, timeout=600)  # nothing is trained again
    assert json.loads((tmp_path / "out/results.json").read_text()) == first
    other = subprocess.run(command[:-1], capture_output=True, text=True, timeout=60)
    assert other.returncode and "holds an experiment of another size" in other.stderr
