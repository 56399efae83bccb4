# Lookups in one table, as Python calls them.

cdef int encoding_of(cnp.ndarray weight):
    """The encoding of an array by its dtype; -1 if it is not one of a table.

    bfloat16 and floats of 8 bits are dtypes of another package, which need not be installed.
    NumPy numbers such types as they are registered.
    """
    cdef int type_number = cnp.PyArray_TYPE(weight)
    if type_number == cnp.NPY_FLOAT32:
        return FLOAT32
    if type_number == cnp.NPY_FLOAT64:
        return FLOAT64
    if type_number == cnp.NPY_FLOAT16:
        return FLOAT16
    if type_number == cnp.NPY_INT8:
        return SIGNED_INT8
    if type_number == cnp.NPY_UINT8:
        return UNSIGNED_INT8
    if not cnp.PyTypeNum_ISUSERDEF(type_number):
        return -1
    code = codes_of_user_types.get(type_number)
    if code is None:
        code = ENCODING_CODES.get((<object>cnp.PyArray_DESCR(weight)).name, -1)
        codes_of_user_types[type_number] = code
    return code

cdef dict codes_of_user_types = {}


cdef bint are_adjacent(cnp.ndarray table):
    """Whether a 2-D array is aligned and native, with the entries of each row adjacent."""
    return (
        cnp.PyArray_NDIM(table) == 2
        and cnp.PyArray_ISALIGNED(table)
        and cnp.PyArray_ISNOTSWAPPED(table)
        and (cnp.PyArray_DIM(table, 1) <= 1
             or cnp.PyArray_DIM(table, 0) == 0   # its strides may be anything
             or cnp.PyArray_STRIDE(table, 1) == cnp.PyArray_ITEMSIZE(table))
    )


cdef bint are_of_shape(cnp.ndarray sample, cnp.ndarray input):
    """Whether two arrays of one or two axes have the same shape."""
    cdef int n_axes = cnp.PyArray_NDIM(input)
    return (cnp.PyArray_NDIM(sample) == n_axes
            and cnp.PyArray_DIM(sample, 0) == cnp.PyArray_DIM(input, 0)
            and (n_axes == 1 or cnp.PyArray_DIM(sample, 1) == cnp.PyArray_DIM(input, 1)))


cdef object read_matrix(object matrix):
    """(indices, indptr, data, shape) of a CSR matrix of SciPy. None for anything else, and if
    data do not fit indices. The arrays may still be any; `_read_scipy` reads and refuses more.
    """
    module = type(matrix).__module__
    if not (type(module) is str and (<str>module).startswith("scipy.")
            and getattr(matrix, "format", None) == "csr"):
        return None
    shape = getattr(matrix, "shape", None)
    indices = getattr(matrix, "indices", None)
    indptr = getattr(matrix, "indptr", None)
    data = getattr(matrix, "data", None)
    if not (type(shape) is tuple and len(<tuple>shape) == 2
            and type((<tuple>shape)[0]) is int and type((<tuple>shape)[1]) is int
            and cnp.PyArray_Check(indices) and cnp.PyArray_NDIM(<cnp.ndarray>indices) == 1
            and cnp.PyArray_Check(data)
            and are_of_shape(<cnp.ndarray>data, <cnp.ndarray>indices)):
        return None
    return indices, indptr, data, shape


cdef bint is_sound(const Job* job) noexcept nogil:
    """Whether no offset decreases and no id is refused, as they stand in memory."""
    # By the numbers of the job, which no other thread can change.
    cdef Py_ssize_t first = job.bags.n_indices - job.n_positions
    cdef Py_ssize_t start = first, stop, b
    for b in range(job.bags.n_bags):
        stop = bag_bound(&job.bags, b + 1)
        if not (start <= stop <= job.bags.n_indices):
            return False
        start = stop
    if job.mapping != NULL and not is_mapped_well(job, first, stop_of(job)):
        return False
    if job.skip_invalid:
        return True
    if job.wide:
        return find_bad_index(<const int64_t*>job.input + first, stop_of(job) - first,
                              <size_t>n_ids_of(job), <size_t>first_id_of(job)) < 0
    return find_bad_index(<const int32_t*>job.input + first, stop_of(job) - first,
                          <size_t>n_ids_of(job), <size_t>first_id_of(job)) < 0


cdef inline Py_ssize_t stop_of(const Job* job) noexcept nogil:
    """Where the last bag of a job stops, at most its last position."""
    return max(job.bags.n_indices - job.n_positions,
               min(bag_bound(&job.bags, job.bags.n_bags), job.bags.n_indices))


cdef inline bint is_long(const Job* job) noexcept nogil:
    """Whether a call on one thread may take so long that it has to look for signals."""
    return is_large(slices_of_job(job), 1)


