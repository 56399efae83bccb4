# Which arrays the kernels read or write as they stand. These look at the fields of
# ndarrays, never at their values.

cdef enum Encoding:
    # How a row holds its entries. Floats come first, then integers with scale and bias:
    # behind them, or before them (table-batched).
    FLOAT32
    FLOAT64
    FLOAT16
    BFLOAT16               # to NumPy these are uint16
    INT8
    INT4
    INT2
    TBE_INT8
    TBE_INT4
    TBE_INT2
    N_ENCODINGS

FLOAT_ENCODINGS = (FLOAT32, FLOAT64, FLOAT16, BFLOAT16)
QUANTIZED_ENCODINGS = {              # by layout and bits
    ("fused", 8): INT8,
    ("fused", 4): INT4,
    ("fused", 2): INT2,
    ("tbe", 8): TBE_INT8,
    ("tbe", 4): TBE_INT4,
    ("tbe", 2): TBE_INT2,
}


cdef inline int bits_of(const int encoding) noexcept nogil:
    """Bits of an entry."""
    if encoding == FLOAT32:
        return 32
    if encoding == FLOAT64:
        return 64
    if encoding == FLOAT16 or encoding == BFLOAT16:
        return 16
    if encoding == INT8 or encoding == TBE_INT8:
        return 8
    if encoding == INT4 or encoding == TBE_INT4:
        return 4
    return 2


