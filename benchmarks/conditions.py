"""Under what a figure was measured, and how results are written."""

import datetime
import hashlib
import importlib.metadata
import json
import platform
import subprocess
from pathlib import Path

import torch
from checkout import PACKAGES, ROOT

from cinema_fast.common.atomic import whole_file

LIBRARIES = (
    "numpy", "triton", "cupy-cuda13x", "nvidia-dali-cuda130", "timm", "flash-attn", "flash-attn-4", "xformers",
)  # fmt: skip


def now() -> str:
    """Local time without a colon, fit for a file's name: 2030-01-31T235959."""
    return datetime.datetime.now().strftime("%Y-%m-%dT%H%M%S")


def versions() -> dict[str, str]:
    """Python, PyTorch with its CUDA and cuDNN, the driver, and those of the peers' libraries that are installed."""
    found = {"python": platform.python_version(), "torch": str(torch.__version__)}
    for library in LIBRARIES:
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    if torch.cuda.is_available():
        found |= {"cuda": torch.version.cuda, "cudnn": str(torch.backends.cudnn.version())}
        found["driver"] = output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") or "unknown"
    return found


def commit() -> str:
    """The commit with "-dirty" where files differ from it; in a checkout without history a hash of the sources."""
    described = output("git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--match=")
    if described:
        return described
    digest = hashlib.sha256()
    for path in sorted({p for folder in PACKAGES.values() for p in folder.rglob("*.py")}):
        digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return f"sources-sha256:{digest.hexdigest()[:16]}"


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def write_json(path: Path, content: dict) -> None:
    """Replace `path` as a whole, on disk: whoever reads it, or is killed while writing it, has one or the other."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False))


def write_text(path: Path, text: str) -> None:
    """Replace `path` as a whole, on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path, durable=True) as file:
        file.write_text(text)


def output(*command: str) -> str:
    """What a command prints, empty where it is missing or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
