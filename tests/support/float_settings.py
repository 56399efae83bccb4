"""Read and change the floating-point settings of a thread, on x86-64 under Linux.

Importing this raises PermissionError if the system allows no executable memory.
"""

import contextlib
import ctypes
import mmap

SETTINGS = {  # of the register MXCSR; its lowest six bits are flags, not settings
    "flush": 0x9FC0,  # subnormal results and operands become zero
    "down": 0x3F80,
    "up": 0x5F80,
    "toward zero": 0x7F80,
}


def make_accessors():
    """Return functions that load MXCSR from an address, and store it there."""
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(bytes.fromhex("0fae17 c3 0fae1f c3"))  # ldmxcsr [rdi]; ret; stmxcsr [rdi]; ret
    start = ctypes.addressof(ctypes.c_char.from_buffer(page))
    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    return function(start), function(start + 4), page


LOAD, STORE, _PAGE = make_accessors()


def current():
    """Return the settings of the calling thread."""
    register = ctypes.c_uint32()
    STORE(ctypes.addressof(register))
    return register.value & 0xFFC0


@contextlib.contextmanager
def settings(name):
    """Change the settings of the calling thread, and check that the block keeps them."""
    before, changed = ctypes.c_uint32(current()), ctypes.c_uint32(SETTINGS[name])
    LOAD(ctypes.addressof(changed))
    try:
        yield
        assert current() == SETTINGS[name]
    finally:
        LOAD(ctypes.addressof(before))
