"""The header of the .npy files in a store. They are uint8 arrays in C order, so it depends only on the shape."""

import io

import numpy as np

NPY_HEADER_BYTES = 128  # numpy's header for these shapes; a file with another header was not written here


def npy_header(shape: tuple[int, ...]) -> bytes:
    """The header of a uint8 array of this shape."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    assert len(file.getvalue()) == NPY_HEADER_BYTES
    return file.getvalue()


def header_fault(head: bytes, shape: tuple[int, ...]) -> str:
    """What is wrong with `head`, the first 128 bytes of a file that should hold a uint8 array of this shape; or ""."""
    if head == npy_header(shape):
        return ""
    try:
        stream = io.BytesIO(head)
        np.lib.format.read_magic(stream)
        found, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    except Exception as err:  # numpy parses the text as Python, which may raise anything
        return f"not the .npy file that was prepared ({err})"
    if (found, fortran, dtype) == (shape, False, np.uint8):
        return "its header was altered"
    order = " in Fortran order" if fortran else ""
    return f"holds {dtype} {found}{order}, the index says uint8 {shape}: the file was replaced"
