"""CineMA: the multi-view masked autoencoder with a convolutional stem (Fu et al., 2025).

Everything that depends on visible pixels only is computed at visible tokens only, and only what the loss needs is
decoded: see `kernels/token_plan.py` for what says so, and `stem.py` for why it is exact. Parameter names and shapes
are those of the published checkpoints.
"""

import difflib
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..kernels.assemble_queries import assemble_queries
from ..kernels.masked_mse import masked_mse
from ..kernels.patches import grid_of
from ..kernels.token_plan import TokenPlan
from .config import CineMAConfig
from .layers import Decoder, Encoder
from .position import resize_table, sincos_table
from .stem import Fusion, Stem, initialise, normal_token


class MAEOutput(NamedTuple):
    """loss: scalar, the mean over the views; pred[view] (B, M, pixels of a patch), in the order of the plan's `masked`;
    metrics: each view's loss as `{view}_loss`, detached."""

    loss: Tensor
    pred: dict[str, Tensor]
    metrics: dict[str, Tensor]


class DecoderEmbedding(nn.Module):
    """The mask token of a view, and where its tokens lie."""

    def __init__(self, width: int, grid: tuple[int, ...]):
        super().__init__()
        self.pos_embed = nn.Parameter(sincos_table(width, grid), requires_grad=False)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))


class CineMA(nn.Module):
    """Masked autoencoder over any non-empty subset of the configured views.

    Images are (B, C, *size) with values in [0, 1]; with `intensity` {view: (B, 2) float32 offset, scale} they are as
    stored (any dtype) and read as (pixel - offset) * scale. A size other than the configured one is taken where it is
    a multiple of the token: position tables are then interpolated.
    """

    def __init__(self, config: CineMAConfig):
        super().__init__()
        self.config = config
        width, dec_width = config.enc_embed_dim, config.dec_embed_dim
        chans, views = config.enc_conv_chans, config.views
        self.enc_down_dict = nn.ModuleDict(
            {
                v: Stem(
                    config.grid(v),
                    config.patch_size[v],
                    config.scale_factor[v],
                    config.in_chans[v],
                    chans,
                    config.enc_conv_n_blocks,
                    width,
                )
                for v in views
            }
        )
        self.enc_fusion_dict = nn.ModuleDict(
            {v: Fusion(config.patch_size[v], config.scale_factor[v], chans, width) for v in views}
        )
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
            MAEOutput. A view of which nothing is decoded has no loss and an empty prediction.

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
        plan = {
            view: TokenPlan.everything(len(images[view]), math.prod(grid), images[view].device)
            for view, grid in grids.items()
        }
        cls, features = self._features(images, plan, grids, intensity)
        return {"cls": cls, **features}

    def _features(self, images, plan, grids, intensity) -> tuple[Tensor, dict[str, Tensor]]:
        """Class token (B, 1, D), and {view: (B, K, D)} fused features of the visible tokens."""
        skips, tokens = {}, []
        for view, grid in grids.items():
            stem = self.enc_down_dict[view]
            window = None if intensity is None else intensity[view]
            skips[view], x = stem(images[view], plan[view], grid, window)
            tokens.append(x)
        cls, *parts = self.encoder(torch.cat(tokens, dim=1)).split([1, *(x.shape[1] for x in tokens)], dim=1)
        return cls, {v: self.enc_fusion_dict[v](skips[v], x) for v, x in zip(grids, parts)}

    def _check(self, images, plan, intensity) -> dict[str, tuple[int, ...]]:
        """{view: grid} of the images, in the configured order, once everything fits."""
        config = self.config
        if unknown := [v for v in images if v not in config.views]:
            near = difflib.get_close_matches(unknown[0], config.views, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"CineMA: no view {unknown[0]!r} in this model{hint} (views: {', '.join(config.views)})")
        if not images:
            raise ValueError(f"CineMA: no images given; want one or more of {', '.join(config.views)}")
        if plan is not None and set(plan) != set(images):
            raise ValueError(f"CineMA: images of {sorted(images)} but a plan for {sorted(plan)}")
        if intensity is not None and set(intensity) != set(images):
            raise ValueError(f"CineMA: images of {sorted(images)} but intensity for {sorted(intensity)}")
        grids, batch = {}, len(next(iter(images.values())))
        for view in (v for v in config.views if v in images):
            shape, n_axes = tuple(images[view].shape), len(config.image_size[view])
            if len(shape) != 2 + n_axes or shape[0] != batch or shape[1] != config.in_chans[view]:
                raise ValueError(
                    f"CineMA: {view!r} wants (B = {batch}, C = {config.in_chans[view]}, {n_axes} axes), got {shape}"
                )
            try:
                grids[view] = grid_of(shape[2:], config.token_size(view))
            except ValueError as error:
                raise ValueError(f"CineMA: {view!r}: {error}") from None
            if intensity is not None and tuple(intensity[view].shape) != (batch, 2):
                raise ValueError(
                    f"CineMA: intensity of {view!r} wants ({batch}, 2) offset and scale, "
                    f"got {tuple(intensity[view].shape)}"
                )
            if plan is not None and tuple(plan[view].slot.shape) != (batch, math.prod(grids[view])):
                raise ValueError(
                    f"CineMA: the plan of {view!r} is for (B, N) = {tuple(plan[view].slot.shape)}, "
                    f"the image has {(batch, math.prod(grids[view]))}"
                )
        return grids
