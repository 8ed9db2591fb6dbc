"""The plain DINO that ours is timed against computes what the public code does, and what ours does."""

import json

import checkout  # noqa: F401
import pytest
import torch
from plain_dino import PlainDINO, plain_update

import cinema_fast as cf
from cinema_fast.models.config import DINOConfig, ViTConfig


def part(tensors, prefix):
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def relative(actual, expected):
    return float((actual.detach() - expected).norm() / expected.norm().clamp(min=1e-30))


@pytest.mark.parametrize("fused", [False, True])
def test_three_steps_are_those_of_the_public_code(shared, fused):
    from safetensors.torch import load_file

    fields = json.loads((shared / "golden" / "dino_tiny.json").read_text())
    tensors = load_file(shared / "golden" / "dino_tiny.safetensors")
    vit = ViTConfig(**{name: fields[name] for name in ViTConfig.__dataclass_fields__ if name in fields})
    head = {name: fields[name] for name in DINOConfig.__dataclass_fields__ if name in fields}
    model = PlainDINO(DINOConfig(vit=vit, **head))
    model.load_states(part(tensors, "student."), part(tensors, "teacher."), tensors["center.0"])
    model.use_fused_attention(fused)
    optimizer = model.optimizer()
    for step in range(fields["steps"]):
        crops, epoch = list(part(tensors, f"crop.{step}.").values()), fields["epoch"][step]
        assert relative(model.centre, tensors[f"center.{step}"]) < 1e-5 or step == 0
        loss = model(crops, fields["teacher_temp_by_epoch"][epoch])
        loss.backward()
        assert abs(loss.item() / tensors[f"loss.{step}"].item() - 1) < 1e-5
        expected = part(tensors, f"grad.{step}.")
        found = {name: p.grad for name, p in model.student.named_parameters() if p.grad is not None}
        assert found.keys() == expected.keys()
        assert max(relative(found[name], g) for name, g in expected.items()) < 1e-4
        plain_update(
            model, optimizer, lr=fields["lr"][step], weight_decay=fields["weight_decay"][step],
            clip=fields["clip_per_parameter"], momentum=fields["teacher_momentum"][step],
            freeze_last_layer=epoch < fields["freeze_last_layer_epochs"],
        )  # fmt: skip
        optimizer.zero_grad()
    for branch in ("student", "teacher"):
        state = getattr(model, branch).state_dict()
        assert max(relative(state[name], x) for name, x in part(tensors, f"{branch}_after.").items()) < 1e-4


def test_it_takes_our_weights_and_gives_our_loss_and_gradients():
    torch.manual_seed(0)
    vit = ViTConfig(embed_dim=16, depth=2, n_heads=2, patch_size=4, image_size=16)
    config = DINOConfig(vit=vit, prototypes=40, head_hidden=24, bottleneck=8, n_local=3, local_size=8)
    ours, plain = cf.DINO(config), PlainDINO(config)
    ours.centre.normal_()
    with torch.no_grad():
        for parameter in ours.teacher.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    plain.load(ours)
    crops = [torch.rand(3, 1, size, size) for size in (16, 16, 8, 8, 8)]
    loss, expected = ours(crops, 0.05).loss, plain(crops, 0.05)
    loss.backward()
    expected.backward()
    assert abs(loss.item() / expected.item() - 1) < 1e-5
    assert relative(ours.centre, plain.centre) < 1e-5
    gradients = ours.public_state("student", grad=True)
    for name, parameter in plain.student.named_parameters():
        if parameter.grad is not None:
            assert relative(gradients[name], parameter.grad) < 1e-4, name
