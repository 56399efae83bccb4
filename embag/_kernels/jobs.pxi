# Jobs: one table, the bags that are wanted of it, and where their results go. And prefetching.

cdef enum:
    ONES = 2                    # positions a bag: below that, bags of one row are looked for
    # How rows are prefetched. Origin of the figures: docs/design.md, "Prefetch".
    NEAR_TABLE = 512 << 10      # bytes: of a smaller table nothing is prefetched
    CACHED_TABLE = 16 << 20     # bytes: a smaller table is assumed to be in the caches
    NEAR = 16                   # rows ahead in a cached table
    FAR = 64                    # rows ahead, and rows a burst, in a larger one ...
    FAR_BYTES = 64 << 10        # ... or as many as this, where rows are wide ...
    FAR_LEAST = 8               # ... but not fewer than these

cdef struct Task:
    # A rectangle of the output: some bags, some columns.
    Py_ssize_t bag_start
    Py_ssize_t bag_stop
    Py_ssize_t column_start
    Py_ssize_t column_stop
    bint first             # its first rows have not been prefetched
    bint done
    Py_ssize_t n_invalid   # ids out of range that were skipped
    Py_ssize_t job         # where several are planned together: the job that it is part of

cdef struct Job

ctypedef bint (*reducer)(const Job*, const Task*) noexcept nogil

cdef struct Job:
    # Reduces a task's bags over a block of columns, except for ARGMAX.
    # Called through this pointer, each reducer is compiled by itself: in one function they
    # would compete for registers.
    reducer reduce_columns
    # The table: see describe_table.
    const char* table
    Py_ssize_t row_stride  # bytes, of either sign
    Py_ssize_t n_rows
    Py_ssize_t dim
    int encoding
    int bits               # of an entry
    Py_ssize_t entries     # where a row has its entries, in bytes ...
    Py_ssize_t factors     # ... and its scale and bias
    bint short_factors     # these are float16, else float32
    Py_ssize_t row_bytes   # all that is read of a row
    bint straddles         # blocks of rows need not be whole cache lines
    # Rows are prefetched `ahead` positions before they are used, unless that is 0: one at
    # each position, or, if burst > 0, `burst` of them at every burst-th. Bursts keep the
    # core's few miss buffers for the prefetches while they last; prefetches mixed with the
    # loads of earlier rows take turns with them, which costs up to half of the bandwidth.
    Py_ssize_t ahead
    Py_ssize_t burst
    # The bags.
    const void* input
    bint wide              # input is int64, else int32
    Bags bags
    Py_ssize_t n_positions      # in these bags, as first seen
    bint ones              # many bags have one row: worth a way of their own
    const void* sample     # (n_indices,) of the dtype of sums, for WEIGHTED_SUM alone
    Py_ssize_t padding     # a row, or -1 for none
    bint skip_invalid      # ids out of range are skipped, else refused
    int mode
    int operation
    bint divides           # results are divided by the number of entries that count
    # Where the results go.
    void* out
    int out_encoding
    Py_ssize_t out_stride  # entries from one bag's result to the next
    const int64_t* out_rows     # where each bag's result goes in `out`; NULL: in order
    int64_t* max_indices   # (n_bags, dim), for ARGMAX alone


cdef inline Py_ssize_t rows_a_burst(Py_ssize_t row_bytes) noexcept nogil:
    return max(FAR_LEAST, min(FAR, FAR_BYTES // max(1, row_bytes)))


cdef inline size_t row_address(const Job* job, Py_ssize_t k) noexcept nogil:
    """Where the row at position k would be, to be prefetched: the id is not checked."""
    if job.wide:
        return <size_t>job.table + <size_t>(<const int64_t*>job.input)[k] * <size_t>job.row_stride
    return <size_t>job.table + <size_t>(<const int32_t*>job.input)[k] * <size_t>job.row_stride


cdef void describe_table(
    Job* job,                        # OUT  the fields of the table
    cnp.ndarray weight,              # IN   is_encoded_table
    int encoding,
    Py_ssize_t dim,
):
    """Describe a job's table, whatever is looked up in it."""
    cdef double table_bytes
    cdef EncodingTraits traits = ENCODINGS[encoding]
    job.table = <const char*>cnp.PyArray_DATA(weight)
    job.row_stride = cnp.PyArray_STRIDE(weight, 0)
    job.n_rows = cnp.PyArray_DIM(weight, 0)
    job.dim = dim
    job.encoding = encoding
    job.bits = traits.bits
    job.short_factors = traits.factor_bytes == 2
    job.entries = 2 * traits.factor_bytes if traits.factors_first else 0
    job.factors = 0 if traits.factors_first else entry_bytes(traits.bits, dim)
    job.row_bytes = row_bytes_of(encoding, dim)
    table_bytes = <double>job.row_bytes * <double>job.n_rows
    job.straddles = (<size_t>job.table % LINE != 0 or job.row_stride % LINE != 0
                     or job.row_bytes % LINE != 0 or job.row_bytes > EMBAG_BLOCK_BYTES)
    job.burst = 0
    job.ahead = NEAR
    if table_bytes <= NEAR_TABLE:
        job.ahead = 0
    if table_bytes > CACHED_TABLE:
        job.burst = rows_a_burst(job.row_bytes)
        job.ahead = job.burst


cdef int describe_operation(Job* job, int mode, bint weighted, bint selecting) except -1:
    """Set what a job does to each row. Raises for a mode that does not do it."""
    job.mode = mode
    job.operation = operation_of(mode, weighted, selecting)
    job.divides = MODES[mode].divides
    return 0


cdef inline void set_input(Job* job, cnp.ndarray input, Py_ssize_t n_positions, object sample):
    """Set the ids of a job whose bags are set, and their weights or None."""
    job.input = cnp.PyArray_DATA(input)
    job.wide = cnp.PyArray_ITEMSIZE(input) == 8
    job.n_positions = n_positions
    job.ones = n_positions < ONES * job.bags.n_bags
    job.sample = NULL
    if sample is not None:
        job.sample = cnp.PyArray_DATA(<cnp.ndarray>sample)


# --- Prefetching --------------------------------------------------------------

cdef inline void fetch(
    const Py_ssize_t half_bytes,
    size_t row,                      # an address, perhaps a wild one: nothing is read
    Py_ssize_t shift_bytes,
    bint straddles,
) noexcept nogil:
    """Prefetch every line that a block of a row touches.

    The lines at row + 64 i cover each half except perhaps its last line. The low half's last
    line is among the high half's; the high half's is prefetched by its last byte, which can
    be left out (`straddles`) where blocks are whole lines.
    """
    cdef Py_ssize_t line
    for line in range((half_bytes + LINE - 1) // LINE):
        embag_prefetch(row + <size_t>(line * LINE))
    if 2 * half_bytes > LINE:
        for line in range((half_bytes + LINE - 1) // LINE):
            embag_prefetch(row + <size_t>(shift_bytes + line * LINE))
    if straddles:
        embag_prefetch(row + <size_t>(shift_bytes + half_bytes - 1))


cdef void fetch_bytes(size_t address, Py_ssize_t n_bytes) noexcept nogil:
    """Prefetch every line that n_bytes from an address touch."""
    cdef Py_ssize_t offset
    for offset in range(0, n_bytes, 64):     # LINE, but Cython wants a literal step
        embag_prefetch(address + <size_t>offset)
    embag_prefetch(address + <size_t>n_bytes - 1)
