# Which arrays the kernels read or write as they are. The functions look at the fields of
# ndarrays, never at their values.

cdef int refuse_change(bint unchanged) except -1:
    """Raise if code that ran since arrays were checked gave them another layout."""
    if not unchanged:
        raise RuntimeError("arrays must not change during the call, got a change of layout")
    return 0


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


cpdef bint is_table(object array):
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


cpdef bint is_encoded_table(cnp.ndarray table, int encoding, Py_ssize_t dim):
    """Whether this holds rows of `dim` entries of that encoding, as it stands."""
    if not (is_encoding(encoding) and cnp.PyArray_NDIM(table) == 2 and dim >= 0):
        return False
    cdef Py_ssize_t n_columns = row_bytes_of(encoding, dim) // cnp.PyArray_ITEMSIZE(table)
    return (
        cnp.PyArray_TYPE(table) == ENCODINGS[encoding].type_number
        and cnp.PyArray_ISALIGNED(table)
        and cnp.PyArray_ISNOTSWAPPED(table)
        and (cnp.PyArray_DIM(table, 1) == n_columns
             or (ENCODINGS[encoding].factors_first and cnp.PyArray_DIM(table, 1) > n_columns))
        and (cnp.PyArray_DIM(table, 1) <= 1
             or cnp.PyArray_DIM(table, 0) == 0
             or cnp.PyArray_STRIDE(table, 1) == cnp.PyArray_ITEMSIZE(table))
    )


cpdef bint is_index_array(object array):
    """Whether `embedding_bag` reads this as its `input` or `offsets`, as it stands."""
    if not cnp.PyArray_Check(array):
        return False
    cdef cnp.ndarray indices = <cnp.ndarray>array
    return (
        cnp.PyTypeNum_ISSIGNED(cnp.PyArray_TYPE(indices))
        and cnp.PyArray_ITEMSIZE(indices) >= 4
        and cnp.PyArray_ISCARRAY_RO(indices)
    )


def count_bags(
    cnp.ndarray input not None,      # IN   an index array
    object offsets,                  # IN   an index array, or None
    bint include_last_offset,
) -> int:
    """How many bags they make; -1 if their shapes make none."""
    return describe_bags(input, offsets, include_last_offset).n_bags


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


cdef bint is_rows_of(object array, cnp.ndarray out):
    """Whether these are increasing rows of `out`: the ends are looked at."""
    if not (is_index_array(array) and cnp.PyArray_ITEMSIZE(<cnp.ndarray>array) == 8
            and cnp.PyArray_NDIM(<cnp.ndarray>array) == 1):
        return False
    cdef const int64_t* rows = <const int64_t*>cnp.PyArray_DATA(<cnp.ndarray>array)
    cdef Py_ssize_t n = cnp.PyArray_DIM(<cnp.ndarray>array, 0)
    return n == 0 or (rows[0] >= 0 and rows[n - 1] < cnp.PyArray_DIM(out, 0))


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


cdef bint is_apart(cnp.ndarray array, object input):
    """Whether an array spans no address that an input, if it is an ndarray, spans."""
    cdef size_t start, stop, input_start, input_stop
    if not cnp.PyArray_Check(input):
        return True
    find_extent(array, &start, &stop)
    find_extent(<cnp.ndarray>input, &input_start, &input_stop)
    return stop <= input_start or input_stop <= start


def are_apart(tuple changed not None, tuple read not None) -> bool:
    """Whether no array that is changed spans an address that another of these arrays spans."""
    cdef Py_ssize_t n = len(changed), i, j
    for i in range(n):
        for j in range(i):
            if not is_apart(<cnp.ndarray?>changed[i], changed[j]):
                return False
        for array in read:
            if not is_apart(<cnp.ndarray?>changed[i], array):
                return False
    return True


def first_bad_offset(
    cnp.ndarray offsets not None,    # IN   (n_offsets,) int32 or int64, contiguous
    Py_ssize_t n_indices,
) -> int:
    """The first offset that is not 0 (the first), smaller than the one before it, or larger
    than n_indices; -1 if all are valid."""
    cdef Bags bags
    cdef Py_ssize_t i
    refuse_change(is_index_array(offsets) and cnp.PyArray_NDIM(offsets) == 1)
    memset(&bags, 0, sizeof(Bags))
    bags.offsets = cnp.PyArray_DATA(offsets)
    bags.wide = cnp.PyArray_ITEMSIZE(offsets) == 8
    bags.n_offsets = cnp.PyArray_DIM(offsets, 0)
    bags.n_indices = n_indices
    with nogil:
        i = find_bad_offset(&bags)
    return i


def first_bad_index(
    cnp.ndarray input not None,      # IN   int32 or int64, contiguous
    Py_ssize_t n_rows,
    Py_ssize_t first_id=0,           # ids are n_rows numbers from here on
) -> int:
    """The first position, counted in C order, whose id is out of range; -1 if there is none."""
    cdef:
        void* indices = cnp.PyArray_DATA(input)
        Py_ssize_t n_indices = cnp.PyArray_SIZE(input)
        bint is_wide = cnp.PyArray_ITEMSIZE(input) == 8
        Py_ssize_t position
    refuse_change(is_index_array(input))
    with nogil:
        if is_wide:
            position = find_bad_index(<const int64_t*>indices, n_indices, <size_t>n_rows,
                                      <size_t>first_id)
        else:
            position = find_bad_index(<const int32_t*>indices, n_indices, <size_t>n_rows,
                                      <size_t>first_id)
    return position
