"""Pre-training by self-distillation: the steps of a plain loop; resumed, divided, recorded and skipped as it should be;
what it says of itself."""

import json
import math
import re
import shutil
import signal
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
import yaml
from forked import run
from killed_pretrain import AT_STEP
from machine import has_gpu
from rank_runs import forked_ranks
from safetensors.torch import load_file
from step_cases import no_wait
from tape import TapeCapture
from tiny_dino import IN_A_PROCESS, TINY, config_of, words
from tiny_runs import FOUR, metrics, write_store
from tolerances import assert_same_training

from cinema_fast.data.loading.crops import CropOptions, CropRecipe, cut_crops
from cinema_fast.data.loading.image_choice import choose_images
from cinema_fast.data.loading.loader import LoaderError, read_batch
from cinema_fast.data.loading.sampler import Sampler
from cinema_fast.data.store.store import CineStore, StoreError
from cinema_fast.evaluation.compare_runs import compare_runs
from cinema_fast.kernels.prototype_loss import prototype_loss_ref
from cinema_fast.methods import dino as module
from cinema_fast.methods.dino import SelfDistillation
from cinema_fast.methods.dino_evaluation import evaluate, feature_rank, knn_accuracy
from cinema_fast.methods.pretrain import pretrain
from cinema_fast.methods.pretrain_config import DistillConfig, MaskConfig, PretrainConfig
from cinema_fast.models.config import ViTConfig, preset
from cinema_fast.models.dino import DINO
from cinema_fast.models.vit import ViT
from cinema_fast.train import loop
from cinema_fast.train.graph import WARM_UP, CudaCapture
from cinema_fast.train.memory import OutOfMemory, memory_advice
from cinema_fast.train.method import Place
from cinema_fast.train.run_info import read_run_info
from cinema_fast.train.step import make_train_step

KILL, STOP = "os.kill(os.getpid(), signal.SIGKILL)", "os.kill(os.getpid(), signal.SIGTERM)"
WATCHED = f"{IN_A_PROCESS}\nimport cinema_fast.train.loop as p\n" + AT_STEP


def last_weights(out, step: int = 8) -> dict:
    return load_file(out / "checkpoints" / f"step-{step:08d}.safetensors")


def kept(out, step: int) -> dict:
    """What a checkpoint holds beside weights: of the optimiser and of the method."""
    state = torch.load(out / "checkpoints" / f"step-{step:08d}.pt", weights_only=True)
    return {name: state[name] for name in ("optimizer", "method")}


