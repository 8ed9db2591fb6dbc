"""The losses of fine-tuning against MONAI's and PyTorch's own, and closed forms."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from cinema_fast.tasks.losses import balanced, dice_loss, heatmap_loss, segmentation_loss, target_loss

NAN = float("nan")


@pytest.mark.parametrize("size", [(8, 9), (6, 7, 3)])
def test_segmentation_is_monais(size):
    losses = pytest.importorskip("monai.losses")
    torch.manual_seed(0)
    logits = torch.randn(3, 4, *size)
    labels = torch.randint(0, 4, (3, *size))
    labels[1] = 0  # a map without any structure
    monai = losses.DiceLoss(include_background=False, to_onehot_y=True, softmax=True)(logits, labels[:, None])
    torch.testing.assert_close(segmentation_loss(logits, labels), monai + F.cross_entropy(logits, labels))


def test_dice_of_known_sets():
    truth, half, none = torch.zeros(3, 1, 1, 4, 4)
    truth[..., :2, :], half[..., 1:3, :] = 1, 1
    one = torch.stack([half, truth])
    assert dice_loss(one[:1], truth[None]).item() == pytest.approx(0.5, abs=1e-5)  # 8 and 8 pixels, 4 in both
    assert dice_loss(one[1:], truth[None]).item() == pytest.approx(0.0, abs=1e-6)
    assert dice_loss(none[None], truth[None]).item() == pytest.approx(1.0, abs=1e-5)
    assert dice_loss(none[None], none[None]).item() == 0.0  # absent from both
    assert dice_loss(one, torch.stack([truth, truth])).item() == pytest.approx(0.25, abs=1e-5)  # the mean


def test_heatmaps_of_the_known_landmarks_only():
    losses = pytest.importorskip("monai.losses")
    torch.manual_seed(0)
    logits, maps = torch.randn(2, 3, 8, 8, requires_grad=True), torch.rand(2, 3, 8, 8)
    known = torch.tensor([[True, False, True], [False, False, True]])
    found = heatmap_loss(logits, maps, known)
    picked, wanted = logits[known][None], maps[known][None]
    expected = losses.DiceLoss(sigmoid=True)(picked, wanted) + F.binary_cross_entropy_with_logits(picked, wanted)
    torch.testing.assert_close(found, expected)
    found.backward()
    assert torch.equal(logits.grad.flatten(2).abs().sum(2) > 0, known)
    none = heatmap_loss(logits, maps, torch.zeros_like(known))
    none.backward()
    assert none.item() == 0.0


def test_targets_of_the_known_studies_only():
    output, values = torch.tensor([[1.0], [5.0], [-2.0]], requires_grad=True), torch.tensor([0.5, NAN, -1.0])
    loss = target_loss(output, values, classified=False)
    assert loss.item() == pytest.approx((0.5**2 + 1.0**2) / 2)
    loss.backward()
    assert output.grad[1].item() == 0.0 and output.grad.isfinite().all()
    logits = torch.randn(4, 3)
    classes = torch.tensor([2.0, NAN, 0.0, 1.0])
    here = torch.tensor([0, 2, 3])
    torch.testing.assert_close(
        target_loss(logits, classes, classified=True), F.cross_entropy(logits[here], torch.tensor([2, 0, 1]))
    )


@pytest.mark.parametrize("classified", [True, False])
def test_nothing_known_is_no_loss_and_no_gradient(classified):
    output = torch.randn(3, 2, requires_grad=True)
    loss = target_loss(output, torch.full((3,), NAN), classified=classified)
    loss.backward()
    assert loss.item() == 0.0 and not output.grad.any()


def test_balance_is_that_of_the_paper():
    """Kendall et al., equations 7 and 10: L1 / (2 sigma1^2) + L2 / sigma2^2 + log sigma1 + log sigma2."""
    sigma = [0.7, 1.9]
    log_variance = torch.tensor([2 * math.log(s) for s in sigma])
    found = balanced(torch.tensor([3.0, 0.4]), log_variance, [False, True], torch.tensor([True, True]))
    paper = 3.0 / (2 * sigma[0] ** 2) + 0.4 / sigma[1] ** 2 + math.log(sigma[0]) + math.log(sigma[1])
    assert found.item() == pytest.approx(paper, rel=1e-6)


def test_balance_settles_at_the_loss_itself():
    """d/ds of L e^-s / 2 + s / 2 is 0 at e^s = L, and of L e^-s + s / 2 at e^s = 2 L."""
    log_variance = torch.tensor([math.log(3.0), math.log(0.8)], requires_grad=True)
    everything = torch.tensor([True, True])
    balanced(torch.tensor([3.0, 0.4]), log_variance, [False, True], everything).backward()
    assert log_variance.grad.abs().max() < 1e-6


def test_of_a_target_that_a_batch_lacks_nothing_is_learnt():
    log_variance = torch.zeros(2, requires_grad=True)
    missing = target_loss(torch.randn(3, 1), torch.full((3,), NAN), classified=False)
    losses = torch.stack([torch.tensor(2.0), missing])
    balanced(losses, log_variance, [False, False], torch.tensor([True, False])).backward()
    assert log_variance.grad[0].item() == pytest.approx(-0.5) and log_variance.grad[1].item() == 0.0


def test_gradients():
    torch.manual_seed(0)
    probability = torch.rand(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    target = (torch.rand(2, 2, 3, 3) > 0.5).double()
    assert gradcheck(lambda p: dice_loss(p, target), (probability,))
    losses = torch.rand(2, dtype=torch.float64, requires_grad=True)
    log_variance = torch.randn(2, dtype=torch.float64, requires_grad=True)
    both = torch.tensor([True, True])
    assert gradcheck(lambda x, s: balanced(x, s, [True, False], both), (losses, log_variance))
