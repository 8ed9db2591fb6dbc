"""Pickles: arrays and containers are those that numpy pickled; anything else is refused, and nothing runs."""

import collections
import os
import pickle
import struct
import tracemalloc

import numpy as np
import pytest

from cinema_fast.data.formats import plain_pickle
from cinema_fast.data.formats.cine import CineError
from cinema_fast.data.formats.plain_pickle import read_plain_pickle

TRACE = "executed"
NAN = float("nan")


@pytest.fixture(autouse=True)
def nothing_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert not os.path.exists(TRACE)


def read(data: bytes, tmp_path):
    path = tmp_path / "file.pickle"
    path.write_bytes(data)
    return read_plain_pickle(path)[0]


def refusal(data: bytes, tmp_path) -> str:
    with pytest.raises(CineError) as raised:
        read(data, tmp_path)
    return raised.value.reason


ARRAYS = {
    "c": np.arange(24, dtype="<i2").reshape(2, 3, 4),
    "f": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    "strided": np.arange(24, dtype=np.uint8).reshape(4, 6)[::2, ::-3],
    "moved": np.arange(24, dtype=np.float64).reshape(2, 3, 4).transpose(1, 2, 0),
    "big": np.arange(5, dtype=">u4"),
    "bool": np.array([True, False]),
    "half": np.float16([1.5, NAN]),
    "empty": np.zeros((0, 3)),
    "none": np.array(7.0),
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("module", ["numpy._core", "numpy.core"])
def test_arrays(tmp_path, protocol, module):
    data = pickle.dumps(ARRAYS, protocol)
    if protocol < 4:  # names of protocol 4 have a length before them
        data = data.replace(b"numpy._core", module.encode())
    found = read(data, tmp_path)
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values(tmp_path, protocol):
    content = {"float": 1.5, "int": -(2**70), "text": "Größe", "none": None, "flag": True, "nested": {"a": [1, 2]},
               "list": [1.0, 2.0], "scalar": np.float32(2.5), "integer": np.int64(-3)}  # fmt: skip
    assert read(pickle.dumps(content, protocol), tmp_path) == content | {"list": (1.0, 2.0)}
    if protocol >= 4:
        content = {"set": {1, 2}, "bytes": b"\0\1"}
        assert read(pickle.dumps(content, protocol), tmp_path) == content
    arrays = read(pickle.dumps({"rows": [np.zeros(3), np.ones(3)]}, protocol), tmp_path)["rows"]
    np.testing.assert_array_equal(arrays, [[0, 0, 0], [1, 1, 1]])


class Call:
    """What calls a function where it is unpickled."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(("thing", "name"), [
    (Call(os.system, f"mkdir {TRACE}"), "posix.system"),
    (Call(eval, f"__import__('os').mkdir('{TRACE}')"), "builtins.eval"),
    (Call(getattr, 1, "real"), "builtins.getattr"),
    (collections.OrderedDict(a=1), "collections.OrderedDict"),
    (np.ma.masked_array([1.0]), "numpy.ma"),
    (np.random.default_rng(0), "numpy.random"),
    (bytearray(b"12"), "builtins.bytearray"),
    (complex(1, 2), "builtins.complex"),
    (range(3), "builtins.range"),
    (CineError("a", "b"), "cinema_fast.data.formats.cine.CineError"),
])  # fmt: skip
@pytest.mark.parametrize("where", [lambda one: one, lambda one: {"a": one}, lambda one: {"a": [np.zeros(2), (one,)]}])
def test_other_names_are_refused(tmp_path, thing, name, where):
    reason = refusal(pickle.dumps(where(thing), 4), tmp_path)
    assert f"it holds {name}" in reason or (isinstance(thing, np.ma.MaskedArray) and "it holds numpy" in reason)


@pytest.mark.parametrize(("array", "reason"), [
    (np.array([{}], object), "an array of the type 'O8', expected real numbers"),
    (np.array(["text"]), "an array of the type 'U4'"),
    (np.array([1 + 2j]), "an array of the type 'c16'"),
    (np.zeros(2, [("a", "i4"), ("b", "f4")]), "an array of the type 'V8'"),
    (np.array("2020-01-01", "M8[D]"), "an array of the type 'M8'"),
    (np.zeros(2, np.longdouble), "an array of the type 'f16'"),
])  # fmt: skip
def test_other_arrays_are_refused(tmp_path, array, reason):
    assert reason in refusal(pickle.dumps({"a": array}, 4), tmp_path)


def op(module: str, name: str) -> bytes:
    """The opcode that looks up a name."""
    return f"c{module}\n{name}\n".encode()


ARRAY = op("numpy._core.multiarray", "_reconstruct") + b"(" + op("numpy", "ndarray") + b"(I0\ntC\x01btR"
DTYPE = op("numpy", "dtype") + b"(X\x02\0\0\0f8I0\nI1\ntR"
STATE = b"(I3\nX\x01\0\0\0<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffI0\ntb"
HUGE = 2**31 - 1


def filled(shape: bytes, raw: bytes = b"C\x08" + bytes(8)) -> bytes:
    return b"(X\x01\0\0\0a" + ARRAY + b"(I1\n" + shape + DTYPE + STATE + b"I00\n" + raw + b"tbd."


def test_the_programs_of_this_file_are_understood(tmp_path):
    assert read(filled(b"(I1\nt"), tmp_path)["a"].tolist() == [0.0]


@pytest.mark.parametrize(("program", "reason"), [
    (filled(b"(I%d\nI%d\nt" % (HUGE, HUGE)), "an array of the shape (2147483647, 2147483647) and type float64 in 8"),
    (filled(b"(I-1\nI-1\nt"), "an array of the shape (-1, -1)"),
    (filled(b"(" + 9 * b"I1\n" + b"t"), "an array without its bytes or shape"),
    (filled(b"(I1\nt", b"]"), "an array without its bytes or shape"),
    (filled(b"N"), "an array without its bytes or shape"),
    (b"\x8e" + struct.pack("<Q", 2**40) + b"abc.", "but only 4 remain"),  # BINBYTES8
    (b"\x96" + struct.pack("<Q", 2**50) + b".", "remain"),  # BYTEARRAY8
    (b"X" + struct.pack("<I", 2**32 - 1) + b".", "remain"),  # BINUNICODE
    (b"\x8b" + struct.pack("<i", 2**31 - 1) + b".", "not enough data"),  # LONG4
    (b"}r" + struct.pack("<I", 2**32 - 1) + b".", "place 4294967295 in the memo after 1 opcodes"),  # LONG_BINPUT
    (b"}p99999999\n.", "place 99999999 in the memo"),
    (10_001 * b"]" + b".", "more than 10000 opcodes"),
    (5_000 * b"(" + b".", "not a readable pickle of arrays"),
    (op("numpy", "dtype") + b"}X\x07\0\0\0_making\x05s\x86b.", "not a readable pickle of arrays"),
    (op("numpy", "dtype") + b"N}X\x05\0\0\0_makeNs\x86b.", "it would change a function"),
    (op("numpy", "ndarray") + b"(tR.", "an array that is made by its class"),
    (op("numpy", "ndarray") + b")\x81.", "not a readable pickle of arrays"),  # NEWOBJ
    (b"(I1\nios\nsystem\n.", "it holds os.system"),  # INST
    (b"\x80\x05\x97.", "not a readable pickle of arrays"),  # NEXT_BUFFER
    (b"Pname\n.", "not a readable pickle of arrays"),  # PERSID
    (b"\x82\x01.", "not a readable pickle of arrays"),  # EXT1
    (b"", "not a readable pickle of arrays"),
    (b"\x93NUMPY", "not a readable pickle of arrays"),
    (pickle.dumps([1, 2]), "holds a list, expected a dictionary with names as keys"),
    (pickle.dumps({1: 2}), "holds a dict, expected a dictionary with names as keys"),
])  # fmt: skip
def test_malicious_programs(tmp_path, program, reason):
    tracemalloc.start()
    assert reason in refusal(program, tmp_path)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 4_000_000
    assert read(filled(b"(I1\nt"), tmp_path)["a"].tolist() == [0.0]  # the stand-ins are as before


def test_containers_in_themselves(tmp_path):
    one = []
    one.append(one)
    read(pickle.dumps({"a": one}, 4), tmp_path)
    nested = b"".join([b"(X\x01\0\0\0a", b"]" * 4_000, b"a" * 3_999, b"d."])
    assert read(nested, tmp_path).keys() == {"a"}
    as_key = b"}" + b")" + 4_000 * b"\x85" + b"Ns."  # its hash is computed by recursion
    assert "a tuple as a key, expected text or a number" in refusal(as_key, tmp_path)
    one = [1]
    for _ in range(80):  # as a tree it would have 2 ** 80 leaves
        one = [one, one]
    read(pickle.dumps({"a": one}, 4), tmp_path)


PAIRS = b")" + b"".join(b"q%c\x68%c\x86" % (n, n) for n in range(60))  # as a tree it has 2 ** 60 leaves


@pytest.mark.parametrize("program", [
    b"}" + PAIRS + b"Ns.", b"}(" + PAIRS + b"Nu.", b"(" + PAIRS + b"Nd.", b"\x8f(" + PAIRS + b"\x90.",
    b"(" + PAIRS + b"\x91.",
])  # fmt: skip
def test_nothing_is_hashed_for_ever(tmp_path, program):
    assert "a tuple as a key, expected text or a number" in refusal(program, tmp_path)


def test_memory_of_bytes_that_are_used_again(tmp_path):
    """Many arrays of the same bytes share them; many encodings of one text are refused."""
    n, times = 80_000, 500
    array = op("numpy.core.numeric", "_frombuffer") + b"(h\0h\x01(I10000\ntX\x01\0\0\0CtR"
    arrays = b"(\x96" + struct.pack("<Q", n) + bytes(n) + b"q\0" + DTYPE + STATE + b"q\x010"
    arrays = b"\x80\x05" + arrays + b"1}X\x01\0\0\0a(" + times * array + b"ls."
    text = b"X" + struct.pack("<I", n) + n * b"a" + b"q\0" + op("_codecs", "encode") + b"q\x0100"
    text += b"}X\x01\0\0\0a(" + times * b"h\x01h\0X\x06\0\0\0latin1\x86R" + b"ls."
    tracemalloc.start()
    found = read(arrays, tmp_path)["a"]
    assert len(found) == times and not found[-1].flags.writeable
    assert "more bytes from text than the file has" in refusal(text, tmp_path)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 4_000_000


def test_altered_bytes(tmp_path):
    """Any program is refused or gives a dictionary."""
    rng = np.random.default_rng(0)
    whole = pickle.dumps({"a": np.arange(6.0), "b": np.float32(1), "c": [1.5, "x"]}, 4)
    refused = 0
    for _ in range(400):
        data = bytearray(whole)
        for at in rng.integers(len(data), size=rng.integers(1, 4)):
            data[at] = rng.integers(256)
        try:
            assert isinstance(read(bytes(data), tmp_path), dict)
        except CineError:
            refused += 1
    assert 100 < refused < 400


def test_truncated_and_large_files(tmp_path, monkeypatch):
    whole = pickle.dumps({"a": np.arange(100.0)}, 4)
    for n in range(0, len(whole) - 1, 7):
        refusal(whole[:n], tmp_path)
    monkeypatch.setattr(plain_pickle, "MAX_BYTES", 500)
    assert "expected 500 at most" in refusal(whole, tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CineError, match="not a regular file"):
        read_plain_pickle(tmp_path / "pipe")
