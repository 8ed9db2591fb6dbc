"""DINO against the public code's training steps, and its update against plain AdamW."""

import copy
import math

import pytest
import torch
from dino_cases import dino_config, golden_dino, make_crops, small_dino
from golden_files import all_launched, launches_of, part, relative, relative_rms
from machine import INTERPRET
from marks import in_full
from tolerances import assert_close

import cinema_fast as cf

IN_STEP = launches_of("patch_embed", "sparse_attention", "prototype_loss")
STEP = {"lr": 1e-2, "weight_decay": 0.1, "clip": 0.05}


def without_keys(name, bias):
    """The biases of queries and values: those of keys have no gradient but rounding, which AdamW makes as large as any
    other."""
    return torch.cat([bias.chunk(3)[0], bias.chunk(3)[2]]) if name.endswith("qkv.bias") else bias


def test_training_steps_match_the_public_code(shared, backend, device):
    """All steps, and the weights after them; the first alone in Triton's interpreter, where each takes seconds."""
    made, config, tensors = golden_dino(shared, device)
    model = cf.DINO(config).to(device)
    model.load_public(part(tensors, "student."), part(tensors, "teacher."), tensors["center.0"])
    optimizer = model.optimizer(betas=tuple(made["adamw_betas"]), eps=made["adamw_eps"])
    for i in range(1 if INTERPRET else made["steps"]):
        crops, epoch = [tensors[f"crop.{i}.{j}"] for j in range(2 + config.n_local)], made["epoch"][i]
        together = [torch.cat(crops[:2]), torch.cat(crops[2:])]
        for which, groups in (("student", together), ("teacher", together[:1])):
            branch = getattr(model, which)
            with torch.no_grad():
                logits = branch(groups) @ branch.head.last_layer().T
            assert relative(logits, tensors[f"{which}_logits.{i}"]) < 1e-5
        with all_launched(backend, IN_STEP):
            out = model(crops, teacher_temp=made["teacher_temp_by_epoch"][epoch])
            optimizer.zero_grad()
            out.loss.backward()
        assert relative(out.loss, tensors[f"loss.{i}"]) < 1e-5
        assert relative(model.centre, tensors[f"center.{i + 1}"]) < 1e-5
        found, expected = model.public_state("student", grad=True), part(tensors, f"grad.{i}.")
        assert found.keys() == expected.keys()
        worst = max((relative_rms(without_keys(k, found[k]), without_keys(k, g)), k) for k, g in expected.items())
        assert worst[0] < 1e-4, worst
        optimizer.step(
            lr=made["lr"][i], weight_decay=made["weight_decay"][i], clip=made["clip_per_parameter"],
            freeze_last_layer=epoch < made["freeze_last_layer_epochs"],
        )  # fmt: skip
        model.update_teacher(made["teacher_momentum"][i])
    for which in ("student", "teacher") if not INTERPRET else ():
        found = model.public_state(which)
        for name, weight in part(tensors, f"{which}_after.").items():
            assert relative_rms(without_keys(name, found[name]), without_keys(name, weight)) < 1e-5, (which, name)
            assert relative_rms(found[name], weight) < (0.2 if name.endswith("qkv.bias") else 1e-5), (which, name)


def loss_by_pairs(model, crops, temp):
    """Crop by crop and pair by pair, as the paper's pseudocode, in float64."""
    model, crops = copy.deepcopy(model).double(), [crop.double() for crop in crops]
    student, teacher = (
        [branch.head(branch.backbone(crop)["cls"]) @ branch.head.last_layer().T for crop in part]
        for branch, part in ((model.student, crops), (model.teacher, crops[:2]))
    )  # fmt: skip
    q = [((t - model.centre) / temp).softmax(1).detach() for t in teacher]
    terms = [-(q[i] * (student[j] / model.config.student_temp).log_softmax(1)).sum(1).mean()
             for i in range(2) for j in range(len(crops)) if i != j]  # fmt: skip
    loss = torch.stack(terms).mean()
    loss.backward()
    keep = model.config.centre_momentum
    centre = keep * model.centre + (1 - keep) * torch.cat(teacher).mean(0, keepdim=True).detach()
    return loss.detach(), centre, model.public_state("student", grad=True)


CHANGES = [{}, {"n_local": 0}, {"norm_last_layer": False, "student_temp": 0.2, "vit": {"in_chans": 2}}]


@pytest.mark.parametrize("changes", in_full(CHANGES), ids=str)
def test_a_step_is_the_papers(backend, device, changes):
    model = small_dino(**changes)
    model.centre.normal_(generator=torch.Generator().manual_seed(1)).mul_(0.1)
    crops = make_crops(model.config)
    loss, centre, gradients = loss_by_pairs(model, crops, 0.3)
    model.to(device)
    crops, before = [crop.to(device) for crop in crops], model.centre.clone()
    with torch.no_grad():
        still = model(crops, torch.tensor(0.3, device=device), update_centre=False)
    assert torch.equal(model.centre, before)
    with all_launched(backend, IN_STEP):
        out = model(crops, 0.3)  # which updates the centre before the backward
        out.loss.backward()
    assert_close(still.loss, loss)
    assert_close(out.loss, loss)
    assert_close(model.centre, centre)
    found = model.public_state("student", grad=True)
    assert found.keys() == gradients.keys()
    assert ("head.last_layer.weight_g" in found) == ("norm_last_layer" in changes)
    assert not model.public_state("teacher", grad=True)
    for name, grad in gradients.items():
        assert_close(found[name], grad, floor=1e-2, name=name)
    model.centre.copy_(before)
    model.update_centre(still.teacher_mean)
    assert_close(model.centre, centre)


