"""Package layout, and what is compiled from csrc/.

`kernels/` lives at the top level, so that `ls` is the index of the operations, and is imported as
`cinema_fast.kernels`, because a package named `kernels` already exists on the Python index.

Per operation a plain C library for the CPU and, where nvcc is there, a fat binary for GPUs. Neither knows of Python or
torch. Where one cannot be built the package installs without it, and `cinema-fast info` says what is missing.
"""

import os
import shutil
import subprocess
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

CPU_FLAGS = ["-std=c++17", "-O3", "-g0", "-fno-wrapv", "-fno-math-errno", "-fno-trapping-math"]
GPU_FLAGS = ["-std=c++17", "-O3", "-lineinfo", "-fatbin"]
# machine code for A100 and H100, PTX for what comes after
GPU_ARCHS = os.environ.get("CINEMA_FAST_CUDA_ARCHS", "80;90").split(";")

# csrc/NAME_cpu.cpp becomes kernels/_NAME_cpu.so, csrc/NAME.cu kernels/_NAME_cuda.fatbin
CSRC = Path("csrc")  # setuptools wants relative paths, and runs where this file lies
LIBRARIES = {path.stem: path for path in sorted(CSRC.glob("*_cpu.cpp"))}
LIBRARIES |= {f"{path.stem}_cuda": path for path in sorted(CSRC.glob("*.cu"))}
HEADERS = [str(path) for pattern in ("*.hpp", "*.cuh") for path in sorted(CSRC.glob(pattern))]
if not LIBRARIES:
    raise FileNotFoundError(f"{CSRC.absolute()} has no sources: run setup.py in its own folder, from a whole checkout")


class BuildCsrc(build_ext):
    """Builds optional libraries without Python's name tags or headers."""

    def get_ext_filename(self, fullname):
        path = Path(*fullname.split("."))
        return str(path) + (".fatbin" if path.name.endswith("_cuda") else ".so")

    def get_export_symbols(self, ext):
        return []

    def build_extension(self, ext):
        source, path = ext.sources[0], self.get_ext_fullpath(ext.name)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        if source.endswith(".cu"):
            self._build_gpu(source, path)
        else:
            self._build_cpu(source, path)

    def _build_cpu(self, source, path):
        error = None
        for threads in (["-fopenmp"], ["-fopenmp-simd"], []):  # without OpenMP a library of one thread
            try:
                objects = self.compiler.compile([source], self.build_temp, extra_postargs=CPU_FLAGS + threads)
                self.compiler.link_shared_object(objects, path, extra_postargs=threads, target_lang="c++")
                return
            except Exception as caught:
                error = caught
        raise CompileError(str(error))

    def _build_gpu(self, source, path):
        if not (nvcc := shutil.which("nvcc")):
            raise CompileError("no nvcc: the GPU's kernels will be compiled at first use")
        codes = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in GPU_ARCHS]
        codes.append(f"-gencode=arch=compute_{GPU_ARCHS[-1]},code=compute_{GPU_ARCHS[-1]}")
        if subprocess.run([nvcc, *GPU_FLAGS, *codes, source, "-o", path]).returncode:
            raise CompileError(f"nvcc failed on {source}")


setup(
    package_dir={"cinema_fast": "cinema_fast", "cinema_fast.kernels": "kernels", "cinema_fast.csrc": "csrc"},
    packages=[
        "cinema_fast.csrc",
        "cinema_fast.kernels",
        *(f"cinema_fast.kernels.{name}" for name in find_packages("kernels")),
        *find_packages(include=["cinema_fast", "cinema_fast.*"]),
    ],
    package_data={
        "cinema_fast.cohort": ["*.j2"],
        "cinema_fast.csrc": ["*.cu", "*.cuh", "*.cpp", "*.hpp"],
        "cinema_fast.data.formats": ["*.yaml"],
        "cinema_fast.evaluation": ["*.j2"],
        "cinema_fast.figures": ["*.j2"],
        "cinema_fast.kernels": ["tuned/*.json"],
    },
    ext_modules=[
        Extension(f"cinema_fast.kernels._{name}", [str(source)], depends=HEADERS, optional=True)
        for name, source in LIBRARIES.items()
    ],
    cmdclass={"build_ext": BuildCsrc},
)
