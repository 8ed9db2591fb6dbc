"""Operations on the visible tokens of an image: one file an operation, its oracle and its kernels in it."""

from .backend import BackendError, launches, use
from .sample_mask import sample_mask
from .table import table
from .token_plan import TokenPlan

__all__ = ["BackendError", "TokenPlan", "launches", "sample_mask", "table", "use"]
