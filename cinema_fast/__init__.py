"""cinema-fast: fast pre-training and fine-tuning of masked autoencoders on cine cardiac MRI."""

from .kernels import TokenPlan, sample_mask
from .models.cinema import CineMA, MAEOutput
from .models.config import CineMAConfig, preset, presets
from .models.weights import cinema_state_dict, load_cinema_weights

__version__ = "0.1.0"
__all__ = [
    "CineMA",
    "CineMAConfig",
    "MAEOutput",
    "TokenPlan",
    "cinema_state_dict",
    "load_cinema_weights",
    "preset",
    "presets",
    "sample_mask",
]
