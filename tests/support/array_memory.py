"""Have NumPy allocate arrays by functions of a C file, such as guarded_memory.c."""

import ctypes

import numpy as np

_NUMBER = 304  # of PyDataMem_SetHandler in NumPy's table of functions (NEP 49)
_NAME = b"mem_handler"  # capsules refer to it


def use_allocator(library):
    """Set the allocator to the variable `memory_of_arrays` of a library, for this thread."""
    api = ctypes.pythonapi
    api.PyCapsule_GetPointer.restype = ctypes.c_void_p
    api.PyCapsule_GetPointer.argtypes = ctypes.py_object, ctypes.c_char_p
    api.PyCapsule_New.restype = ctypes.py_object
    api.PyCapsule_New.argtypes = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p
    functions = api.PyCapsule_GetPointer(np._core._multiarray_umath._ARRAY_API, None)
    address = ctypes.cast(functions, ctypes.POINTER(ctypes.c_void_p))[_NUMBER]
    set_handler = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object)(address)
    handler = ctypes.addressof(ctypes.c_char.in_dll(library, "memory_of_arrays"))
    set_handler(api.PyCapsule_New(handler, _NAME, None))
