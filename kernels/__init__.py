"""Operations on the visible tokens of an image: one file an operation, its oracle and its kernels in it."""

from .sample_mask import sample_mask
from .token_plan import TokenPlan

__all__ = ["TokenPlan", "sample_mask"]
