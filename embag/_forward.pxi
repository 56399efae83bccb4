# The forward pass: reduce the rows of each bag.
#
# A job is one table, the bags that are wanted of it and where they go. It is cut into
# tasks, and a task of wide rows into blocks of columns that fit the registers. How a block
# is reduced depends on what a row holds: _plain.pxi for rows of the output's dtype,
# _encoded.pxi for all others.
#
# The work is bound by memory, not by arithmetic, so rows are asked for before they are
# needed, across the ends of bags, every cache line that a row touches; from a table larger
# than the caches in bursts (see `Job.burst`).

cdef enum:
    ONES = 2                    # positions a bag: below that, bags of one row are looked for
    # How rows are asked for. Origin of the figures: docs/design.md, "Prefetch".
    NEAR_TABLE = 512 << 10      # bytes: in a smaller table nothing is asked for
    CACHED_TABLE = 16 << 20     # bytes: a smaller table is taken to be in the caches
    NEAR = 16                   # rows ahead in a cached table
    FAR = 64                    # rows ahead, and rows a burst, in a larger one ...
    FAR_BYTES = 64 << 10        # ... or as many as this, where rows are wide ...
    FAR_LEAST = 8               # ... but not fewer than these

cdef enum Operation:
    SUM
    WEIGHTED_SUM
    MAX
    ARGMAX                 # MAX, and the winning rows

cdef struct Job

ctypedef bint (*reducer)(const Job*, const Task*) noexcept nogil

cdef struct Job:
    # Reduces a task's bags over a block of columns, but for ARGMAX.
    # Called through this pointer, each is compiled by itself: in one function they would
    # compete for registers.
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
    bint short_factors     # these are halves, else floats
    Py_ssize_t row_bytes   # all that is read of a row
    bint straddles         # blocks of rows need not be whole cache lines
    # Rows are asked for `ahead` positions before they are used, unless that is 0: one at
    # each position, or, if burst > 0, `burst` of them at every burst-th. Bursts keep the
    # core's few miss buffers for the requests while they last; requests mixed with the
    # loads of earlier rows take turns with them, which costs up to half of the bandwidth.
    Py_ssize_t ahead
    Py_ssize_t burst
    # What is asked of it.
    const void* input
    bint wide              # input is int64, else int32
    Bags bags
    Py_ssize_t n_positions      # in these bags, as first seen
    bint ones              # many bags have one row: worth a way of their own
    const void* sample     # (n_indices,) of the dtype of sums, for WEIGHTED_SUM alone
    Py_ssize_t padding     # a row, or -1 for none
    bint skip_invalid      # indices out of range are left out, else refused
    int operation
    bint mean
    # Where the result goes.
    void* out
    int out_encoding
    Py_ssize_t out_stride  # entries from one bag's result to the next
    const int64_t* out_rows     # where each bag's result goes in `out`; NULL: in order
    int64_t* max_indices   # (n_bags, dim), for ARGMAX alone