@pytest.mark.parametrize("how", ["selective", "full"])
def test_recomputation_changes_no_gradient(how):
    model, results = small_dino(drop_path=0.5).train(), []
    for kind in ("none", how):
        model.recompute(kind)
        model.zero_grad()
        torch.manual_seed(0)
        model(make_crops(model.config), 0.04, update_centre=False).loss.backward()
        results.append({name: grad.clone() for name, grad in model.public_state("student", grad=True).items()})
    assert all(torch.equal(grad, results[1][name]) for name, grad in results[0].items())


def test_autocast_is_close():
    model = small_dino()
    crops = make_crops(model.config)
    loss, centre, gradients = loss_by_pairs(model, crops, 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(crops, 0.5)
    out.loss.backward()
    assert out.loss.dtype == model.centre.dtype == torch.float32
    assert_close(out.loss, loss, torch.bfloat16)
    assert_close(model.centre, centre, torch.bfloat16)
    for name, grad in model.public_state("student", grad=True).items():
        assert_close(grad, gradients[name], torch.bfloat16, floor=0.1, name=name)


@pytest.mark.slow
def test_compiled_in_one_graph():
    model = small_dino(vit={"depth": 1})
    crops, temp = make_crops(model.config), torch.tensor(0.3)
    loss, centre, gradients = loss_by_pairs(model, crops, 0.3)
    torch.compiler.reset()
    out = torch.compile(model, fullgraph=True, backend="aot_eager")(crops, temp)
    out.loss.backward()
    assert_close(out.loss, loss)
    assert_close(model.centre, centre)
    for name, grad in model.public_state("student", grad=True).items():
        assert_close(grad, gradients[name], floor=1e-2, name=name)


def test_the_teacher_starts_as_the_student_and_follows_it():
    model = cf.DINO(dino_config(drop_path=0.4))
    assert [block.drop_path for block in model.student.backbone.blocks] == pytest.approx([0, 0.4])
    assert not any(block.drop_path for block in model.teacher.backbone.blocks)
    assert not any(p.requires_grad for p in model.teacher.parameters())
    student, before = model.public_state("student"), copy.deepcopy(model.public_state("teacher"))
    assert all(torch.equal(tensor, student[name]) for name, tensor in before.items())
    with torch.no_grad():
        for p in model.student.parameters():
            p.add_(1)
    model.update_teacher(0.75)
    for name, tensor in model.public_state("teacher").items():
        assert_close(tensor, 0.75 * before[name].double() + 0.25 * student[name].double(), name=name)
    other = copy.deepcopy(model)
    model.update_teacher(0.5)
    other.update_teacher(torch.tensor(0.5))
    assert all(torch.equal(a, b) for a, b in zip(model.teacher.parameters(), other.teacher.parameters()))
    model.update_teacher(1.0)
    assert all(torch.equal(a, b) for a, b in zip(model.teacher.parameters(), other.teacher.parameters()))


def given_gradients(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for p in model.student.parameters():
        if p.requires_grad:
            p.grad = torch.randn(p.shape, generator=generator).to(p) * 10 ** float(torch.rand((), generator=generator))


def plain_step(optimizer, model, frozen):
    """The public code's update, from PyTorch's own optimiser and clipping."""
    for name, p in model.student.named_parameters():
        if p.grad is not None:
            torch.nn.utils.clip_grad_norm_(p, STEP["clip"])
            if frozen and "last_layer" in name:
                p.grad = None
    optimizer.param_groups[0]["weight_decay"] = STEP["weight_decay"]
    for group in optimizer.param_groups:
        group["lr"] = STEP["lr"]
    optimizer.step()


@pytest.mark.parametrize("tensors", [False, True], ids=["numbers", "tensors"])
@pytest.mark.parametrize("norm_last_layer", [True, False], ids=["fixed", "free"])
def test_the_update_is_adamw_with_each_gradient_clipped(norm_last_layer, tensors):
    model = small_dino(norm_last_layer=norm_last_layer).double()
    other = copy.deepcopy(model)
    trained = [p for p in other.student.parameters() if p.requires_grad]
    plain = torch.optim.AdamW(
        [{"params": [p for p in trained if p.ndim > 1]},
         {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0}], betas=(0.8, 0.95), eps=1e-6,
    )  # fmt: skip
    optimizer = model.optimizer(betas=(0.8, 0.95), eps=1e-6)
    as_given = torch.tensor if tensors else (lambda value: value)
    for step, frozen in enumerate((True, False, True, False)):
        given_gradients(model, step)
        given_gradients(other, step)
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in trained))
        plain_step(plain, other, frozen)
        found = optimizer.step(
            lr=as_given(STEP["lr"]), weight_decay=as_given(STEP["weight_decay"]), clip=STEP["clip"],
            freeze_last_layer=as_given(frozen), loss=torch.zeros(()) if tensors else None,
        )  # fmt: skip
        assert found.tolist() == pytest.approx([norm, 1])
    for (name, p), q in zip(model.student.named_parameters(), other.student.parameters()):
        assert_close(p, q, torch.float32 if tensors else None, name=name)


