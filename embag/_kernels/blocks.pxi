# The walk: reduce the rows of each bag over a block of columns.
#
# A bag's accumulators stay in registers. A task's columns are covered by blocks no wider
# than the register file, and each block by two halves of one width, which overlap where
# they do not fit exactly: `[0, half)` and `[n - half, n)`. A column in both is computed
# twice, to the same bits, so any width is vectorised without a tail. `half` is a literal at
# each call (see `reduce_as`), so the compiler unrolls the loops over columns and keeps both
# halves in vector registers.
#
# One body serves all encodings: what a row's entries are is in entries.pxi, what is done to
# them in `take_half`.

# Ids of a type that is known when the kernel runs, not when it is compiled: specialising the
# decoding kernels by it as well gains nothing.
cdef struct any_index:
    int32_t unused

ctypedef fused input_ft:
    int32_t
    int64_t
    any_index


cdef inline Py_ssize_t index_at(
    const input_ft* input, const Job* job, Py_ssize_t k
) noexcept nogil:
    """The id at position k, read once: see index_of."""
    if input_ft is any_index:
        return index_of(job, k)
    else:
        return read_index(input, k)


cdef inline size_t address_at(
    const input_ft* input, const Job* job, const char* table, Py_ssize_t stride, Py_ssize_t k
) noexcept nogil:
    """Where the row at position k would be, to be prefetched: the id is not checked."""
    if input_ft is any_index:
        if job.wide:
            return <size_t>table + <size_t>(<const int64_t*>job.input)[k] * <size_t>stride
        return <size_t>table + <size_t>(<const int32_t*>job.input)[k] * <size_t>stride
    else:
        return <size_t>table + <size_t>input[k] * <size_t>stride


cdef inline size_t scale_address(
    const entry_ft* kind,            # the type alone
    const input_ft* input,
    const Job* job,
    Py_ssize_t k,
) noexcept nogil:
    """Where the scale of the row at position k would be, to be prefetched."""
    if may_have_scales(kind):
        return address_at(input, job, <const char*>job.row_scales, 4 * job.scale_step, k)
    return 0


cdef inline void take_half(
    const entry_ft* row,             # IN   half of a row
    const Py_ssize_t half,
    const int operation,
    floating_ft* total,              # INOUT
    floating_ft scale,               # of the entries, or the weight of the row
    floating_ft bias,                # of the entries
    bint exact,                      # the product of scale and entry needs no rounding
    bint scaled,                     # rows have scales in an array
) noexcept nogil:
    """Reduce half of a row into the totals."""
    cdef floating_ft entries[WIDEST_HALF]
    if are_plain(row):
        if chooses(operation):
            choose(half, operation, total, <const floating_ft*>row)
        elif operation == WEIGHTED_SUM:
            add_scaled(half, total, <const floating_ft*>row, scale)
        else:
            add(half, total, <const floating_ft*>row)
        return
    decode(half, row, <float*>entries)
    if chooses(operation):
        if are_quantized(row):
            dequantize_entries(half, <float*>entries, <float>scale, <float>bias)
        elif may_have_scales(row) and scaled:
            multiply(half, entries, entries, scale)
        choose(half, operation, total, entries)
    elif are_quantized(row) and (EMBAG_FMA or not exact):
        add_fused(half, <float*>total, <float*>entries, <float>scale)
    elif operation == WEIGHTED_SUM:
        add_scaled(half, total, entries, scale)
    else:
        add(half, total, entries)


cdef inline void fetch_row(
    const entry_ft* kind,            # the type alone
    const bint near,                 # a literal, as half_bytes is
    const Py_ssize_t half_bytes,
    Py_ssize_t shift_bytes,
    bint straddles,
    Py_ssize_t edge,                 # the byte of scale and bias that is farthest from them
    size_t row,                      # where its entries are: perhaps wild, nothing is read
    size_t scale,                    # where its scale is, if that is in an array
) noexcept nogil:
    """Prefetch every line that a block of a row, and its scale and bias, touch."""
    fetch_into(near, half_bytes, row, shift_bytes, straddles)
    if are_quantized(kind):
        prefetch(near, row + <size_t>edge)
    if may_have_scales(kind):
        prefetch(near, scale)


