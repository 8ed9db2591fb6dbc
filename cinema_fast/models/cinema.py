"""CineMA: the multi-view masked autoencoder with a convolutional stem (Fu et al., 2025).

Encoder and stem are computed at visible tokens only, and only the tokens that the loss needs are decoded.
`kernels/token_plan.py` defines the plan of tokens, `stem.py` explains why this is exact. Parameter names and shapes are
those of the published checkpoints.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..kernels.assemble_queries import assemble_queries
from ..kernels.masked_mse import masked_mse
from ..kernels.token_plan import TokenPlan
from .backbone import check_images, encode_views, view_fusions, view_stems, whole_images
from .config import CineMAConfig
from .layers import Decoder, Encoder
from .position import resize_table, sincos_table
from .stem import initialise, normal_token


class MAEOutput(NamedTuple):
    """loss: scalar, the mean over the views; pred[view] (B, M, pixels of a patch), in the order of the plan's `masked`;
    metrics: each view's loss as `{view}_loss`, detached."""

    loss: Tensor
    pred: dict[str, Tensor]
    metrics: dict[str, Tensor]


class DecoderEmbedding(nn.Module):
    """The mask token of a view, and its position table."""

    def __init__(self, width: int, grid: tuple[int, ...]):
        super().__init__()
        self.pos_embed = nn.Parameter(sincos_table(width, grid), requires_grad=False)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))


class CineMA(nn.Module):
    """Masked autoencoder over any non-empty subset of the configured views.

    Images are (B, C, *size) with values in [0, 1]. With `intensity` {view: (B, 2) float32 offset, scale} they hold
    stored pixels of any dtype, which are read as (pixel - offset) * scale. A size other than the configured one is
    accepted if it is a multiple of the token; position tables are then interpolated.
    """

    def __init__(self, config: CineMAConfig):
        super().__init__()
        if not isinstance(config, CineMAConfig):
            raise ValueError("CineMA: expected a CineMAConfig, as preset('cinema-base') is, got "
                             f"{type(config).__name__}")  # fmt: skip
        self.config = config
        width, dec_width, views = config.enc_embed_dim, config.dec_embed_dim, config.views
        self.enc_down_dict = view_stems(config)
        self.enc_fusion_dict = view_fusions(config)
        self.encoder = Encoder(width, config.enc_depth, config.enc_n_heads)
        self.dec_linear = nn.Linear(width, dec_width)
        self.dec_embed_dict = nn.ModuleDict({v: DecoderEmbedding(dec_width, config.grid(v)) for v in views})
        self.decoder = Decoder(dec_width, config.dec_depth, config.dec_n_heads)
        self.pred_head_dict = nn.ModuleDict(
            {v: nn.Linear(dec_width, math.prod(config.token_size(v)) * config.in_chans[v]) for v in views}
        )
        self.apply(initialise)
        normal_token(self.encoder.cls_token)
        for embedding in self.dec_embed_dict.values():
            normal_token(embedding.mask_token)

    def forward(
        self, images: dict[str, Tensor], plan: dict[str, TokenPlan], intensity: dict[str, Tensor] | None = None
    ) -> MAEOutput:
        """Loss and predictions of the tokens that `plan` decodes.

        Args:
            images: {view: (B, C, *size)}; plan: {view: TokenPlan} for the same views; intensity: see the class.

        Returns:
            MAEOutput. A view without tokens to decode has no loss and an empty prediction.

        Raises:
            ValueError: names the view and what does not fit.
        """
        grids = self._check(images, plan, intensity)
        if not any(plan[v].keep.shape[1] for v in grids) or not any(plan[v].masked.shape[1] for v in grids):
            raise ValueError("CineMA: the plan must keep at least one token visible and decode at least one")
        features = self._features(images, plan, grids, intensity)[1]
        visible = self.dec_linear(torch.cat(list(features.values()), dim=1))
        visible = visible.split([x.shape[1] for x in features.values()], dim=1)
        keys, queries = [], []
        for (view, grid), tokens in zip(grids.items(), visible):
            embedding = self.dec_embed_dict[view]
            table = resize_table(embedding.pos_embed, self.config.grid(view), grid)[0]
            keys.append(tokens + nn.functional.embedding(plan[view].keep.long(), table))
            queries.append(assemble_queries(embedding.mask_token[0, 0], table, plan[view].masked))
        decoded = self.decoder(torch.cat(queries, dim=1), torch.cat(keys, dim=1))
        decoded = decoded.split([x.shape[1] for x in queries], dim=1)
        pred, losses = {}, {}
        for view, tokens in zip(grids, decoded):
            pred[view] = self.pred_head_dict[view](tokens)
            if tokens.shape[1]:
                losses[view] = masked_mse(
                    pred[view],
                    images[view],
                    plan[view],
                    self.config.token_size(view),
                    norm=self.config.norm_target,
                    intensity=None if intensity is None else intensity[view],
                )
        loss = torch.stack(list(losses.values())).mean()
        return MAEOutput(loss, pred, {f"{view}_loss": x.detach() for view, x in losses.items()})

    def recompute(self, how: str) -> None:
        """Trade memory for time in training: "none", "selective" or "full", see `layers.Block`."""
        for block in (*self.encoder.blocks, *self.decoder.blocks):
            block.recompute = how

    def encode(self, images: dict[str, Tensor], intensity: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Features of whole images: {"cls": (B, 1, D), view: (B, N, D)}. Arguments and errors as in `forward`."""
        grids = self._check(images, None, intensity)
        cls, features = self._features(images, whole_images(images, grids), grids, intensity)
        return {"cls": cls, **features}

    def _features(self, images, plan, grids, intensity) -> tuple[Tensor, dict[str, Tensor]]:
        """Class token (B, 1, D), and {view: (B, K, D)} fused features of the visible tokens."""
        cls, skips, parts = encode_views(self.enc_down_dict, self.encoder, images, plan, grids, intensity)
        return cls, {v: self.enc_fusion_dict[v](skips[v], x) for v, x in parts.items()}

    def _check(self, images, plan, intensity) -> dict[str, tuple[int, ...]]:
        """Check the arguments; returns {view: grid} in the configured order."""
        grids = check_images("CineMA", self.config, images, intensity)
        if plan is not None and set(plan) != set(images):
            raise ValueError(f"CineMA: images of {sorted(images)} but a plan for {sorted(plan)}")
        for view, grid in grids.items():
            expected = (len(images[view]), math.prod(grid))
            if plan is not None and tuple(plan[view].slot.shape) != expected:
                raise ValueError(
                    f"CineMA: the plan of {view!r} is for (B, N) = {tuple(plan[view].slot.shape)}, "
                    f"the image has {expected}"
                )
        return grids
