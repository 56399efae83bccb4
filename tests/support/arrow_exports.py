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


class ArrowSchema(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_char_p) for name in ("format", "name", "metadata")),
        *((name, ctypes.c_int64) for name in ("flags", "n_children")),
        *((name, ctypes.c_void_p) for name in ("children", "dictionary", "release", "private")),
    ]  # fmt: skip


class ArrowArrayStream(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_void_p)
        for name in ("get_schema", "get_next", "get_last_error", "release", "private_data")
    ]


# Instead of the producer's own function, which would read beyond the array.
RELEASE = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda array: None)
LET_BE = ctypes.cast(RELEASE, ctypes.c_void_p).value


class Exports:
    """An Arrow array whose exported structs are changed."""

    def __init__(self, column, change=None, change_schema=None):
        self.column, self.change, self.change_schema = column, change, change_schema

    def __arrow_c_array__(self, requested_schema=None):
        schema, array = self.column.__arrow_c_array__()
        get = ctypes.pythonapi.PyCapsule_GetPointer
        get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        if self.change:
            self.change(ArrowArray.from_address(get(array, b"arrow_array")))
        if self.change_schema:
            self.change_schema(ArrowSchema.from_address(get(schema, b"arrow_schema")))
        return schema, array


class FailingStream:
    """A stream that has no schema, and does not say why."""

    FAIL = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(lambda *_: 5)
    SAY_NOTHING = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(lambda _: None)

    def __arrow_c_stream__(self, requested_schema=None):
        functions = self.FAIL, self.FAIL, self.SAY_NOTHING, RELEASE, None
        self.stream = ArrowArrayStream(*(ctypes.cast(f, ctypes.c_void_p) for f in functions))
        new = ctypes.pythonapi.PyCapsule_New
        new.restype = ctypes.py_object
        new.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        return new(ctypes.addressof(self.stream), b"arrow_array_stream", None)
