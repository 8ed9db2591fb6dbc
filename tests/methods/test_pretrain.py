"""Pre-training against a plain loop written out here, and its answers to bad numbers and bad input."""

import dataclasses
import json
import math
from collections import Counter

import pytest
import torch
import yaml
from marks import slow
from safetensors.torch import load_file, save_file
from tiny_runs import FOUR, metrics, write_store

import cinema_fast as cf
from cinema_fast.data.loading.augment import model_input
from cinema_fast.data.loading.loader import read_batch
from cinema_fast.data.loading.sampler import Sampler
from cinema_fast.data.store.store import CineStore
from cinema_fast.methods.pretrain import pretrain
from cinema_fast.methods.pretrain_config import PretrainConfig
from cinema_fast.tasks.seen import seen_by
from cinema_fast.train.loop import _replaced
from cinema_fast.train.run_info import read_run_info
from cinema_fast.train.setup import fit_to_store


def config_of(store, out, **changes) -> PretrainConfig:
    options = {
        "data": store, "out": out, "steps": 6, "preset": "cinema-tiny", "batch_size": 4, "seed": 11, "log_every": 1,
        "precision": "fp32", "device": "cpu", "warmup": 0.34,
    }  # fmt: skip
    return PretrainConfig(**options | changes)


def plain_loop(config: PretrainConfig) -> tuple[list[float], list[float], dict]:
    """Losses, gradient norms and final weights by torch's own AdamW and clipping, in one batch a step."""
    store = CineStore(config.data)
    model_config = fit_to_store(cf.preset(config.preset), store, config.views, config.preset)
    torch.manual_seed(config.seed)
    model = cf.CineMA(model_config)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": 0.05},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.95),
        fused=False,
    )
    sampler = Sampler({s: store.views(s) for s in store.ids}, seed=config.seed, batch_size=config.batch_size)
    losses, norms = [], []
    for step in range(config.steps):
        batch = read_batch(store, sampler.draw(step), model_config.image_size)
        images = {v: model_input(batch.frames[v], batch.extent[v], batch.augment[v]) for v in batch.frames}
        plan = {}
        for view in images:
            n = model_config.n_tokens(view)
            plan[view] = cf.sample_mask(
                batch=config.batch_size, n=n, keep=math.floor(n * 0.25), seed=config.seed, step=step,
                stream=model_config.views.index(view), sample_ids=torch.arange(config.batch_size),
            )  # fmt: skip
        loss = model(images, plan).loss
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(trained, config.clip_grad)))
        warm = round(config.warmup * config.steps)
        decay = (step + 1 - warm) / (config.steps - warm)
        for group in optimizer.param_groups:
            rising = config.lr * (step + 1) / warm
            falling = config.min_lr + (config.lr - config.min_lr) * (1 + math.cos(math.pi * decay)) / 2
            group["lr"] = rising if step < warm else falling
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses, norms, cf.cinema_state_dict(model)


@pytest.mark.parametrize("clip", [5.0, slow(0.05)])
def test_equals_a_plain_loop(tiny_store, tmp_path, no_report, clip):
    config = config_of(tiny_store, tmp_path / "run", clip_grad=clip)
    losses, norms, weights = plain_loop(config)
    assert clip == 5.0 or max(norms) > clip  # the second case does clip
    outcome = pretrain(config)
    assert outcome.step == 6 and outcome.exit_code == 0
    lines = metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["loss"] for line in lines] == pytest.approx(losses, rel=1e-5)
    assert [line["grad_norm"] for line in lines] == pytest.approx(norms, rel=1e-4)
    assert lines[-1]["lr"] == pytest.approx(1e-6) and lines[-1]["epoch"] == 6 * 4 / 12
    saved = load_file(tmp_path / "run" / "checkpoints" / "step-00000006.safetensors")
    # As a whole: a gradient that is zero but for rounding (a key's bias) is blown up by Adam to a step of its own.
    torch.manual_seed(11)
    model_config = fit_to_store(cf.preset(config.preset), CineStore(tiny_store), (), config.preset)
    start = cf.cinema_state_dict(cf.CineMA(model_config))
    moved = sum(float((weights[name] - start[name]).square().sum()) for name in weights)
    apart = sum(float((weights[name] - saved[name]).square().sum()) for name in weights)
    assert math.sqrt(apart / moved) < 1e-4


