"""The configuration of a model, CineMA, HeartMAE or DINO, and the published sizes by name."""

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from numbers import Integral, Real

from ..common.views import CLIP, VIEWS

_SIZE_FIELDS = ("enc_embed_dim", "enc_depth", "enc_n_heads", "dec_embed_dim", "dec_depth", "dec_n_heads")


class ByView(dict):
    """An immutable {view: value}, so that a config can be shared and hashed."""

    def _refuse(self, *_, **__):
        raise TypeError("a CineMAConfig is never changed; make another with dataclasses.replace")

    __setitem__ = __delitem__ = __ior__ = update = setdefault = pop = popitem = clear = _refuse

    def __hash__(self):
        return hash(frozenset(self.items()))

    def __reduce__(self):
        return ByView, (dict(self),)


@dataclass(frozen=True, slots=True)
class CineMAConfig:
    """Configuration of a CineMA masked autoencoder (Fu et al., "A versatile foundation model for cine CMR"), or without
    a conv stem of a plain ViT one, such as HeartMAE over clips.

    views: names, in the order in which their tokens are concatenated.
    image_size: pixels per axis, by view, of 2 to 4 axes (4 without a conv stem only).
    in_chans: image channels, by view.
    patch_size: kernel = stride of the first convolution (of the patch embedding without a stem), by view.
    scale_factor: kernel = stride of each further stage and of the token embedding, by view.
    enc_conv_chans: channels of the conv stem's stages; empty for a plain ViT.
    enc_conv_n_blocks: masked conv blocks a stage.
    enc_*, dec_*: width, depth and heads of the ViT encoder and the cross-attention decoder.
    norm_target: normalise each target patch (He et al. 2022).

    Lists become tuples, and nothing can be changed afterwards. Raises ValueError naming the field that does not fit.
    """

    views: tuple[str, ...]
    image_size: dict[str, tuple[int, ...]]
    in_chans: dict[str, int]
    patch_size: dict[str, tuple[int, ...]]
    scale_factor: dict[str, tuple[int, ...]]
    enc_conv_chans: tuple[int, ...] = (64, 128)
    enc_conv_n_blocks: int = 2
    enc_embed_dim: int = 768
    enc_depth: int = 12
    enc_n_heads: int = 12
    dec_embed_dim: int = 512
    dec_depth: int = 8
    dec_n_heads: int = 16
    norm_target: bool = False

    def __post_init__(self):
        object.__setattr__(self, "views", _views(self.views))
        for name in ("enc_conv_n_blocks", *_SIZE_FIELDS):
            object.__setattr__(self, name, _whole(name, getattr(self, name)))
        object.__setattr__(self, "enc_conv_chans", _whole_numbers("enc_conv_chans", self.enc_conv_chans))
        if not isinstance(self.norm_target, bool):
            raise ValueError(f"CineMAConfig.norm_target: expected True or False, got {self.norm_target!r}")
        for name in ("image_size", "patch_size", "scale_factor", "in_chans"):
            by_view = getattr(self, name)
            if not isinstance(by_view, Mapping):
                raise ValueError(f"CineMAConfig.{name}: expected {{view: value}}, got {by_view!r}")
            if missing := [v for v in self.views if v not in by_view]:
                raise ValueError(f"CineMAConfig.{name}: no entry for view {missing[0]!r}, has {list(by_view)}")
            read = _whole if name == "in_chans" else _whole_numbers
            value = ByView({v: read(f"{name}[{v!r}]", by_view[v]) for v in self.views})
            object.__setattr__(self, name, value)
        self._validate()

    def _validate(self):
        if not self.views or len(set(self.views)) != len(self.views):
            raise ValueError(f"CineMAConfig.views: expected one or more distinct names, got {self.views}")
        for name in _SIZE_FIELDS:
            if getattr(self, name) < 1:
                raise ValueError(f"CineMAConfig.{name}: expected a positive number, got {getattr(self, name)}")
        if self.enc_conv_n_blocks < 0 or min(self.enc_conv_chans, default=1) < 1:
            raise ValueError(
                "CineMAConfig: expected enc_conv_n_blocks >= 0 and positive enc_conv_chans, "
                f"got {self.enc_conv_n_blocks} and {self.enc_conv_chans}"
            )
        for side in ("enc", "dec"):
            width, heads = getattr(self, f"{side}_embed_dim"), getattr(self, f"{side}_n_heads")
            if width % heads:
                raise ValueError(f"CineMAConfig.{side}_embed_dim: {width} is not a multiple of {heads} heads")
        for view in self.views:
            size, patch, scale = self.image_size[view], self.patch_size[view], self.scale_factor[view]
            if not len(size) == len(patch) == len(scale):
                raise ValueError(
                    f"CineMAConfig: {view!r} has image_size {size} but patch_size {patch}, scale_factor {scale}"
                )
            if not 2 <= len(size) <= (3 if self.enc_conv_chans else 4):
                raise ValueError(
                    f"CineMAConfig.image_size: {view!r} has {len(size)} axes; expected 2 or 3, or 4 without a conv stem"
                )
            if self.in_chans[view] < 1 or min(patch + scale) < 1:
                raise ValueError(f"CineMAConfig: in_chans, patch_size and scale_factor of {view!r} must be positive")
            if any(s < t or s % t for s, t in zip(size, self.token_size(view))):
                raise ValueError(
                    f"CineMAConfig.image_size: {view!r} {size} is not a multiple of the token {self.token_size(view)}"
                )

    def token_size(self, view: str) -> tuple[int, ...]:
        """Pixels of a ViT token, per axis: (16, 16, 1) for SAX in the published sizes."""
        n = len(self.enc_conv_chans)
        return tuple(p * s**n for p, s in zip(self.patch_size[view], self.scale_factor[view]))

    def grid(self, view: str) -> tuple[int, ...]:
        """Tokens per axis."""
        return tuple(s // t for s, t in zip(self.image_size[view], self.token_size(view)))

    def n_tokens(self, view: str) -> int:
        """Tokens of a view."""
        return math.prod(self.grid(view))


def _whole(field: str, value) -> int:
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise ValueError(f"CineMAConfig.{field}: expected a whole number, got {value!r}")
    return int(value)


def _whole_numbers(field: str, values) -> tuple[int, ...]:
    if not isinstance(values, (tuple, list)):
        raise ValueError(f"CineMAConfig.{field}: expected a tuple or list of whole numbers, got {values!r}")
    return tuple(_whole(field, value) for value in values)


def _views(names) -> tuple[str, ...]:
    """The names as a tuple; each must be valid in a tensor's name and as a key of nn.ModuleDict."""
    if not isinstance(names, (tuple, list)) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"CineMAConfig.views: expected a tuple or list of names, got {names!r}")
    for name in names:
        if name in VIEWS or name == CLIP:
            continue
        from torch import nn  # only for custom names, so that presets and the command line do not import torch

        if not name or "." in name or hasattr(nn.ModuleDict(), name):
            raise ValueError(f"CineMAConfig.views: PyTorch takes no module by the name {name!r}; choose another")
    return tuple(names)


