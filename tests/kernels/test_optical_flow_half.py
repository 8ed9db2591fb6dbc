"""Conversions between half and float bits in csrc/optical_flow.cuh against torch's."""

import ctypes
import shutil

import pytest
import torch
from flow_cases import CSRC, compile_with

SOURCE = """
#include "optical_flow.cuh"
extern "C" void to_half(const float* in, unsigned short* out, long n) {
    for (long i = 0; i < n; ++i) out[i] = flow::float_to_half(in[i]);
}
extern "C" void to_float(const unsigned short* in, float* out, long n) {
    for (long i = 0; i < n; ++i) out[i] = flow::half_to_float(in[i]);
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    if not (compiler := shutil.which("g++") or shutil.which("c++")):
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("half")
    (folder / "half.cpp").write_text(SOURCE)
    compile_with(
        compiler, "-std=c++17", "-O2", "-fPIC", "-shared", "-Wall", f"-I{CSRC}", folder / "half.cpp",
        "-o", folder / "half.so",
    )  # fmt: skip
    return ctypes.CDLL(str(folder / "half.so"))


def convert(function, given, out):
    function(ctypes.c_void_p(given.data_ptr()), ctypes.c_void_p(out.data_ptr()), ctypes.c_long(given.numel()))
    return out


def assert_same_numbers(actual, expected):
    """The same bits, but for those of a NaN behind its sign."""
    nan = expected.isnan()
    assert torch.equal(actual.isnan(), nan)
    bits = {2: torch.int16, 4: torch.int32}[actual.element_size()]
    assert torch.equal(actual.view(bits)[~nan], expected.view(bits)[~nan])


def test_every_half_is_read(library):
    halves = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.float16)
    assert_same_numbers(convert(library.to_float, halves, torch.empty(2**16)), halves.float())


def test_every_rounding_to_half(library):
    """Every sign, exponent and upper 10 bits of the mantissa, with lower bits that round down, tie and round up."""
    upper = torch.arange(-(2**18), 2**18).view(-1, 1) << 13
    lower = torch.tensor([0, 1, 0xFFF, 0x1000, 0x1001, 0x1FFF])
    floats = (upper + lower).to(torch.int32).view(torch.float32).flatten()
    expected = floats.half()
    assert expected.isinf().sum() > 2 * 100 and expected.isfinite().sum() > 2**20 and expected.isnan().any()
    assert_same_numbers(convert(library.to_half, floats, torch.empty(floats.shape, dtype=torch.float16)), expected)


@pytest.mark.parametrize(
    ("value", "half"),
    [
        (65504.0, 65504.0),
        (65519.996, 65504.0),
        (65520.0, float("inf")),
        (-1e30, float("-inf")),
        (2.0**-24, 2.0**-24),
        (2.0**-25, 0.0),  # a tie with zero, which is even
        (1.5 * 2.0**-24, 2.0**-23),
        (1 + 2.0**-11, 1.0),
        (1 + 3 * 2.0**-11, 1 + 2.0**-9),
        (-0.0, -0.0),
    ],
)
def test_values_at_the_edges(library, value, half):
    out = convert(library.to_half, torch.tensor([value]), torch.empty(1, dtype=torch.float16))
    assert_same_numbers(out, torch.tensor([half], dtype=torch.float16))
