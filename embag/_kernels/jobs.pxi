# Jobs: one table, the bags that are wanted of it, and where their results go. And prefetching.

cdef enum:
    ONES = 2                    # positions a bag: below that, bags of one row are looked for

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

cdef struct Mapping:
    # Ids that are not numbers of rows: see mapping.pxi. An id's place is its distance from
    # first_id.
    Py_ssize_t first_id
    Py_ssize_t n_ids
    const void* rows       # (n_ids,) the row of each place, -1 for none; NULL: the place
    bint wide              # rows are int64, else int32
    const void* scales     # (n_ids,) of the dtype of sums; NULL: 1

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
    Py_ssize_t row_bytes   # all that is read of a row
    const float* row_scales    # (n_rows,) or one for all rows; NULL: 1
    Py_ssize_t scale_step  # from the scale of a row to that of the next: 1 or 0
    bint straddles         # blocks of rows need not be whole cache lines
    double table_bytes
    const Mapping* mapping  # how ids name rows; NULL: an id is the number of its row
    Choice* choice         # of how rows are prefetched; NULL: the strategy is given
    Strategy fetching
    bint paged             # its pages may be prefetched
    # The bags.
    const void* input
    bint wide              # input is int64, else int32
    Bags bags
    Py_ssize_t n_positions      # in these bags, as first seen
    bint ones              # many bags have one row: worth a way of their own
    const void* sample     # (n_indices,) of the dtype of sums: factors of rows; or NULL
    const void* weights    # (n_indices,) by which means divide: `sample`, without scales
    Py_ssize_t padding     # a row, or -1 for none
    bint skip_invalid      # ids out of range are skipped or replaced, else refused
    Py_ssize_t stand_in    # the row that replaces them; -1: they are skipped
    Py_ssize_t default_row     # of a bag in which nothing counts; -1: it is zeros
    const void* default_factor  # of that row, of the dtype of sums; NULL: 1
    int mode
    int operation
    int divisor
    bint normalizes        # results are divided by their lengths: not for rounded ones
    # Where the results go.
    void* out
    int out_encoding
    Py_ssize_t out_stride  # entries from one bag's result to the next
    const int64_t* out_rows     # where each bag's result goes in `out`; NULL: in order
    int64_t* max_indices   # (n_bags, dim), for ARGMAX and ARGMIN alone
    int64_t* n_valid       # (n_bags,): how many entries count; or NULL


cdef inline Py_ssize_t index_of(const Job* job, Py_ssize_t k) noexcept nogil:
    """The id at position k, read once: the value that is checked is the value that is used."""
    if job.wide:
        return read_index(<const int64_t*>job.input, k)
    return read_index(<const int32_t*>job.input, k)


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
    cdef EncodingTraits traits = ENCODINGS[encoding]
    job.table = <const char*>cnp.PyArray_DATA(weight)
    job.row_stride = cnp.PyArray_STRIDE(weight, 0)
    job.n_rows = cnp.PyArray_DIM(weight, 0)
    job.dim = dim
    job.encoding = encoding
    job.bits = traits.bits
    job.entries = 2 * traits.factor_bytes if traits.factors_first else 0
    job.factors = 0 if traits.factors_first else entry_bytes(traits.bits, dim)
    job.row_bytes = row_bytes_of(encoding, dim)
    job.table_bytes = <double>job.row_bytes * <double>job.n_rows
    job.straddles = (<size_t>job.table % LINE != 0 or job.row_stride % LINE != 0
                     or job.row_bytes % LINE != 0 or job.row_bytes > EMBAG_BLOCK_BYTES)
    job.padding = job.stand_in = job.default_row = -1
    job.skip_invalid = job.normalizes = False
    job.n_valid = NULL
    job.mapping = NULL
    job.row_scales = NULL
    job.scale_step = 0
    job.default_factor = NULL
    job.choice = NULL
    job.paged = False
    # For a few rows; see choose_strategy.
    use_strategy(job, Strategy(INTO_L1, 0 if job.table_bytes <= NEAR_TABLE else FEW, FEW))


cdef int describe_scales(Job* job, object scales) except -1:
    """Set the scales of a job's rows: float32, one or n_rows."""
    refuse_change(is_factors(scales, cnp.PyArray_SIZE(<cnp.ndarray?>scales), cnp.NPY_FLOAT32)
                  and (cnp.PyArray_NDIM(<cnp.ndarray>scales) == 0
                       or cnp.PyArray_SIZE(<cnp.ndarray>scales) == job.n_rows)
                  and job.encoding in (SIGNED_INT8, E4M3, E5M2))
    job.row_scales = <const float*>cnp.PyArray_DATA(<cnp.ndarray>scales)
    job.scale_step = cnp.PyArray_NDIM(<cnp.ndarray>scales) > 0
    return 0


