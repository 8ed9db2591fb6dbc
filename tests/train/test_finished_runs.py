"""The end of a run: studies that cannot be read, views that were not trained, a report that fails."""

import json

import numpy as np
import pytest
import torch
from marks import slow
from tiny_runs import FOUR, write_store

import cinema_fast as cf
from cinema_fast.cli import main
from cinema_fast.data.loading.sampler import held_out
from cinema_fast.data.store.clips import ClipStore
from cinema_fast.data.store.store import CineStore
from cinema_fast.methods.mae_evaluation import evaluate, fixed_batches, fixed_plan, images_of, mean_patches
from cinema_fast.methods.pretrain import pretrain
from cinema_fast.methods.pretrain_config import PretrainConfig
from cinema_fast.models.config import config_from_dict
from cinema_fast.train.run_info import read_run_info

IDS = [f"s{i:02d}" for i in range(12)]
HELD_OUT = sorted(held_out(IDS, 0.25))
TRAINING = [study for study in IDS if study not in HELD_OUT]


def config_of(store, out, **changes) -> PretrainConfig:
    options = {
        "data": store, "out": out, "steps": 2, "preset": "cinema-demo", "batch_size": 2, "holdout": 0.25,
        "precision": "fp32", "device": "cpu", "log_every": 1,
    }  # fmt: skip
    return PretrainConfig(**options | changes)


def damage(store, *studies: str) -> None:
    """Zeros over the first bytes of a file of its old size, which opening the store does not see."""
    for study in studies:
        path = store / "studies" / study / "sax.npy"
        path.write_bytes(bytes(20) + path.read_bytes()[20:])


@pytest.fixture
def store(tmp_path):
    return write_store(tmp_path / "store", dict.fromkeys(IDS, FOUR))


def trained(out) -> cf.CineMA:
    model = cf.CineMA(config_from_dict(read_run_info(out).model))
    cf.load_cinema_weights(model, next((out / "checkpoints").glob("*.safetensors")))
    return model


@pytest.mark.parametrize("preset", [slow("cinema-demo"), "heartmae-tiny"])
def test_studies_that_cannot_be_read_are_left_out_and_named(store, tmp_path, preset):
    lost = [TRAINING[0], TRAINING[5], HELD_OUT[1]]
    cines = CineStore(store)
    reader = ClipStore(cines) if preset == "heartmae-tiny" else cines
    options = {"batch_size": 3, "device": torch.device("cpu")}
    config = cf.preset(preset)
    sound = [study for study in TRAINING if study not in lost]
    baseline = mean_patches(reader, config, sound, **options)
    # what each held-out study gives while all of them can be read
    batches = {
        (batch.draw.ids[0], batch.draw.step): batch for batch in fixed_batches(reader, config, HELD_OUT, batch_size=1)
    }
    damage(store, *lost)
    out = tmp_path / "run"
    outcome = pretrain(config_of(store, out, preset=preset, views=("sax",) if preset == "heartmae-tiny" else ()))
    assert outcome.exit_code == 0 and outcome.evaluation.studies == 2
    model = trained(out)
    if preset == "cinema-demo":
        with torch.no_grad():
            losses = [
                float(model(images_of(batch), fixed_plan(model.config, batch, 0.75)).loss)
                for (study, _), batch in batches.items()
                if study not in lost
            ]
        assert len(losses) == 8 and outcome.evaluation.loss == pytest.approx(np.mean(losses), rel=1e-5)
        expected = evaluate(
            model, reader, HELD_OUT, baseline, mask_ratio=0.75, precision=torch.float32, unreadable={}, **options
        )
        assert outcome.evaluation.baseline_loss == pytest.approx(expected.baseline_loss, rel=1e-6)
    text = (out / "run.log").read_text()
    assert "cannot be read, so neither evaluated nor drawn (3):\n" in text
    assert all(f"  {study}: " in text for study in lost)
    assert {path.name for path in (out / "report").iterdir()} == {"loss.png", "reconstruction.png", "evaluation.json"}
    assert json.loads((out / "report" / "evaluation.json").read_text())["studies"] == 2


