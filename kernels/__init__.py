"""Operations on images and their visible tokens: one file an operation, its oracle and its kernels in it."""

from .assemble_queries import assemble_queries
from .augment_images import augment_images, move_maps
from .backend import BackendError, launches, use
from .masked_mse import masked_mse
from .motion_score import mask_weights, motion_map, motion_score
from .optical_flow import optical_flow
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
    "augment_images",
    "launches",
    "mask_weights",
    "masked_mse",
    "motion_map",
    "motion_score",
    "move_maps",
    "optical_flow",
    "patch_embed",
    "sample_mask",
    "sparse_attention",
    "sparse_depthwise_conv",
    "table",
    "use",
]