def plain_loop(config: PretrainConfig) -> tuple[list[float], dict]:
    """Loss of each step and the last weights: pairs of crops one after another, torch's own AdamW, Python's numbers."""
    store, dino, steps = CineStore(config.data), config.dino, config.steps
    sampler = Sampler({s: store.views(s) for s in store.ids}, seed=config.seed, batch_size=config.batch_size)
    torch.manual_seed(config.seed)
    model = DINO(TINY)
    named = {name: p for name, p in model.student.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW([{"params": [p]} for p in named.values()], betas=(0.9, 0.999))
    recipe = CropRecipe(global_size=16, local_size=8, n_local=2)
    losses, sizes = [], {"sax": (32, 32, 3)} | dict.fromkeys(FOUR[1:], (32, 32))
    for at in range(steps):
        batch = read_batch(store, sampler.draw(at), sizes)
        number = torch.tensor([at])
        images = choose_images(
            batch.frames, batch.extent, batch.slot, step=number, seed=config.seed, per_study=dino.images
        )
        crops = [(crop - 0.25) / 0.25 for crop in cut_crops(images, recipe, step=number, seed=config.seed)]
        z = torch.cat([model.student.head(model.student.backbone(crop)["cls"]) for crop in crops])
        prototypes = F.normalize(model.student.head.last_layer.weight_v, dim=1)
        with torch.no_grad():
            t = torch.cat([model.teacher.head(model.teacher.backbone(crop)["cls"]) for crop in crops[:2]])
            own = F.normalize(model.teacher.head.last_layer.weight_v, dim=1)
        low, high = dino.teacher_temp
        temp = low + (high - low) * min(at / round(dino.teacher_temp_warmup * steps), 1)
        loss, _ = prototype_loss_ref(z, t, prototypes, own, model.centre, 0.1, temp)
        loss.backward()
        cosine = (1 + math.cos(math.pi * at / steps)) / 2
        warm = round(config.warmup * steps)
        falling = (1 + math.cos(math.pi * (at + 1 - warm) / (steps - warm))) / 2
        rate = config.min_lr + (config.lr - config.min_lr) * falling
        for group, (name, p) in zip(optimizer.param_groups, named.items()):
            group["lr"] = config.lr * (at + 1) / warm if at < warm else rate
            decay = dino.weight_decay_end + (config.weight_decay - dino.weight_decay_end) * cosine
            group["weight_decay"] = decay if p.ndim > 1 else 0.0
            torch.nn.utils.clip_grad_norm_([p], config.clip_grad)
            if "last_layer" in name and at < dino.freeze_last_layer * steps:
                p.grad = None
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            model.centre.mul_(0.9).add_(0.1 * (t @ own.T).mean(0, keepdim=True))
            momentum = 1 - (1 - dino.momentum) * cosine
            for old, new in zip(model.teacher.parameters(), model.student.parameters()):
                old.copy_(momentum * old + (1 - momentum) * new)
        losses.append(float(loss.detach()))
    return losses, model.state_dict()


def test_equals_a_plain_loop(tiny_store, tmp_path, no_report):
    config = config_of(tiny_store, tmp_path / "run", clip_grad=0.5)
    losses, weights = plain_loop(config)
    pretrain(config)
    assert [line["loss"] for line in metrics(tmp_path / "run")] == pytest.approx(losses, rel=1e-5)
    assert_same_training(last_weights(tmp_path / "run"), weights)


def test_killed_and_stopped_it_goes_on_to_the_same_bits(tiny_store, tmp_path):
    """Student, teacher, centre, optimiser and figures; drop path and held-out studies, too."""
    config = config_of(tiny_store, None, preset="cmrfm-dropping", log_every=2)
    options = [*words(config), "--holdout", "0.25", "--dino.knn-every", "3"]
    for out, more, code in (
        ("whole", (), IN_A_PROCESS),
        ("cut", (), WATCHED.format(number=4, action=KILL)),
        ("cut", ("--resume",), WATCHED.format(number=3, action=STOP)),
        ("cut", ("--resume", "--workers", "3"), IN_A_PROCESS),
    ):
        ended = run("pretrain", "--data", tiny_store, "--out", tmp_path / out, *options, *more, code=code)
        status = -signal.SIGKILL if KILL in code else 128 + signal.SIGTERM if STOP in code else 0
        assert ended.returncode == status, ended.stderr
        if STOP in code:  # in the middle of the means of a line
            assert "resuming from step 3" in ended.stderr and "after step 4 and saved" in ended.stderr
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    whole, cut = (tmp_path / name / "checkpoints" / "step-00000008.safetensors" for name in ("whole", "cut"))
    assert whole.read_bytes() == cut.read_bytes()
    torch.testing.assert_close(kept(tmp_path / "cut", 8), kept(tmp_path / "whole", 8), rtol=0, atol=0)
    pictures = [(tmp_path / out / "report" / "evaluation.json").read_bytes() for out in ("whole", "cut")]
    assert pictures[0] == pictures[1]


def test_resumed_between_two_lines(tiny_store, tmp_path, monkeypatch, no_report):
    """The means of a line are over its steps, whichever process made them."""
    pretrain(config_of(tiny_store, tmp_path / "whole", log_every=4))

    def killed(log, done):
        if done == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop.RunLog, "advance", killed)
        pretrain(config_of(tiny_store, tmp_path / "cut", log_every=4))
    pretrain(config_of(tiny_store, tmp_path / "cut", log_every=4, resume=True))
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


def assert_same_lines(found, expected, *, rel: float, same_parts: bool = True) -> None:
    """Lines of two runs, but for rounding. The KL to the mean is a difference of entropies of up to log 24, and it
    depends on the number of images of a micro-batch: same_parts says that both runs have the same."""
    for one, other in zip(metrics(found), metrics(expected), strict=True):
        kl = one.pop("kl_to_mean"), other.pop("kl_to_mean")
        assert one == pytest.approx(other, rel=rel)
        assert not same_parts or kl[0] == pytest.approx(kl[1], abs=rel * math.log(24))