def test_the_command_ends_well_though_the_picture_s_study_is_lost(store, tmp_path):
    damage(store, IDS[0])
    out = tmp_path / "run"
    arguments = ("--data", store, "--out", out, "--preset", "cinema-demo", "--steps", 2, "--batch-size", 2)
    assert main(["pretrain", *map(str, arguments)]) == 0
    assert (out / "report" / "reconstruction.png").exists()
    assert f"  {IDS[0]}: " in (out / "run.log").read_text()


def test_no_held_out_study_can_be_read(store, tmp_path):
    damage(store, *HELD_OUT)
    outcome = pretrain(config_of(store, tmp_path / "run"))
    assert outcome.exit_code == 0 and outcome.evaluation is None
    text = (tmp_path / "run" / "run.log").read_text()
    assert "its evaluation failed: ValueError: no held-out study can be evaluated" in text and "nor drawn (3)" in text
    assert [path.name for path in (tmp_path / "run" / "report").iterdir()] == ["loss.png"]


def test_strict_runs_end_at_a_held_out_study_too(store, tmp_path):
    damage(store, HELD_OUT[1])
    with pytest.raises(ValueError, match=rf"study {HELD_OUT[1]}: .*sax\.npy"):
        pretrain(config_of(store, tmp_path / "run", strict=True))
    assert (tmp_path / "run" / "checkpoints" / "step-00000002.json").exists()


def test_many_lost_studies_do_not_flood_the_log(store, tmp_path):
    damage(store, *HELD_OUT, *TRAINING[:3])
    pretrain(config_of(store, tmp_path / "run"))
    text = (tmp_path / "run" / "run.log").read_text()
    assert "nor drawn (6)" in text and "\n  ..." in text


def test_a_report_that_fails_does_not_fail_the_run(store, tmp_path, monkeypatch):
    def failing(*_, **__):
        raise RuntimeError("no fonts here")

    monkeypatch.setattr("cinema_fast.methods.mae_report.draw_loss", failing)
    outcome = pretrain(config_of(store, tmp_path / "run"))
    assert outcome.exit_code == 0 and outcome.evaluation.studies == 3
    said = "the run is finished and saved, but its report failed: RuntimeError: no fonts here"
    assert said in (tmp_path / "run" / "run.log").read_text()
    assert json.loads((tmp_path / "run" / "report" / "evaluation.json").read_text())["studies"] == 3


def test_held_out_studies_are_judged_on_the_views_that_were_trained(tmp_path):
    store = write_store(tmp_path / "store", {s: FOUR if s in HELD_OUT else ("sax", "lax_4c") for s in IDS})
    out = tmp_path / "run"
    outcome = pretrain(config_of(store, out))
    text = (out / "run.log").read_text()
    assert "no training study has lax_2c, lax_3c: held-out studies are evaluated without" in text
    assert text.index("evaluated without") < text.index("step 1/2")
    model, losses = trained(out), []
    for batch in fixed_batches(CineStore(store), model.config, HELD_OUT, batch_size=1):
        images, plan = images_of(batch), fixed_plan(model.config, batch, 0.75)
        both = [{view: part[view] for view in ("sax", "lax_4c")} for part in (images, plan)]
        with torch.no_grad():
            losses.append(float(model(*both).loss))
    assert outcome.evaluation.studies == 3 and outcome.evaluation.loss == pytest.approx(np.mean(losses), rel=1e-5)


def test_held_out_studies_without_any_trained_view_are_refused_first(tmp_path):
    store = write_store(tmp_path / "store", {s: ("lax_2c",) if s in HELD_OUT else ("sax",) for s in IDS})
    with pytest.raises(ValueError, match=rf"no held-out study \({', '.join(HELD_OUT)}\) has a view .* \(sax\)"):
        pretrain(config_of(store, tmp_path / "run"))
    assert not (tmp_path / "run").exists()
