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


cdef double euclidean_norm(const floating_ft* row, Py_ssize_t dim) noexcept nogil:
    """row_norm for p = 2. Squares of floats in float64 need no scaling."""
    cdef:
        double lanes[NORM_LANES]
        double total = 0
        Py_ssize_t d, j, n_whole = dim // NORM_LANES * NORM_LANES
    if floating_ft is double:
        total = row_norm(row, dim, 2)
    else:
        for j in range(NORM_LANES):
            lanes[j] = 0
        for d in range(0, n_whole, 8):           # NORM_LANES, but Cython wants a literal step
            for j in range(NORM_LANES):
                lanes[j] = lanes[j] + <double>row[d + j] * <double>row[d + j]
        for d in range(n_whole, dim):
            lanes[d - n_whole] += <double>row[d] * <double>row[d]
        for j in range(NORM_LANES):
            total = total + lanes[j]
        total = sqrt(total)
    return total


cdef void renorm_row(
    floating_ft* row, Py_ssize_t dim, double max_norm, double norm_type   # row: INOUT
) noexcept nogil:
    cdef:
        double norm = row_norm(row, dim, norm_type), scale
        Py_ssize_t d
    if norm > max_norm:
        scale = max_norm / (norm + 1e-7)
        for d in range(dim):
            row[d] = <floating_ft>(row[d] * scale)


cdef struct Renorm:
    char* table            # (n_rows, dim)
    Py_ssize_t row_stride  # bytes
    Py_ssize_t dim
    Py_ssize_t n           # rows to scale
    double max_norm
    double norm_type


cdef bint renorm_chunk(
    const Renorm* job, const int64_t* rows, floating_ft* _, Py_ssize_t c, Py_ssize_t n_chunks
) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(cut(job.n, c, n_chunks), cut(job.n, c + 1, n_chunks)):
        renorm_row(<floating_ft*>(job.table + rows[i] * job.row_stride), job.dim, job.max_norm,
                   job.norm_type)
    return True


def renorm(
    int n_threads,
    cnp.ndarray weight not None,     # INOUT (n_rows, dim) float32 or float64, columns adjacent
    cnp.ndarray rows not None,       # IN    (n,) int64, contiguous, each once and valid
    double max_norm,
    double norm_type,
):
    """Scale the named rows whose norm exceeds max_norm by max_norm / (norm + 1e-7)."""
    refuse_change(is_table(weight) and cnp.PyArray_ISWRITEABLE(weight) and is_index_array(rows)
                  and cnp.PyArray_ITEMSIZE(rows) == 8)
    cdef:
        const int64_t* ids = <const int64_t*>cnp.PyArray_DATA(rows)
        Renorm job = Renorm(
            <char*>cnp.PyArray_DATA(weight), cnp.PyArray_STRIDE(weight, 0),
            cnp.PyArray_DIM(weight, 1), cnp.PyArray_SIZE(rows), max_norm, norm_type)
        chunk_work work = <chunk_work>renorm_chunk[float]
    refuse_change(find_bad_index(ids, job.n, <size_t>cnp.PyArray_DIM(weight, 0), 0) < 0)
    if cnp.PyArray_ITEMSIZE(weight) == 8:
        work = <chunk_work>renorm_chunk[double]
    run_chunks(work, &job, ids, NULL, shares_of(n_threads, 0), n_threads)
