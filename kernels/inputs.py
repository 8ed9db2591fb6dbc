"""Inputs of operations at a given shape: memory that nobody touches, to look at launches, or values to compute with."""

import torch
from torch import Tensor

from .shapes import ViewShape
from .token_plan import TokenPlan


class Inputs:
    """Tensors of real sizes on torch's default device. Images and activations are never touched; ids are zero."""

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return torch.empty(0).device

    def floats(self, *shape: int, dtype: torch.dtype = torch.float32, grad: bool = False) -> Tensor:
        """Floating, to be differentiated with `grad`."""
        return torch.empty(shape, dtype=dtype).requires_grad_(grad)

    def integers(self, high: int, *shape: int, dtype: torch.dtype) -> Tensor:
        """In 0..high - 1."""
        return torch.empty(shape, dtype=dtype)

    def plan(self, batch: int, n: int, keep: int) -> TokenPlan:
        """A plan that decodes every masked token."""
        return TokenPlan(*(torch.zeros(batch, size, dtype=torch.int32) for size in (keep, n - keep, n)))

    def offsets(self, batch: int, length: int) -> Tensor:
        """(batch + 1,) int32 of sequences of one length."""
        return torch.arange(batch + 1, dtype=torch.int32) * length

    def extents(self, batch: int, size: tuple[int, ...]) -> Tensor:
        """(batch, axes) int64: the true size of each padded image."""
        return torch.tensor([size] * batch)

    def image(self, view: ViewShape, stored: bool) -> tuple[Tensor, Tensor | None]:
        """Image (B, C, *size) in 8 bits and its intensity (B, 2), as stored; or in float32 and without."""
        size = (view.batch, view.channels, *view.size)
        if stored:
            return self.integers(256, *size, dtype=torch.uint8), self.floats(view.batch, 2)
        return self.floats(*size), None

    def autocast(self, dtype: torch.dtype) -> torch.autocast:
        """Mixed precision for 16 bits, nothing for float32."""
        low = dtype != torch.float32
        return torch.autocast(self.device.type, dtype=dtype if low else None, enabled=low)

    def with_gradients(self, out: Tensor, *leaves: Tensor) -> list[Tensor]:
        """`out` and its gradients by `leaves`."""
        return [out.detach(), *torch.autograd.grad(out, leaves, self.floats(*out.shape, dtype=out.dtype))]


class RandomInputs(Inputs):
    """Values to compute with, the same every time."""

    device = None  # an attribute, in place of the property

    def __init__(self, device: torch.device | str):
        self.device, self._generator = torch.device(device), torch.Generator().manual_seed(0)

    def floats(self, *shape: int, dtype: torch.dtype = torch.float32, grad: bool = False) -> Tensor:
        """Normal."""
        return torch.randn(shape, generator=self._generator).to(self.device, dtype).requires_grad_(grad)

    def integers(self, high: int, *shape: int, dtype: torch.dtype) -> Tensor:
        """Uniform."""
        return torch.randint(0, high, shape, generator=self._generator).to(self.device, dtype)

    def plan(self, batch: int, n: int, keep: int) -> TokenPlan:
        """Uniform draws."""
        order = torch.stack([torch.randperm(n, generator=self._generator) for _ in range(batch)]).to(torch.int32)
        keep_ids, masked = (ids.sort(1).values.to(self.device) for ids in order.split([keep, n - keep], 1))
        return TokenPlan.from_ids(keep_ids, masked, n)

    def offsets(self, batch: int, length: int) -> Tensor:
        """As they are."""
        return super().offsets(batch, length).to(self.device)

    def extents(self, batch: int, size: tuple[int, ...]) -> Tensor:
        """The last image is smaller than its room by a pixel along each axis."""
        sizes = [size] * (batch - 1) + [tuple(n - 1 for n in size)]
        return torch.tensor(sizes, device=self.device)