def test_accumulation_equals_one_large_batch(tiny_store, tmp_path, no_report):
    pretrain(config_of(tiny_store, tmp_path / "whole"))
    pretrain(config_of(tiny_store, tmp_path / "parts", batch_size=1, accumulate=4, workers=3))
    for whole, parts in zip(metrics(tmp_path / "whole"), metrics(tmp_path / "parts")):
        assert parts["loss"] == pytest.approx(whole["loss"], rel=1e-5)
        assert parts["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-4)


def test_the_run_folder(tiny_store, tmp_path):
    out = tmp_path / "run"
    options = {"steps": 5, "log_every": 2, "checkpoint_every": 2, "keep_checkpoints": 2, "holdout": 0.25}
    outcome = pretrain(config_of(tiny_store, out, **options))
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 5]
    for line in lines:
        assert {"step", "loss", "lr", "studies_per_s", "data_wait"} <= set(line)
        assert line["studies_per_s"] > 0 and 0 <= line["data_wait"] <= 1
    names = {path.name for path in (out / "checkpoints").iterdir()}
    assert names == {f"step-0000000{n}{suffix}" for n in (4, 5) for suffix in (".safetensors", ".pt", ".json")}
    run_info = yaml.safe_load((out / "config.yaml").read_text())
    assert run_info["run"]["lr"] == 1e-3 and run_info["model"]["image_size"]["sax"] == [32, 32, 4]
    assert run_info["versions"]["torch"] == torch.__version__
    for picture in ("loss.png", "reconstruction.png"):
        assert (out / "report" / picture).read_bytes()[:4] == b"\x89PNG"
    assert outcome.evaluation.studies == 3
    assert json.loads((out / "report" / "evaluation.json").read_text())["ratio"] == outcome.evaluation.ratio
    log = (out / "run.log").read_text()
    assert "3 held out" in log and "images of 32 x 32 x 4 (sax), 32 x 32 (lax_2c, lax_3c, lax_4c)" in log
    assert " M parameters, " in log and f"mask ratio 0.75, seed {run_info['run']['seed']}; cpu" in log
    # the weights load by the public names into a model of the configuration that was written
    model = cf.CineMA(cf.CineMAConfig(**run_info["model"]))
    cf.load_cinema_weights(model, out / "checkpoints" / "step-00000005.safetensors")


@pytest.mark.slow
def test_it_learns(tiny_store, tmp_path):
    pretrain(config_of(tiny_store, tmp_path / "run", steps=30, log_every=5, preset="cinema-demo", precision="auto"))
    losses = [line["loss"] for line in metrics(tmp_path / "run")]
    assert losses[-1] < 0.6 * losses[0]


def poison(monkeypatch, where: str, bad_steps: set[int]) -> None:
    """Make the loss, or one gradient, of some steps (from 1) not a number."""
    forward, count = cf.CineMA.forward, iter(range(1, 1000))

    def poisoned(self, *arguments):
        out = forward(self, *arguments)
        if next(count) not in bad_steps:
            return out
        if where == "loss":
            return out._replace(loss=out.loss * torch.nan)
        out.loss.register_hook(lambda gradient: gradient * torch.inf)
        return out

    monkeypatch.setattr(cf.CineMA, "forward", poisoned)


@pytest.mark.parametrize("where", [slow("loss"), "gradient"])
def test_a_bad_step_is_skipped_and_named(tiny_store, tmp_path, monkeypatch, no_report, capfd, where):
    poison(monkeypatch, where, {3})
    config = config_of(tiny_store, tmp_path / "run", log_every=2, checkpoint_every=1, keep_checkpoints=9, workers=1)
    pretrain(config)
    two, three, four = (
        load_file(tmp_path / "run" / "checkpoints" / f"step-0000000{n}.safetensors") for n in (2, 3, 4)
    )
    assert all(torch.equal(two[name], three[name]) for name in two)  # the bad step changed nothing
    assert not all(torch.equal(three[name], four[name]) for name in three)
    assert all(tensor.isfinite().all() for tensor in four.values())
    ids = Sampler({s: FOUR if int(s[1:]) % 4 else ("sax",) for s in CineStore(tiny_store).ids}, seed=11, batch_size=4)
    message = capfd.readouterr().err
    assert "step 3" in message and "not finite" in message and ", ".join(ids.draw(2).ids) in message
    lines = metrics(tmp_path / "run")
    assert [line["skipped"] for line in lines] == [0, 1, 1]
    assert all(math.isfinite(line["loss"]) and math.isfinite(line["grad_norm"]) for line in lines)


def test_too_many_bad_steps_end_the_run(tiny_store, tmp_path, monkeypatch):
    poison(monkeypatch, "loss", {2, 4, 5, 6})
    with pytest.raises(ValueError, match=r"step 6: .*\n3 updates in a row were skipped"):
        pretrain(config_of(tiny_store, tmp_path / "run", steps=9, max_skips=2))
    assert "3 updates in a row" in (tmp_path / "run" / "run.log").read_text()
    assert metrics(tmp_path / "run")[1]["loss"] is None  # valid JSON, and no number where there is none


def test_a_lost_study_is_replaced_or_ends_a_strict_run(tmp_path, monkeypatch, no_report, capfd):
    store = write_store(tmp_path / "store", {f"s{i}": FOUR for i in range(5)})

    class Losing(CineStore):
        def read_frame(self, study, view, t):
            if study == "s3" and view == "lax_2c":
                raise OSError(5, "Input/output error", f"{study}/{view}.npy")
            return super().read_frame(study, view, t)

    monkeypatch.setattr("cinema_fast.methods.mae.CineStore", Losing)
    assert pretrain(config_of(store, tmp_path / "run", steps=3, batch_size=5)).exit_code == 0
    told, times = capfd.readouterr().err, metrics(tmp_path / "run")[-1]["replaced"]
    assert told.count("study s3 replaced") == times >= 3
    said = f"unreadable studies were replaced {times} times in training: "
    assert f"{said}s3 ({times} times). " in told
    pretrain(config_of(store, tmp_path / "run", steps=3, batch_size=5, resume=True))  # which meets none itself
    assert f"{said}{times} times on other ranks or before the run was resumed. " in capfd.readouterr().err
    assert _replaced(1, Counter(s=1)).startswith("unreadable studies were replaced once in training: s (once). ")
    assert "training: b (2 times); once on other ranks" in _replaced(3, Counter(b=2))
    with pytest.raises(ValueError, match=r"study s3.*lax_2c\.npy"):
        pretrain(config_of(store, tmp_path / "strict", steps=3, batch_size=5, strict=True))