@pytest.mark.parametrize("spoilt", ["loss", "gradient"])
def test_what_is_not_finite_changes_nothing(spoilt):
    model = small_dino()
    optimizer = model.optimizer()
    given_gradients(model, 0)
    optimizer.step(**STEP)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    given_gradients(model, 1)
    loss = torch.tensor(1.0)
    if spoilt == "loss":
        loss = loss / 0
    else:
        model.student.backbone.norm.bias.grad[3] = torch.inf
    _, made = optimizer.step(**STEP, loss=loss)
    assert made == 0
    after = model.state_dict(), optimizer.state_dict()
    assert all(torch.equal(tensor, after[0][name]) for name, tensor in before[0].items())
    for number, state in before[1]["state"].items():
        assert all(torch.equal(value, after[1]["state"][number][key]) for key, value in state.items())


def test_public_states_go_in_and_out_whole():
    model, other = small_dino(), small_dino(1)
    before = copy.deepcopy(model.state_dict())
    student, teacher = (other.public_state(which) for which in ("student", "teacher"))
    wrapped = {f"module.{name}": tensor for name, tensor in student.items()}
    for spoilt, message in (
        ({**teacher, "head.mlp.0.bias": torch.zeros(3)}, r"teacher\.head\.mlp\.0\.bias: expected \(20,\), got \(3,\)"),
        ({**teacher, "more": torch.zeros(1)}, r"unexpected teacher\.more"),
        ({name: t for name, t in teacher.items() if "pos" not in name}, r"missing teacher\.backbone\.pos_embed"),
        ({**teacher, "backbone.norm.bias": torch.full((32,), torch.nan)}, r"not finite, teacher\.backbone\.norm\.bias"),
    ):
        with pytest.raises(ValueError, match=message):
            model.load_public(wrapped, spoilt)
    with pytest.raises(ValueError, match=r"centre: expected \(1, 24\), got \(24,\)"):
        model.load_public(wrapped, teacher, torch.zeros(24))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    model.load_public(wrapped, teacher, torch.ones(1, 24))
    for which, expected in (("student", student), ("teacher", teacher)):
        found = model.public_state(which)
        assert found.keys() == expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    assert torch.equal(model.centre, torch.ones(1, 24))
    with pytest.raises(ValueError, match="expected 'student' or 'teacher', got 'centre'"):
        model.public_state("centre")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda crops: crops[:3], "expected 4 crops, 2 global ones and 2 local ones, got 3"),
        (lambda crops: [crops[0], crops[2], *crops[2:]], r"crops\[1\], a global one: expected \(3, 1, 16, 16\), got "),
        (lambda crops: [*crops[:3], crops[0]], r"crops\[3\], a local one: expected \(3, 1, 8, 8\), got "),
        (lambda crops: [*crops[:3], crops[3][:2]], r"crops\[3\], .* \(3, 1, 8, 8\), got \(2, 1, 8, 8\)"),
        (lambda crops: [crop.expand(-1, 3, -1, -1) for crop in crops], r"crops\[0\], .* got \(3, 3, 16, 16\)"),
        (lambda crops: [crop[:0] for crop in crops], r"crops\[0\], .* got \(0, 1, 16, 16\)"),
        (lambda crops: [crop.byte() for crop in crops], r"crops\[0\], .*: expected floating-point numbers, got uint8"),
    ],
    ids=["number", "global size", "local size", "batch", "channels", "empty", "integers"],
)
def test_crops_that_do_not_fit(change, message):
    model = small_dino()
    with pytest.raises(ValueError, match=message):
        model(change(make_crops(model.config)), 0.04)


@pytest.mark.parametrize("temp", [0, -0.1, math.nan, None])
def test_temperatures_are_above_0(temp):
    model = small_dino()
    before = model.centre.clone()
    with pytest.raises(ValueError, match="teacher_temp"):
        model(make_crops(model.config), temp)
    assert torch.equal(model.centre, before)


@pytest.mark.parametrize("changes", [{"lr": -1e-3}, {"weight_decay": math.nan}, {"clip": 0.0}], ids=str)
def test_numbers_of_an_update(changes):
    model = small_dino()
    optimizer = model.optimizer()
    with pytest.raises(ValueError, match=f"DINOOptimizer.step: {next(iter(changes))} must be .* 0, got"):
        optimizer.step(**{"lr": 1e-3, "weight_decay": 0.04, "clip": 3.0} | changes)
    for momentum in (-0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match="update_teacher: momentum must be from 0 to 1"):
            model.update_teacher(momentum)
