"""Operations on images and their visible tokens: an operation is one file, or a folder, with its oracle and kernels.

An operation registers itself when its file is imported (`registry.py`). The imports below are in the order in which a
GPU report measures the operations: those that take most of a training step come first.
"""

from .backend import BackendError, launches, use
from .registry import OPERATIONS, Operation
from .table import table
from .token_plan import TokenPlan

# `x as x` marks a public name for tools that read the file without running it
# isort: off
from .patch_embed import patch_embed as patch_embed
from .sparse_depthwise_conv import sparse_depthwise_conv as sparse_depthwise_conv
from .sparse_attention import sparse_attention as sparse_attention
from .prototype_loss import prototype_loss as prototype_loss
from .masked_mse import masked_mse as masked_mse
from .assemble_queries import assemble_queries as assemble_queries
from .sample_mask import sample_mask as sample_mask
from .augment_images import augment_images as augment_images, move_maps as move_maps
from .optical_flow import FlowParams as FlowParams, optical_flow as optical_flow
from .motion_score import mask_weights as mask_weights, motion_map as motion_map, motion_score as motion_score
# isort: on

__all__ = [
    "OPERATIONS", "BackendError", "FlowParams", "Operation", "TokenPlan", "launches", "mask_weights", "motion_map",
    "move_maps", "table", "use", *OPERATIONS,
]  # fmt: skip