cdef inline bint take_row(
    const entry_ft* entries,         # IN   the table's first, of the task's first column
    const Py_ssize_t half,
    const int operation,
    const input_ft* input,           # IN   (n_indices,)
    const floating_ft* sample,       # IN   (n_indices,), or NULL
    const Job* job,                  # IN
    Py_ssize_t k,                    # the position
    size_t n_rows,
    Py_ssize_t stride,
    Py_ssize_t padding,
    Py_ssize_t factors,              # where scale and bias are from the first entry
    Py_ssize_t shift_bytes,
    floating_ft* low,                # INOUT  the sums
    floating_ft* high,
    floating_ft* biases,             # INOUT
    Py_ssize_t* n_left_out,          # INOUT
) noexcept nogil:
    """Reduce the row at a position into the sums. False if its id is bad."""
    cdef:
        # The scale has 11 bits and q 8: their product needs no rounding, so it may be
        # multiplied and added where there is no instruction for both.
        bint exact = factor_bytes_of(entries) == 2 and sample == NULL
        Py_ssize_t r = index_at(input, job, k)
        const char* row
        bint scaled = may_have_scales(entries) and job.row_scales != NULL
        floating_ft scale = 1, bias = 0
    if <size_t>r >= n_rows:
        if job.stand_in < 0:
            n_left_out[0] += 1
            return job.skip_invalid
        r = job.stand_in
    if r == padding:
        n_left_out[0] += 1
        return True
    row = <const char*>entries + r * stride
    if are_quantized(entries):
        scale = read_factor(entries, row + factors)
        bias = read_factor(entries, row + factors + factor_bytes_of(entries))
        if not chooses(operation):
            if sample != NULL:
                scale = sample[k] * scale
                bias = sample[k] * bias
            biases[0] = biases[0] + bias
    elif operation == WEIGHTED_SUM:
        if are_plain(entries) or sample != NULL:
            scale = sample[k]
    if scaled:
        scale = scale * job.row_scales[r * job.scale_step]
    take_half(<const entry_ft*>row, half, operation, low, scale, bias, exact, scaled)
    take_half(<const entry_ft*>(row + shift_bytes), half, operation, high, scale, bias, exact,
              scaled)
    return True


cdef double weight_of_bag(
    const Job* job, const floating_ft* weights, Py_ssize_t start, Py_ssize_t stop
) noexcept nogil:
    """The sum of the weights of the entries that count, or the root of that of their squares."""
    cdef Py_ssize_t k, r
    cdef double total = 0, weight
    for k in range(start, stop):
        r = index_of(job, k)
        if <size_t>r >= <size_t>job.n_rows:
            if job.stand_in < 0:
                continue
            r = job.stand_in
        if r != job.padding:
            weight = weights[k]
            total = total + (weight * weight if job.divisor == ROOT else weight)
    return sqrt(total) if job.divisor == ROOT else total


cdef inline double divisor_of(
    const Job* job, const floating_ft* weights, Py_ssize_t start, Py_ssize_t stop,
    Py_ssize_t n_left_out,
) noexcept nogil:
    """What the sum of a bag is divided by."""
    cdef double n = <double>(stop - start - n_left_out)
    if job.divisor == COUNT or (weights == NULL and job.divisor == TOTAL):
        return n
    if weights == NULL:
        return sqrt(n)
    return weight_of_bag(job, weights, start, stop)


