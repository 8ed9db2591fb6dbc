"""Moved: python benchmarks/gpu/gpu_report.py, which this file runs for one more version."""

import runpy
import sys
from pathlib import Path

print("benchmarks/gpu_report.py has moved to benchmarks/gpu/gpu_report.py", file=sys.stderr)
folder = Path(__file__).resolve().parent / "gpu"
sys.path.insert(0, str(folder))
runpy.run_path(str(folder / "gpu_report.py"), run_name="__main__")
