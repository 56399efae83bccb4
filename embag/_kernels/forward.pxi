# The forward pass: jobs are cut into tasks, and a task of wide rows into blocks of columns.
#
# The work is bound by memory, not by arithmetic, so rows are prefetched before they are
# needed, across the ends of bags, every cache line that a row touches (see strategies.pxi).

cdef inline Py_ssize_t sum_bytes(const Job* job) noexcept nogil:
    """The bytes of a column of a block: of the type that rows are summed in, or read as."""
    return 8 if ENCODINGS[job.encoding].sum_type == cnp.NPY_FLOAT64 else 4


cdef Py_ssize_t count_task(const Job* job, const Task* task) noexcept nogil:
    """The number of ids out of range in the task's bags."""
    cdef Py_ssize_t n_indices = job.bags.n_indices
    cdef Py_ssize_t start = max(0, min(bag_bound(&job.bags, task.bag_start), n_indices))
    cdef Py_ssize_t stop = max(start, min(bag_bound(&job.bags, task.bag_stop), n_indices))
    if job.wide:
        return count_bad(<const int64_t*>job.input + start, stop - start, <size_t>job.n_rows)
    return count_bad(<const int32_t*>job.input + start, stop - start, <size_t>job.n_rows)


cdef bint do_task(const Job* job, Task* task) noexcept nogil:
    """Reduce the task's bags, and count the ids that are skipped. False if something is bad.

    Under the floating-point settings of the thread: see `do_chunk`.
    """
    task.n_invalid = 0
    if job.mapping != NULL:
        task.done = do_mapped(job, task)    # mapping.pxi
        return task.done
    if job.skip_invalid and task.column_start == 0:
        # Apart from the reduction: a count there costs a quarter of the time of a row in
        # cache, though it is never reached. The ids are in the cache now, and needed soon.
        task.n_invalid = count_task(job, task)
    task.done = reduce_bags_of(job, task)
    return task.done


cdef inline bint reduce_bags_of(const Job* job, const Task* task) noexcept nogil:
    """Reduce the task's bags. False if something is bad."""
    cdef bint done
    if task.column_start == task.column_stop:
        done = True
    elif is_scaled(job.operation):
        done = choose_scaled(job, task)     # mapping.pxi
    elif job.paged:
        done = reduce_paged(job, task)
    else:
        done = reduce_timed(job, task)
    if done and (job.n_valid != NULL or job.default_row >= 0 or job.normalizes):
        done = finish_task(job, task)
    return done


cdef Py_ssize_t count_valid(
    const Job* job, Py_ssize_t start, Py_ssize_t stop, Py_ssize_t most
) noexcept nogil:
    """How many entries of a bag count, up to `most`."""
    cdef Py_ssize_t n = 0, k, r
    for k in range(start, stop):
        r = index_of(job, k)
        if <size_t>r >= <size_t>job.n_rows:
            r = job.stand_in
        n += r >= 0 and r != job.padding
        if n >= most:
            break
    return n


cdef bint finish_task(const Job* job, const Task* task) noexcept nogil:
    """Count the entries that count, reduce the default row for bags without any, and divide
    results by their lengths. The bags are reduced, their ids in the cache. False if another
    thread has changed the offsets."""
    cdef:
        Job instead = job[0]
        Task bag = task[0]
        int64_t default_id = job.default_row
        Py_ssize_t n_indices = job.bags.n_indices, b, start, stop, n
        bint counts = job.n_valid != NULL and task.column_start == 0
    instead.bags.offsets = NULL      # one bag of one entry
    instead.bags.bag_size = instead.bags.n_bags = instead.bags.n_indices = 1
    instead.input = &default_id
    instead.wide = True
    instead.reduce_columns = reducer_of(job.encoding, job.out_encoding, True)
    instead.sample = job.default_factor
    instead.weights = NULL
    instead.ones = False
    instead.padding = instead.default_row = instead.stand_in = -1
    instead.choice = NULL
    if not chooses(job.operation):
        instead.operation = SUM if job.default_factor == NULL else WEIGHTED_SUM
    bag.bag_start = 0
    bag.bag_stop = 1
    bag.first = False
    stop = bag_bound(&job.bags, task.bag_start)
    for b in range(task.bag_start, task.bag_stop):
        start = stop
        stop = bag_bound(&job.bags, b + 1)
        if not (0 <= start <= stop <= n_indices):
            return False
        n = count_valid(job, start, stop, stop - start if counts else 1)
        if counts:
            job.n_valid[b] = n
        if n == 0 and job.default_row >= 0 and task.column_start < task.column_stop:
            instead.out = result_of(job, b)
            if job.max_indices != NULL:
                instead.max_indices = job.max_indices + b * job.dim
            if not (choose_scaled(&instead, &bag) if is_scaled(job.operation)
                    else reduce_task(&instead, &bag)):
                return False
        if job.normalizes:
            if job.out_encoding == FLOAT64:
                normalize(<double*>result_of(job, b), job.dim)
            else:
                normalize(<float*>result_of(job, b), job.dim)
    return True


