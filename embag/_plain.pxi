# Bags of tables of float32 or float64: sums in the dtype of the table.
#
# A bag's accumulators stay in registers. A task's columns are covered by blocks no wider
# than the register file, and each block by two halves of one width, which overlap when that
# is no exact fit: `[0, half)` and `[n - half, n)`. A column in both is computed twice, to
# the same bits, so any width is vectorised without a tail. `half` is a literal at each call
# (see `reduce_as`), so the compiler unrolls the loops over columns and keeps both halves in
# vector registers.

cdef enum:
    WIDEST_HALF = 128      # floats: half of the widest block of any level


cdef inline Py_ssize_t out_position(const Job* job, Py_ssize_t b) noexcept nogil:
    return b if job.out_rows == NULL else job.out_rows[b]


cdef inline bint reduce_block(
    const Py_ssize_t half,
    const int operation,
    const bint ones,                 # many bags have one row
    const index_ft* input,           # IN   (n_indices,)
    const floating_ft* sample,       # IN   (n_indices,), for WEIGHTED_SUM alone
    const Job* job,                  # IN
    const Task* task,                # IN   half <= its columns <= 2 * half
    floating_ft* out,                # OUT  (n_bags, dim)
) noexcept nogil:
    """Reduce the task's bags over one block of columns. False if something is bad.

    `half`, `operation` and `ones` are literals where this is called.
    """
    cdef:
        floating_ft low[WIDEST_HALF]
        floating_ft high[WIDEST_HALF]
        floating_ft least = <floating_ft>(-INFINITY) if operation == MAX else 0
        floating_ft* out_row
        const floating_ft* row
        const char* table = job.table + task.column_start * <Py_ssize_t>sizeof(floating_ft)
        size_t n_rows = <size_t>job.n_rows
        Py_ssize_t stride = job.row_stride, padding = job.padding
        Py_ssize_t n_indices = job.bags.n_indices
        Py_ssize_t n_columns = task.column_stop - task.column_start
        Py_ssize_t shift = n_columns - half
        Py_ssize_t half_bytes = half * <Py_ssize_t>sizeof(floating_ft)
        Py_ssize_t shift_bytes = shift * <Py_ssize_t>sizeof(floating_ft)
        bint straddles = job.straddles, in_order = job.out_rows == NULL
        Py_ssize_t ahead = job.ahead, burst = job.burst
        # A burst is due at burst_at; single rows are asked for up to single_stop.
        Py_ssize_t burst_at = 0 if burst > 0 else n_indices
        Py_ssize_t single_stop = 0 if burst > 0 or ahead == 0 else n_indices - ahead
        Py_ssize_t out_stride = job.out_stride, bag_stop = task.bag_stop
        Py_ssize_t b, start, stop, one_stop, k, next_k, r, n_kept

    if 2 * half * <Py_ssize_t>sizeof(floating_ft) > EMBAG_BLOCK_BYTES:
        return False                 # this level has no such block: nothing to compile
    stop = bag_bound(&job.bags, task.bag_start)
    if not (0 <= stop <= n_indices):
        return False
    if task.first:
        for k in range(stop, min(stop + ahead, n_indices)):
            fetch(half_bytes, <size_t>table + <size_t>input[k] * <size_t>stride,
                  shift_bytes, straddles)

    b = task.bag_start
    while b < bag_stop:
        start = stop
        stop = bag_bound(&job.bags, b + 1)

        if ones:
            # Bags of one row, while no burst is due: each goes from load to store, with
            # as little in between as there can be.
            out_row = out + b * out_stride + task.column_start
            one_stop = min(burst_at, n_indices) if in_order else 0
            while stop == start + 1 and start < one_stop:
                if start < single_stop:
                    fetch(half_bytes, <size_t>table + <size_t>input[start + ahead] * <size_t>stride,
                          shift_bytes, straddles)
                r = read_index(input, start)
                if <size_t>r >= n_rows:
                    if not job.skip_invalid:
                        return False
                    r = padding
                row = <const floating_ft*>(table + r * stride)
                if r == padding:
                    fill(half, out_row, 0)
                    fill(half, out_row + shift, 0)
                elif operation == SUM:
                    copy_sum(half, out_row, row)
                    copy_sum(half, out_row + shift, row + shift)
                else:
                    copy_scaled(half, out_row, row, sample[start])
                    copy_scaled(half, out_row + shift, row + shift, sample[start])
                b += 1
                if b == bag_stop:
                    return True
                out_row += out_stride
                start = stop
                stop = bag_bound(&job.bags, b + 1)

        if not (start <= stop <= n_indices):
            return False
        out_row = out + out_position(job, b) * out_stride + task.column_start
        if start == stop:
            fill(half, out_row, 0)
            fill(half, out_row + shift, 0)
            b += 1
            continue

        n_kept = 0
        fill(half, low, least)
        fill(half, high, least)
        k = start
        while k < stop:
            if k >= burst_at:
                for next_k in range(k + ahead, min(k + ahead + burst, n_indices)):
                    fetch(half_bytes, <size_t>table + <size_t>input[next_k] * <size_t>stride,
                          shift_bytes, straddles)
                burst_at = k + burst
            for k in range(k, min(stop, burst_at)):
                if k < single_stop:
                    fetch(half_bytes, <size_t>table + <size_t>input[k + ahead] * <size_t>stride,
                          shift_bytes, straddles)
                r = read_index(input, k)
                if <size_t>r >= n_rows:
                    if job.skip_invalid:
                        continue
                    return False
                if r == padding:
                    continue
                n_kept += 1
                row = <const floating_ft*>(table + r * stride)
                if operation == SUM:
                    add(half, low, row)
                    add(half, high, row + shift)
                elif operation == WEIGHTED_SUM:
                    add_scaled(half, low, row, sample[k])
                    add_scaled(half, high, row + shift, sample[k])
                else:
                    take_max(half, low, row)
                    take_max(half, high, row + shift)
            k = min(stop, burst_at)

        if n_kept == 0:
            fill(half, out_row, 0)
            fill(half, out_row + shift, 0)
        elif operation != MAX and job.mean:
            copy_divided(half, out_row, low, <floating_ft>n_kept)
            copy_divided(half, out_row + shift, high, <floating_ft>n_kept)
        else:
            copy(half, out_row, low)
            copy(half, out_row + shift, high)
        b += 1
    return True


