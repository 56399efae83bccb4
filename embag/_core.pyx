"""The kernels, and what Python calls of them.

The forward pass gathers rows of a table and reduces them per bag:

    out[b, d] = reduce(weight[input[k], d] for k in bag b)

The backward pass groups the positions of `input` by row. Then the gradient of a row is
the sum of the gradients of the bags that it is in, so the forward kernel computes it,
with rows for bags and bags for rows.

The parts, each using only those above it:

    bags.pxi         which positions a bag has; whether ids and offsets are valid
    encodings.pxi    how a row holds its entries: the one table of encodings
    modes.pxi        how the rows of a bag are reduced: the one table of modes
    arrays.pxi       which arrays can be read or written as they are
    chunks.pxi       work in chunks, shared among threads
    arithmetic.pxi   arithmetic on some columns of a row, in registers
    pages.pxi        whether the pages of rows are prefetched
    strategies.pxi   which rows are prefetched when
    renorm.pxi       norms of rows; rows scaled to a largest norm
    jobs.pxi         what is looked up, where results go; prefetching
    entries.pxi      the entries of a row, decoded
    blocks.pxi       the walk: bags reduced over a block of columns
    forward.pxi      jobs cut into tasks, and tasks into blocks
    mapping.pxi      ids that are not numbers of rows
    calls.pxi        lookups in one table, as Python calls them
    lists.pxi        lists of Python's ints, as arrays
    gather.pxi       lookups without bags: a row for each id
    collection.pxi   many tables in one call
    grouping.pxi     positions grouped by row: a radix sort
    backward.pxi     what the gradients need beside those
    optimizers.pxi   rules of optimizers: how a row changes by its gradient
    steps.pxi        steps of optimizers, on one table or several
    quantize.pxi     rows of floats to rows of few bits

A kernel here is `noexcept nogil`, pointers and sizes in, its output filled, True
for success. It allocates nothing, raises nothing and never sees a Python object. On
False the caller looks for the position to blame (`first_bad_offset`,
`first_bad_index`). Arguments are checked in `_arguments.py`, not here.

Nothing is read that was not checked: each index is compared with `n_rows` in the
register that addresses the row, each bag's stop when it is read. Another thread that
writes to `input` or `offsets` meanwhile cannot cause a wild read.

All of this is compiled once per instruction-set level: `_core_v3.pyx` and
`_core_v4.pyx` only include it. Every level computes the same bits: additions happen
in the order of positions, and setup.py forbids contraction into FMA. So does every thread:
each task runs under the processor's default floating-point settings (_platform.h).

docs/design.md has the reasons, with figures. Tested against tests/support/reference.py.
"""

from cpython.exc cimport PyErr_CheckSignals
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from cpython.ref cimport PyObject
from libc.math cimport INFINITY, ceil, fabs, floor, ldexp, pow, sqrt, sqrtf
from libc.stddef cimport size_t
from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from cython.parallel cimport prange

cimport cython
cimport numpy as cnp

cnp.import_array()

cdef extern from "Python.h":
    PyObject* PyList_GET_ITEM(object, Py_ssize_t)     # borrowed
    PyObject* PyTuple_GET_ITEM(object, Py_ssize_t)
    bint PyLong_CheckExact(object)
    int64_t PyLong_AsLongLongAndOverflow(object, int*) except? -1

cdef extern from "_kernels/platform.h" nogil:
    void embag_prefetch(size_t address)
    void embag_prefetch_near(size_t address)
    void embag_touch(const char* address)
    void embag_prefetch_pages(size_t address, size_t n_bytes)
    int64_t embag_now()
    bint embag_leads()
    int64_t embag_process()
    void embag_add_region(double took, double alone)
    void embag_take_region(double* took, double* alone)
    int embag_cpu_family()
    void embag_prefetch_to_write(size_t address)
    int32_t embag_read_int32(const int32_t* source)
    int64_t embag_read_int64(const int64_t* source)
    void embag_count(int64_t* total, int64_t n)
    uint64_t embag_use_default_floats()
    void embag_restore_floats(uint64_t given)
    float embag_read_float(const char* source)
    uint16_t embag_read_uint16(const char* source)
    void embag_write_float(char* to, float value)
    void embag_write_uint16(char* to, uint16_t value)
    uint32_t embag_read_2_codes(const uint8_t* source)
    uint32_t embag_read_4_codes(const uint8_t* source)
    uint32_t embag_bits_of_float(float value)
    float embag_half_to_float(uint16_t half)
    float embag_bfloat_to_float(uint16_t bfloat)
    uint16_t embag_float_to_half(float value)
    uint16_t embag_float_to_bfloat(float value)
    void embag_halves_to_floats(const Py_ssize_t n, const char* halves, float* to)
    void embag_floats_to_halves(const Py_ssize_t n, const float* source, uint16_t* to)
    void embag_bytes_to_floats(const int bits, const Py_ssize_t n, const char* source, float* to)
    void embag_int8s_to_floats(const Py_ssize_t n, const char* source, float* to)
    void embag_e4m3s_to_floats(const Py_ssize_t n, const char* source, float* to)
    void embag_e5m2s_to_floats(const Py_ssize_t n, const char* source, float* to)
    float embag_fma(float a, float b, float c)
    int embag_cpu_level()
    enum: EMBAG_BLOCK_BYTES
    enum: EMBAG_FMA
    enum: EMBAG_TOUCHES
    enum: EMBAG_OPENMP
    const char* EMBAG_COMPILER

ctypedef fused floating_ft:
    float
    double

ctypedef fused index_ft:
    int32_t
    int64_t

cdef enum:
    LINE = 64              # bytes of a cache line
    SHARES = 4             # of the work for each thread: they are not equally fast

include "_kernels/bags.pxi"
include "_kernels/encodings.pxi"
include "_kernels/modes.pxi"
include "_kernels/arrays.pxi"
include "_kernels/chunks.pxi"
include "_kernels/arithmetic.pxi"
include "_kernels/pages.pxi"
include "_kernels/strategies.pxi"
include "_kernels/renorm.pxi"
include "_kernels/jobs.pxi"
include "_kernels/entries.pxi"
include "_kernels/blocks.pxi"
include "_kernels/forward.pxi"
include "_kernels/mapping.pxi"
include "_kernels/calls.pxi"
include "_kernels/lists.pxi"
include "_kernels/gather.pxi"
include "_kernels/collection.pxi"
include "_kernels/grouping.pxi"
include "_kernels/backward.pxi"
include "_kernels/optimizers.pxi"
include "_kernels/steps.pxi"
include "_kernels/quantize.pxi"


def build_info():
    """How this module was compiled: (compiler, OpenMP's version date or 0)."""
    return EMBAG_COMPILER.decode(), EMBAG_OPENMP


def cpu_level() -> int:
    """The highest x86-64 level that this machine runs: 4, 3 or 1; 0 if it is no x86-64."""
    return embag_cpu_level()