cdef inline void* result_of(const Job* job, Py_ssize_t b) noexcept nogil:
    """Where the result of a bag goes, in a job without out_rows."""
    cdef Py_ssize_t step = job.out_stride * (ENCODINGS[job.out_encoding].bits // 8)
    return <char*>job.out + b * step


cdef void normalize(floating_ft* row, Py_ssize_t dim) noexcept nogil:
    """Divide a row by its Euclidean norm, computed in float64; a row of zeros stays."""
    cdef double norm = euclidean_norm(row, dim)
    cdef Py_ssize_t d
    if norm != 0:
        for d in range(dim):
            row[d] = <floating_ft>(<double>row[d] / norm)


cdef inline bint reduce_timed(const Job* job, const Task* task) noexcept nogil:
    """Reduce the task's bags, in pieces if strategies may have to be compared."""
    if job.choice == NULL or job.n_positions < PIECE:
        return reduce_task(job, task)
    return reduce_pieces(job, task)


cdef bint reduce_paged(const Job* job, const Task* task) noexcept nogil:
    """Reduce the task's bags in pieces, of which each is timed, and its pages prefetched where
    that helps."""
    cdef:
        Paging* paging = paging_of(<size_t>job.table)
        Task piece = task[0]
        Py_ssize_t start, stop, size
        bint fetched
        int64_t began
    while piece.bag_start < task.bag_stop:
        start = position_of(job, piece.bag_start)
        stop = max(start, position_of(job, task.bag_stop))
        fetched = takes_pages(paging, stop - start)
        size = paged_piece(paging, fetched)
        piece.bag_stop = task.bag_stop
        if stop - start > size:
            stop = cut_piece(job, &piece, start, size)
        began = begin_pages(paging, stop - start)
        if fetched:
            fetch_pages(job, start, min(stop, start + MOST_PAGES))
        if not reduce_timed(job, &piece):
            return False
        end_pages(paging, fetched, stop - start, began)
        piece.bag_start = piece.bag_stop
        piece.first = True
    return True


cdef inline Py_ssize_t position_of(const Job* job, Py_ssize_t b) noexcept nogil:
    """The first position of a bag, within the ids whatever the offsets hold."""
    return max(0, min(bag_bound(&job.bags, b), job.bags.n_indices))


cdef Py_ssize_t cut_piece(
    const Job* job, Task* piece, Py_ssize_t start, Py_ssize_t size
) noexcept nogil:
    """End a piece after some positions, at a bag's end; returns its last position."""
    piece.bag_stop = max(piece.bag_start + 1, min(piece.bag_stop, first_bag_from(
        &job.bags, <double>(start + size) + <double>piece.bag_start)))
    return max(start, position_of(job, piece.bag_stop))


cdef bint reduce_pieces(const Job* job, const Task* task) noexcept nogil:
    """Reduce the task's bags, and time pieces of them where the choice of a strategy needs it."""
    cdef:
        Job part = job[0]
        Task piece = task[0]
        Timed timed
        Py_ssize_t start, stop
        # What some columns of a row take is not what a row takes.
        bint is_whole = task.column_stop - task.column_start == job.dim
    while piece.bag_start < task.bag_stop:
        start = position_of(job, piece.bag_start)
        stop = max(start, position_of(job, task.bag_stop))
        piece.bag_stop = task.bag_stop
        timed = begin_piece(job.choice, stop - start if is_whole else 0)
        if timed.candidate >= 0 and stop - start >= 2 * PIECE:
            stop = cut_piece(job, &piece, start, PIECE)
        use_strategy(&part, CANDIDATES[timed.candidate if timed.candidate >= 0
                                       else known(job.choice)])
        if not reduce_task(&part, &piece):
            return False
        end_piece(job.choice, timed, stop - start)
        piece.bag_start = piece.bag_stop
        piece.first = True
    return True


cdef bint reduce_task(const Job* job, const Task* task) noexcept nogil:
    """Reduce the task's bags over all its columns.

    Wide rows take several blocks: one bag at a time, so that the parts of a row are
    fetched at about the same time. The rows of a short bag are prefetched here, whole,
    and not again by each block; in a long bag each block prefetches its part of the rows.
    """
    cdef:
        Task part
        Job quiet
        const Job* block_job
        Py_ssize_t n_indices = job.bags.n_indices
        Py_ssize_t fetched = 0, start, stop, k
        Py_ssize_t n_columns = task.column_stop - task.column_start
        Py_ssize_t widest = EMBAG_BLOCK_BYTES // sum_bytes(job)
        Py_ssize_t n_blocks = (n_columns + widest - 1) // widest
        # Blocks start where entries of less than a byte start one.
        Py_ssize_t step = 1 if job.bits >= 8 else 4
        Py_ssize_t n_steps = (n_columns + step - 1) // step
        Py_ssize_t first_byte = job.entries + task.column_start * job.bits // 8
        # Scale and bias are next to the entries.
        Py_ssize_t factor_bytes = ENCODINGS[job.encoding].factor_bytes
        Py_ssize_t n_bytes = n_columns * job.bits // 8 + 2 * factor_bytes
        Py_ssize_t b, block, ahead_stop
    if job.operation >= ARGMAX:
        return reduce_argmax_of(job, task)
    if n_blocks == 1:
        return job.reduce_columns(job, task)
    part = task[0]
    quiet = job[0]
    quiet.fetching.burst = 0
    quiet.fetching.ahead = 0
    for b in range(task.bag_start, task.bag_stop):
        part.bag_start = b
        part.bag_stop = b + 1
        # Not checked yet: these only steer what is prefetched.
        start = max(0, min(bag_bound(&job.bags, b), n_indices))
        stop = max(start, min(bag_bound(&job.bags, b + 1), n_indices))
        if stop - start > job.fetching.ahead:
            block_job = job
            part.first = fetched <= start
            fetched = max(fetched, stop)
        else:
            block_job = &quiet
            part.first = False
            ahead_stop = min(stop + job.fetching.ahead, n_indices)
            if job.fetching.ahead > 0:
                for k in range(max(start, fetched), ahead_stop):
                    fetch_bytes(job.fetching.way,
                                row_address(job, k) + <size_t>first_byte, n_bytes)
            if EMBAG_TOUCHES:
                touch_rows(job, ahead_stop, ahead_stop - max(start, fetched))
            fetched = max(fetched, ahead_stop)
        for block in range(n_blocks):
            part.column_start = task.column_start + block * n_steps // n_blocks * step
            part.column_stop = task.column_start + (block + 1) * n_steps // n_blocks * step
            if block == n_blocks - 1:
                part.column_stop = task.column_stop
            if not job.reduce_columns(block_job, &part):
                return False
    return True


cdef struct Batch:
    # Tasks that are done together.
    const Job* jobs        # of which tasks are parts
    Task* tasks


cdef bint do_task_of(
    Batch* batch, const void* _, void* __, Py_ssize_t t, Py_ssize_t n_tasks
) noexcept nogil:
    return do_task(&batch.jobs[batch.tasks[t].job], &batch.tasks[t])


cdef bint do_jobs(
    const Job* jobs,                 # IN
    Py_ssize_t n_jobs,
    int n_threads,
    int64_t* n_invalid,              # INOUT  for each job: the number of ids skipped is added
) except -1:
    """Do the jobs with a team. False if something is bad."""
    cdef:
        double total = bytes_of_jobs(jobs, n_jobs)
        Py_ssize_t n_slices = 0
        size_t room = 0
        Stage stage = Stage(<chunk_work>do_task_of, NULL)
        Py_ssize_t n_tasks, t, j
        Batch batch
        bint done
    for j in range(n_jobs):
        room += 3 * <size_t>shares_of_job(&jobs[j], total, n_threads)
        n_slices += slices_of_job(&jobs[j]) - 1
    batch = Batch(jobs, <Task*>malloc(max(<size_t>1, room) * sizeof(Task)))
    if batch.tasks == NULL:
        raise MemoryError("no memory to plan a call")
    try:
        n_tasks = plan_jobs(jobs, n_jobs, total, batch.tasks, n_threads)
        done = run_stages(&stage, 1, &batch, NULL, NULL, n_tasks, n_threads, False,
                          is_large(n_slices, n_threads))
        for t in range(n_tasks):
            n_invalid[batch.tasks[t].job] += batch.tasks[t].n_invalid
    finally:
        free(batch.tasks)
    return done


# --- Plans --------------------------------------------------------------------

cdef Py_ssize_t plan(
    const Bags* bags,                # IN
    Py_ssize_t dim,
    Py_ssize_t itemsize,
    Py_ssize_t n_shares,
    Py_ssize_t n_parts_of_bag,       # a bag may be cut into, at most
    Task* tasks,                     # OUT  room for 3 * n_shares
) noexcept nogil:
    """Cut the output into tasks of about equal work; returns how many.

    Contiguous runs of bags. A bag too large for one thread is cut by columns,
    so that each sum keeps its order. The offsets are not checked yet: whatever they
    hold, every bag is in one run and the tasks stay within their room.
    """
    cdef:
        Py_ssize_t line_columns = LINE // itemsize
        Py_ssize_t n_lines = (dim + line_columns - 1) // line_columns
        # Offsets may be a part of longer ones: then the first is not 0.
        Py_ssize_t first = max(0, min(bag_bound(bags, 0), bags.n_indices))
        double work = <double>(bags.n_indices - first) + <double>bags.n_bags
        double share = work / n_shares, widest = work / n_parts_of_bag, size
        Py_ssize_t n_tasks = 0, b = 0, t, next_b, last, n_parts, part, room

    for t in range(n_shares):
        next_b = bags.n_bags
        if t < n_shares - 1:
            next_b = first_bag_from(bags, first + share * <double>(t + 1))
        if next_b <= b:
            continue
        # Only the last bag of a run can be so large.
        last = next_b - 1
        size = <double>bag_bound(bags, next_b) - <double>bag_bound(bags, last)
        n_parts = min(
            <Py_ssize_t>max(1.0, min(size / widest + 1, <double>n_parts_of_bag)), n_lines)
        # One task is for the run's other bags, and one for each run to come.
        room = 3 * n_shares - n_tasks - 1 - (n_shares - 1 - t)
        n_parts = min(n_parts, room)
        if size <= widest or n_parts <= 1:
            tasks[n_tasks] = Task(b, next_b, 0, dim, True, False, 0, 0)
            n_tasks += 1
        else:
            for part in range(n_parts):
                tasks[n_tasks] = Task(
                    last,
                    next_b,
                    part * n_lines // n_parts * line_columns,
                    min((part + 1) * n_lines // n_parts * line_columns, dim),
                    True,
                    False,
                    0,
                    0,
                )
                n_tasks += 1
            if b < last:
                tasks[n_tasks] = Task(b, last, 0, dim, True, False, 0, 0)
                n_tasks += 1
        b = next_b
    return n_tasks


cdef inline double bytes_of_job(const Job* job) noexcept nogil:
    """What a job reads and writes: by numbers that no other thread can change, since room
    for tasks is counted by them."""
    return (<double>job.n_positions * <double>job.row_bytes
            + <double>job.bags.n_bags * <double>job.dim * sum_bytes(job))


cdef double bytes_of_jobs(const Job* jobs, Py_ssize_t n_jobs) noexcept nogil:
    cdef double total = 0
    cdef Py_ssize_t j
    for j in range(n_jobs):
        total = total + bytes_of_job(&jobs[j])
    return total


cdef inline Py_ssize_t part_of_job(const Job* job, double total, int n_threads) noexcept nogil:
    """How many of the shares of threads are a job's, if all jobs have so many bytes."""
    cdef Py_ssize_t n_shares = SHARES * <Py_ssize_t>n_threads if n_threads > 1 else 1
    return <Py_ssize_t>max(1.0, ceil(<double>n_shares * bytes_of_job(job) / max(total, 1.0)))


cdef inline Py_ssize_t shares_of_job(const Job* job, double total, int n_threads) noexcept nogil:
    """How many shares a job is cut into."""
    return max(part_of_job(job, total, n_threads), slices_of_job(job))


cdef inline Py_ssize_t slices_of_job(const Job* job) noexcept nogil:
    """How many chunks a job is cut into by its bytes. A row takes a cache line at least."""
    return slices_of(
        bytes_of_job(job) + <double>job.n_positions * <double>max(0, LINE - job.row_bytes))


cdef Py_ssize_t plan_jobs(
    const Job* jobs,
    Py_ssize_t n_jobs,
    double total,                    # their bytes
    Task* tasks,                     # OUT  room for 3 * shares_of_job, for each job
    int n_threads,
) noexcept nogil:
    """Cut all jobs into tasks of about equal bytes; returns how many."""
    cdef Py_ssize_t j, t, first, n_tasks = 0
    for j in range(n_jobs):
        first = n_tasks
        n_tasks += plan(
            &jobs[j].bags, jobs[j].dim, sum_bytes(&jobs[j]),
            shares_of_job(&jobs[j], total, n_threads),
            1 if jobs[j].normalizes else part_of_job(&jobs[j], total, n_threads),
            tasks + n_tasks)
        for t in range(first, n_tasks):
            tasks[t].job = j
    return n_tasks


# --- Reducers -----------------------------------------------------------------

cdef struct Reducers:
    # What reduces rows of an encoding to results of the type of sums (or rounded from it),
    # by the type of ids. NULL: there is none.
    reducer by_int32
    reducer by_int64

cdef Reducers[N_ENCODINGS] REDUCERS
REDUCERS[FLOAT32] = Reducers(reduce_float_by_int32, reduce_float_by_int64)
REDUCERS[FLOAT64] = Reducers(reduce_double_by_int32, reduce_double_by_int64)
REDUCERS[FLOAT16] = Reducers(reduce_half, reduce_half)
REDUCERS[BFLOAT16] = Reducers(reduce_bfloat, reduce_bfloat)
REDUCERS[INT8] = Reducers(reduce_int8_by_int32, reduce_int8_by_int64)
REDUCERS[TBE_INT8] = Reducers(reduce_int8_half, reduce_int8_half)
REDUCERS[SIGNED_INT8] = Reducers(reduce_signed, reduce_signed)
REDUCERS[UNSIGNED_INT8] = Reducers(reduce_unsigned, reduce_unsigned)
REDUCERS[E4M3] = Reducers(reduce_e4m3, reduce_e4m3)
REDUCERS[E5M2] = Reducers(reduce_e5m2, reduce_e5m2)
REDUCERS[INT4] = REDUCERS[TBE_INT4] = Reducers(reduce_int4, reduce_int4)
REDUCERS[INT2] = REDUCERS[TBE_INT2] = Reducers(reduce_int2, reduce_int2)


cdef reducer reducer_of(int encoding, int out_encoding, bint wide) noexcept nogil:
    """The function that reduces bags of such a table to such results by such ids; NULL if
    there is none."""
    if encoding == FLOAT64 and out_encoding == FLOAT32:
        return reduce_narrowed
    if is_plain(encoding):
        if out_encoding != encoding:
            return NULL
    elif not (ENCODINGS[out_encoding].rounds
              and ENCODINGS[out_encoding].sum_type == cnp.NPY_FLOAT32):
        return NULL
    return REDUCERS[encoding].by_int64 if wide else REDUCERS[encoding].by_int32
