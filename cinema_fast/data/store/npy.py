"""The header of the .npy files in a store: of a uint8 array in C order, and so a function of its shape alone."""

import io

import numpy as np

NPY_HEADER_BYTES = 128  # what numpy writes for these shapes; a file with another header was not written here


def npy_header(shape: tuple[int, ...]) -> bytes:
    """The bytes before those of a uint8 array of a shape."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    assert len(file.getvalue()) == NPY_HEADER_BYTES
    return file.getvalue()


def header_fault(head: bytes, shape: tuple[int, ...]) -> str:
    """What is wrong with `head`, the first 128 bytes of a file, where a uint8 array of a shape should lie; or ""."""
    if head == npy_header(shape):
        return ""
    try:
        stream = io.BytesIO(head)
        np.lib.format.read_magic(stream)
        found, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    except Exception as err:  # numpy reads the text as Python: whatever that raises
        return f"not the .npy file that was prepared ({err})"
    if (found, fortran, dtype) == (shape, False, np.uint8):
        return "its header was altered"
    order = " in Fortran order" if fortran else ""
    return f"holds {dtype} {found}{order}, the index says uint8 {shape}: the file was replaced"