def test_accumulation_equals_one_large_batch(tiny_store, tmp_path, no_report):
    pretrain(config_of(tiny_store, tmp_path / "whole"))
    pretrain(config_of(tiny_store, tmp_path / "parts", batch_size=2, accumulate=2))
    assert_same_lines(tmp_path / "parts", tmp_path / "whole", rel=1e-5, same_parts=False)
    assert_same_training(last_weights(tmp_path / "parts"), last_weights(tmp_path / "whole"))


def test_two_ranks_make_the_steps_of_one(tiny_store, tmp_path, no_report):
    """With drop path, whose numbers are those of one process's micro-batches; and all state is that of all ranks."""
    config = config_of(tiny_store, tmp_path / "one", preset="cmrfm-dropping", batch_size=2, accumulate=2)
    pretrain(config)
    save = f"import torch; torch.save(arguments[1].state_dict(), '{tmp_path}/' + os.environ['RANK'])"
    ended = forked_ranks(2, tiny_store, tmp_path / "two", *words(config), steps=8, before=IN_A_PROCESS, at_step=save)
    assert ended.returncode == 0, ended.stderr
    assert "unused" not in ended.stderr and "2 ranks, ddp" in (tmp_path / "two" / "run.log").read_text()
    assert_same_lines(tmp_path / "two", tmp_path / "one", rel=1e-5)
    assert_same_training(last_weights(tmp_path / "two"), last_weights(tmp_path / "one"))
    ranks = [torch.load(tmp_path / str(rank)) for rank in range(2)]
    torch.testing.assert_close(*ranks, rtol=0, atol=0)
    assert "centre" in ranks[0] and ranks[0]["centre"].abs().max() > 0


def test_replayed_it_is_the_same(tiny_store, tmp_path, monkeypatch, no_report):
    """Crops, schedules, drop path, teacher, centre and figures are part of what is recorded."""
    config = config_of(tiny_store, tmp_path / "eager", preset="cmrfm-dropping", views=FOUR[1:], steps=8)
    pretrain(config)
    make = loop.make_train_step

    def taped(loss, model, optimizer, **how):
        method = loss.__self__

        def state():
            of_optimizer = [value for of in optimizer.state.values() for value in of.values()]
            return [*model.state_dict().values(), *of_optimizer, method._of_step, method._sums]

        return make(loss, model, optimizer, **how | {"capture": TapeCapture(state)})

    monkeypatch.setattr(loop, "make_train_step", taped)
    pretrain(replace(config, out=tmp_path / "replayed"))
    assert metrics(tmp_path / "replayed") == metrics(tmp_path / "eager")
    eager, replayed = (last_weights(tmp_path / name) for name in ("eager", "replayed"))
    assert all(torch.equal(replayed[name], tensor) for name, tensor in eager.items())


def step_of(config: PretrainConfig, device: str, capture=None):
    """The method, its model, its training step, and the micro-batches of a step."""
    method = SelfDistillation(config, preset(config.preset), Place(torch.device(device)))
    model = method.build().to(device)
    step = make_train_step(
        method.loss, model, method.optimizer(model), device=torch.device(device), update=method.update,
        after_update=method.after_update, capture=capture,
    )  # fmt: skip
    return method, model, step, lambda n: [read_batch(method.store, method.sampler.draw(n), method.sizes)]


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_a_step_never_waits_for_the_device(tiny_store, tmp_path, device, recompute):
    config = config_of(tiny_store, tmp_path / "run", preset="cmrfm-dropping", recompute=recompute)
    _, model, step, batches = step_of(config, device)
    step(batches(0), 0, 1e-3)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    ready = [batch.to(torch.device(device)) for batch in batches(3)]
    with no_wait():
        result = step(ready, 3, 1e-3)
    loss, norm, made = result.tolist()
    assert math.isfinite(loss) and norm > 0 and made == 1
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if "weight_g" not in name}


