"""A stand-in for a checkout of the CineMA reference: this project's model behind the reference's interface.

It shows that the benchmarks call the peer, its masks and its checkpointing as they should, and what they do where it
fails; that the two models compute the same is held by the golden files.
"""

from pathlib import Path

SOURCE = """
import torch
import torchvision.ops
from huggingface_hub import hf_hub_download
from monai.metrics import compute_iou
from omegaconf import DictConfig, OmegaConf
from torchvision.transforms import InterpolationMode

import cinema_fast as cf

MODES = {InterpolationMode.NEAREST: "nearest", InterpolationMode.BILINEAR: "bilinear"}
assert len(MODES) == 2


def get_batch_random_patch_mask(batch_size, n_patches, mask_ratio, device):
    order = torch.rand(batch_size, n_patches, device=device).argsort(1).argsort(1)
    return order >= int(n_patches * (1 - mask_ratio))


class CineMA(cf.CineMA):
    def __init__(
        self, image_size_dict, in_chans_dict, enc_patch_size_dict, enc_scale_factor_dict, norm_target, **shape
    ):
        super().__init__(
            cf.CineMAConfig(
                views=tuple(image_size_dict), image_size=image_size_dict, in_chans=in_chans_dict,
                patch_size=enc_patch_size_dict, scale_factor=enc_scale_factor_dict, norm_target=norm_target, **shape,
            )
        )

    def set_grad_ckpt(self, enable):
        self.grad_ckpt = enable

    def forward(self, image_dict, enc_mask_ratio):
        plan = {}
        for view, x in image_dict.items():
            mask = get_batch_random_patch_mask(
                batch_size=len(x), n_patches=self.config.n_tokens(view), mask_ratio=enc_mask_ratio, device=x.device
            )
            plan[view] = cf.TokenPlan.from_mask(mask)
        loss = super().forward(image_dict, plan).loss
        # FAULT
        return loss, {}, {}, {}
"""


def write_fake_reference(folder: Path, fault: str = "") -> Path:
    """The checkout in `folder`; `fault`: statements that spoil `loss` or raise."""
    package = folder / "cinema" / "mae"
    package.mkdir(parents=True)
    for path in (folder / "cinema", package):
        (path / "__init__.py").write_text("")
    (package / "mae.py").write_text(SOURCE.replace("# FAULT", fault))
    return folder
