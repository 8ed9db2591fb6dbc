"""Sliding windows against closed forms: models that return what they see, a constant, or where they are."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from downstream_models import frames, small_unetr
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import cinema_fast as cf
from cinema_fast.models.sliding_window import window_starts

WINDOWS = {"sax": (8, 6, 3), "lax_2c": (8, 8)}


class Model(nn.Module):
    """What `forward` makes of the images, which must have the windows' size; counts its runs."""

    def __init__(self, forward):
        super().__init__()
        self.config, self.make, self.runs = SimpleNamespace(image_size=WINDOWS), forward, 0

    def forward(self, images, intensity=None):
        assert all(tuple(x.shape[2:]) == WINDOWS[v] for v, x in images.items())
        self.runs += 1
        return self.make(images)


def identity():
    return Model(lambda images: images)


def counted():
    """Each run answers with its own number."""
    model = Model(None)
    model.make = lambda images: {v: torch.full_like(x, float(model.runs)) for v, x in images.items()}
    return model


@given(size=st.integers(1, 60), window=st.integers(1, 20))
@settings(deadline=None)
def test_windows_half_overlap_and_cover(size, window):
    size = max(size, window)
    starts = [start for (start,) in window_starts((size,), (window,))]
    assert starts[0] == 0 and starts[-1] == size - window
    steps = [b - a for a, b in itertools.pairwise(starts)]
    half = window - window // 2
    assert all(step == half for step in steps[:-1]) and all(0 < step <= half for step in steps[-1:])


def test_the_published_grid_by_hand():
    assert window_starts((10,), (5,)) == [(0,), (3,), (5,)]
    assert window_starts((8, 6), (4, 6)) == [(0, 0), (2, 0), (4, 0)]
    assert window_starts((9, 3), (4, 1)) == [(x, y) for x in (0, 2, 4, 5) for y in (0, 1, 2)]


@pytest.mark.parametrize("size", [(8, 6, 3), (16, 12, 3), (13, 7, 5), (9, 6, 8), (5, 6, 3), (3, 17, 2), (1, 1, 1)])
def test_what_a_model_sees_comes_back_whatever_the_size(size):
    image = torch.randn(2, 3, *size)
    (found,) = cf.sliding_window(identity(), {"sax": image}, average="value").values()
    torch.testing.assert_close(found, image)
    (found,) = cf.sliding_window(identity(), {"sax": image}).values()
    torch.testing.assert_close(found, image.softmax(1))
    (found,) = cf.sliding_window(identity(), {"sax": image}, average="sigmoid").values()
    torch.testing.assert_close(found, image.sigmoid())


def test_values_are_averaged_over_the_windows_that_see_a_pixel():
    model = counted()
    found = cf.sliding_window(model, {"lax_2c": torch.zeros(1, 1, 14, 8)}, average="value")["lax_2c"]
    assert model.runs == 3  # from 0, 4 and 6: runs 1, 2 and 3
    expected = torch.tensor([1.0] * 4 + [1.5] * 2 + [2.0] * 2 + [2.5] * 4 + [3.0] * 2)
    torch.testing.assert_close(found[0, 0], expected.unsqueeze(1).expand(14, 8))
    # softmax before the average: of two channels, one window says (1, 0), the other (0, 1)
    model = Model(lambda images: {"lax_2c": torch.tensor([[[[40.0]], [[0.0]]]]).roll(model.runs, 1).expand(1, 2, 8, 8)})
    found = cf.sliding_window(model, {"lax_2c": torch.zeros(1, 1, 12, 8)})["lax_2c"]
    torch.testing.assert_close(found[0, 0, :, 0], torch.tensor([0.0] * 4 + [0.5] * 4 + [1.0] * 4))


def test_a_view_of_one_window_is_averaged_over_the_runs_of_the_other():
    images = {"sax": torch.zeros(1, 1, 12, 6, 3), "lax_2c": torch.zeros(1, 1, 8, 8)}
    found = cf.sliding_window(counted(), images, average="value")
    torch.testing.assert_close(found["lax_2c"], torch.full((1, 1, 8, 8), 1.5))
    assert float(found["sax"][0, 0, 0, 0, 0]) == 1 and float(found["sax"][0, 0, -1, 0, 0]) == 2


def test_every_window_of_a_view_weighs_the_same_however_many_runs_take_it():
    images = {"sax": torch.zeros(1, 1, 16, 6, 3), "lax_2c": torch.zeros(1, 1, 20, 8)}
    model = counted()
    found = cf.sliding_window(model, images, average="value")
    assert model.runs == 4  # windows of lax_2c from 0, 4, 8, 12; of sax from 0 (runs 1 and 4), 4 and 8
    lax, sax = found["lax_2c"][0, 0, :, 0], found["sax"][0, 0, :, 0, 0]
    torch.testing.assert_close(lax, torch.tensor([1, 1.5, 2.5, 3.5, 4]).repeat_interleave(4))
    torch.testing.assert_close(sax, torch.tensor([2.5, (2.5 + 2) / 2, (2 + 3) / 2, 3]).repeat_interleave(4))


def test_padding_reads_as_zero():
    seen = {}

    def look(images):
        seen.update(images)
        return images

    window = torch.tensor([[7.5, 0.5], [3.0, 0.25]])
    image = torch.randint(0, 255, (2, 1, 5, 8), dtype=torch.uint8)
    found = cf.sliding_window(Model(look), {"lax_2c": image}, {"lax_2c": window}, average="value")["lax_2c"]
    assert found.shape == image.shape and torch.equal(found, image.float())
    assert torch.equal(seen["lax_2c"][:, 0, 5:], window[:, :1, None].expand(2, 3, 8))
    cf.sliding_window(Model(look), {"lax_2c": image}, average="value")
    assert not seen["lax_2c"][:, :, 5:].any()


def test_a_whole_image_is_one_run_of_the_model():
    model = small_unetr().eval()
    images = frames(model.config)
    found, expected = cf.sliding_window(model, images), model(images)
    for view, logits in expected.items():
        torch.testing.assert_close(found[view], logits.softmax(1))
        assert not found[view].requires_grad


def test_larger_images_are_the_mean_of_crops():
    model = small_unetr(views=("lax_2c",)).eval()
    image = torch.rand(1, 1, 20, 32)
    found = cf.sliding_window(model, {"lax_2c": image})["lax_2c"]
    first, last = (model({"lax_2c": image[:, :, i : i + 16]})["lax_2c"].softmax(1) for i in (0, 4))
    torch.testing.assert_close(found[:, :, :4], first[:, :, :4])
    torch.testing.assert_close(found[:, :, 4:16], (first[:, :, 4:] + last[:, :, :12]) / 2)
    torch.testing.assert_close(found[:, :, 16:], last[:, :, 12:])


def test_bad_input_is_named():
    model = small_unetr()
    images = frames(model.config)
    with pytest.raises(ValueError, match="sliding_window: average must be one of softmax, sigmoid, value, got 'max'"):
        cf.sliding_window(model, images, average="max")
    with pytest.raises(ValueError, match=r"sliding_window: 'sax' needs \(B, C, 3 axes\), got \(2, 1, 16, 32\)"):
        cf.sliding_window(model, images | {"sax": images["lax_2c"]})
    with pytest.raises(ValueError, match="ConvUNetR: no view 'lax_3c' in this model; did you mean"):
        cf.sliding_window(model, {"lax_3c": images["lax_2c"]})
    with pytest.raises(ValueError, match="ConvUNetR: no images given"):
        cf.sliding_window(model, {})
