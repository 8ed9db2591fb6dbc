"""ConvViT: CineMA's stem, encoder and fusion over whole images, with linear heads for each view and the class token.

For classes, values and landmark coordinates of a study (Fu et al., 2025). Parameter names and shapes are those of the
published fine-tuned checkpoints.
"""

import torch
from torch import Tensor, nn

from .backbone import check_images, encode_views, view_fusions, view_stems, whole_images
from .config import CineMAConfig
from .layers import Encoder
from .stem import initialise, normal_token

REDUCTIONS = ("all", "patch", "cls")


class ConvViT(nn.Module):
    """Encoder with linear heads, over any non-empty subset of the configured views.

    Images are (B, n_frames * C, *size), the channels of a frame adjacent; otherwise as for CineMA.

    Args:
        config: of the stems and the encoder; its decoder is not used.
        out_dim: classes, or values to predict.
        n_frames: frames of a cine in an image.
        drop_path: probability that a sample skips a branch of an encoder block in training (Huang et al., ECCV 2016).
    """

    def __init__(self, config: CineMAConfig, out_dim: int, n_frames: int = 1, drop_path: float = 0.0):
        super().__init__()
        self.config, self.n_frames = config, n_frames
        width = config.enc_embed_dim
        self.enc_down_dict = view_stems(config, n_frames)
        self.enc_fusion_dict = view_fusions(config)
        self.encoder = Encoder(width, config.enc_depth, config.enc_n_heads, drop_path)
        self.apply(initialise)
        normal_token(self.encoder.cls_token)
        # heads keep PyTorch's default initialisation, as in the published code
        self.pred_head_dict = nn.ModuleDict({v: nn.Linear(width, out_dim) for v in (*config.views, "cls")})

    def encode(self, images: dict[str, Tensor], intensity: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Features {"cls": (B, 1, D), view: (B, N, D)}. Arguments and errors as in `forward`."""
        grids = check_images("ConvViT", self.config, images, intensity, self.n_frames)
        plan = whole_images(images, grids)
        cls, skips, parts = encode_views(self.enc_down_dict, self.encoder, images, plan, grids, intensity)
        return {"cls": cls, **{v: self.enc_fusion_dict[v](skips[v], x) for v, x in parts.items()}}

    def forward(
        self, images: dict[str, Tensor], reduce: str = "all", intensity: dict[str, Tensor] | None = None
    ) -> Tensor:
        """(B, out_dim), the mean of the heads that `reduce` names.

        Args:
            images: {view: (B, n_frames * C, *size)}; intensity: as in CineMA.
            reduce: "patch": the heads of the given views, each on the mean of its tokens; "cls": the head of the class
                token; "all": both.

        Raises:
            ValueError: names the view, or the argument, and what does not fit.
        """
        if reduce not in REDUCTIONS:
            raise ValueError(f"ConvViT: reduce must be one of {', '.join(REDUCTIONS)}, got {reduce!r}")
        features = self.encode(images, intensity)
        cls = features.pop("cls")
        means = {} if reduce == "cls" else {view: x.mean(dim=1) for view, x in features.items()}
        if reduce != "patch":
            means["cls"] = cls.squeeze(1)
        return torch.stack([self.pred_head_dict[name](x) for name, x in means.items()]).mean(dim=0)


def layer_of(name: str, depth: int) -> int:
    """Layer number of a parameter, by its name, for layer-wise learning-rate decay (Bao et al., BEiT).

    0: stems, fusions and the class token; 1..depth: the encoder's blocks; depth + 1: everything after them.
    """
    part, _, rest = name.partition(".")
    if part in ("enc_down_dict", "enc_fusion_dict") or name == "encoder.cls_token":
        return 0
    if part == "encoder" and rest.startswith("blocks."):
        return int(rest.split(".")[1]) + 1
    return depth + 1
