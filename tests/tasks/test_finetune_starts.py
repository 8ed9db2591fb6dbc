"""Where weights start from, which of them move, how fast, and on whose labels."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from finetune_cases import FEW
from marks import slow
from safetensors.torch import load_file
from tiny_runs import metrics

from cinema_fast.models.conv_vit import ConvViT
from cinema_fast.tasks.finetune import finetune
from cinema_fast.tasks.finetuned_run import load_run
from cinema_fast.tasks.supervised import Supervised
from cinema_fast.train import loop
from cinema_fast.train.memory import OutOfMemory
from cinema_fast.train.run_info import read_run_info


def last_weights(out) -> dict[str, torch.Tensor]:
    return load_file(max((out / "checkpoints").glob("*.safetensors")))


@pytest.mark.parametrize("task", [slow("segmentation"), "regression"])
def test_from_a_run_a_file_and_a_published_file(discs, pretrained, tmp_path, task, monkeypatch):
    """All three give the encoder of the pre-training run, which --freeze leaves as it is, to the bit."""
    weights = max((pretrained / "checkpoints").glob("*.safetensors"))
    published = tmp_path / "published.pt"
    torch.save({"model": load_file(weights), "epoch": 800}, published)  # as the reference's checkpoints are
    stem = "enc_down_dict.sax.conv_blocks.0.patch_embed.conv.weight"
    found = []
    for number, source in enumerate((pretrained, weights, published)):
        out = tmp_path / str(number)
        finetune(discs.config(out, task, init_from=source, freeze=True, **FEW))
        found.append(last_weights(out))
        log = (out / "run.log").read_text()
        assert "encoder frozen" in log and "not used from the file: dec" in log and "has used" not in log
    before = load_file(weights)
    shared = [name for name in found[0] if name.startswith(("enc_", "encoder.")) and name in before]
    assert len(shared) > 20 and stem in shared
    frames = 2 if task == "regression" else 1
    for after in found:
        for name in shared:
            if name.endswith("conv_blocks.0.patch_embed.conv.weight"):
                assert torch.equal(after[name], before[name].repeat(1, frames, *[1] * (before[name].ndim - 2)))
            else:
                assert torch.equal(after[name], before[name]), name
        assert all(torch.equal(after[name], found[0][name]) for name in after)
    trained = [name for name in found[0] if name.startswith(("pred_head", "decoder_dict"))]
    fresh = tmp_path / "fresh"
    finetune(discs.config(fresh, task, init_from=pretrained, **FEW))
    moved = last_weights(fresh)
    assert trained and not torch.equal(moved[stem], found[0][stem])  # not frozen: the stem moves too


def test_from_a_fine_tuned_run(discs, tmp_path):
    """The same task goes on from all its weights; another takes stem and encoder, of all frames the mean."""
    finetune(discs.config(tmp_path / "many", "multitask", **FEW))
    many = load_file(next((tmp_path / "many/best").glob("*.safetensors")))
    finetune(discs.config(tmp_path / "same", "multitask", init_from=tmp_path / "many", freeze=True, **FEW))
    log = (tmp_path / "same/run.log").read_text()
    taken = f"all {len(many) - 1} tensors; not used from the file: log_variance"
    assert f"weights of {tmp_path / 'many'}, step 3: {taken}" in log
    finetune(discs.config(tmp_path / "seg", "segmentation", init_from=tmp_path / "many", freeze=True, **FEW))
    assert "first convolutions averaged over 2 frames" in (tmp_path / "seg/run.log").read_text()
    for run in ("same", "seg"):
        for name, tensor in last_weights(tmp_path / run).items():
            if name in many and name.startswith(("enc_", "encoder.")):
                theirs = many[name]
                if theirs.shape != tensor.shape:
                    theirs = theirs.mean(1, keepdim=True)
                assert torch.equal(theirs, tensor), name
    with pytest.raises(ValueError, match=r"--freeze: .*seg has no enc_fusion_dict to freeze"):
        finetune(discs.config(tmp_path / "no", "regression", init_from=tmp_path / "seg", freeze=True, **FEW))
    finetune(discs.config(tmp_path / "back", "regression", init_from=tmp_path / "seg", **FEW))
    assert "from random weights: enc_fusion_dict, pred_head_dict" in (tmp_path / "back/run.log").read_text()


def test_resuming_without_where_it_started(discs, pretrained, tmp_path, monkeypatch):
    """The shape comes from the run itself, wherever its pre-training has gone, and paths are those of any folder."""
    start, out = shutil.copytree(pretrained, tmp_path / "start"), tmp_path / "run"
    monkeypatch.chdir(discs.folder)
    options = FEW | {"steps": 2, "validate_every": 1, "preset": "cinema-base", "data": Path("store")}
    config = discs.config(out, "segmentation", init_from=start, **options)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        saved, save = [], loop.WholeCheckpoints.save
        patch.setattr(loop.WholeCheckpoints, "save", lambda *a: save(*a) if not saved.append(1) else None)
        patch.setattr(loop.RunLog, "advance", lambda log, done: killed() if done == 2 else None)
        finetune(config)
    run = read_run_info(out).options
    assert (run["data"], run["init_from"]) == (str(discs.store), str(start)) and run["preset"] == "cinema-demo"
    seen = read_run_info(out).labels.seen
    start.rename(tmp_path / "moved")
    assert finetune(replace(config, init_from=None, resume=True)).step == 2
    assert read_run_info(out).options["init_from"] == str(start) and read_run_info(out).labels.seen == seen
    assert "resuming from step 1" in (out / "run.log").read_text()


@pytest.mark.parametrize(("source", "told"), [
    ("nothing.pt", "--init-from: no weights at .*nothing.pt"), ("folder", r"no run in this folder \(no config.yaml\)"),
    ("text.safetensors", "cannot be read as weights"),
])  # fmt: skip
def test_sources_that_are_none(discs, tmp_path, source, told):
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.safetensors").write_text("no weights")
    with pytest.raises((ValueError, OSError), match=told):
        finetune(discs.config(tmp_path / "run", "regression", init_from=tmp_path / source, **FEW))


def test_layers_learn_slower_the_deeper_they_lie(discs, tmp_path):
    """The reference's rule: 0.75 per block, stems, fusions and class token below the first, no decay of vectors."""
    config = discs.config(tmp_path, "regression", layer_decay=0.75, preset="cinema-base")
    from cinema_fast.models.config import preset

    model = ConvViT(preset("cinema-tiny"), 1)
    model.log_variance = torch.nn.Parameter(torch.zeros(2))
    depth = len(model.encoder.blocks)
    names = {id(p): name for name, p in model.named_parameters()}
    scale, decay = {}, {}
    for group in Supervised.groups(SimpleNamespace(units=lambda m: m.encoder.blocks, options=config), model):
        for p in group["params"]:
            scale[names[id(p)]], decay[names[id(p)]] = group["lr_scale"], group["weight_decay"]
    assert set(scale) == {name for name, p in model.named_parameters() if p.requires_grad}
    for name, found in scale.items():
        layer = depth + 1
        if name.startswith("enc_") or name == "encoder.cls_token":
            layer = 0
        elif name.startswith("encoder.blocks."):
            layer = int(name.split(".")[2]) + 1
        assert found == pytest.approx(0.75 ** (depth + 1 - layer)), name
        assert decay[name] == (0.0 if dict(model.named_parameters())[name].ndim == 1 else 0.05)
    assert scale["log_variance"] == 1.0


