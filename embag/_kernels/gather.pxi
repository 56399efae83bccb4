# Lookups without bags: a row for each id.
#
# A gather is a job with a bag for each id (jobs.pxi), so its work is cut, shared among threads,
# prefetched and timed like any other. If results have the encoding of the table, the bytes of
# rows are copied. Otherwise rows are decoded, each as the maximum of one row, which leaves its
# entries as they are.
#
# For a copy, a row is one wide column. It is copied in two halves of one width, which overlap
# where they do not fit exactly. The width is a literal, so the copy and its prefetches are a few
# instructions. docs/design.md, "Rows without bags", has the figures.
#
# Tested in tests/lookups/test_embedding.py.

cdef enum:
    GATHER = 66                 # copying rows, among the operations: see class_of
    MOST_AXES = 16              # of the ids of a plain call
    WIDEST_COPY = 256           # bytes: the widest half. Wider rows are as fast by memcpy

OPERATION_NAMES[GATHER] = "copy"


cdef inline void fetch_copied(
    const bint near,                 # a literal
    const Py_ssize_t half,           # bytes, a literal; 0: any number
    size_t row,                      # an address, perhaps a wild one: nothing is read
    Py_ssize_t n_bytes,
    bint straddles,
) noexcept nogil:
    """Prefetch every line of a row."""
    if half == 0:
        fetch_bytes(near, row, n_bytes)
    else:
        fetch_into(near, half, row, n_bytes - half, straddles)


cdef inline bint copy_row(
    const Py_ssize_t half,           # bytes, a literal; 0: any number
    const index_ft* input,           # IN   (n_indices,)
    const Job* job,                  # IN
    Py_ssize_t k,                    # the position
    const char* table,
    size_t n_rows,
    Py_ssize_t stride,
    Py_ssize_t n_bytes,              # of a row
    char* to,                        # OUT
) noexcept nogil:
    """Copy the row at a position. False if its id is bad."""
    cdef Py_ssize_t r = read_index(input, k)
    cdef const char* row
    if <size_t>r >= n_rows:
        r = job.stand_in
        if r < 0:
            memset(to, 0, <size_t>n_bytes)
            return job.skip_invalid
    row = table + r * stride
    if half == 0:
        memcpy(to, row, <size_t>n_bytes)
    else:
        memcpy(to, row, <size_t>half)
        memcpy(to + n_bytes - half, row + n_bytes - half, <size_t>half)
    return True


cdef inline bint copy_block(
    const Py_ssize_t half,           # a literal; 0, or half <= job.row_bytes <= 2 * half
    const index_ft* input,           # IN   (n_indices,)
    const Job* job,                  # IN   bag k is position k
    const Task* task,                # IN
) noexcept nogil:
    """Copy the rows at a task's positions. False if an id is bad."""
    cdef:
        Py_ssize_t n_bytes = job.row_bytes, stride = job.row_stride
        const char* table = job.table
        size_t address = <size_t>table
        char* out = <char*>job.out
        size_t n_rows = <size_t>job.n_rows
        bint straddles = job.straddles
        bint near = job.fetching.way     # into L1, unless it is INTO_L2
        Py_ssize_t ahead = job.fetching.ahead, burst = job.fetching.burst
        Py_ssize_t n_indices = job.bags.n_indices, stop = task.bag_stop
        # One row is prefetched at each position up to single_stop; or a burst of them.
        Py_ssize_t single_stop = n_indices - ahead if ahead > 0 and burst == 0 else 0
        Py_ssize_t k = task.bag_start, next_k, next_stop, segment_stop, middle
    for next_k in range(k, min(k + ahead, n_indices)):
        fetch_copied(True, half, address + <size_t>input[next_k] * <size_t>stride, n_bytes,
                     straddles)
    while k < stop:
        segment_stop = stop
        if ahead > 0 and burst > 0:
            segment_stop = min(k + burst, stop)
            next_stop = min(k + ahead + burst, n_indices)
            if near:
                for next_k in range(k + ahead, next_stop):
                    fetch_copied(True, half, address + <size_t>input[next_k] * <size_t>stride,
                                 n_bytes, straddles)
            else:
                for next_k in range(k + ahead, next_stop):
                    fetch_copied(False, half, address + <size_t>input[next_k] * <size_t>stride,
                                 n_bytes, straddles)
            if EMBAG_TOUCHES:
                touch_rows(job, next_stop, burst)
        middle = max(k, min(segment_stop, single_stop))
        for k in range(k, middle):
            fetch_copied(True, half, address + <size_t>input[k + ahead] * <size_t>stride, n_bytes,
                         straddles)
            if not copy_row(half, input, job, k, table, n_rows, stride, n_bytes,
                            out + k * n_bytes):
                return False
        for k in range(middle, segment_stop):
            if not copy_row(half, input, job, k, table, n_rows, stride, n_bytes,
                            out + k * n_bytes):
                return False
        k = segment_stop
    return True