def _read_whole(config, *names: str, least: int = 1) -> None:
    """Make the fields int. Raises ValueError unless they are whole numbers of at least `least`."""
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
            raise ValueError(f"{type(config).__name__}.{name}: expected a whole number of at least {least}, "
                             f"got {value!r}")  # fmt: skip
        object.__setattr__(config, name, int(value))


def _check_number(config, name: str, valid: Callable[[Real], bool], must: str) -> None:
    """Raise ValueError unless the field is a `valid` number."""
    value = getattr(config, name)
    if not isinstance(value, Real) or isinstance(value, bool) or not valid(value):
        raise ValueError(f"{type(config).__name__}.{name}: expected a number {must}, got {value!r}")


@dataclass(frozen=True, slots=True)
class ViTConfig:
    """Configuration of a ViT with a class token, over square images (other sizes by interpolated positions).

    Raises ValueError naming the field that does not fit.
    """

    in_chans: int = 1
    embed_dim: int = 384
    depth: int = 12
    n_heads: int = 6
    patch_size: int = 8
    image_size: int = 192

    def __post_init__(self):
        _read_whole(self, "in_chans", "embed_dim", "depth", "n_heads", "patch_size", "image_size")
        if self.embed_dim % (8 * self.n_heads):
            raise ValueError(f"ViTConfig.embed_dim: {self.embed_dim} is not {self.n_heads} heads of a multiple of 8")
        if self.image_size % self.patch_size:
            raise ValueError(f"ViTConfig.image_size: {self.image_size} is not a multiple of the patch, "
                             f"{self.patch_size}")  # fmt: skip


@dataclass(frozen=True, slots=True)
class DINOConfig:
    """Configuration of DINO self-distillation (Caron et al., ICCV 2021; Jacob et al., JCMR 2025).

    vit: the backbone. prototypes: columns of the logits. head_hidden, bottleneck: widths of the head's MLP.
    norm_last_layer: the prototypes keep length 1. n_local, local_size: number and size (pixels) of the local crops;
    the two global ones have vit.image_size. student_temp: temperature of the student's softmax. centre_momentum: share
    of the old centre that each step keeps. drop_path: rate of the student's last block in training; it rises linearly
    from 0 in the first.

    Raises ValueError naming the field that does not fit.
    """

    vit: ViTConfig = ViTConfig()
    prototypes: int = 65536
    head_hidden: int = 2048
    bottleneck: int = 256
    norm_last_layer: bool = True
    n_local: int = 8
    local_size: int = 96
    student_temp: float = 0.1
    centre_momentum: float = 0.9
    drop_path: float = 0.0

    def __post_init__(self):
        if isinstance(self.vit, Mapping):
            object.__setattr__(self, "vit", _read(ViTConfig, self.vit))
        if not isinstance(self.vit, ViTConfig):
            raise ValueError(f"DINOConfig.vit: expected a ViTConfig, got {self.vit!r}")
        _read_whole(self, "prototypes", "head_hidden", "bottleneck", "local_size")
        _read_whole(self, "n_local", least=0)
        if self.local_size % self.vit.patch_size:
            raise ValueError(f"DINOConfig.local_size: {self.local_size} is not a multiple of the patch, "
                             f"{self.vit.patch_size}")  # fmt: skip
        if not isinstance(self.norm_last_layer, bool):
            raise ValueError(f"DINOConfig.norm_last_layer: expected True or False, got {self.norm_last_layer!r}")
        _check_number(self, "student_temp", lambda x: 0 < x < math.inf, "above 0")
        _check_number(self, "centre_momentum", lambda x: 0 <= x <= 1, "from 0 to 1")
        _check_number(self, "drop_path", lambda x: 0 <= x < 1, "from 0 to below 1")