cdef inline void use_strategy(Job* job, Strategy strategy) noexcept nogil:
    job.fetching = for_rows_of(strategy, job.row_bytes)
    if EMBAG_TOUCHES:
        if strategy.way == AFTER_LOAD:
            job.fetching.burst = max(1, job.fetching.burst)     # rows are loaded in bursts


cdef inline void choose_strategy(Job* job, bint several) noexcept nogil:
    """Prefetch as is best known for a job whose ids are set."""
    if is_pinned:
        use_strategy(job, pinned_strategy)
        return
    job.paged = job.table_bytes > paged_above or pages_pinned
    if job.n_positions <= FEW:
        return
    cdef uint64_t key = class_of(
        job.encoding, job.operation, job.row_bytes, job.table_bytes, several)
    job.choice = choice_of(key)
    use_strategy(job, CANDIDATES[default_of(key) if job.choice == NULL else known(job.choice)])


cdef int describe_operation(Job* job, int mode, bint weighted, bint selecting) except -1:
    """Set what a job does to each row. Raises for a mode that does not do it."""
    job.mode = mode
    job.operation = operation_of(mode, weighted, selecting)
    job.divisor = MODES[mode].divisor
    return 0


cdef inline void set_input(Job* job, cnp.ndarray input, Py_ssize_t n_positions, object sample):
    """Set the ids of a job whose bags are set, and their weights or None."""
    job.input = cnp.PyArray_DATA(input)
    job.wide = cnp.PyArray_ITEMSIZE(input) == 8
    job.n_positions = n_positions
    job.sample = NULL
    if sample is not None:
        job.sample = cnp.PyArray_DATA(<cnp.ndarray>sample)
    job.weights = job.sample
    note_ones(job)


cdef inline void note_ones(Job* job) noexcept nogil:
    job.ones = (job.n_positions < ONES * job.bags.n_bags and job.stand_in < 0
                and (job.weights == NULL or job.divisor == NOTHING or job.divisor == COUNT))


# --- Prefetching --------------------------------------------------------------

cdef inline void prefetch(bint near, size_t address) noexcept nogil:
    if near:
        embag_prefetch_near(address)
    else:
        embag_prefetch(address)


cdef inline void fetch_into(
    const bint near,                 # a literal, as half_bytes is
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
        prefetch(near, row + <size_t>(line * LINE))
    if 2 * half_bytes > LINE:
        for line in range((half_bytes + LINE - 1) // LINE):
            prefetch(near, row + <size_t>(shift_bytes + line * LINE))
    if straddles:
        prefetch(near, row + <size_t>(shift_bytes + half_bytes - 1))


cdef inline void touch_rows(const Job* job, Py_ssize_t start, Py_ssize_t n) noexcept nogil:
    """If the job's strategy says so, load a byte of each of the rows at n positions whose id
    is in range.

    Called under `if EMBAG_TOUCHES`, by itself: so the C compiler drops it before it optimises.
    """
    cdef Py_ssize_t k, r
    if job.fetching.way != AFTER_LOAD:
        return
    for k in range(start, min(start + n, job.bags.n_indices)):
        r = index_of(job, k)
        if <size_t>r < <size_t>job.n_rows:
            embag_touch(job.table + r * job.row_stride)


cdef void fetch_bytes(bint near, size_t address, Py_ssize_t n_bytes) noexcept nogil:
    """Prefetch every line that n_bytes from an address touch."""
    cdef Py_ssize_t offset
    for offset in range(0, n_bytes, 64):     # LINE, but Cython wants a literal step
        prefetch(near, address + <size_t>offset)
    prefetch(near, address + <size_t>n_bytes - 1)


cdef void fetch_pages(const Job* job, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """Prefetch the pages of the rows at some positions. Unlike a wild prefetch of a line, a wild
    range of pages could be another's memory: ids are checked."""
    cdef Py_ssize_t k, r
    for k in range(start, stop):
        r = index_of(job, k)
        if <size_t>r < <size_t>job.n_rows and r != job.padding:
            embag_prefetch_pages(<size_t>job.table + <size_t>(r * job.row_stride),
                                 <size_t>job.row_bytes)