cdef inline Py_ssize_t narrowest_copy(Py_ssize_t n_bytes) noexcept nogil:
    """The least of the halves of copy_as with half <= n_bytes <= 2 * half; 0 if there is none."""
    cdef Py_ssize_t half = 1
    if n_bytes > 2 * WIDEST_COPY:
        return 0
    if n_bytes > 2 * LINE:
        return ((n_bytes + 1) // 2 + LINE - 1) // LINE * LINE
    while 2 * half < n_bytes:
        half = 2 * half
    return half


cdef inline bint copy_as(const index_ft* input, const Job* job, const Task* task) noexcept nogil:
    """copy_block with the narrowest half that covers a row."""
    cdef Py_ssize_t half = narrowest_copy(job.row_bytes)
    if half == 1:
        return copy_block(1, input, job, task)
    elif half == 2:
        return copy_block(2, input, job, task)
    elif half == 4:
        return copy_block(4, input, job, task)
    elif half == 8:
        return copy_block(8, input, job, task)
    elif half == 16:
        return copy_block(16, input, job, task)
    elif half == 32:
        return copy_block(32, input, job, task)
    elif half == 64:
        return copy_block(64, input, job, task)
    elif half == 128:
        return copy_block(128, input, job, task)
    elif half == 192:
        return copy_block(192, input, job, task)
    elif half == WIDEST_COPY:
        return copy_block(WIDEST_COPY, input, job, task)
    return copy_block(0, input, job, task)


cdef bint copy_by_int32(const Job* job, const Task* task) noexcept nogil:
    return copy_as(<const int32_t*>job.input, job, task)


cdef bint copy_by_int64(const Job* job, const Task* task) noexcept nogil:
    return copy_as(<const int64_t*>job.input, job, task)


cdef int describe_gather(
    Job* job,                        # OUT
    const Mapping* mapping,          # IN   NULL: ids are rows
    cnp.ndarray rows,                # IN   is_encoded_table
    int encoding,
    Py_ssize_t dim,
    cnp.ndarray input,               # IN   an index array of any shape
    cnp.ndarray out,                 # OUT  its shape and dim, contiguous
    int out_encoding,
    bint skips,                      # ids out of range are skipped or replaced
    Py_ssize_t stand_in,             # by this row; -1: they are skipped
    bint normalizes,
    object row_scales,               # IN   see describe_scales
    bint several,
) except -1:
    """Describe the lookup of a row for each id."""
    memset(job, 0, sizeof(Job))
    describe_table(job, rows, encoding, dim)
    if row_scales is not None:
        describe_scales(job, row_scales)
    job.mapping = mapping
    job.skip_invalid = skips
    job.stand_in = stand_in
    job.normalizes = normalizes
    job.bags.n_indices = job.bags.n_bags = cnp.PyArray_SIZE(input)
    job.bags.bag_size = 1
    describe_operation(job, MODE_MAX, False, False)
    set_input(job, input, job.bags.n_indices, None)
    job.out = cnp.PyArray_DATA(out)
    job.out_encoding = out_encoding
    job.out_stride = dim
    if (out_encoding == encoding and not normalizes and dim > 0 and mapping == NULL
            and row_scales is None):
        job.operation = GATHER       # its prefetching is chosen apart
        choose_strategy(job, several)
        job.operation = MAX
        job.dim = job.out_stride = 1
        job.reduce_columns = copy_by_int64 if job.wide else copy_by_int32
    else:
        choose_strategy(job, several)
        job.reduce_columns = reducer_of(encoding, out_encoding, job.wide)
        refuse_change(job.reduce_columns != NULL)
    return 0


cdef bint has_shape_of(cnp.ndarray out, cnp.ndarray input, Py_ssize_t dim):
    """Whether an array has the shape of another one, and `dim` columns."""
    cdef int axis, n_axes = cnp.PyArray_NDIM(input)
    if cnp.PyArray_NDIM(out) != n_axes + 1 or cnp.PyArray_DIM(out, n_axes) != dim:
        return False
    for axis in range(n_axes):
        if cnp.PyArray_DIM(out, axis) != cnp.PyArray_DIM(input, axis):
            return False
    return True


cdef object empty_rows(cnp.ndarray input, Py_ssize_t dim, int type_number):
    """A new array with the shape of `input` and `dim` columns."""
    cdef cnp.npy_intp[MOST_AXES + 1] shape
    cdef int axis, n_axes = cnp.PyArray_NDIM(input)
    for axis in range(n_axes):
        shape[axis] = cnp.PyArray_DIM(input, axis)
    shape[n_axes] = dim
    try:
        return cnp.PyArray_EMPTY(n_axes + 1, shape, type_number, 0)
    except ValueError:               # NumPy's error for more bytes than it can count
        raise MemoryError(f"cannot allocate an output of {cnp.PyArray_SIZE(input)} rows")


def plain_gather(
    object runs_alone,               # whether (entries, num_threads) get one thread
    Py_ssize_t entries_per_thread,
    object input,                    # from here on the arguments of `embedding`, unchecked
    object weight,
    object padding_idx,
    object max_norm,
    object norm_type,
    object out,
    object out_dtype,
    object invalid,
    object num_threads,
):
    """Do the common gather as a whole. Returns None if anything about it is unusual, as in
    `plain_call`."""
    cdef:
        Job job
        Task task
        cnp.ndarray rows, ids
        int encoding, out_encoding
        Py_ssize_t dim
        double n_entries
        bint is_new = out is None, done = True
    if not (max_norm is out_dtype is None
            and type(norm_type) is float and norm_type > 0
            and type(invalid) is str and (invalid == "raise" or invalid == "skip")
            and (padding_idx is None or type(padding_idx) is int)
            and (num_threads is None or (type(num_threads) is int and num_threads >= 1))):
        return None

    if type(input) is list:
        input = ids_of_list(<list>input)

    # The table.
    row_scales = None
    if cnp.PyArray_Check(weight):
        rows = <cnp.ndarray>weight
        encoding = encoding_of(rows)
        dim = cnp.PyArray_DIM(rows, 1) if cnp.PyArray_NDIM(rows) == 2 else 0
    else:
        encoded = getattr(weight, "_encoded", None)
        if not (isinstance(encoded, tuple) and len(<tuple>encoded) >= 5
                and (<tuple>encoded)[3] is None
                and cnp.PyArray_Check((<tuple>encoded)[0])):
            return None
        rows, encoding, dim = (<tuple>encoded)[0], (<tuple>encoded)[1], (<tuple>encoded)[2]
        row_scales = (<tuple>encoded)[4]
    if encoding < 0 or dim == 0 or not is_index_array(input):
        return None
    ids = <cnp.ndarray>input
    n_entries = 2 * <double>cnp.PyArray_SIZE(ids) * <double>dim
    if n_entries >= 2 * entries_per_thread and num_threads != 1 and not runs_alone(
            <Py_ssize_t>min(n_entries, <double>(1 << 62)), num_threads):
        return None

    # The layout of arrays. From here on no other code may run: nothing may be allocated that the
    # garbage collector tracks, since it may run finalizers.
    if not (is_index_array(ids) and cnp.PyArray_NDIM(ids) <= MOST_AXES):
        return None
    if rows is weight:
        if not (are_adjacent(rows) and encoding_of(rows) == encoding
                and cnp.PyArray_DIM(rows, 1) == dim):
            return None
    elif not is_encoded_table(rows, encoding, dim):
        return None
    if padding_idx is not None and not (
            -cnp.PyArray_DIM(rows, 0) <= padding_idx < cnp.PyArray_DIM(rows, 0)):
        return None
    if is_new:
        out = empty_rows(ids, dim, ENCODINGS[encoding].sum_type)
    elif not (cnp.PyArray_Check(out) and has_shape_of(<cnp.ndarray>out, ids, dim)
              and cnp.PyArray_TYPE(<cnp.ndarray>out) == ENCODINGS[encoding].sum_type
              and cnp.PyArray_ISCARRAY(<cnp.ndarray>out)
              and is_apart(<cnp.ndarray>out, ids) and is_apart(<cnp.ndarray>out, rows)
              and is_apart(<cnp.ndarray>out, row_scales)):
        return None
    out_encoding = FLOAT64 if ENCODINGS[encoding].sum_type == cnp.NPY_FLOAT64 else FLOAT32
    describe_gather(&job, NULL, rows, encoding, dim, ids, <cnp.ndarray>out, out_encoding,
                    invalid == "skip", -1, False, row_scales, False)
    if is_long(&job):
        return None
    task = Task(0, job.bags.n_bags, 0, job.dim, True, False, 0, 0)
    with nogil:
        if not is_new and not job.skip_invalid:    # nothing may be written if an id is bad
            done = has_good_ids(&job)
        done = done and do_alone(&job, &task)
    return out if done else None


cdef bint has_good_ids(const Job* job) noexcept nogil:
    """Whether all ids are in range, as they stand in memory."""
    if job.wide:
        return find_bad_index(<const int64_t*>job.input, job.bags.n_indices,
                              <size_t>job.n_rows, 0) < 0
    return find_bad_index(<const int32_t*>job.input, job.bags.n_indices,
                          <size_t>job.n_rows, 0) < 0


def gather(
    int n_threads,
    cnp.ndarray rows not None,       # IN   is_encoded_table
    int encoding,                    # of the rows
    Py_ssize_t dim,
    cnp.ndarray input not None,      # IN   int32 or int64, of any shape
    cnp.ndarray out not None,        # OUT  of its shape and dim
    int out_encoding,
    object n_invalid,                # OUT  (1,) int64: how many ids were out of range is added;
                                     #      None: they are bad
    Py_ssize_t stand_in=-1,          # the row for ids out of range; -1: zeros
    bint normalizes=False,           # divide rows by their norms; out is float32 or float64
    object mapping=None,             # IN   how ids name rows: see describe_mapping; or None
    object row_scales=None,          # IN   float32 scales: see describe_scales; or None
) -> bool:
    """Write the row of each id to `out`. False if an id is bad; `out` is then half-written.

    Arrays are checked; their layout is looked at once more here, as in `reduce_bags`.
    """
    cdef:
        Job job
        int64_t n_left_out = 0
        Mapping described
        Py_ssize_t n_ids
        bint done
    demand_encoding(encoding)
    demand_encoding(out_encoding)
    refuse_change(is_encoded_table(rows, encoding, dim) and is_index_array(input))
    n_ids = cnp.PyArray_DIM(rows, 0)
    if mapping is not None:
        refuse_change(
            describe_mapping(&described, mapping, n_ids, ENCODINGS[out_encoding].sum_type)
            and (described.scales == NULL or out_encoding == FLOAT32
                 or out_encoding == FLOAT64))
        n_ids = described.first_id + described.n_ids
    refuse_change(has_shape_of(out, input, dim)
                  and cnp.PyArray_TYPE(out) == ENCODINGS[out_encoding].type_number
                  and cnp.PyArray_ISCARRAY(out)
                  and stand_in < n_ids
                  and (n_invalid is None or is_factors(n_invalid, 1, cnp.NPY_INT64))
                  and (not normalizes or out_encoding == FLOAT32 or out_encoding == FLOAT64))
    describe_gather(&job, NULL if mapping is None else &described, rows, encoding, dim, input, out,
                    out_encoding, n_invalid is not None, stand_in, normalizes, row_scales,
                    n_threads > 1)
    done = do_jobs(&job, 1, n_threads if dim > 0 else 1, &n_left_out)
    if not done:
        demand_memory()
    if done and n_invalid is not None:
        embag_count(<int64_t*>cnp.PyArray_DATA(<cnp.ndarray>n_invalid), n_left_out)
    return done
