"""How much of the machine a run uses: useful FLOPs of its steps, and memory."""

import resource
from collections.abc import Sequence

import torch

from ..data.loading.loader import Batch
from ..methods.pretrain_config import PretrainConfig
from ..models.config import CineMAConfig
from ..models.flops import H100_BF16, step_flops
from .step import token_counts


class Usage:
    """FLOPs by `models.flops` of batches of a run, and the figures of a log line that follow from them."""

    def __init__(self, shape: CineMAConfig, config: PretrainConfig, device: torch.device):
        self._shape, self._config, self._device = shape, config, device
        self._of_views: dict[tuple[str, ...], int] = {}

    def flops(self, batches: Sequence[Batch]) -> int:
        """Useful FLOPs of a step."""
        return sum(len(batch.draw.ids) * self._study(batch.draw.views) for batch in batches)

    def line(self, line: dict) -> dict:
        """A line with "tflops" and, on a GPU, "mfu": their share of an H100's bf16; and "peak_mib", memory.

        On a GPU it is the most that was allocated since the last line, on a CPU the most that the process ever held.
        """
        if self._device.type != "cuda":
            return line | {"peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)}
        peak = torch.cuda.max_memory_allocated(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        return line | {"mfu": round(line["tflops"] * 1e12 / H100_BF16, 4), "peak_mib": round(peak / 2**20)}

    def _study(self, views: tuple[str, ...]) -> int:
        if views not in self._of_views:
            ratios = self._config.mask_ratio, self._config.decode_ratio
            counts = {view: token_counts(self._shape, view, *ratios) for view in views}
            keep, decode = ({view: pair[i] for view, pair in counts.items()} for i in (0, 1))
            self._of_views[views] = step_flops(self._shape, keep, decode)
        return self._of_views[views]
