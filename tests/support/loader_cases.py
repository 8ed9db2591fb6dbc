"""Loaders of each kind over one small store, and whether two batches hold the same."""

import multiprocessing

import numpy as np
import pytest
import torch

from cinema_fast.data.loading.augmentation import AugmentConfig
from cinema_fast.data.loading.dali import make_loader, why_not_dali
from cinema_fast.data.loading.loader import Loader
from cinema_fast.data.loading.sampler import Sampler
from cinema_fast.data.store.clips import ClipStore
from cinema_fast.data.store.store import CineStore

needs_dali = pytest.mark.skipif(bool(why_not_dali()), reason=f"the extra dali is not installed: {why_not_dali()}")
CPU, GPU = torch.device("cpu"), torch.device("cuda")
ROOM = {"sax": (32, 32, 4), "lax_2c": (40, 32), "lax_3c": (32, 32), "lax_4c": (32, 32)}
CLIP = {"clip": (6, 24, 40)}
EVERYTHING = AugmentConfig(rotation=20, translation=3, flip=0.5, gamma=(0.7, 1.4), noise=0.05)


def loader_of(kind, path, *, clips=False, start=0, stop=8, batch_size=3, **options) -> Loader:
    """The loader "dali" or "torch" of frames or clips, everything that can be drawn being drawn."""
    store = CineStore(path)
    store = ClipStore(store) if clips else store
    planes = {study: len(store.planes(study)) for study in store.ids} if clips else None
    shape = {name: options.pop(name) for name in ("world", "accumulate") if name in options}
    views = {study: store.views(study) for study in store.ids}
    sampler = Sampler(views, seed=3, batch_size=batch_size, planes=planes, augment=EVERYTHING, **shape)
    return make_loader(kind, store, sampler, CLIP if clips else ROOM, device=CPU, start=start, stop=stop, **options)


def equal(one: object, other: object) -> bool:
    """Whether two values hold the same: dataclasses, tuples, dictionaries, arrays and tensors of the same dtype."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        bits = [tensor.cpu().numpy().tobytes() for tensor in (one, other)]  # a NaN is no other's equal
        return one.dtype == other.dtype and one.shape == other.shape and bits[0] == bits[1]
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(value, other[key]) for key, value in one.items())
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(equal, one, other))
    return equal(vars(one), vars(other)) if hasattr(one, "__dataclass_fields__") else one == other


def readers() -> list[int]:
    """The processes that DALI has started for this one."""
    return [process.pid for process in multiprocessing.active_children()]
