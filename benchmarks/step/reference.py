"""The CineMA reference implementation as the peer of this project's: loaded from a checkout that the user has.

Its package imports more than its model runs: download clients, configuration and metric libraries, and timm's image
transforms through torchvision, which does not import beside a CPU build of torch. Whatever of these is missing or
broken is answered for by empty stand-ins, so that timm and einops suffice.
"""

import importlib
import importlib.machinery
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from torch import Tensor, nn

from cinema_fast import CineMAConfig, ConvUNetR, ConvViT

NOT_USED_IN_A_STEP = ("torchvision", "huggingface_hub", "omegaconf", "monai", "safetensors")


class _AnyName(type):
    """Classes of which every attribute exists, so that enumerations and options can be read at import."""

    def __getattr__(cls, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        setattr(cls, name, _AnyName(name, (), {}))
        return getattr(cls, name)


class _StandInModule(types.ModuleType):
    __path__ = ()

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        setattr(self, name, _AnyName(name, (), {}))
        return getattr(self, name)


class _StandIns:
    """Import finder and loader for packages that cannot be imported."""

    def __init__(self, packages: list[str]):
        self.packages = packages

    def find_spec(self, name, path=None, target=None):
        known = name.split(".")[0] in self.packages
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if known else None

    def create_module(self, spec):
        return _StandInModule(spec.name)

    def exec_module(self, module):
        pass


def _imports(package: str) -> bool:
    try:
        importlib.import_module(package)
    except Exception:  # torchvision beside another torch fails with RuntimeError, others in their own ways
        for name in [n for n in sys.modules if n.split(".")[0] == package]:
            del sys.modules[name]
        return False
    return True


class Reference:
    """The reference's masked autoencoder, from the checkout `folder`.

    Raises FileNotFoundError where the folder is no such checkout, ImportError naming a package that it does need.
    """

    def __init__(self, folder: str | Path):
        folder = Path(folder).resolve()
        if not (folder / "cinema" / "mae" / "mae.py").is_file():
            raise FileNotFoundError(f"--reference {folder}: no cinema/mae/mae.py there; expected a checkout of CineMA")
        sys.meta_path.insert(0, _StandIns([name for name in NOT_USED_IN_A_STEP if not _imports(name)]))
        sys.path.insert(0, str(folder))
        try:
            self._module = importlib.import_module("cinema.mae.mae")
        except ModuleNotFoundError as error:
            raise ImportError(f"the reference in {folder} needs the package {error.name!r}; install it") from error

    def build(self, config: CineMAConfig, *, checkpointing: bool = False) -> nn.Module:
        """The reference's model of this configuration; it pre-trains with gradient checkpointing."""
        model = self._module.CineMA(
            **_encoder_shape(config),
            dec_embed_dim=config.dec_embed_dim,
            dec_depth=config.dec_depth,
            dec_n_heads=config.dec_n_heads,
            norm_target=config.norm_target,
        )
        model.set_grad_ckpt(checkpointing)
        return model

    def build_fine_tuned(self, ours: ConvViT | ConvUNetR, out_chans: int, n_frames: int) -> nn.Module:
        """The reference's model of the shape of `ours`, which has the decoder's default channels and sizes."""
        shape = _encoder_shape(ours.config) | {"out_chans": out_chans}
        if isinstance(ours, ConvViT):
            return importlib.import_module("cinema.convvit").ConvViT(**shape, n_frames=n_frames)
        halves = {v: tuple(2 if pixels > 1 else 1 for pixels in ours.config.token_size(v)) for v in ours.config.views}
        return importlib.import_module("cinema.segmentation.convunetr").ConvUNetR(
            **shape, dec_chans=(32, 64, 128, 256, 512), dec_patch_size_dict=halves, dec_scale_factor_dict=halves
        )

    @contextmanager
    def masks(self, masks: dict[str, Tensor]) -> Iterator[None]:
        """Its forward passes inside the block take these masks (B, N), in the order of the views, and draw none."""
        left: list[Tensor] = []

        def next_mask(**_) -> Tensor:
            if not left:
                left.extend(masks.values())
            return left.pop(0)

        with mock.patch.object(self._module, "get_batch_random_patch_mask", next_mask):
            yield


def _encoder_shape(config: CineMAConfig) -> dict:
    """The arguments of stems and encoder, of the configured views only."""
    return {
        "image_size_dict": {v: config.image_size[v] for v in config.views},
        "in_chans_dict": config.in_chans,
        "enc_patch_size_dict": config.patch_size,
        "enc_scale_factor_dict": config.scale_factor,
        "enc_conv_chans": list(config.enc_conv_chans),
        "enc_conv_n_blocks": config.enc_conv_n_blocks,
        "enc_embed_dim": config.enc_embed_dim,
        "enc_depth": config.enc_depth,
        "enc_n_heads": config.enc_n_heads,
    }
