# Norms of rows, and rows scaled to a largest norm.

cdef enum:
    NORM_LANES = 8         # partial sums of a row's norm: the order is part of the result


cdef double row_norm(const floating_ft* row, Py_ssize_t dim, double p) noexcept nogil:
    """The p-norm in float64, scaled by the largest entry so that no power overflows.

    The powers are summed in NORM_LANES lanes, then the lanes in order.
    """
    cdef:
        double lanes[NORM_LANES]
        double x, largest = 0, total = 0
        Py_ssize_t d
    for d in range(dim):
        x = fabs(<double>row[d])
        largest = x if wins(x, largest) else largest
    if p == INFINITY or largest == 0 or largest == INFINITY or largest != largest:
        return largest
    for d in range(NORM_LANES):
        lanes[d] = 0
    for d in range(dim):
        x = fabs(<double>row[d]) / largest
        lanes[d % NORM_LANES] += x * x if p == 2 else pow(x, p)
    for d in range(NORM_LANES):
        total = total + lanes[d]
    return largest * (sqrt(total) if p == 2 else pow(total, 1 / p))


cdef void renorm_row(
    floating_ft* row, Py_ssize_t dim, double max_norm, const double* norm_type   # row: INOUT
) noexcept nogil:
    cdef:
        uint64_t floats = embag_use_default_floats()
        double norm = row_norm(row, dim, embag_read_double(norm_type)), scale
        Py_ssize_t d
    if norm > max_norm:
        scale = max_norm / (norm + 1e-7)
        for d in range(dim):
            row[d] = <floating_ft>(row[d] * scale)
    embag_restore_floats(floats)


def renorm(
    int n_threads,
    cnp.ndarray weight not None,     # INOUT (n_rows, dim) float32 or float64, columns adjacent
    cnp.ndarray rows not None,       # IN    (n,) int64, contiguous, each once and valid
    double max_norm,
    double norm_type,
):
    """Scale the named rows whose norm exceeds max_norm by max_norm / (norm + 1e-7)."""
    cdef:
        char* table = <char*>cnp.PyArray_DATA(weight)
        const int64_t* ids = <const int64_t*>cnp.PyArray_DATA(rows)
        Py_ssize_t stride = cnp.PyArray_STRIDE(weight, 0), dim = cnp.PyArray_DIM(weight, 1)
        Py_ssize_t n = cnp.PyArray_SIZE(rows), i
        bint is_float = cnp.PyArray_ITEMSIZE(weight) == 4
    refuse_change(is_table(weight) and cnp.PyArray_ISWRITEABLE(weight) and is_index_array(rows)
                  and cnp.PyArray_ITEMSIZE(rows) == 8
                  and find_bad_index(ids, n, <size_t>cnp.PyArray_DIM(weight, 0)) < 0)
    with nogil:
        for i in prange(n, num_threads=n_threads, use_threads_if=n_threads > 1,
                        schedule="static"):
            if is_float:
                renorm_row(<float*>(table + ids[i] * stride), dim, max_norm, &norm_type)
            else:
                renorm_row(<double*>(table + ids[i] * stride), dim, max_norm, &norm_type)
