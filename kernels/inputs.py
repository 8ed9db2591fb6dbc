"""Inputs of operations at a given shape: uninitialised memory to examine launches, or random values to compute with."""

import torch
from torch import Tensor

from .shapes import ViewShape
from .token_plan import TokenPlan


class Inputs:
    """Tensors of the models' sizes on torch's default device. Images and activations are uninitialised; ids are 0."""

    @property
    def device(self) -> torch.device:
        """The device of the tensors."""
        return torch.empty(0).device

    def floats(self, *shape: int, dtype: torch.dtype = torch.float32, grad: bool = False) -> Tensor:
        """Floating values; grad: the tensor requires a gradient."""
        return torch.empty(shape, dtype=dtype).requires_grad_(grad)

    def integers(self, high: int, *shape: int, dtype: torch.dtype) -> Tensor:
        """Integers in 0..high - 1."""
        return torch.empty(shape, dtype=dtype)

    def plan(self, batch: int, n: int, keep: int) -> TokenPlan:
        """A plan that decodes every masked token."""
        return TokenPlan(*(torch.zeros(batch, size, dtype=torch.int32) for size in (keep, n - keep, n)))

    def offsets(self, batch: int, length: int) -> Tensor:
        """Offsets (batch + 1,) int32 of sequences of one length."""
        return torch.arange(batch + 1, dtype=torch.int32) * length

    def extents(self, batch: int, size: tuple[int, ...]) -> Tensor:
        """(batch, axes) int64: the true size of each padded image."""
        return torch.tensor([size] * batch)

    def image(self, view: ViewShape, stored: bool) -> tuple[Tensor, Tensor | None]:
        """stored: an image (B, C, *size) in 8 bits and its intensity (B, 2); else one in float32, and None."""
        size = (view.batch, view.channels, *view.size)
        if stored:
            return self.integers(256, *size, dtype=torch.uint8), self.floats(view.batch, 2)
        return self.floats(*size), None

    def autocast(self, dtype: torch.dtype) -> torch.autocast:
        """Autocast to `dtype` where it has 16 bits; disabled for float32."""
        low = dtype != torch.float32
        return torch.autocast(self.device.type, dtype=dtype if low else None, enabled=low)

    def with_gradients(self, out: Tensor, *leaves: Tensor) -> list[Tensor]:
        """`out`, and its gradients with respect to `leaves`."""
        return [out.detach(), *torch.autograd.grad(out, leaves, self.floats(*out.shape, dtype=out.dtype))]


class RandomInputs(Inputs):
    """Random values to compute with, the same every time."""

    device = None  # an attribute, in place of the property

    def __init__(self, device: torch.device | str):
        self.device, self._generator = torch.device(device), torch.Generator().manual_seed(0)

    def floats(self, *shape: int, dtype: torch.dtype = torch.float32, grad: bool = False) -> Tensor:
        """Normally distributed."""
        return torch.randn(shape, generator=self._generator).to(self.device, dtype).requires_grad_(grad)

    def integers(self, high: int, *shape: int, dtype: torch.dtype) -> Tensor:
        """Uniformly distributed in 0..high - 1."""
        return torch.randint(0, high, shape, generator=self._generator).to(self.device, dtype)

    def plan(self, batch: int, n: int, keep: int) -> TokenPlan:
        """A plan drawn uniformly at random."""
        order = torch.stack([torch.randperm(n, generator=self._generator) for _ in range(batch)]).to(torch.int32)
        keep_ids, masked = (ids.sort(1).values.to(self.device) for ids in order.split([keep, n - keep], 1))
        return TokenPlan.from_ids(keep_ids, masked, n)

    def offsets(self, batch: int, length: int) -> Tensor:
        """The same as `Inputs.offsets`, on the device."""
        return super().offsets(batch, length).to(self.device)

    def extents(self, batch: int, size: tuple[int, ...]) -> Tensor:
        """The last image is smaller than its padded size by a pixel along each axis."""
        sizes = [size] * (batch - 1) + [tuple(n - 1 for n in size)]
        return torch.tensor(sizes, device=self.device)