cdef inline Py_ssize_t narrowest_half(Py_ssize_t n_columns) noexcept nogil:
    """The least of the halves that reduce_as knows with half <= n_columns <= 2 * half."""
    cdef Py_ssize_t half = (n_columns + 1) // 2
    if half <= 2:
        return half
    if half <= 4:
        return 4
    if half <= 64:
        return (half + 7) // 8 * 8
    return (half + 15) // 16 * 16


cdef inline Py_ssize_t narrowest_power(Py_ssize_t n_columns) noexcept nogil:
    """The least power of two with half <= n_columns <= 2 * half."""
    cdef Py_ssize_t half = 1
    while 2 * half < n_columns:
        half = 2 * half
    return half


cdef inline bint reduce_as(
    const int operation,
    const index_ft* input,
    const floating_ft* sample,
    const Job* job,
    const Task* task,
    floating_ft* out,
) noexcept nogil:
    """reduce_block with the narrowest half that covers the task's columns."""
    cdef Py_ssize_t half = narrowest_half(task.column_stop - task.column_start)
    if half == 1:
        return reduce_block(1, operation, False, input, sample, job, task, out)
    elif half == 2:
        return reduce_block(2, operation, False, input, sample, job, task, out)
    elif half == 4:
        return reduce_block(4, operation, False, input, sample, job, task, out)
    elif half == 8:
        return reduce_block(8, operation, False, input, sample, job, task, out)
    elif half == 16:
        return reduce_block(16, operation, False, input, sample, job, task, out)
    elif half == 24:
        return reduce_block(24, operation, False, input, sample, job, task, out)
    elif half == 32:
        return reduce_block(32, operation, False, input, sample, job, task, out)
    elif half == 40:
        return reduce_block(40, operation, False, input, sample, job, task, out)
    elif half == 48:
        return reduce_block(48, operation, False, input, sample, job, task, out)
    elif half == 56:
        return reduce_block(56, operation, False, input, sample, job, task, out)
    elif half == 64:
        return reduce_block(64, operation, False, input, sample, job, task, out)
    elif half == 80:
        return reduce_block(80, operation, False, input, sample, job, task, out)
    elif half == 96:
        return reduce_block(96, operation, False, input, sample, job, task, out)
    elif half == 112:
        return reduce_block(112, operation, False, input, sample, job, task, out)
    return reduce_block(WIDEST_HALF, operation, False, input, sample, job, task, out)


cdef inline bint reduce_ones_as(
    const int operation,
    const index_ft* input,
    const floating_ft* sample,
    const Job* job,
    const Task* task,
    floating_ft* out,
) noexcept nogil:
    """reduce_block where many bags have one row, with fewer halves to choose from."""
    cdef Py_ssize_t half = narrowest_power(task.column_stop - task.column_start)
    if half == 1:
        return reduce_block(1, operation, True, input, sample, job, task, out)
    elif half == 2:
        return reduce_block(2, operation, True, input, sample, job, task, out)
    elif half == 4:
        return reduce_block(4, operation, True, input, sample, job, task, out)
    elif half == 8:
        return reduce_block(8, operation, True, input, sample, job, task, out)
    elif half == 16:
        return reduce_block(16, operation, True, input, sample, job, task, out)
    elif half == 32:
        return reduce_block(32, operation, True, input, sample, job, task, out)
    elif half == 64:
        return reduce_block(64, operation, True, input, sample, job, task, out)
    return reduce_block(WIDEST_HALF, operation, True, input, sample, job, task, out)


