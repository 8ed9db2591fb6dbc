"""Reads pickles of arrays and plain containers without running anything of theirs.

A pickle is a program: it may call any function by name. Here a name is looked up in a table of stand-ins for what numpy
writes for an array, a number and a dtype; every other name is refused. The stand-ins check shapes, dtypes and sizes,
and make arrays from bytes that are in the file; numpy's own routines for unpickling, which trust their input, are not
called. Sizes, counts and places in the memo are checked before the program starts, arrays are not copied, and text is
encoded only as far as the file has bytes: so is the memory that it can claim. Keys and members of sets are text and
numbers alone, since the hash of tuples in tuples may take any time.
"""

import hashlib
import io
import math
import os
import pickle
import pickletools
import re
from pathlib import Path
from typing import Any

import numpy as np

from ...common.regular_file import open_regular
from .cine import MAX_BYTES, CineError

# A dictionary of arrays has some hundreds. More would let nested containers exhaust the stack.
MOST_OPCODES = 10_000
MOST_AXES = 8


def read_plain_pickle(path: Path) -> tuple[dict[str, Any], str]:
    """The dictionary in a pickle, and the SHA-256 of the file.

    Its values are arrays (bool, integers, real numbers; read-only), numbers, strings, bytes, None, and dictionaries,
    lists, tuples and sets of them. Only arrays directly in the dictionary, or in a list or tuple in it, are ndarrays.

    Raises:
        CineError: anything else in it, by its name; truncated or damaged; more than MAX_BYTES; not a dictionary.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_BYTES:
                raise CineError(path, f"{size} bytes, expected {MAX_BYTES} at most: no cine is as large")
            data = file.read()
    except OSError as err:
        raise CineError(path, f"cannot be read: {err.strerror or err}") from err
    try:
        _check_program(data)
        content = _Unpickler(data).load()
    except Exception as err:  # the program may fail in any way (Python documentation of pickle)
        reason = str(err) if isinstance(err, (pickle.UnpicklingError, ValueError)) else type(err).__name__
        raise CineError(path, f"not a readable pickle of arrays: {reason[:300]}") from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise CineError(path, f"holds a {type(content).__name__}, expected a dictionary with names as keys")
    return {key: _plain(value) for key, value in content.items()}, hashlib.sha256(data).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(item.values if isinstance(item, _Array) else item for item in value)
    return value.values if isinstance(value, _Array) else value


def _check_program(data: bytes) -> None:
    """Raise ValueError where an opcode claims more bytes than the file has, or a large place in the memo."""
    for n, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        if n >= MOST_OPCODES:
            raise ValueError(f"more than {MOST_OPCODES} opcodes: expected few, large arrays")
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument > n:
            raise ValueError(f"place {argument} in the memo after {n} opcodes")


class _StandIn:
    """In place of a function or class that numpy's pickles name. A pickle cannot set attributes of it."""

    __slots__ = ("_make",)

    def __init__(self, make) -> None:
        self._make = make

    def __call__(self, *args):
        return self._make(*args)

    def __setstate__(self, state) -> None:
        raise pickle.UnpicklingError("it would change a function")


class _DType:
    """dtype of bool, integers or real numbers; the byte order comes as its state."""

    __slots__ = ("code",)

    def __init__(self, code: str, *_) -> None:
        if not isinstance(code, str) or not re.fullmatch("b1|[iu][1248]|f(2|4|8)", code):
            raise pickle.UnpicklingError(f"an array of the type {str(code)[:80]!r}, expected real numbers")
        self.code = code

    def __setstate__(self, state: tuple) -> None:
        _, order, subarray, names, fields, *_ = state
        if order not in ("<", ">", "|", "=") or any(one is not None for one in (subarray, names, fields)):
            raise pickle.UnpicklingError("an array of records, expected real numbers")
        self.code = order + self.code[-2:]


class _Array:
    """An array that is filled by its state."""

    __slots__ = ("values",)

    def __init__(self, values: np.ndarray | None = None) -> None:
        self.values = values

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, raw = state
        self.values = _from_bytes(raw, dtype, shape, "F" if fortran else "C").values


def _from_bytes(raw: bytes, dtype: _DType, shape: tuple, order: str, axes: tuple | None = None) -> _Array:
    """numpy._core.numeric._frombuffer."""
    code = np.dtype(dtype.code)
    if not isinstance(raw, (bytes, bytearray)) or not isinstance(shape, tuple) or len(shape) > MOST_AXES:
        raise pickle.UnpicklingError("an array without its bytes or shape")
    if any(type(n) is not int or n < 0 for n in shape) or math.prod(shape) * code.itemsize != len(raw):
        raise pickle.UnpicklingError(f"an array of the shape {str(shape)[:80]} and type {code} in {len(raw)} bytes")
    values = np.frombuffer(raw, code)
    values.flags.writeable = False
    if order == "K" and axes is not None:
        return _Array(values.reshape(shape).transpose(axes))
    return _Array(values.reshape(shape, order="F" if order == "F" else "C"))


def _number(dtype: _DType, raw: bytes) -> float | int | bool:
    return _from_bytes(raw, dtype, (1,), "C").values[0].item()


def _never(*args) -> None:
    raise pickle.UnpicklingError("an array that is made by its class")


_ALLOWED = {
    ("numpy", "ndarray"): _StandIn(_never),  # only named, as an argument of _reconstruct
    ("numpy", "dtype"): _StandIn(_DType),
    ("__builtin__", "bytes"): _StandIn(lambda: b""),
    **{(f"numpy.{core}.{module}", name): _StandIn(make)
       for core in ("core", "_core")
       for module, name, make in (("multiarray", "_reconstruct", lambda *_: _Array()),
                                  ("multiarray", "scalar", _number), ("numeric", "_frombuffer", _from_bytes))},
}  # fmt: skip


_KEYS = (str, bytes, int, float, type(None))


class _Unpickler(pickle._Unpickler):  # the one in Python, whose steps can be checked; few steps need no speed
    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self._encodable = len(data)

    def find_class(self, module: str, name: str) -> _StandIn:
        if (module, name) == ("_codecs", "encode"):  # bytes in protocols before 3
            return _StandIn(self._encode)
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, expected arrays, numbers, text and containers: "
                                         "load it where you trust it, and write it again with numpy arrays")
        return _ALLOWED[module, name]

    def _encode(self, text: str, _encoding: str) -> bytes:
        self._encodable -= len(text)
        if self._encodable < 0:
            raise pickle.UnpicklingError("more bytes from text than the file has")
        return text.encode("latin1")


def _checked(opcode: bytes, keys: slice) -> None:
    """Let an opcode that enters `keys` of the stack into a dictionary or set check them first."""
    load = pickle._Unpickler.dispatch[opcode[0]]

    def check_and_load(unpickler: _Unpickler) -> None:
        for key in unpickler.stack[keys]:
            if not isinstance(key, _KEYS):
                raise pickle.UnpicklingError(f"a {type(key).__name__} as a key, expected text or a number")
        load(unpickler)

    _Unpickler.dispatch[opcode[0]] = check_and_load


_Unpickler.dispatch = dict(pickle._Unpickler.dispatch)
_checked(pickle.SETITEM, slice(-2, -1))
for _opcode, _keys in ((pickle.SETITEMS, slice(0, None, 2)), (pickle.DICT, slice(0, None, 2)),
                       (pickle.ADDITEMS, slice(None)), (pickle.FROZENSET, slice(None))):  # fmt: skip
    _checked(_opcode, _keys)