@pytest.mark.gpu
@pytest.mark.skipif(not has_gpu(), reason="CUDA graphs need a GPU; a tape stands for them elsewhere")
def test_graphs_are_the_eager_steps(tiny_store, tmp_path):
    """Drop path draws in a replay what it draws in an eager step."""
    config, results, weights = config_of(tiny_store, tmp_path / "run", preset="cmrfm-dropping", views=FOUR[1:]), [], []
    for capture in (None, CudaCapture(torch.device("cuda"))):
        torch.manual_seed(0)
        _, model, step, batches = step_of(config, "cuda", capture)
        results.append([step(batches(n), n, 1e-3).tolist() for n in range(WARM_UP + 4)])
        weights.append(model.state_dict())
    for eager, replayed in zip(*results, strict=True):
        assert replayed == pytest.approx(eager, rel=1e-5)
    assert_same_training(weights[1], weights[0])


def in_the_crops(monkeypatch, bad: int) -> None:
    """A pixel of one crop of the step `bad` (from 1) is not a number: neither is the teacher's mean, nor the loss."""
    cut, count = module.cut_crops, iter(range(1, 100))

    def poisoned(*arguments, **options):
        crops = cut(*arguments, **options)
        if next(count) == bad:
            crops[0][1, 0, 3, 3] = math.nan
        return crops

    monkeypatch.setattr(module, "cut_crops", poisoned)


def in_a_gradient(monkeypatch, bad: int) -> None:
    """The gradients of the step `bad` (from 1) overflow; loss and teacher are sound."""
    forward, count = DINO.forward, iter(range(1, 100))

    def poisoned(self, *arguments, **options):
        out = forward(self, *arguments, **options)
        if next(count) == bad:
            out.loss.register_hook(lambda gradient: gradient * math.inf)
        return out

    monkeypatch.setattr(DINO, "forward", poisoned)


@pytest.mark.parametrize(("poison", "what"), [(in_the_crops, "loss nan"), (in_a_gradient, "gradient norm nan")])
def test_a_skipped_update_changes_nothing(tiny_store, tmp_path, monkeypatch, no_report, poison, what):
    poison(monkeypatch, 4)
    config = config_of(tiny_store, tmp_path / "run", checkpoint_every=1, keep_checkpoints=9, log_every=1)
    pretrain(config)
    before, after, later = (last_weights(tmp_path / "run", step) for step in (3, 4, 5))
    assert {"centre", "student.backbone.cls_token", "teacher.backbone.cls_token"} <= before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    still = {name for name in before if torch.equal(after[name], later[name])}
    assert still == {name for name in before if "weight_g" in name}
    assert all(tensor.isfinite().all() for tensor in later.values())
    of_optimizer = [kept(tmp_path / "run", step)["optimizer"]["state"] for step in (3, 4)]
    torch.testing.assert_close(*of_optimizer, rtol=0, atol=0)
    lines = metrics(tmp_path / "run")
    assert [line["skipped"] for line in lines] == [0] * 3 + [1] * 5
    for name in ("loss", "teacher_entropy", "kl_to_mean"):
        assert [line[name] is None for line in lines] == [line["step"] == 4 for line in lines]
    assert f"step 4: {what} is not finite, update skipped" in (tmp_path / "run" / "run.log").read_text()


def test_the_means_of_a_line_leave_skipped_updates_out(tiny_store, tmp_path, monkeypatch, no_report):
    with monkeypatch.context() as poisoned:
        in_the_crops(poisoned, 4)
        pretrain(config_of(tiny_store, tmp_path / "each", log_every=1))
    with monkeypatch.context() as poisoned:
        in_the_crops(poisoned, 4)
        pretrain(config_of(tiny_store, tmp_path / "together", log_every=8))
    each, (together,) = metrics(tmp_path / "each"), metrics(tmp_path / "together")
    for name in ("loss", "teacher_entropy", "kl_to_mean"):
        known = [line[name] for line in each if line["step"] != 4]
        assert together[name] == pytest.approx(sum(known) / 7, rel=1e-5)


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_recomputed_it_is_the_same(tiny_store, tmp_path, no_report, recompute):
    config = config_of(tiny_store, tmp_path / "none", preset="cmrfm-dropping", steps=3)
    pretrain(config)
    pretrain(replace(config, out=tmp_path / "again", recompute=recompute))
    assert metrics(tmp_path / "again") == metrics(tmp_path / "none")


@pytest.mark.slow  # minutes of C++
def test_compiled_it_is_the_same_to_rounding(tiny_store, tmp_path, no_report):
    config = config_of(tiny_store, tmp_path / "eager", steps=4)
    pretrain(config)
    pretrain(replace(config, out=tmp_path / "compiled", mode="compile"))
    assert_same_lines(tmp_path / "compiled", tmp_path / "eager", rel=1e-4)
    assert_same_training(last_weights(tmp_path / "compiled", 4), last_weights(tmp_path / "eager", 4))