cdef inline Py_ssize_t entry_bytes(const int bits, Py_ssize_t n) noexcept nogil:
    """The bytes of n entries."""
    if bits >= 8:
        return n * (bits // 8)
    return n // (8 // bits) + (n % (8 // bits) > 0)


cdef Py_ssize_t row_bytes_of(int encoding, Py_ssize_t dim) noexcept nogil:
    """Bytes of a row, padding aside."""
    cdef Py_ssize_t factors = 0
    if encoding >= INT8:
        factors = 8 if encoding == INT8 else 4
    return entry_bytes(bits_of(encoding), dim) + factors


cdef int type_of(int encoding):
    """NumPy's number for the dtype of arrays of such rows."""
    if encoding == FLOAT32:
        return cnp.NPY_FLOAT32
    if encoding == FLOAT64:
        return cnp.NPY_FLOAT64
    if encoding == FLOAT16:
        return cnp.NPY_FLOAT16
    return cnp.NPY_UINT16 if encoding == BFLOAT16 else cnp.NPY_UINT8


cdef Bags describe_bags(cnp.ndarray input, object offsets, bint include_last_offset):
    """How `input` and `offsets` make bags; n_bags is -1 if their shapes do not."""
    cdef Bags bags
    cdef int n_axes = cnp.PyArray_NDIM(input)
    bags.n_indices = cnp.PyArray_SIZE(input)
    bags.offsets = NULL
    bags.wide = False
    bags.n_offsets = 0
    bags.bag_size = 0
    bags.n_bags = -1
    if offsets is None:
        if n_axes == 2:
            bags.bag_size = cnp.PyArray_DIM(input, 1)
            bags.n_bags = cnp.PyArray_DIM(input, 0)
    elif n_axes == 1 and cnp.PyArray_NDIM(<cnp.ndarray>offsets) == 1:
        bags.offsets = cnp.PyArray_DATA(<cnp.ndarray>offsets)
        bags.wide = cnp.PyArray_ITEMSIZE(<cnp.ndarray>offsets) == 8
        bags.n_offsets = cnp.PyArray_DIM(<cnp.ndarray>offsets, 0)
        if bags.n_offsets > 0 or (bags.n_indices == 0 and not include_last_offset):
            bags.n_bags = bags.n_offsets - include_last_offset
    return bags


def is_table(object array):
    """Whether `embedding_bag` reads this as its `weight`, as it stands."""
    if not cnp.PyArray_Check(array):
        return False
    cdef cnp.ndarray table = <cnp.ndarray>array
    cdef int type_number = cnp.PyArray_TYPE(table)
    return (
        cnp.PyArray_NDIM(table) == 2
        and (type_number == cnp.NPY_FLOAT32 or type_number == cnp.NPY_FLOAT64)
        and cnp.PyArray_ISALIGNED(table)
        and cnp.PyArray_ISNOTSWAPPED(table)
        and (cnp.PyArray_DIM(table, 1) <= 1
             or cnp.PyArray_DIM(table, 0) == 0   # its strides may be anything
             or cnp.PyArray_STRIDE(table, 1) == cnp.PyArray_ITEMSIZE(table))
    )


cdef bint is_encoded_table(cnp.ndarray table, int encoding, Py_ssize_t dim):
    """Whether this holds rows of `dim` entries of that encoding, as it stands."""
    if not (0 <= encoding < N_ENCODINGS and cnp.PyArray_NDIM(table) == 2 and dim >= 0):
        return False
    cdef Py_ssize_t n_columns = row_bytes_of(encoding, dim) // cnp.PyArray_ITEMSIZE(table)
    return (
        cnp.PyArray_TYPE(table) == type_of(encoding)
        and cnp.PyArray_ISALIGNED(table)
        and cnp.PyArray_ISNOTSWAPPED(table)
        and (cnp.PyArray_DIM(table, 1) == n_columns
             or (encoding >= TBE_INT8 and cnp.PyArray_DIM(table, 1) > n_columns))
        and (cnp.PyArray_DIM(table, 1) <= 1
             or cnp.PyArray_DIM(table, 0) == 0
             or cnp.PyArray_STRIDE(table, 1) == cnp.PyArray_ITEMSIZE(table))
    )


def is_index_array(object array):
    """Whether `embedding_bag` reads this as its `input` or `offsets`, as it stands."""
    if not cnp.PyArray_Check(array):
        return False
    cdef cnp.ndarray indices = <cnp.ndarray>array
    return (
        cnp.PyTypeNum_ISSIGNED(cnp.PyArray_TYPE(indices))
        and cnp.PyTypeNum_ISINTEGER(cnp.PyArray_TYPE(indices))
        and cnp.PyArray_ITEMSIZE(indices) >= 4
        and cnp.PyArray_ISCARRAY_RO(indices)
    )


def count_bags(
    cnp.ndarray input not None,      # IN   an index array
    object offsets,                  # IN   an index array, or None
    bint include_last_offset,
):
    """How many bags they make; -1 if their shapes make none."""
    return describe_bags(input, offsets, include_last_offset).n_bags


def empty_output(Py_ssize_t n_bags, cnp.ndarray weight not None):
    """A new (n_bags, dim) array of weight's dtype, its values arbitrary."""
    return empty_matrix(n_bags, cnp.PyArray_DIM(weight, 1), cnp.PyArray_TYPE(weight))


cdef cnp.ndarray empty_matrix(Py_ssize_t n_bags, Py_ssize_t n_columns, int type_number):
    cdef cnp.npy_intp[2] shape
    shape[0] = n_bags
    shape[1] = n_columns
    try:
        return cnp.PyArray_EMPTY(2, shape, type_number, 0)
    except ValueError:               # NumPy's word for more bytes than can be counted
        raise MemoryError(f"cannot allocate an output of shape ({shape[0]}, {shape[1]})")


cdef cnp.ndarray empty_int64(Py_ssize_t n):
    cdef cnp.npy_intp[1] shape
    shape[0] = n
    return cnp.PyArray_EMPTY(1, shape, cnp.NPY_INT64, 0)


cdef bint is_result(object array, Py_ssize_t n_bags, Py_ssize_t dim, int type_number):
    """Whether this is an ndarray of that shape and type, contiguous and writeable."""
    if not cnp.PyArray_Check(array):
        return False
    cdef cnp.ndarray result = <cnp.ndarray>array
    return (
        cnp.PyArray_NDIM(result) == 2
        and cnp.PyArray_DIM(result, 0) == n_bags
        and cnp.PyArray_DIM(result, 1) == dim
        and cnp.PyArray_TYPE(result) == type_number
        and cnp.PyArray_ISCARRAY(result)
    )


cdef bint is_rows_of(object array, Py_ssize_t n, cnp.ndarray out):
    """Whether these are n increasing rows of `out`: the ends are looked at."""
    if not (is_index_array(array) and cnp.PyArray_ITEMSIZE(<cnp.ndarray>array) == 8):
        return False
    cdef const int64_t* rows = <const int64_t*>cnp.PyArray_DATA(<cnp.ndarray>array)
    return (
        cnp.PyArray_NDIM(<cnp.ndarray>array) == 1
        and cnp.PyArray_DIM(<cnp.ndarray>array, 0) == n
        and (n == 0 or (rows[0] >= 0 and rows[n - 1] < cnp.PyArray_DIM(out, 0)))
    )


cdef bint is_factors(object array, Py_ssize_t n_indices, int type_number):
    """Whether this is an ndarray of that size and type, contiguous."""
    if not cnp.PyArray_Check(array):
        return False
    cdef cnp.ndarray factors = <cnp.ndarray>array
    return (
        cnp.PyArray_SIZE(factors) == n_indices
        and cnp.PyArray_TYPE(factors) == type_number
        and cnp.PyArray_ISCARRAY_RO(factors)
    )


cdef void find_extent(cnp.ndarray array, size_t* start, size_t* stop):
    """The addresses that an array spans; an empty one spans none."""
    cdef Py_ssize_t reach
    cdef int axis
    start[0] = <size_t>cnp.PyArray_DATA(array)
    stop[0] = start[0] + <size_t>cnp.PyArray_ITEMSIZE(array)
    if cnp.PyArray_SIZE(array) == 0:
        stop[0] = start[0]
        return
    for axis in range(cnp.PyArray_NDIM(array)):
        reach = (cnp.PyArray_DIM(array, axis) - 1) * cnp.PyArray_STRIDE(array, axis)
        if reach < 0:
            start[0] += <size_t>reach
        else:
            stop[0] += <size_t>reach


def is_output(object array, cnp.ndarray weight not None, Py_ssize_t n_bags, tuple inputs not None):
    """Whether `embedding_bag` can write to this: it is like its `out`, and spans no
    address that an ndarray among the inputs spans."""
    return (is_result(array, n_bags, cnp.PyArray_DIM(weight, 1), cnp.PyArray_TYPE(weight))
            and is_apart(<cnp.ndarray>array, inputs))


cdef bint is_apart(cnp.ndarray array, tuple inputs):
    """Whether an array spans no address that an ndarray among the inputs spans."""
    cdef size_t start, stop, input_start, input_stop
    find_extent(array, &start, &stop)
    for item in inputs:
        if cnp.PyArray_Check(item):
            find_extent(<cnp.ndarray>item, &input_start, &input_stop)
            if start < input_stop and input_start < stop:
                return False
    return True


cdef int refuse_change(bint unchanged) except -1:
    """Arrays were checked, but code that ran since may have given them another layout."""
    if not unchanged:
        raise RuntimeError("arrays must not change during the call, got a change of layout")
    return 0