def test_weights_of_another_run_and_of_another_shape(tiny_store, tmp_path, no_report):
    pretrain(config_of(tiny_store, tmp_path / "first", steps=1))
    weights = tmp_path / "first" / "checkpoints" / "step-00000001.safetensors"
    pretrain(config_of(tiny_store, tmp_path / "second", steps=1, lr=1e-12, min_lr=0, init_from=weights))
    after = load_file(tmp_path / "second" / "checkpoints" / "step-00000001.safetensors")
    assert all(torch.allclose(after[name], t, atol=1e-9) for name, t in load_file(weights).items())
    altered = load_file(weights)
    altered["pred_head_dict.sax.bias"] = torch.zeros(3)
    save_file(altered, weights)
    with pytest.raises(ValueError, match=r"pred_head_dict\.sax\.bias: expected \(256,\), got \(3,\)"):
        pretrain(config_of(tiny_store, tmp_path / "third", init_from=weights))
    assert not (tmp_path / "third").exists()


def test_bad_options(tiny_store, tmp_path):
    for change, match in (
        ({"preset": "cinema-bas"}, "did you mean 'cinema-base'"),
        ({"mask_ratio": 1.0}, "--mask-ratio"),
        ({"batch_size": 0}, "--batch-size"),
        ({"decode_ratio": 0.0}, "--decode-ratio"),
        ({"lr": -1.0}, "--lr"),
        ({"holdout": 1.0}, "--holdout"),
        ({"seed": -1}, "--seed"),
    ):
        with pytest.raises(ValueError, match=match):
            config_of(tiny_store, tmp_path / "run", **change)
    with pytest.raises(ValueError, match="no view 'lax_2d'; did you mean 'lax_2c'"):
        pretrain(config_of(tiny_store, tmp_path / "run", views=("sax", "lax_2d")))
    with pytest.raises(ValueError, match="does not exist"):
        pretrain(config_of(tmp_path / "nowhere", tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_split_holds_out_its_parts(tiny_store, tmp_path, no_report):
    """Those of val and test; studies that it does not list are trained on. The run keeps the names, and refuses to go
    on with others; later runs know from them what it has seen."""
    ids = CineStore(tiny_store).ids
    split = tmp_path / "split.csv"
    split.write_text(f"study,split\n{ids[0]},train\n{ids[1]},val\n{ids[2]},test\n")
    out = tmp_path / "run"
    pretrain(config_of(tiny_store, out, steps=1, split=split))
    assert read_run_info(out).held_out == (ids[1], ids[2])
    assert seen_by(out, CineStore(tiny_store)) == (set(ids) - {ids[1], ids[2]}, [])
    assert pretrain(config_of(tiny_store, out, steps=1, split=split, resume=True)).exit_code == 0
    split.write_text(f"study,split\n{ids[0]},train\n{ids[1]},val\n{ids[2]},train\n")
    with pytest.raises(ValueError, match="split: other studies are held out"):
        pretrain(config_of(tiny_store, out, steps=1, split=split, resume=True))
    split.write_text("study,split\n" + "".join(f"{study},test\n" for study in ids))
    with pytest.raises(ValueError, match=r"--split .*: all 12 studies are of val or test"):
        pretrain(config_of(tiny_store, tmp_path / "none", split=split))
    with pytest.raises(ValueError, match=r"--holdout 0\.2 has no effect beside --split"):
        config_of(tiny_store, tmp_path / "both", split=split, holdout=0.2)
    with pytest.raises(ValueError, match=r"--split .*nowhere\.csv: No such file"):
        pretrain(config_of(tiny_store, tmp_path / "none", split=tmp_path / "nowhere.csv"))


def test_a_subset_of_the_views(tiny_store, tmp_path, no_report):
    out = tmp_path / "run"
    pretrain(config_of(tiny_store, out, views=("lax_4c", "lax_2c"), steps=1))
    run_info = yaml.safe_load((out / "config.yaml").read_text())
    assert run_info["model"]["views"] == ["lax_2c", "lax_4c"]
    assert "on 9 studies" in (out / "run.log").read_text()  # the three with the short axis only are left out


def test_every_option_is_saved(tiny_store, tmp_path):
    names = {field.name for field in dataclasses.fields(PretrainConfig)} - {"resume"}
    assert set(config_of(tiny_store, tmp_path / "run").to_dict()) == names