cdef bint reduce_argmax(
    const index_ft* input,           # IN   (n_indices,)
    const Job* job,                  # IN
    const Task* task,                # IN
    floating_ft* out,                # OUT  (n_bags, dim)
) noexcept nogil:
    """The maximum and its row, for any number of columns. False if something is bad.

    Twice the state of a maximum would not stay in registers: it lives in the output
    rows, which stay in L1.
    """
    cdef:
        floating_ft* best
        int64_t* winners
        const floating_ft* row
        const char* table = job.table + task.column_start * <Py_ssize_t>sizeof(floating_ft)
        Py_ssize_t n_columns = task.column_stop - task.column_start
        Py_ssize_t n_bytes = n_columns * <Py_ssize_t>sizeof(floating_ft)
        Py_ssize_t b, start, stop, k, r, d, first_row
        bint won

    stop = bag_bound(&job.bags, task.bag_start)
    if not (0 <= stop <= job.bags.n_indices):
        return False
    for b in range(task.bag_start, task.bag_stop):
        start = stop
        stop = bag_bound(&job.bags, b + 1)
        if not (start <= stop <= job.bags.n_indices):
            return False
        best = out + b * job.dim + task.column_start
        winners = job.max_indices + b * job.dim + task.column_start
        first_row = -1
        for k in range(start, stop):
            if 0 < job.ahead < job.bags.n_indices - k:
                fetch_bytes(
                    <size_t>table + <size_t>input[k + job.ahead] * <size_t>job.row_stride, n_bytes)
            r = read_index(input, k)
            if <size_t>r >= <size_t>job.n_rows:
                if job.skip_invalid:
                    continue
                return False
            if r == job.padding:
                continue
            row = <const floating_ft*>(table + r * job.row_stride)
            if first_row < 0:
                first_row = r
                for d in range(n_columns):
                    best[d] = row[d]
                    winners[d] = r
                continue
            for d in range(n_columns):
                won = wins(row[d], best[d])
                best[d] = row[d] if won else best[d]
                winners[d] = r if won else winners[d]
        if first_row < 0:
            for d in range(n_columns):
                best[d] = 0
                winners[d] = -1
    return True


cdef inline bint reduce_floats(
    const index_ft* input,
    const floating_ft* sample,
    const Job* job,
    const Task* task,
    floating_ft* out,
) noexcept nogil:
    """Reduce the task's bags over its columns, no more than a block of them."""
    if job.operation == SUM and job.ones:
        return reduce_ones_as(SUM, input, sample, job, task, out)
    if job.operation == SUM:
        return reduce_as(SUM, input, sample, job, task, out)
    if job.operation == WEIGHTED_SUM and job.ones:
        return reduce_ones_as(WEIGHTED_SUM, input, sample, job, task, out)
    if job.operation == WEIGHTED_SUM:
        return reduce_as(WEIGHTED_SUM, input, sample, job, task, out)
    return reduce_as(MAX, input, sample, job, task, out)


cdef bint reduce_float_by_int32(const Job* job, const Task* task) noexcept nogil:
    return reduce_floats(<const int32_t*>job.input, <const float*>job.sample, job, task,
                         <float*>job.out)


cdef bint reduce_float_by_int64(const Job* job, const Task* task) noexcept nogil:
    return reduce_floats(<const int64_t*>job.input, <const float*>job.sample, job, task,
                         <float*>job.out)


cdef bint reduce_double_by_int32(const Job* job, const Task* task) noexcept nogil:
    return reduce_floats(<const int32_t*>job.input, <const double*>job.sample, job, task,
                         <double*>job.out)


cdef bint reduce_double_by_int64(const Job* job, const Task* task) noexcept nogil:
    return reduce_floats(<const int64_t*>job.input, <const double*>job.sample, job, task,
                         <double*>job.out)


cdef bint reduce_argmax_of(const Job* job, const Task* task) noexcept nogil:
    """reduce_argmax by the types of a job."""
    if job.encoding == FLOAT32 and job.wide:
        return reduce_argmax(<const int64_t*>job.input, job, task, <float*>job.out)
    if job.encoding == FLOAT32:
        return reduce_argmax(<const int32_t*>job.input, job, task, <float*>job.out)
    if job.wide:
        return reduce_argmax(<const int64_t*>job.input, job, task, <double*>job.out)
    return reduce_argmax(<const int32_t*>job.input, job, task, <double*>job.out)