def test_what_would_need_less_memory(tiny_store, tmp_path):
    config = config_of(tiny_store, tmp_path / "run", batch_size=1, recompute="full", precision="bf16")
    method, *_ = step_of(config, "cpu")
    for changes, said in (
        ({}, r"needs less: with fewer --dino\.images \(now 2\), or a smaller --preset$"),
        ({"batch_size": 4, "recompute": "none"}, "--batch-size 2 --accumulate 2, or --recompute full$"),
    ):
        with pytest.raises(OutOfMemory, match=said), memory_advice(replace(config, **changes), **method.memory):
            raise MemoryError


DINO_OPTIONS = {
    "images": 0, "teacher_temp": (0.0, 0.07), "teacher_temp_warmup": 1.5, "momentum": 1.1, "weight_decay_end": -1.0,
    "freeze_last_layer": -0.1, "knn_every": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        *(({"dino": DistillConfig(**{name: value})}, rf"^--dino\.{name.replace('_', '-')} ")
          for name, value in DINO_OPTIONS.items()),
        ({"dino": DistillConfig(teacher_temp=(0.04, 0.04), teacher_temp_warmup=0.5)},
         r"^--dino\.teacher-temp-warmup has no effect where --dino\.teacher-temp stays the same"),
        ({"dino": DistillConfig(knn_every=5)}, r"^--dino\.knn-every has no effect without --holdout or --split"),
        ({"preset": "cinema-tiny", "dino": DistillConfig(images=2)}, r"^--dino\.images has no effect on --preset cin"),
        ({"preset": "cinema-tiny", "crop": CropOptions(flip=0.0), "dino": DistillConfig()},
         r"^--crop\.flip has no effect on --preset cinema-tiny"),
        ({"mask_ratio": 0.5}, "^--mask-ratio has no effect on --preset cmrfm-tiny"),
        ({"decode_ratio": 0.5}, "^--decode-ratio has no effect"),
        ({"mask": MaskConfig("motion")}, r"^--mask\.guidance has no effect on --preset cmrfm-tiny"),
        ({"mask": MaskConfig("motion"), "motion": "online"}, r"^--mask\.guidance has no effect"),
        ({"augment": replace(PretrainConfig(data=None, out=None, steps=1).augment, flip=0.5)},
         r"^--augment\.flip has no effect"),
        ({"parallel": "fsdp"}, "^--parallel fsdp: cmrfm-tiny is small"),
        ({"views": ("sax", "lax_2d")}, "no view 'lax_2d'; did you mean 'lax_2c'"),
        ({"mode": "graph"}, "--mode graph replays CUDA graphs"),
        ({"holdout": 0.99}, "leaves none to train on"),
    ],
)  # fmt: skip
def test_options_that_are_wrong_or_without_effect(tiny_store, tmp_path, changes, said):
    with pytest.raises(ValueError, match=said):
        pretrain(config_of(tiny_store, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_the_recipe_is_that_of_the_preset(tiny_store, tmp_path, no_report):
    bare = {"data": tiny_store, "out": tmp_path / "run", "steps": 1, "batch_size": 2, "device": "cpu"}
    of = {name: PretrainConfig(preset=name, **bare) for name in ("cmrfm-tiny", "cinema-tiny")}
    recipe = {name: (c.lr, c.warmup, c.weight_decay, c.clip_grad) for name, c in of.items()}
    assert recipe == {"cmrfm-tiny": (5e-4, 0.1, 0.04, 3.0), "cinema-tiny": (1e-3, 10 / 800, 0.05, 5.0)}
    pretrain(of["cmrfm-tiny"])
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["run"]
    assert (written["lr"], written["clip_grad"], written["dino"]["teacher_temp"]) == (5e-4, 3.0, [0.04, 0.07])
    assert pretrain(replace(of["cmrfm-tiny"], resume=True)).exit_code == 0
    changed = replace(of["cmrfm-tiny"], resume=True, dino=DistillConfig(momentum=0.9))
    with pytest.raises(ValueError, match=r"was started with other options:\n  dino\.momentum: was 0\.996, now 0\.9\n"):
        pretrain(changed)


def test_runs_from_before_it_go_on(tiny_store, tmp_path, no_report):
    """Those of masked autoencoders, whose config.yaml has no option of it."""
    options = {"data": tiny_store, "out": tmp_path / "run", "steps": 1, "preset": "cinema-tiny", "device": "cpu"}
    pretrain(PretrainConfig(**options, batch_size=2))
    path = tmp_path / "run" / "config.yaml"
    values = yaml.safe_load(path.read_text())
    del values["run"]["dino"], values["run"]["crop"]
    path.write_text(yaml.safe_dump(values))
    assert pretrain(PretrainConfig(**options, batch_size=2, resume=True)).exit_code == 0
    assert "dino" in read_run_info(tmp_path / "run").options


def test_a_run_is_evaluated_and_drawn(tiny_store, tmp_path):
    out = tmp_path / "run"
    config = config_of(tiny_store, out, holdout=0.25, log_every=2, dino=DistillConfig(images=2, knn_every=3))
    outcome = pretrain(config)
    lines, names = metrics(out), ("knn_view", "knn_plane", "knn_sequence", "feature_rank")
    evaluated = [line["step"] for line in lines if set(names) <= line.keys()]
    assert evaluated == [4, 6, 8]  # the first line after each third step, and the last
    found = json.loads((out / "report" / "evaluation.json").read_text())
    assert found == {"studies": 3} | {name: lines[-1][name] for name in names}
    assert found["knn_sequence"] == 1 and 0 < found["knn_view"] <= 1  # all are cines
    assert outcome.exit_code == 0 and outcome.evaluation.feature_rank == found["feature_rank"]
    log = (out / "run.log").read_text()
    assert f"3 held-out studies: k-NN accuracy of the view {found['knn_view']:.3f}, plane" in log
    from matplotlib.image import imread

    # 1.6 inches a column and 1.8 a row, and 0.4: four views of an image and four crops, or two heads
    assert imread(out / "report" / "crops.png").shape[:2] == (836, 880)
    assert imread(out / "report" / "attention.png").shape[:2] == (836, 528)
    again = pretrain(replace(config, resume=True))  # nothing is left to do but this
    assert again.evaluation == outcome.evaluation
    other = shutil.copytree(out, tmp_path / "other")
    compared = re.search(r"\| k-NN accuracy of the view, held out\s*\|\s*(\S+)\s*\|", compare_runs([out, other]))
    assert compared[1] == f"{found['knn_view']:.3f}"
    compare_runs([out, other], tmp_path / "pictures")
    assert any((tmp_path / "pictures").iterdir())


def test_an_evaluation_that_fails_does_not_end_the_run(tiny_store, tmp_path, no_report, monkeypatch):
    def broken(*_):
        raise torch.linalg.LinAlgError("no singular values")

    monkeypatch.setattr("cinema_fast.methods.dino_evaluation.feature_rank", broken)
    outcome = pretrain(config_of(tiny_store, tmp_path / "run", steps=2, holdout=0.25))
    log = (tmp_path / "run" / "run.log").read_text()
    assert "step 2: the evaluation of the held-out studies failed: _LinAlgError: no singular values" in log
    assert outcome.exit_code == 0 and len(last_weights(tmp_path / "run", 2))


def test_without_held_out_studies_nothing_is_evaluated(tiny_store, tmp_path):
    outcome = pretrain(config_of(tiny_store, tmp_path / "run", steps=1))
    assert outcome.evaluation is None and "knn_view" not in metrics(tmp_path / "run")[0]
    report = tmp_path / "run" / "report"
    assert {path.name for path in report.iterdir()} == {"loss.png", "crops.png", "attention.png"}


def test_studies_that_cannot_be_read_are_left_out_and_named(tmp_path, monkeypatch):
    store = write_store(tmp_path / "store", {f"s{i}": FOUR for i in range(9)})
    lost: set[str] = set()

    class Losing(CineStore):
        def read_frame(self, study, view, t):
            if study in lost and view == "lax_2c":
                raise StoreError(f"{study}/{view}.npy: Input/output error")
            return super().read_frame(study, view, t)

    monkeypatch.setattr(module, "CineStore", Losing)
    options = {"holdout": 0.34, "steps": 4, "dino": DistillConfig(images=2, knn_every=2)}
    whole = pretrain(config_of(store, tmp_path / "whole", **options))
    held_out = SelfDistillation(
        config_of(store, tmp_path / "x", **options), TINY, Place(torch.device("cpu"))
    ).held_out
    assert whole.evaluation.studies == len(held_out) == 3
    lost.add(held_out[0])
    assert pretrain(config_of(store, tmp_path / "less", **options)).evaluation.studies == 2
    log = (tmp_path / "less" / "run.log").read_text()
    named = rf"cannot be read, so neither evaluated nor drawn \(1\):\n  {held_out[0]}: .*lax_2c\.npy: Input"
    assert len(re.findall(named, log)) == 1  # by three evaluations and the report
    with pytest.raises(LoaderError, match=rf"study {held_out[0]}: .*lax_2c\.npy"):
        pretrain(config_of(store, tmp_path / "strict", strict=True, **options))
    lost.update(held_out)
    outcome = pretrain(config_of(store, tmp_path / "none", **options))
    assert outcome.exit_code == 0 and outcome.evaluation is None
    assert re.search(r"pictures: \S+none/report/loss\.png\n", (tmp_path / "none" / "run.log").read_text())


def test_it_starts_from_another_run(tiny_store, tmp_path, no_report):
    still = {"steps": 1, "lr": 1e-12, "min_lr": 0.0, "dino": DistillConfig(momentum=1.0)}
    pretrain(config_of(tiny_store, tmp_path / "first", seed=1))
    first = last_weights(tmp_path / "first")
    for start in (tmp_path / "first", tmp_path / "first" / "checkpoints" / "step-00000008.safetensors"):
        out = tmp_path / start.name.removesuffix(".safetensors") / "second"
        pretrain(config_of(tiny_store, out, init_from=start, **still))
        found = last_weights(out, 1)
        assert all(torch.allclose(found[name], t, atol=1e-8) for name, t in first.items() if name != "centre")
        said = r"weights of .*: student and teacher with their heads, and the centre"
        assert re.search(said, (out / "run.log").read_text())
    pretrain(PretrainConfig(tiny_store, tmp_path / "mae", 1, preset="cinema-tiny", device="cpu", batch_size=2))
    weights = tmp_path / "mae" / "checkpoints" / "step-00000001.safetensors"
    for start, said in ((tmp_path / "mae", "a run of --preset cinema-tiny, but this run is of cmrfm-tiny"),
                        (weights, r"are of CineMA or HeartMAE .*; expected those of a ViT by DINO")):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            pretrain(config_of(tiny_store, tmp_path / "third", init_from=start))
    assert not (tmp_path / "third").exists()


def test_an_evaluation_is_without_drop_path(tiny_store):
    store = CineStore(tiny_store)
    torch.manual_seed(0)
    vit = ViT(ViTConfig(embed_dim=16, depth=2, n_heads=2, image_size=16), drop_path=0.9)
    where = {"device": torch.device("cpu"), "precision": torch.float32}
    found = [evaluate(vit.train(mode), store, FOUR, store.ids[:8], store.ids[8:], **where) for mode in (True, False)]
    assert found[0] == found[1] and found[0].studies == 4 and not vit.training
    evaluate(vit.train(), store, FOUR, store.ids[:8], store.ids[8:], **where)
    assert vit.training and vit.blocks[0].training


def test_neighbours_vote():
    """By exp(similarity / 0.07): one near neighbour outvotes two that are farther."""
    angle = torch.tensor([0.0, 0.5, 0.55, 3.0])
    features = torch.stack([angle.cos(), angle.sin()], 1)
    labels = ["sax", "lax", "lax", "t1"]
    near = torch.tensor([[5.0, 0.1], [math.cos(0.4), math.sin(0.4)]])  # lengths do not matter
    assert knn_accuracy(features, labels, near, ["sax", "lax"]) == 1
    assert knn_accuracy(features, labels, near, ["lax", "unseen"]) == 0


def test_rank_of_features():
    rows = torch.eye(5)
    assert feature_rank(rows) == pytest.approx(5)
    assert feature_rank(rows[:1].expand(7, 5)) == pytest.approx(1)
    assert feature_rank(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(4 / 3**0.75)
    assert feature_rank(torch.zeros(3, 4)) == pytest.approx(1)
