"""Arrow arrays whose exported C structs are changed, as a hostile producer would."""

import ctypes


class ArrowArray(ctypes.Structure):
    pass


ArrowArray._fields_ = [
    *((name, ctypes.c_int64) for name in
      ("length", "null_count", "offset", "n_buffers", "n_children")),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(ArrowArray))),
    ("dictionary", ctypes.c_void_p),
    ("release", ctypes.c_void_p),
    ("private_data", ctypes.c_void_p),
]  # fmt: skip


# Instead of the producer's own function, which would read beyond the array.
RELEASE = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda array: None)
LET_BE = ctypes.cast(RELEASE, ctypes.c_void_p).value


class Exports:
    """An Arrow array whose exported struct is changed."""

    def __init__(self, column, change):
        self.column, self.change = column, change

    def __arrow_c_array__(self, requested_schema=None):
        schema, array = self.column.__arrow_c_array__()
        get = ctypes.pythonapi.PyCapsule_GetPointer
        get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        self.change(ArrowArray.from_address(get(array, b"arrow_array")))
        return schema, array