cdef inline bint reduce_block(
    const entry_ft* entries,         # IN   the table's first, of the task's first column
    const Py_ssize_t half,
    const int operation,
    const bint ones,                 # many bags have one row: for plain entries alone
    const input_ft* input,           # IN   (n_indices,)
    const floating_ft* sample,       # IN   (n_indices,), or NULL
    const Job* job,                  # IN
    const Task* task,                # IN   half <= its columns <= 2 * half
) noexcept nogil:
    """Reduce the task's bags over one block of columns. False if something is bad.

    `half`, `operation` and `ones` are literals where this is called, except for a half
    below 8 of decoded entries.
    """
    cdef:
        floating_ft low[WIDEST_HALF]
        floating_ft high[WIDEST_HALF]
        float result[2 * WIDEST_HALF]
        floating_ft least = <floating_ft>start_of(operation)
        bint quantized = are_quantized(entries)
        Py_ssize_t n_planes = entries_a_byte(entries)
        const char* table = <const char*>entries
        const char* row
        char* out_row
        size_t n_rows = <size_t>job.n_rows
        Py_ssize_t stride = job.row_stride, padding = job.padding
        Py_ssize_t n_indices = job.bags.n_indices
        Py_ssize_t n_columns = task.column_stop - task.column_start
        Py_ssize_t shift = (n_columns + n_planes - 1) // n_planes * n_planes - half
        Py_ssize_t half_bytes = bytes_of(entries, half)
        Py_ssize_t shift_bytes = bytes_of(entries, shift)
        bint straddles = True if quantized else job.straddles, in_order = job.out_rows == NULL
        # Where scale and bias are from the block's first entry, and their farthest byte.
        Py_ssize_t factors = job.factors - (table - job.table)
        Py_ssize_t factor_bytes = factor_bytes_of(entries)
        Py_ssize_t edge = factors if factors < 0 else factors + 2 * factor_bytes - 1
        bint near = job.fetching.way     # into L1, unless it is INTO_L2
        Py_ssize_t ahead = job.fetching.ahead, burst = job.fetching.burst
        # The next rows are prefetched at burst_at; or one at each position up to single_stop.
        Py_ssize_t burst_at = 0 if ahead > 0 and burst > 0 else n_indices
        Py_ssize_t single_stop = n_indices - ahead if ahead > 0 and burst == 0 else 0
        Py_ssize_t itemsize = sizeof(floating_ft)
        Py_ssize_t bag_stop = task.bag_stop, out_step
        Py_ssize_t b, start, stop, one_stop, k, next_k, next_stop, r, n_left_out, run_stop
        Py_ssize_t segment_stop
        floating_ft biases = 0, divisor

    if 2 * half * <Py_ssize_t>sizeof(floating_ft) > EMBAG_BLOCK_BYTES:
        return False                 # this level has no such block: nothing to compile
    if not are_plain(entries) and job.out_encoding != FLOAT32:
        itemsize = ENCODINGS[job.out_encoding].bits // 8
    out_step = job.out_stride * itemsize
    stop = bag_bound(&job.bags, task.bag_start)
    if not (0 <= stop <= n_indices):
        return False
    if task.first:
        for k in range(stop, min(stop + ahead, n_indices)):
            fetch_row(entries, True, half_bytes, shift_bytes, straddles, edge,
                      address_at(input, job, table, stride, k),
                      scale_address(entries, input, job, k))

    b = task.bag_start
    while b < bag_stop:
        start = stop
        stop = bag_bound(&job.bags, b + 1)

        if ones:
            # Bags of one row, while no burst is due: each goes from load to store, with
            # as little in between as there can be.
            out_row = <char*>job.out + b * out_step + task.column_start * itemsize
            one_stop = min(burst_at, n_indices) if in_order else 0
            while stop == start + 1 and start < one_stop:
                if start < single_stop:
                    fetch_row(entries, True, half_bytes, shift_bytes, straddles, edge,
                              address_at(input, job, table, stride, start + ahead),
                              scale_address(entries, input, job, start + ahead))
                r = index_at(input, job, start)
                if <size_t>r >= n_rows:
                    if not job.skip_invalid:
                        return False
                    r = padding
                row = table + r * stride
                if r == padding:
                    fill(half, <floating_ft*>out_row, 0)
                    fill(half, <floating_ft*>out_row + shift, 0)
                elif operation == SUM:
                    copy_sum(half, <floating_ft*>out_row, <const floating_ft*>row)
                    copy_sum(half, <floating_ft*>out_row + shift, <const floating_ft*>row + shift)
                else:
                    copy_scaled(half, <floating_ft*>out_row, <const floating_ft*>row,
                                sample[start])
                    copy_scaled(half, <floating_ft*>out_row + shift,
                                <const floating_ft*>row + shift, sample[start])
                b += 1
                if b == bag_stop:
                    return True
                out_row += out_step
                start = stop
                stop = bag_bound(&job.bags, b + 1)

        if not (start <= stop <= n_indices):
            return False
        n_left_out = 0
        fill(half, low, least)
        fill(half, high, least)
        biases = 0
        k = start
        run_stop = start + RUN
        while k < stop:
            if k >= burst_at:
                next_stop = min(k + ahead + burst, n_indices)
                if near:
                    for next_k in range(k + ahead, next_stop):
                        fetch_row(entries, True, half_bytes, shift_bytes, straddles, edge,
                                  address_at(input, job, table, stride, next_k),
                                  scale_address(entries, input, job, next_k))
                else:
                    for next_k in range(k + ahead, next_stop):
                        fetch_row(entries, False, half_bytes, shift_bytes, straddles, edge,
                                  address_at(input, job, table, stride, next_k),
                                  scale_address(entries, input, job, next_k))
                if EMBAG_TOUCHES:
                    touch_rows(job, next_stop, burst)
                burst_at = k + burst
            segment_stop = min(stop, burst_at)
            if quantized and not chooses(operation):
                segment_stop = min(segment_stop, run_stop)
            for k in range(k, min(segment_stop, single_stop)):
                fetch_row(entries, True, half_bytes, shift_bytes, straddles, edge,
                          address_at(input, job, table, stride, k + ahead),
                          scale_address(entries, input, job, k + ahead))
                if not take_row(entries, half, operation, input, sample, job, k, n_rows, stride,
                                padding, factors, shift_bytes, low, high, &biases, &n_left_out):
                    return False
            for k in range(max(k, min(segment_stop, single_stop)), segment_stop):
                if not take_row(entries, half, operation, input, sample, job, k, n_rows, stride,
                                padding, factors, shift_bytes, low, high, &biases, &n_left_out):
                    return False
            k = segment_stop
            if quantized and not chooses(operation) and (k == run_stop or k == stop):
                add_number(half, <float*>low, <float>biases)
                add_number(half, <float*>high, <float>biases)
                biases = 0
                run_stop = k + RUN

        if n_left_out == stop - start:
            fill(half, low, 0)
            fill(half, high, 0)
        elif job.divisor != NOTHING and not chooses(operation):
            divisor = <floating_ft>divisor_of(
                job, <const floating_ft*>job.weights, start, stop, n_left_out)
            if divisor == 0:
                fill(half, low, 0)
                fill(half, high, 0)
            else:
                copy_divided(half, low, low, divisor)
                copy_divided(half, high, high, divisor)
        out_row = (<char*>job.out + (b if in_order else job.out_rows[b]) * out_step
                   + task.column_start * itemsize)
        if n_planes == 1 and (are_plain(entries) or job.out_encoding == FLOAT32):
            copy(half, <floating_ft*>out_row, low)
            copy(half, <floating_ft*>out_row + shift, high)
        else:
            interleave(n_planes, half, result, <float*>low)
            interleave(n_planes, half, result + shift, <float*>high)
            write_entries(job.out_encoding, n_columns, result, out_row)
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


