"""Versions, devices and backends on this machine."""

import importlib
import importlib.util
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from .common.naming import counted
from .kernels.attention_peers import xformers_problem

EXTRAS = {  # {module: its purpose}
    "triton": "GPU kernels",
    "cupy": "CUDA kernels (extra gpu)",
    "flash_attn": "attention backend (extra flash)",
    "xformers": "attention backend (extra xformers)",
    "nvidia.dali": "GPU data loading (extra dali)",
    "pydicom": "DICOM input (extra dicom)",
    "pyarrow": "embeddings as Parquet (extra embed)",
    "monai": "evaluation and baselines (extra downstream)",
    "sklearn": "evaluation, probes and clusters (extra downstream)",
    "tensorboard": "metrics of a run in TensorBoard (extra tensorboard)",
    "wandb": "metrics of a run in Weights & Biases (extra wandb)",
}
DISTRIBUTIONS = ("numpy", "scipy", "nibabel", "safetensors", "tyro", "rich", "matplotlib", "pyyaml")


def describe() -> str:
    """A page of text: versions, devices, extras, presets, and the backend of each operation."""
    from . import __version__, kernels, presets
    from .train.setup import pick_device, pick_precision

    device = pick_device("auto")
    rows = [
        ("cinema-fast", __version__),
        ("python", f"{platform.python_version()} on {platform.platform()}"),
        ("torch", str(torch.__version__)),
        ("device", _device()),
        ("precision", f"{str(pick_precision('auto', device))[6:]} by default"),
        ("libraries", ", ".join(f"{name} {_version(name)}" for name in DISTRIBUTIONS)),
        *((name, _present(name, use)) for name, use in EXTRAS.items()),
        ("presets", ", ".join(presets())),
    ]
    lines = [f"{name:<12} {value}" for name, value in rows]
    lines += ["", "operation                backend   why"]
    lines += [f"{operation:<24} {backend:<9} {why}" for operation, backend, why in kernels.table()]
    return "\n".join(lines)


def _device() -> str:
    if not torch.cuda.is_available():
        return f"CPU ({counted(torch.get_num_threads(), 'thread')}); PyTorch finds no GPU"
    found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return f"CUDA {torch.version.cuda}: " + ", ".join(f"{p.name} ({p.total_memory / 2**30:.0f} GiB)" for p in found)


def _present(module: str, use: str) -> str:
    try:
        found = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a parent package is missing
        found = False
    if found and module == "xformers" and (problem := xformers_problem()):
        return f"installed, but unusable: {problem}"
    return f"{'installed' if found else 'not installed'}: {use}"


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "missing"