cdef bint do_alone(const Job* job, Task* task) noexcept nogil:
    """Do a task that is not one of a team's, under the default floating-point settings."""
    cdef uint64_t floats = embag_use_default_floats()
    cdef bint done = do_task(job, task)
    embag_restore_floats(floats)
    return done


def plain_call(
    object runs_alone,               # whether (entries, num_threads) get one thread
    Py_ssize_t entries_per_thread,
    object input,                    # from here on the arguments of `embedding_bag`, unchecked
    object weight,
    object offsets,
    object max_norm,
    object norm_type,
    object scale_grad_by_freq,
    object mode,
    object sparse,
    object per_sample_weights,
    object include_last_offset,
    object padding_idx,
    object lengths,
    object out,
    object return_max_indices,
    object num_threads,
    object out_dtype,
    object invalid,
    object return_n_invalid,
    object default_idx,
    object return_n_valid,
    object normalize,
):
    """The common lookup as a whole: its result, or None if anything about it is unusual.

    Unusual is what has to be converted, allocates more than the result, takes several threads,
    or is an error; `_call.py` does or raises it. None leaves `out` as it was.
    """
    cdef:
        Job job
        Task task
        Mapping mapping
        cnp.ndarray rows
        int encoding, mode_code
        Py_ssize_t dim, padding = -1, n_ids
        double n_entries
        bint is_new = out is None, done = True
    if not (max_norm is lengths is out_dtype is default_idx is None
            and scale_grad_by_freq is sparse is return_max_indices is False
            and return_n_valid is normalize is False
            and (include_last_offset is True or include_last_offset is False)
            and (return_n_invalid is True or return_n_invalid is False)
            and type(norm_type) is float and norm_type > 0
            and type(mode) is str and type(invalid) is str
            and (padding_idx is None or type(padding_idx) is int)
            and (num_threads is None or type(num_threads) is int)):
        return None
    shape = None                     # of the matrix, if the input is one
    code = codes_of_modes.get(mode)
    if code is None:
        return None
    mode_code = code
    if per_sample_weights is not None and MODES[mode_code].weighted == NO_OPERATION:
        return None

    # A matrix. Its data are the weights of a sum.
    if not cnp.PyArray_Check(input):
        parts = read_matrix(input)
        if parts is None or not (offsets is per_sample_weights is None):
            return None
        input, offsets, data, shape = <tuple>parts
        include_last_offset = True
        if MODES[mode_code].weighted != NO_OPERATION:
            per_sample_weights = data

    # The table.
    given_mapping = row_scales = None
    if cnp.PyArray_Check(weight):
        rows = <cnp.ndarray>weight
        encoding = encoding_of(rows)
        if encoding < 0 or not are_adjacent(rows):
            return None
        dim = cnp.PyArray_DIM(rows, 1)
    else:
        encoded = getattr(weight, "_encoded", None)
        if not (isinstance(encoded, tuple) and len(<tuple>encoded) >= 5
                and cnp.PyArray_Check((<tuple>encoded)[0])):
            return None
        rows, encoding, dim = (<tuple>encoded)[0], (<tuple>encoded)[1], (<tuple>encoded)[2]
        given_mapping, row_scales = (<tuple>encoded)[3], (<tuple>encoded)[4]
        if not is_encoded_table(rows, encoding, dim):
            return None

    # The ids. From the last look at an array's layout on, no other code may run: nothing may be
    # allocated that the garbage collector tracks, since it may run finalizers.
    if not (is_index_array(input) and (offsets is None or is_index_array(offsets))):
        return None
    job.bags = describe_bags(<cnp.ndarray>input, offsets, include_last_offset is True)
    if job.bags.n_bags < 0 or dim == 0:
        return None
    n_entries = (<double>job.bags.n_indices + <double>job.bags.n_bags) * <double>dim
    if num_threads is not None and num_threads < 1:
        return None
    if n_entries >= 2 * entries_per_thread and num_threads != 1:
        if not runs_alone(<Py_ssize_t>min(n_entries, <double>(1 << 62)), num_threads):
            return None
        if not (is_index_array(input) and (offsets is None or is_index_array(offsets))
                and (are_adjacent(rows) if rows is weight
                     else is_encoded_table(rows, encoding, dim))):
            return None
        job.bags = describe_bags(<cnp.ndarray>input, offsets, include_last_offset is True)
        if job.bags.n_bags < 0 or (rows is weight and (
                cnp.PyArray_DIM(rows, 1) != dim or encoding_of(rows) != encoding)):
            return None
    describe_table(&job, rows, encoding, dim)
    if row_scales is not None:
        describe_scales(&job, row_scales)
    if given_mapping is not None:
        if not describe_mapping(&mapping, given_mapping, job.n_rows, ENCODINGS[encoding].sum_type):
            return None
        job.mapping = &mapping
    n_ids = first_id_of(&job) + n_ids_of(&job)
    if shape is not None and (
            (<tuple>shape)[0] != job.bags.n_bags or (<tuple>shape)[1] != n_ids):
        return None
    if padding_idx is not None:
        if not first_id_of(&job) - n_ids <= padding_idx < n_ids:
            return None
        padding = padding_idx
        if padding < 0:
            padding += n_ids
        elif padding < first_id_of(&job):
            return None
    if per_sample_weights is not None and not (
            is_factors(per_sample_weights, job.bags.n_indices, ENCODINGS[encoding].sum_type)
            and are_of_shape(<cnp.ndarray>per_sample_weights, <cnp.ndarray>input)):
        return None
    job.padding = padding
    job.skip_invalid = invalid == "skip"
    if not job.skip_invalid and invalid != "raise":
        return None
    describe_operation(&job, mode_code, per_sample_weights is not None, False)
    set_input(&job, <cnp.ndarray>input,
              positions_in(&job.bags, include_last_offset is True), per_sample_weights)
    if job.n_positions < 0:
        return None
    if is_long(&job):
        return None

    # The result.
    if is_new:
        out = empty_matrix(job.bags.n_bags, dim, ENCODINGS[encoding].sum_type)
    elif not (is_result(out, job.bags.n_bags, dim, ENCODINGS[encoding].sum_type)
              and is_apart(<cnp.ndarray>out, input) and is_apart(<cnp.ndarray>out, offsets)
              and is_apart(<cnp.ndarray>out, per_sample_weights)
              and is_apart(<cnp.ndarray>out, rows) and is_apart(<cnp.ndarray>out, row_scales)
              and is_apart_from(<cnp.ndarray>out, given_mapping)):
        return None
    job.out = cnp.PyArray_DATA(<cnp.ndarray>out)
    job.out_encoding = FLOAT64 if ENCODINGS[encoding].sum_type == cnp.NPY_FLOAT64 else FLOAT32
    job.out_stride = dim
    job.out_rows = NULL
    job.max_indices = NULL
    job.reduce_columns = reducer_of(encoding, job.out_encoding, job.wide)
    choose_strategy(&job, False)
    task = Task(0, job.bags.n_bags, 0, dim, True, False, 0, 0)
    with nogil:
        if not is_new:               # nothing may be written if an id is bad
            done = is_sound(&job)
        done = done and do_alone(&job, &task)
    if not done:
        demand_memory()
        return None
    return (out, task.n_invalid) if return_n_invalid else out