cdef inline Py_ssize_t rows_a_burst(Py_ssize_t row_bytes) noexcept nogil:
    return max(FAR_LEAST, min(FAR, FAR_BYTES // max(1, row_bytes)))


cdef inline size_t row_address(const Job* job, Py_ssize_t k) noexcept nogil:
    """Where the row at position k would be, to be asked for: the index is not checked."""
    if job.wide:
        return <size_t>job.table + <size_t>(<const int64_t*>job.input)[k] * <size_t>job.row_stride
    return <size_t>job.table + <size_t>(<const int32_t*>job.input)[k] * <size_t>job.row_stride


cdef Py_ssize_t count_task(const Job* job, const Task* task) noexcept nogil:
    """How many indices are out of range in the task's bags."""
    cdef Py_ssize_t n_indices = job.bags.n_indices
    cdef Py_ssize_t start = max(0, min(bag_bound(&job.bags, task.bag_start), n_indices))
    cdef Py_ssize_t stop = max(start, min(bag_bound(&job.bags, task.bag_stop), n_indices))
    if job.wide:
        return count_bad(<const int64_t*>job.input + start, stop - start, <size_t>job.n_rows)
    return count_bad(<const int32_t*>job.input + start, stop - start, <size_t>job.n_rows)


cdef bint do_task(const Job* job, Task* task) noexcept nogil:
    """Reduce the task's bags, and count what is left out of them. False if something is bad."""
    cdef uint64_t floats = embag_use_default_floats()
    cdef bint done = count_and_reduce(job, task)
    embag_restore_floats(floats)
    return done


cdef bint count_and_reduce(const Job* job, Task* task) noexcept nogil:
    """do_task under the default floating-point settings."""
    task.n_invalid = 0
    if job.skip_invalid and task.column_start == 0:
        # Apart from the reduction: a count there costs a quarter of the time of a row in
        # cache, though it is never reached. The indices are at hand now, and soon again.
        task.n_invalid = count_task(job, task)
    task.done = task.column_start == task.column_stop or reduce_task(job, task)
    return task.done


cdef bint reduce_task(const Job* job, const Task* task) noexcept nogil:
    """Reduce the task's bags over all its columns.

    Wide rows take several blocks: one bag at a time, so that the parts of a row are
    fetched at about the same time. The rows of a short bag are asked for here, whole,
    and not again by each block; in a long bag each block asks for its part of the rows.
    """
    cdef:
        Task part
        Job quiet
        const Job* block_job
        Py_ssize_t n_indices = job.bags.n_indices
        Py_ssize_t fetched = 0, start, stop, k
        Py_ssize_t n_columns = task.column_stop - task.column_start
        Py_ssize_t widest = EMBAG_BLOCK_BYTES // (8 if job.encoding == FLOAT64 else 4)
        Py_ssize_t n_blocks = (n_columns + widest - 1) // widest
        # Blocks start where entries of less than a byte start one.
        Py_ssize_t step = 1 if job.bits >= 8 else 4
        Py_ssize_t n_steps = (n_columns + step - 1) // step
        Py_ssize_t first_byte = job.entries + task.column_start * job.bits // 8
        # Scale and bias are next to the entries.
        Py_ssize_t n_bytes = n_columns * job.bits // 8 + (8 if job.encoding >= INT8 else 0)
        Py_ssize_t b, block
    if job.operation == ARGMAX:
        return reduce_argmax_of(job, task)
    if n_blocks == 1:
        return job.reduce_columns(job, task)
    part = task[0]
    quiet = job[0]
    quiet.burst = 0
    quiet.ahead = 0
    for b in range(task.bag_start, task.bag_stop):
        part.bag_start = b
        part.bag_stop = b + 1
        # Not checked yet: these only steer what is asked for.
        start = max(0, min(bag_bound(&job.bags, b), n_indices))
        stop = max(start, min(bag_bound(&job.bags, b + 1), n_indices))
        if stop - start > job.ahead:
            block_job = job
            part.first = fetched <= start
            fetched = max(fetched, stop)
        else:
            block_job = &quiet
            part.first = False
            for k in range(max(start, fetched), min(stop + job.ahead, n_indices)):
                fetch_bytes(row_address(job, k) + <size_t>first_byte, n_bytes)
            fetched = max(fetched, min(stop + job.ahead, n_indices))
        for block in range(n_blocks):
            part.column_start = task.column_start + block * n_steps // n_blocks * step
            part.column_stop = task.column_start + (block + 1) * n_steps // n_blocks * step
            if block == n_blocks - 1:
                part.column_stop = task.column_stop
            if not job.reduce_columns(block_job, &part):
                return False
    return True


cdef bint do_tasks(
    const Job* jobs,                 # IN   those that the tasks are of
    Task* tasks,
    Py_ssize_t n_tasks,
    int n_threads,
    int64_t* n_invalid,              # INOUT  for each job: what its tasks left out is added
) noexcept:
    """Do the tasks with a team. False if something is bad.

    It has the GIL and gives it up itself. In a function without, prange would ask Python
    whether it has it, and the answer is wrong once there has been a subinterpreter.
    """
    cdef Py_ssize_t t
    cdef bint done = True
    with nogil:
        for t in prange(n_tasks, num_threads=n_threads, schedule="dynamic", chunksize=1):
            do_task(&jobs[tasks[t].job], &tasks[t])
        for t in range(n_tasks):
            done = done and tasks[t].done
            n_invalid[tasks[t].job] += tasks[t].n_invalid
    return done


cdef reducer reducer_of(int encoding, int out_encoding, bint wide) noexcept nogil:
    """The function that reduces bags of such a table to such results by such indices; NULL
    if there is none."""
    if encoding == FLOAT32 == out_encoding:
        return reduce_float_by_int64 if wide else reduce_float_by_int32
    if encoding == FLOAT64 == out_encoding:
        return reduce_double_by_int64 if wide else reduce_double_by_int32
    if encoding == FLOAT64 and out_encoding == FLOAT32:
        return reduce_double_to_float
    if not (out_encoding == FLOAT32 or out_encoding == FLOAT16 or out_encoding == BFLOAT16):
        return NULL
    if encoding == FLOAT16:
        return reduce_half
    if encoding == BFLOAT16:
        return reduce_bfloat
    if encoding == INT8 or encoding == TBE_INT8:
        return reduce_int8
    if encoding == INT4 or encoding == TBE_INT4:
        return reduce_int4
    if encoding == INT2 or encoding == TBE_INT2:
        return reduce_int2
    return NULL


cdef void describe_table(
    Job* job,                        # OUT  the fields of the table
    cnp.ndarray weight,              # IN   is_encoded_table
    int encoding,
    Py_ssize_t dim,
):
    """What a job knows of its table, whatever is asked of it."""
    cdef double table_bytes
    job.table = <const char*>cnp.PyArray_DATA(weight)
    job.row_stride = cnp.PyArray_STRIDE(weight, 0)
    job.n_rows = cnp.PyArray_DIM(weight, 0)
    job.dim = dim
    job.encoding = encoding
    job.bits = bits_of(encoding)
    job.short_factors = encoding != INT8
    job.entries = 4 if encoding >= TBE_INT8 else 0
    job.factors = 0 if encoding >= TBE_INT8 else entry_bytes(job.bits, dim)
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


cdef int look_at_table(cnp.ndarray weight, int encoding, Py_ssize_t* dim) except -1:
    """Look once more at the layout of a table: its encoding, if that is not told, and width."""
    if encoding >= 0:
        refuse_change(is_encoded_table(weight, encoding, dim[0]))
        return encoding
    refuse_change(is_table(weight))
    dim[0] = cnp.PyArray_DIM(weight, 1)
    return FLOAT32 if cnp.PyArray_ITEMSIZE(weight) == 4 else FLOAT64


def embedding_bag(
    int n_threads,
    cnp.ndarray weight not None,     # IN   (n_rows, dim) float32 or float64, columns adjacent,
                                     #      or the rows of another encoding
    cnp.ndarray input not None,      # IN   (n_indices,) or (n_bags, bag_size), int32 or int64
    object offsets,                  # IN   (n_offsets,) int32 or int64; None if input is 2-D
    int include_last_offset,         # PART: and the first may be any
    object per_sample_weights,       # IN   like input, of the dtype of sums; or None
    str mode not None,
    Py_ssize_t padding,              # a row, or -1
    object n_invalid,                # OUT  (1,) int64: how many indices out of range were left
                                     #      out; or None: they are bad
    cnp.ndarray out not None,        # OUT  (n_bags, dim) of weight's dtype
    object max_indices,              # OUT  (n_bags, dim) int64; or None
    object out_rows=None,            # IN   (n_bags,) int64, increasing: the rows of out to fill
    int encoding=-1,                 # of weight, where its dtype does not tell
    Py_ssize_t dim=-1,
    int out_encoding=-1,
):
    """Fill `out`. False if an offset or an index is bad; `out` is then half-written.

    All arrays but `weight` are C-contiguous; all are aligned, native and checked. Their
    layout is looked at once more here, where nothing else runs: converting another
    argument may have run code that changed it, and no memory may be read or written for
    what an array was before. RuntimeError if one did change.
    """
    cdef:
        Job job
        Task only_task
        Task* tasks
        Py_ssize_t n_tasks
        int sample_type
        int64_t n_left_out = 0
        bint done

    encoding = look_at_table(weight, encoding, &dim)
    if out_encoding < 0:
        out_encoding = encoding
    sample_type = cnp.NPY_FLOAT64 if out_encoding == FLOAT64 else cnp.NPY_FLOAT32
    refuse_change(is_index_array(input)
                  and (offsets is None or is_index_array(offsets)))
    job.bags = describe_bags(input, offsets, include_last_offset != 0)
    refuse_change(
        job.bags.n_bags >= 0
        and cnp.PyArray_NDIM(out) == 2
        and (is_rows_of(out_rows, job.bags.n_bags, out) if out_rows is not None
             else cnp.PyArray_DIM(out, 0) == job.bags.n_bags)
        and is_result(out, cnp.PyArray_DIM(out, 0), dim, type_of(out_encoding))
        and (max_indices is None
             or (encoding == out_encoding <= FLOAT64
                 and is_result(max_indices, job.bags.n_bags, dim, cnp.NPY_INT64)))
        and (per_sample_weights is None
             or is_factors(per_sample_weights, job.bags.n_indices, sample_type))
        and (n_invalid is None or is_factors(n_invalid, 1, cnp.NPY_INT64))
    )
    describe_table(&job, weight, encoding, dim)
    job.input = cnp.PyArray_DATA(input)
    job.wide = cnp.PyArray_ITEMSIZE(input) == 8
    job.n_positions = positions_in(&job.bags, include_last_offset)
    job.ones = job.n_positions < ONES * job.bags.n_bags
    job.sample = NULL
    job.padding = padding
    job.skip_invalid = n_invalid is not None
    job.mean = mode == "mean"
    job.out = cnp.PyArray_DATA(out)
    job.out_encoding = out_encoding
    job.reduce_columns = reducer_of(encoding, out_encoding, job.wide)
    refuse_change(job.reduce_columns != NULL)
    job.out_stride = dim
    job.out_rows = NULL
    if out_rows is not None:
        job.out_rows = <const int64_t*>cnp.PyArray_DATA(<cnp.ndarray>out_rows)
    job.max_indices = NULL
    if mode != "max":
        job.operation = SUM if per_sample_weights is None else WEIGHTED_SUM
    elif max_indices is None:
        job.operation = MAX
    else:
        job.operation = ARGMAX
        job.max_indices = <int64_t*>cnp.PyArray_DATA(<cnp.ndarray>max_indices)
    if per_sample_weights is not None:
        job.sample = cnp.PyArray_DATA(<cnp.ndarray>per_sample_weights)

    if job.n_positions < 0:
        return False
    if n_threads == 1 or dim == 0:   # without OpenMP
        only_task = Task(0, job.bags.n_bags, 0, dim, True, False, 0, 0)
        with nogil:
            done = do_task(&job, &only_task)
        n_left_out = only_task.n_invalid
    else:
        tasks = <Task*>malloc(3 * SHARES * <size_t>n_threads * sizeof(Task))
        if tasks == NULL:
            raise MemoryError("no memory to plan a call")
        n_tasks = plan(&job.bags, dim, 8 if encoding == FLOAT64 else 4, SHARES * n_threads, tasks)
        done = do_tasks(&job, tasks, n_tasks, n_threads, &n_left_out)
        free(tasks)
    if n_invalid is not None:
        (<int64_t*>cnp.PyArray_DATA(<cnp.ndarray>n_invalid))[0] = n_left_out
    return done


def embedding_bags(
    int n_threads,
    cnp.ndarray weight not None,     # IN   as in embedding_bag
    tuple inputs not None,           # IN   an index array for each part: 1-D, or 2-D
    tuple offsets not None,          # IN   an index array for each, or None where that is 2-D
    int include_last_offset,
    tuple per_sample_weights not None,  # IN   like the input for each, or None
    str mode not None,
    Py_ssize_t padding,
    object n_invalid,
    cnp.ndarray out not None,        # OUT  (n_bags, dim): the parts' bags, one after the other
    object max_indices,              # None
    object out_rows=None,            # None
    int encoding=-1,
    Py_ssize_t dim=-1,
    int out_encoding=-1,
):
    """Fill `out` as `embedding_bag` does, by the bags of several parts, in one go.

    A parallel region for each would take longer than a part's work, where they are small.
    """
    cdef:
        Job* jobs = NULL
        Job* job
        Task* tasks = NULL
        Task only_task
        int64_t* counts = NULL
        Py_ssize_t n_jobs = len(inputs), first = 0, j, n_positions
        size_t n_tasks = 3 * (SHARES * <size_t>n_threads + <size_t>n_jobs)
        int sample_type
        int64_t n_left_out = 0
        bint done = True

    encoding = look_at_table(weight, encoding, &dim)
    if out_encoding < 0:
        out_encoding = encoding
    sample_type = cnp.NPY_FLOAT64 if out_encoding == FLOAT64 else cnp.NPY_FLOAT32
    refuse_change(len(offsets) == len(per_sample_weights) == n_jobs
                  and max_indices is None and out_rows is None
                  and cnp.PyArray_NDIM(out) == 2
                  and is_result(out, cnp.PyArray_DIM(out, 0), dim, type_of(out_encoding))
                  and (n_invalid is None or is_factors(n_invalid, 1, cnp.NPY_INT64)))
    jobs = <Job*>malloc(max(<size_t>1, <size_t>n_jobs) * sizeof(Job))
    tasks = <Task*>malloc(n_tasks * sizeof(Task))
    counts = <int64_t*>malloc(max(<size_t>1, <size_t>n_jobs) * sizeof(int64_t))
    try:
        if jobs == NULL or tasks == NULL or counts == NULL:
            raise MemoryError("no memory to plan a call")
        memset(jobs, 0, <size_t>n_jobs * sizeof(Job))
        memset(counts, 0, <size_t>n_jobs * sizeof(int64_t))
        for j in range(n_jobs):
            job = &jobs[j]
            refuse_change(is_index_array(inputs[j])
                          and (offsets[j] is None or is_index_array(offsets[j])))
            job.bags = describe_bags(inputs[j], offsets[j], include_last_offset != 0)
            refuse_change(
                0 <= job.bags.n_bags <= cnp.PyArray_DIM(out, 0) - first
                and (per_sample_weights[j] is None
                     or is_factors(per_sample_weights[j], job.bags.n_indices, sample_type))
            )
            describe_table(job, weight, encoding, dim)
            job.padding = padding
            job.skip_invalid = n_invalid is not None
            job.operation = MAX if mode == "max" else SUM
            job.mean = mode == "mean"
            job.out = <char*>cnp.PyArray_DATA(out) + first * dim * cnp.PyArray_ITEMSIZE(out)
            job.out_encoding = out_encoding
            job.out_stride = dim
            n_positions = positions_in(&job.bags, include_last_offset)
            done = done and n_positions >= 0
            set_input(job, inputs[j], n_positions, per_sample_weights[j])
            refuse_change(job.reduce_columns != NULL)
            first += job.bags.n_bags
        refuse_change(first == cnp.PyArray_DIM(out, 0))
        if done and (n_threads == 1 or dim == 0):   # without OpenMP
            with nogil:
                for j in range(n_jobs):
                    only_task = Task(0, jobs[j].bags.n_bags, 0, dim, True, False, 0, 0)
                    done = done and do_task(&jobs[j], &only_task)
                    n_left_out += only_task.n_invalid
        elif done:
            done = do_tasks(jobs, tasks, plan_jobs(jobs, n_jobs, tasks, n_threads), n_threads,
                            counts)
            for j in range(n_jobs):
                n_left_out += counts[j]
    finally:
        free(jobs)
        free(tasks)
        free(counts)
    if n_invalid is not None:
        (<int64_t*>cnp.PyArray_DATA(<cnp.ndarray>n_invalid))[0] = n_left_out
    return done