_SIZES = {  # encoder width, depth, heads, decoder width, depth, heads
    "tiny": (16, 1, 2, 16, 1, 2),
    "base": (768, 12, 12, 512, 8, 16),
    "large": (1024, 24, 16, 512, 8, 16),
    "huge": (1280, 32, 16, 512, 8, 16),
}


def _four_views(sax, lax, patch, **shape) -> CineMAConfig:
    return CineMAConfig(
        views=VIEWS,
        image_size={v: sax if v == "sax" else lax for v in VIEWS},
        in_chans=dict.fromkeys(VIEWS, 1),
        patch_size={v: (patch, patch, 1) if v == "sax" else (patch, patch) for v in VIEWS},
        scale_factor={v: (2, 2, 1) if v == "sax" else (2, 2) for v in VIEWS},
        **shape,
    )


_PRESETS = {
    f"cinema-{size}": _four_views((192, 192, 16), (256, 256), 4, **dict(zip(_SIZE_FIELDS, shape)))
    for size, shape in _SIZES.items()
}
# the model of `make demo`, trained in minutes on two CPU cores: the heart in 32 x 32 pixels, tokens of 8 x 8 pixels
_PRESETS["cinema-demo"] = _four_views(
    (32, 32, 4), (32, 32), 2, enc_conv_chans=(8, 16), enc_conv_n_blocks=1,
    **dict(zip(_SIZE_FIELDS, (128, 1, 4, 128, 1, 4))),
)  # fmt: skip


def _clips(size, token, **shape) -> CineMAConfig:
    """HeartMAE: a plain ViT over clips (frames, X, Y), whose tokens are tubelets of `token` pixels."""
    return CineMAConfig(
        views=(CLIP,), image_size={CLIP: size}, in_chans={CLIP: 1}, patch_size={CLIP: token},
        scale_factor={CLIP: (1, 1, 1)}, enc_conv_chans=(), enc_conv_n_blocks=0, **shape,
    )  # fmt: skip


_PRESETS["heartmae-base"] = _clips((16, 192, 192), (2, 16, 16), **dict(zip(_SIZE_FIELDS, _SIZES["base"])))
# for tests and experiments on two CPU cores: 144 tokens
_PRESETS["heartmae-tiny"] = _clips((8, 48, 48), (2, 8, 8), **dict(zip(_SIZE_FIELDS, (64, 1, 2, 64, 1, 2))))


# Jacob et al., JCMR 2025; the drop path is the public DINO recipe's
_PRESETS["cmrfm-small8"] = DINOConfig(drop_path=0.1)
# for tests and experiments on two CPU cores
_PRESETS["cmrfm-demo"] = DINOConfig(
    vit=ViTConfig(embed_dim=96, depth=4, n_heads=3, image_size=64), prototypes=4096, head_hidden=256, bottleneck=64,
    n_local=6, local_size=32,
)  # fmt: skip


def presets() -> list[str]:
    """Names that `preset` knows."""
    return list(_PRESETS)


def preset(name: str) -> CineMAConfig | DINOConfig:
    """A named size; ValueError with the nearest name where there is none."""
    if name not in _PRESETS:
        near = difflib.get_close_matches(name, _PRESETS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown preset {name!r}{hint} (known: {', '.join(_PRESETS)})")
    return _PRESETS[name]


def config_class(values: Mapping) -> type[CineMAConfig] | type[DINOConfig]:
    """The class of the config that a plain dict holds."""
    return DINOConfig if "vit" in values else CineMAConfig


def config_from_dict(values: dict) -> CineMAConfig | DINOConfig:
    """The config from a plain dict (a run's YAML); ValueError names an unknown field."""
    return _read(config_class(values), values)


def _read(kind: type, values: Mapping):
    known = {f.name for f in fields(kind)}
    if unknown := sorted(set(values) - known):
        raise ValueError(f"{kind.__name__} has no field {unknown[0]!r} (fields: {', '.join(sorted(known))})")
    return kind(**values)