def reduce_bags(
    int n_threads,
    cnp.ndarray rows not None,       # IN   is_encoded_table
    int encoding,                    # of the rows
    Py_ssize_t dim,
    tuple inputs not None,           # IN   the ids of each part: int32 or int64, 1-D, or 2-D
    tuple offsets not None,          # IN   int32 or int64 for each part; None where ids are 2-D
    int include_last_offset,         # PART: and the first may be any
    tuple per_sample_weights not None,  # IN   like the ids of each part, of the dtype of sums;
                                     #      or None, and so for all parts
    int mode,
    Py_ssize_t padding,              # a row, or -1
    object n_invalid,                # OUT  (1,) int64: how many ids were out of range;
                                     #      None: they are bad
    cnp.ndarray out not None,        # OUT  (n_bags, dim): the bags of all parts, in order
    int out_encoding,
    object max_indices=None,         # OUT  (n_bags, dim) int64; or None
    object out_rows=None,            # IN   (n_bags,) int64, increasing: the rows of out to fill
    Py_ssize_t stand_in=-1,          # the row for ids out of range; -1: none, they are skipped
    Py_ssize_t default_row=-1,       # for bags in which nothing counts; -1: zeros
    bint normalizes=False,           # divide results by their norms; out is of the type of sums
    object n_valid=None,             # OUT  (n_bags,) int64: how many entries count; or None
    object mapping=None,             # IN   how ids name rows: see describe_mapping; or None
    object row_scales=None,          # IN   float32 scales: see describe_scales; or None
) -> bool:
    """Fill `out` by the bags of one or several parts. False if an offset or an id is bad;
    `out` is then half-written.

    Parts share a parallel region: one for each would take longer than the work of a small part.

    All arrays but `rows` are C-contiguous; all are aligned, native and checked. Their
    layout is looked at once more here, where nothing else runs: converting another
    argument may have run code that changed it, and no memory may be read or written for
    what an array was before. RuntimeError if one did change.
    """
    cdef:
        Job* jobs = NULL
        Job* job
        int64_t* counts = NULL
        Py_ssize_t n_jobs = len(inputs), first = 0, n_bags, n_positions, j
        int64_t n_left_out = 0
        bint done = True
        Job table
        Mapping described
        Py_ssize_t n_ids

    demand_encoding(encoding)
    demand_encoding(out_encoding)
    refuse_change(is_encoded_table(rows, encoding, dim)
                  and len(offsets) == len(per_sample_weights) == n_jobs
                  and cnp.PyArray_NDIM(out) == 2
                  and is_result(out, cnp.PyArray_DIM(out, 0), dim,
                                ENCODINGS[out_encoding].type_number)
                  and (n_invalid is None or is_factors(n_invalid, 1, cnp.NPY_INT64)))
    n_bags = cnp.PyArray_DIM(out, 0)
    n_ids = cnp.PyArray_DIM(rows, 0)
    if out_rows is not None:
        refuse_change(is_rows_of(out_rows, out)
                      and mapping is None and default_row < 0 and not normalizes)
        n_bags = cnp.PyArray_SIZE(<cnp.ndarray>out_rows)
    refuse_change(max_indices is None
                  or (is_plain(encoding) and encoding == out_encoding and out_rows is None
                      and is_result(max_indices, n_bags, dim, cnp.NPY_INT64)))
    operation_of(mode, False, False)    # raises for an unknown one
    if mapping is not None:
        refuse_change(
            describe_mapping(&described, mapping, n_ids, ENCODINGS[out_encoding].sum_type)
            and max_indices is None
            and (described.scales == NULL or MODES[mode].weighted != NO_OPERATION
                 or out_encoding == FLOAT32 or out_encoding == FLOAT64))
        n_ids = described.first_id + described.n_ids
    refuse_change((n_valid is None or is_factors(n_valid, n_bags, cnp.NPY_INT64))
                  and padding < n_ids and stand_in < n_ids and default_row < n_ids
                  and (not normalizes or out_encoding == FLOAT32 or out_encoding == FLOAT64))
    jobs = <Job*>malloc(max(<size_t>1, <size_t>n_jobs) * sizeof(Job))
    counts = <int64_t*>malloc(max(<size_t>1, <size_t>n_jobs) * sizeof(int64_t))
    try:
        if jobs == NULL or counts == NULL:
            raise MemoryError("no memory to plan a call")
        memset(counts, 0, <size_t>n_jobs * sizeof(int64_t))
        memset(&table, 0, sizeof(Job))
        describe_table(&table, rows, encoding, dim)
        if row_scales is not None:
            describe_scales(&table, row_scales)
        if mapping is not None:
            table.mapping = &described
        table.padding = padding
        table.skip_invalid = n_invalid is not None
        table.stand_in = stand_in
        table.default_row = default_row
        table.normalizes = normalizes
        table.out_encoding = out_encoding
        table.out_stride = dim
        for j in range(n_jobs):
            job = &jobs[j]
            job[0] = table
            refuse_change(is_index_array(inputs[j])
                          and (offsets[j] is None or is_index_array(offsets[j])))
            job.bags = describe_bags(inputs[j], offsets[j], include_last_offset != 0)
            refuse_change(
                0 <= job.bags.n_bags <= n_bags - first
                and (per_sample_weights[j] is None
                     or is_factors(per_sample_weights[j], job.bags.n_indices,
                                   ENCODINGS[out_encoding].sum_type)))
            n_positions = positions_in(&job.bags, include_last_offset)
            done = done and n_positions >= 0
            describe_operation(job, mode, per_sample_weights[j] is not None,
                               max_indices is not None)
            set_input(job, inputs[j], n_positions, per_sample_weights[j])
            choose_strategy(job, n_threads > 1)
            job.reduce_columns = reducer_of(encoding, out_encoding, job.wide)
            refuse_change(job.reduce_columns != NULL)
            job.out = cnp.PyArray_DATA(out)
            if out_rows is None:
                job.out = <char*>job.out + first * dim * cnp.PyArray_ITEMSIZE(out)
            else:
                job.out_rows = <const int64_t*>cnp.PyArray_DATA(<cnp.ndarray>out_rows) + first
            if max_indices is not None:
                job.max_indices = (
                    <int64_t*>cnp.PyArray_DATA(<cnp.ndarray>max_indices) + first * dim)
            if n_valid is not None:
                job.n_valid = <int64_t*>cnp.PyArray_DATA(<cnp.ndarray>n_valid) + first
            first += job.bags.n_bags
        refuse_change(first == n_bags)
        done = done and do_jobs(jobs, n_jobs, n_threads if dim > 0 else 1, counts)
        for j in range(n_jobs):
            n_left_out += counts[j]
    finally:
        free(jobs)
        free(counts)
    if not done:
        demand_memory()
    if n_invalid is not None:
        (<int64_t*>cnp.PyArray_DATA(<cnp.ndarray>n_invalid))[0] = n_left_out
    return done