cdef inline Py_ssize_t narrowest_decoded(
    const entry_ft* entries, Py_ssize_t n_columns
) noexcept nogil:
    """The least power of two that covers n columns twice, for decoded entries.

    Of integers of less than a byte, 16 bytes if there are as many: a vector's worth.
    """
    cdef Py_ssize_t half = narrowest_power(n_columns), n_planes = entries_a_byte(entries)
    if n_planes > 1 and half < 16 * n_planes <= min(n_columns, EMBAG_BLOCK_BYTES // 8):
        return 16 * n_planes
    return max(half, n_planes)


cdef inline bint reduce_as(
    const entry_ft* entries,
    const int operation,
    const bint ones,
    const input_ft* input,
    const floating_ft* sample,
    const Job* job,
    const Task* task,
) noexcept nogil:
    """reduce_block with the narrowest half that covers the task's columns.

    Plain sums and maxima have more halves to choose from than what is rarer or costs more.
    """
    cdef Py_ssize_t n_columns = task.column_stop - task.column_start, half
    if not are_plain(entries):
        half = narrowest_decoded(entries, n_columns)
    elif ones:
        half = narrowest_power(n_columns)
    else:
        half = narrowest_half(n_columns)
    if half == 8:
        return reduce_block(entries, 8, operation, ones, input, sample, job, task)
    elif half == 16:
        return reduce_block(entries, 16, operation, ones, input, sample, job, task)
    elif half == 32:
        return reduce_block(entries, 32, operation, ones, input, sample, job, task)
    elif half == 64:
        return reduce_block(entries, 64, operation, ones, input, sample, job, task)
    elif half == WIDEST_HALF:
        return reduce_block(entries, WIDEST_HALF, operation, ones, input, sample, job, task)
    if not are_plain(entries):
        return reduce_block(entries, half, operation, ones, input, sample, job, task)
    if half == 1:
        return reduce_block(entries, 1, operation, ones, input, sample, job, task)
    elif half == 2:
        return reduce_block(entries, 2, operation, ones, input, sample, job, task)
    elif half == 4:
        return reduce_block(entries, 4, operation, ones, input, sample, job, task)
    if ones:
        return False                 # there are no other powers of two
    if half == 24:
        return reduce_block(entries, 24, operation, ones, input, sample, job, task)
    elif half == 40:
        return reduce_block(entries, 40, operation, ones, input, sample, job, task)
    elif half == 48:
        return reduce_block(entries, 48, operation, ones, input, sample, job, task)
    elif half == 56:
        return reduce_block(entries, 56, operation, ones, input, sample, job, task)
    elif half == 80:
        return reduce_block(entries, 80, operation, ones, input, sample, job, task)
    elif half == 96:
        return reduce_block(entries, 96, operation, ones, input, sample, job, task)
    return reduce_block(entries, 112, operation, ones, input, sample, job, task)


cdef inline bint reduce_entries(
    const entry_ft* kind,            # the type alone
    const input_ft* input,
    const floating_ft* sample,
    const Job* job,
    const Task* task,
) noexcept nogil:
    """Reduce the task's bags over its columns, at most a block of them."""
    cdef const entry_ft* entries = <const entry_ft*>(
        job.table + job.entries + bytes_of(kind, task.column_start))
    if job.operation == MAX:
        return reduce_as(entries, MAX, False, input, sample, job, task)
    if job.operation == MIN:
        return reduce_as(entries, MIN, False, input, sample, job, task)
    if chooses(job.operation):
        return False                 # it is compiled nowhere
    if are_plain(kind) and job.ones:
        if job.operation == SUM:
            return reduce_as(entries, SUM, True, input, sample, job, task)
        return reduce_as(entries, WEIGHTED_SUM, True, input, sample, job, task)
    if (job.operation == SUM and not are_quantized(kind) and entry_ft is not narrowed_entries
            and not (may_have_scales(kind) and job.row_scales != NULL)):
        return reduce_as(entries, SUM, False, input, sample, job, task)
    return reduce_as(entries, WEIGHTED_SUM, False, input, sample, job, task)


cdef bint reduce_float_by_int32(const Job* job, const Task* task) noexcept nogil:
    return reduce_entries(<const float*>job.table, <const int32_t*>job.input,
                          <const float*>job.sample, job, task)


cdef bint reduce_float_by_int64(const Job* job, const Task* task) noexcept nogil:
    return reduce_entries(<const float*>job.table, <const int64_t*>job.input,
                          <const float*>job.sample, job, task)


cdef bint reduce_double_by_int32(const Job* job, const Task* task) noexcept nogil:
    return reduce_entries(<const double*>job.table, <const int32_t*>job.input,
                          <const double*>job.sample, job, task)


cdef bint reduce_double_by_int64(const Job* job, const Task* task) noexcept nogil:
    return reduce_entries(<const double*>job.table, <const int64_t*>job.input,
                          <const double*>job.sample, job, task)


cdef inline bint reduce_decoded(
    const entry_ft* kind, const Job* job, const Task* task
) noexcept nogil:
    """reduce_entries for entries that are decoded to float."""
    return reduce_entries(kind, <const any_index*>job.input, <const float*>job.sample, job, task)


cdef bint reduce_narrowed(const Job* job, const Task* task) noexcept nogil:
    return reduce_decoded(<const narrowed_entries*>job.table, job, task)


cdef bint reduce_half(const Job* job, const Task* task) noexcept nogil:
    return reduce_decoded(<const half_entries*>job.table, job, task)


cdef bint reduce_bfloat(const Job* job, const Task* task) noexcept nogil:
    return reduce_decoded(<const bfloat_entries*>job.table, job, task)


cdef bint reduce_int8_by_int32(const Job* job, const Task* task) noexcept nogil:
    return reduce_entries(<const int8_entries*>job.table, <const int32_t*>job.input,
                          <const float*>job.sample, job, task)


cdef bint reduce_int8_by_int64(const Job* job, const Task* task) noexcept nogil:
    return reduce_entries(<const int8_entries*>job.table, <const int64_t*>job.input,
                          <const float*>job.sample, job, task)


cdef bint reduce_int8_half(const Job* job, const Task* task) noexcept nogil:
    return reduce_decoded(<const int8_half_entries*>job.table, job, task)


cdef bint reduce_signed(const Job* job, const Task* task) noexcept nogil:
    return reduce_decoded(<const signed_entries*>job.table, job, task)


cdef bint reduce_unsigned(const Job* job, const Task* task) noexcept nogil:
    return reduce_decoded(<const unsigned_entries*>job.table, job, task)


cdef bint reduce_e4m3(const Job* job, const Task* task) noexcept nogil:
    return reduce_decoded(<const e4m3_entries*>job.table, job, task)


cdef bint reduce_e5m2(const Job* job, const Task* task) noexcept nogil:
    return reduce_decoded(<const e5m2_entries*>job.table, job, task)


cdef bint reduce_int4(const Job* job, const Task* task) noexcept nogil:
    return reduce_decoded(<const int4_entries*>job.table, job, task)


cdef bint reduce_int2(const Job* job, const Task* task) noexcept nogil:
    return reduce_decoded(<const int2_entries*>job.table, job, task)


cdef inline bint reduce_argmax(
    const int operation,             # ARGMAX or ARGMIN, a literal
    const index_ft* input,           # IN   (n_indices,)
    const Job* job,                  # IN
    const Task* task,                # IN
    floating_ft* out,                # OUT  (n_bags, dim)
) noexcept nogil:
    """The maximum, or minimum, and its row, for any number of columns. False if something is bad.

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
        Strategy fetching = job.fetching
        Py_ssize_t n_indices = job.bags.n_indices
        Py_ssize_t burst_at = 0 if fetching.ahead > 0 else n_indices
        Py_ssize_t burst = max(1, fetching.burst)
        Py_ssize_t b, start, stop, k, next_k, r, d, first_row
        bint won

    stop = bag_bound(&job.bags, task.bag_start)
    if not (0 <= stop <= job.bags.n_indices):
        return False
    if task.first:
        for k in range(stop, min(stop + fetching.ahead, n_indices)):
            fetch_bytes(True, <size_t>table + <size_t>input[k] * <size_t>job.row_stride, n_bytes)
    for b in range(task.bag_start, task.bag_stop):
        start = stop
        stop = bag_bound(&job.bags, b + 1)
        if not (start <= stop <= job.bags.n_indices):
            return False
        best = out + b * job.dim + task.column_start
        winners = job.max_indices + b * job.dim + task.column_start
        first_row = -1
        for k in range(start, stop):
            if k >= burst_at:
                for next_k in range(k + fetching.ahead, min(k + fetching.ahead + burst, n_indices)):
                    fetch_bytes(fetching.way, <size_t>table
                                + <size_t>input[next_k] * <size_t>job.row_stride, n_bytes)
                if EMBAG_TOUCHES:
                    touch_rows(job, k + fetching.ahead + burst, burst)
                burst_at = k + burst
            r = read_index(input, k)
            if <size_t>r >= <size_t>job.n_rows:
                if not job.skip_invalid:
                    return False
                r = job.stand_in
            if r < 0 or r == job.padding:
                continue
            row = <const floating_ft*>(table + r * job.row_stride)
            if first_row < 0:
                first_row = r
                for d in range(n_columns):
                    best[d] = row[d]
                    winners[d] = r
                continue
            for d in range(n_columns):
                won = beats(operation, row[d], best[d])
                best[d] = row[d] if won else best[d]
                winners[d] = r if won else winners[d]
        if first_row < 0:
            for d in range(n_columns):
                best[d] = 0
                winners[d] = -1
    return True


cdef inline bint reduce_argmax_as(
    const int operation, const Job* job, const Task* task
) noexcept nogil:
    """reduce_argmax by the types of a job."""
    if job.encoding == FLOAT32 and job.wide:
        return reduce_argmax(operation, <const int64_t*>job.input, job, task, <float*>job.out)
    if job.encoding == FLOAT32:
        return reduce_argmax(operation, <const int32_t*>job.input, job, task, <float*>job.out)
    if job.wide:
        return reduce_argmax(operation, <const int64_t*>job.input, job, task, <double*>job.out)
    return reduce_argmax(operation, <const int32_t*>job.input, job, task, <double*>job.out)


cdef bint reduce_argmax_of(const Job* job, const Task* task) noexcept nogil:
    """reduce_argmax by the operation and the types of a job."""
    if job.operation == ARGMAX:
        return reduce_argmax_as(ARGMAX, job, task)
    return reduce_argmax_as(ARGMIN, job, task)
