"""What is drawn and made by default is to the bit what it was before there was more to draw than a zoom.

The SHA-256 below were computed by the code of that time. Zooms of the images are powers of two and grey values small,
so that every product and sum is exact in float32 and no machine rounds them otherwise; the sampler computes in float64.
"""

from hashlib import sha256

import numpy as np
import pytest
import torch

from cinema_fast.data.loading.augment import model_input, motion_input
from cinema_fast.data.loading.augmentation import AS_STORED, Augmentation
from cinema_fast.data.loading.sampler import Sampler

SIZES = {"2-D": (20, 18), "3-D": (14, 18, 6), "clip": (4, 14, 18)}
BEFORE = {
    "2-D": "812e6c578d707243",
    "3-D": "4e963061598803ff",
    "clip": "46defd5bf103ea91",
    "sampler": "4dbf9410e94fa388",
}


def digest(*arrays) -> str:
    return sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest()[:16]


def images(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Three images of grey values up to 31, by a formula that no generator's version changes, and their extent."""
    clip, size = kind == "clip", SIZES[kind]
    extent = [n if clip and axis == 0 else n - 2 for axis, n in enumerate(size)]
    frames = torch.zeros(3, *size, dtype=torch.uint8)
    pixel = torch.arange(frames[0].numel() * 3).view_as(frames)
    inside = (slice(None), *(slice(n) for n in extent))
    frames[inside] = (pixel * pixel * 7 % 1009 % 32).to(torch.uint8)[inside]
    return frames, torch.tensor([extent] * 3)


@pytest.mark.parametrize("kind", SIZES)
def test_images_and_maps(kind):
    clip = kind == "clip"
    frames, extent = images(kind)
    drawn = Augmentation(zoom=torch.tensor([0.5, 1.0, 2.0]))
    found = [model_input(frames, extent, a, clip=clip) for a in (drawn, AS_STORED)]
    found += [motion_input(frames[:, 0] if clip else frames, extent, a, clip=clip) for a in (drawn, AS_STORED)]
    assert digest(*found) == BEFORE[kind]


def test_draws():
    sets = [("sax", "lax_2c", "lax_3c", "lax_4c"), ("sax",), ("lax_2c",), ("clip",)]
    sampler = Sampler(
        {f"s{i:03d}": sets[i % 4] for i in range(30)}, seed=2**63 + 5, batch_size=7, accumulate=2, world=2
    )
    drawn = []
    for step in range(20):
        for rank in range(2):
            draw = sampler.draw(step, rank=rank, micro=step % 2)
            drawn += [np.array(draw.ids), draw.epoch, draw.phase, draw.slot, draw.plane]
            drawn += [draw.augment[view].zoom for view in draw.views]
            assert all(part is None for view in draw.views for part in draw.augment[view][1:])
    assert digest(*drawn) == BEFORE["sampler"]
