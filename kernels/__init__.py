"""Operations on the visible tokens of an image: one file an operation, its oracle and its kernels in it."""

from .assemble_queries import assemble_queries
from .backend import BackendError, launches, use
from .masked_mse import masked_mse
from .patch_embed import patch_embed
from .sample_mask import sample_mask
from .sparse_attention import sparse_attention
from .sparse_depthwise_conv import sparse_depthwise_conv
from .table import table
from .token_plan import TokenPlan

__all__ = [
    "BackendError",
    "TokenPlan",
    "assemble_queries",
    "launches",
    "masked_mse",
    "patch_embed",
    "sample_mask",
    "sparse_attention",
    "sparse_depthwise_conv",
    "table",
    "use",
]
