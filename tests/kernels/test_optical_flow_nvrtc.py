"""Where the fat binary does not load, or was not built, the kernels are compiled by NVRTC: which of the two CuPy is
given, by a stand-in for it, and that NVRTC, which needs no GPU for that, compiles the source."""

import ctypes
import ctypes.util
import importlib.util
import types
import warnings
from pathlib import Path

import pytest

from cinema_fast.kernels import native


class DriverError(RuntimeError):
    pass


@pytest.fixture
def cupy(monkeypatch, tmp_path):
    """What of CuPy `cuda_module` uses. `loads`: whether binaries do; `device`: the current one."""
    fake = types.SimpleNamespace(loads=True, device=0, made=[])

    class RawModule:
        def __init__(self, **how):
            self.how = how
            fake.made.append(self)

        def compile(self):
            if "path" in self.how and not fake.loads:
                raise DriverError("CUDA_ERROR_NO_BINARY_FOR_GPU")

    fake.RawModule = RawModule
    driver = types.SimpleNamespace(CUDADriverError=DriverError)
    fake.cuda = types.SimpleNamespace(driver=driver, Device=lambda: types.SimpleNamespace(id=fake.device))
    monkeypatch.setitem(__import__("sys").modules, "cupy", fake)
    monkeypatch.setattr(native, "HERE", tmp_path)
    native._cuda_module.cache_clear()
    yield fake
    native._cuda_module.cache_clear()


def test_the_binary_is_taken_where_it_loads(cupy, tmp_path):
    (tmp_path / "_optical_flow_cuda.fatbin").touch()
    module = native.cuda_module("optical_flow")
    assert module.how == {"path": str(tmp_path / "_optical_flow_cuda.fatbin")}
    assert native.cuda_module("optical_flow") is module


def test_source_where_it_does_not_and_one_line_is_said_for_each_gpu(cupy, tmp_path):
    (tmp_path / "_optical_flow_cuda.fatbin").touch()
    cupy.loads = False
    with pytest.warns(UserWarning, match="fatbin does not load on GPU 0 .*NO_BINARY.*optical_flow.cu is compiled"):
        module = native.cuda_module("optical_flow")
    assert "extern" in module.how["code"] and module.how["backend"] == "nvrtc"
    cupy.loads, cupy.device = True, 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "path" in native.cuda_module("optical_flow").how
        cupy.device = 0
        assert native.cuda_module("optical_flow") is module


def test_source_where_there_is_no_binary(cupy):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert native.cuda_module("optical_flow").how["options"] == native.NVRTC_OPTIONS


def nvrtc() -> ctypes.CDLL:
    """The system's, or that of a pip package beside torch."""
    spec = importlib.util.find_spec("nvidia")
    packages = spec.submodule_search_locations if spec else ()
    for folder in [folder for package in packages for folder in Path(package).glob("*/lib")]:
        for path in sorted(folder.glob("libnvrtc-builtins.so*")):  # NVRTC asks for it by name only
            ctypes.CDLL(str(path))
        for path in folder.glob("libnvrtc.so*"):
            return ctypes.CDLL(str(path))
    if not (name := ctypes.util.find_library("nvrtc")):
        pytest.skip("no libnvrtc: pip install --no-deps nvidia-cuda-nvrtc")
    return ctypes.CDLL(name)


@pytest.mark.parametrize("arch", [80, 90])
def test_nvrtc_compiles_the_source(arch):
    library, program, size = nvrtc(), ctypes.c_void_p(), ctypes.c_size_t()
    source = (native.CSRC / "optical_flow.cu").read_bytes()
    assert library.nvrtcCreateProgram(ctypes.byref(program), source, b"optical_flow.cu", 0, None, None) == 0
    options = [option.encode() for option in (*native.NVRTC_OPTIONS, f"--gpu-architecture=sm_{arch}")]
    status = library.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    assert status == 0 and b"warning" not in log.value, log.value.decode()
    library.nvrtcGetCUBINSize(program, ctypes.byref(size))
    code = ctypes.create_string_buffer(size.value)
    library.nvrtcGetCUBIN(program, code)
    assert all(name in code.raw for name in (b"flow_image_uint8", b"flow_refine_mean", b"flow_mean_magnitude"))