def test_few_labels_are_those_that_are_used(discs, tmp_path):
    """Mean and standard deviation are of the studies used alone."""
    finetune(discs.config(tmp_path / "half", "regression", label_fraction=0.5, **FEW))
    labels = read_run_info(tmp_path / "half").labels
    assert len(labels.used) == 3 and set(labels.used) < set(labels.split["train"])
    radii = torch.tensor([5.0 + int(study[1:]) % 6 for study in labels.used], dtype=torch.float64)
    (target,) = labels.task["targets"]
    assert target["mean"] == pytest.approx(radii.mean().item())
    assert target["sd"] == pytest.approx(radii.std(correction=0).item())
    finetune(discs.config(tmp_path / "shot", "classification", shots=1, **FEW))
    used = read_run_info(tmp_path / "shot").labels.used
    assert sorted(5 + int(study[1:]) % 6 > 7 for study in used) == [False, True]
    assert metrics(tmp_path / "shot")[-1]["epoch"] == 3 * 3 / 2


def test_losses_of_several_targets_are_weighed(discs, tmp_path):
    """The loss of the first step is linear in fixed weights; without uncertainty nothing is learnt of them."""
    loss = {}
    for weights in ((), (2.0, 1.0, 1.0), (1.0, 3.0, 1.0), (2.0, 3.0, 1.0)):
        out = tmp_path / str(weights)
        fixed = {"steps": 1, "balance": "fixed", "loss_weights": weights, "drop_path": 0.0}
        finetune(discs.config(out, "multitask", **FEW | fixed))
        (line,) = metrics(out)
        loss[weights] = line["loss"]
        assert "log_variance" not in last_weights(out)
    first, second, both = (loss[w] - loss[()] for w in ((2.0, 1.0, 1.0), (1.0, 3.0, 1.0), (2.0, 3.0, 1.0)))
    assert first > 0 and second > 0 and both == pytest.approx(first + second, rel=1e-5)
    finetune(discs.config(tmp_path / "learnt", "multitask", **FEW))
    assert last_weights(tmp_path / "learnt")["log_variance"].abs().min() > 0


@pytest.mark.parametrize("task", ["segmentation", slow("regression")])
def test_the_baseline(discs, tmp_path, task):
    pytest.importorskip("monai")
    config = discs.config(tmp_path / "run", task, network="baseline", views=("lax_4c",), **FEW | {"steps": 1})
    finetune(config)
    run = load_run(tmp_path / "run", device="cpu")
    torch.manual_seed(config.seed)
    fresh = dict(run.task.network(run.model_config, config).named_parameters())
    assert fresh and not any(torch.equal(fresh[name], after) for name, after in run.model.named_parameters())
    assert type(run.model).__name__ == {"segmentation": "UNetBaseline", "regression": "ResNetBaseline"}[task]


def test_memory_that_runs_out(discs, tmp_path, monkeypatch):
    def greedy(*_):
        raise torch.OutOfMemoryError("Tried to allocate 3.00 GiB")

    monkeypatch.setattr(loop, "make_train_step", lambda *_, **__: greedy)
    told = (r"in training regression with cinema-demo with --batch-size 3 .*add --resume and --batch-size 1 "
            r"--accumulate 3, or --recompute full, or --precision bf16$")  # fmt: skip
    with pytest.raises(OutOfMemory, match=told):
        finetune(discs.config(tmp_path / "run", "regression", **FEW))
    small = {"batch_size": 1, "recompute": "full", "precision": "bf16"}
    less = r"needs less: with a smaller --preset, or with fewer --views than sax, lax_4c$"
    with pytest.raises(OutOfMemory, match=less):
        finetune(discs.config(tmp_path / "small", "regression", **FEW | small))
