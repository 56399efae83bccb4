# Bags of tables that hold less than a float an entry, or are not of the output's dtype.
#
# The body is `reduce_block`'s with another way to read a row, to float32:
#
# - Floats of any width are converted, exactly where they are narrower. Then what
#   `reduce_block` does.
# - Integers q stand for `scale * q + bias`, with a scale and a bias per row. A sum of
#   rows is the sum of `scale * q`, each added by a fused multiply-add, plus the sum of
#   the biases, which is one number for all columns: two instructions a vector less than
#   decoding each entry, and at this width instructions are what a cached table costs.
#   Every RUN positions the biases are added in, so that the two sums stay near each other
#   and near the result, however long the bag.
# - Integers of less than a byte stay in planes: the first entries of all bytes, then the
#   second ones, and so on. That way no byte is shuffled; the planes are interleaved
#   when a bag is done.

cdef enum:
    RUN = 32               # positions between additions of the biases

# What a row's bytes are, as types to specialise by.
cdef struct half_entries:
    uint16_t bits
cdef struct bfloat_entries:
    uint16_t bits
cdef struct int8_entries:
    uint8_t bits
cdef struct int4_entries:
    uint8_t bits
cdef struct int2_entries:
    uint8_t bits

ctypedef fused entry_ft:
    double
    half_entries
    bfloat_entries
    int8_entries
    int4_entries
    int2_entries


cdef inline bint is_quantized(const entry_ft* entries) noexcept nogil:
    return entry_ft is int8_entries or entry_ft is int4_entries or entry_ft is int2_entries


cdef inline Py_ssize_t entries_a_byte(const entry_ft* entries) noexcept nogil:
    """How many planes there are."""
    if entry_ft is int2_entries:
        return 4
    elif entry_ft is int4_entries:
        return 2
    else:
        return 1


cdef inline Py_ssize_t bytes_of(const entry_ft* entries, Py_ssize_t n) noexcept nogil:
    """The bytes of n entries, whole bytes."""
    return n * <Py_ssize_t>sizeof(entry_ft) // entries_a_byte(entries)


cdef inline void decode(const Py_ssize_t n, const entry_ft* entries, float* to) noexcept nogil:
    """n entries of a row, as floats; integers of less than a byte in planes."""
    cdef Py_ssize_t d
    if entry_ft is double:
        for d in range(n):
            to[d] = <float>entries[d]
    elif entry_ft is half_entries:
        embag_halves_to_floats(n, <const char*>entries, to)
    elif entry_ft is bfloat_entries:
        for d in range(n):
            to[d] = embag_bfloat_to_float(entries[d].bits)
    elif entry_ft is int8_entries:
        embag_bytes_to_floats(8, n, <const char*>entries, to)
    elif entry_ft is int4_entries:
        embag_bytes_to_floats(4, n // 2, <const char*>entries, to)
    else:
        embag_bytes_to_floats(2, n // 4, <const char*>entries, to)


cdef inline void interleave(
    const Py_ssize_t n_planes, const Py_ssize_t n, float* to, const float* planes
) noexcept nogil:
    """n entries in the order of columns."""
    cdef Py_ssize_t d, p
    for d in range(n // n_planes):
        for p in range(n_planes):
            to[d * n_planes + p] = planes[p * (n // n_planes) + d]


cdef inline void add_fused(
    const Py_ssize_t n, float* total, const float* integers, float scale
) noexcept nogil:
    cdef Py_ssize_t d
    for d in range(n):
        total[d] = embag_fma(integers[d], scale, total[d])


cdef inline void add_number(const Py_ssize_t n, float* total, float number) noexcept nogil:
    cdef Py_ssize_t d
    for d in range(n):
        total[d] = total[d] + number


cdef inline void dequantize_entries(
    const Py_ssize_t n, float* entries, float scale, float bias
) noexcept nogil:
    cdef Py_ssize_t d
    for d in range(n):
        entries[d] = scale * entries[d] + bias


cdef inline float read_factor(bint short_factor, const char* source) noexcept nogil:
    if short_factor:
        return embag_half_to_float(embag_read_uint16(source))
    return embag_read_float(source)


cdef inline Py_ssize_t index_at(const Job* job, Py_ssize_t k) noexcept nogil:
    """read_index by the type of a job's indices."""
    if job.wide:
        return read_index(<const int64_t*>job.input, k)
    return read_index(<const int32_t*>job.input, k)


cdef inline void fetch_encoded(
    const bint quantized,
    const Py_ssize_t half_bytes,
    size_t row,                      # where its entries are: perhaps wild, this only asks
    Py_ssize_t shift_bytes,
    bint straddles,
    Py_ssize_t edge,                 # the byte of scale and bias that is farthest from them
) noexcept nogil:
    """Ask for every line that a block of a row and its scale and bias touch."""
    fetch(half_bytes, row, shift_bytes, straddles or quantized)
    if quantized:
        embag_prefetch(row + <size_t>edge)


cdef inline void write_entries(
    int encoding, Py_ssize_t n, const float* entries, char* out
) noexcept nogil:
    """n results to `out`, rounded to its dtype."""
    cdef Py_ssize_t d
    if encoding == FLOAT32:
        memcpy(out, entries, <size_t>n * sizeof(float))
    elif encoding == FLOAT16:
        for d in range(n):
            (<uint16_t*>out)[d] = embag_float_to_half(entries[d])
    else:
        for d in range(n):
            (<uint16_t*>out)[d] = embag_float_to_bfloat(entries[d])


cdef inline bint reduce_encoded_block(
    const entry_ft* entries,         # IN   the table's first, of the task's first column
    const Py_ssize_t half,
    const int operation,
    const Job* job,                  # IN
    const Task* task,                # IN   half <= its columns <= 2 * half
) noexcept nogil:
    """Reduce the task's bags over one block of columns. False if something is bad.

    `half` and `operation` are literals where this is called, but for a half below 8.
    """
    cdef:
        float low[WIDEST_HALF]
        float high[WIDEST_HALF]
        float row_low[WIDEST_HALF]
        float row_high[WIDEST_HALF]
        float result[2 * WIDEST_HALF]
        float least = <float>(-INFINITY) if operation == MAX else 0
        bint quantized = is_quantized(entries)
        Py_ssize_t n_planes = entries_a_byte(entries)
        Py_ssize_t first_byte = <const char*>entries - job.table
        Py_ssize_t factors = job.factors - first_byte
        Py_ssize_t edge = factors if factors < 0 else factors + 7 - 4 * job.short_factors
        const char* table = <const char*>entries
        const char* row
        size_t n_rows = <size_t>job.n_rows
        Py_ssize_t stride = job.row_stride, padding = job.padding
        Py_ssize_t n_indices = job.bags.n_indices
        Py_ssize_t n_columns = task.column_stop - task.column_start
        Py_ssize_t shift = (n_columns + n_planes - 1) // n_planes * n_planes - half
        Py_ssize_t half_bytes = bytes_of(entries, half)
        Py_ssize_t shift_bytes = bytes_of(entries, shift)
        bint straddles = job.straddles, short_factors = job.short_factors
        const float* sample = <const float*>job.sample
        # The scale has 11 bits and q 8: their product needs no rounding, so it may be
        # multiplied and added where there is no instruction for both.
        bint exact = short_factors and sample == NULL
        Py_ssize_t ahead = job.ahead, burst = job.burst
        # A burst is due at burst_at; single rows are asked for up to single_stop.
        Py_ssize_t burst_at = 0 if burst > 0 else n_indices
        Py_ssize_t single_stop = 0 if burst > 0 or ahead == 0 else n_indices - ahead
        Py_ssize_t itemsize = 4 if job.out_encoding == FLOAT32 else 2
        Py_ssize_t b, start, stop, k, next_k, r, n_kept, run_stop, segment_stop
        char* out_row
        float scale, bias, biases

    if 2 * half * <Py_ssize_t>sizeof(float) > EMBAG_BLOCK_BYTES:
        return False                 # this level has no such block: nothing to compile
    stop = bag_bound(&job.bags, task.bag_start)
    if not (0 <= stop <= n_indices):
        return False
    if task.first:
        for k in range(stop, min(stop + ahead, n_indices)):
            fetch_encoded(quantized, half_bytes, row_address(job, k) + <size_t>first_byte,
                          shift_bytes, straddles, edge)

    for b in range(task.bag_start, task.bag_stop):
        start = stop
        stop = bag_bound(&job.bags, b + 1)
        if not (start <= stop <= n_indices):
            return False
        n_kept = 0
        biases = 0
        fill(half, low, least)
        fill(half, high, least)
        k = start
        run_stop = start + RUN
        while k < stop:
            if k >= burst_at:
                for next_k in range(k + ahead, min(k + ahead + burst, n_indices)):
                    fetch_encoded(quantized, half_bytes,
                                  row_address(job, next_k) + <size_t>first_byte,
                                  shift_bytes, straddles, edge)
                burst_at = k + burst
            segment_stop = min(stop, burst_at)
            if quantized and operation != MAX:
                segment_stop = min(segment_stop, run_stop)
            for k in range(k, segment_stop):
                if k < single_stop:
                    fetch_encoded(quantized, half_bytes,
                                  row_address(job, k + ahead) + <size_t>first_byte,
                                  shift_bytes, straddles, edge)
                r = index_at(job, k)
                if <size_t>r >= n_rows:
                    if job.skip_invalid:
                        continue
                    return False
                if r == padding:
                    continue
                n_kept += 1
                row = table + r * stride
                decode(half, <const entry_ft*>row, row_low)
                decode(half, <const entry_ft*>(row + shift_bytes), row_high)
                if quantized:
                    scale = read_factor(short_factors, row + factors)
                    bias = read_factor(short_factors, row + factors + (2 if short_factors else 4))
                    if operation == MAX:
                        dequantize_entries(half, row_low, scale, bias)
                        dequantize_entries(half, row_high, scale, bias)
                    else:
                        if sample != NULL:
                            scale = sample[k] * scale
                            bias = sample[k] * bias
                        biases = biases + bias
                        if EMBAG_FMA or not exact:
                            add_fused(half, low, row_low, scale)
                            add_fused(half, high, row_high, scale)
                        else:
                            add_scaled(half, low, row_low, scale)
                            add_scaled(half, high, row_high, scale)
                if operation == MAX:
                    take_max(half, low, row_low)
                    take_max(half, high, row_high)
                elif not quantized and operation == SUM:
                    add(half, low, row_low)
                    add(half, high, row_high)
                elif not quantized:
                    scale = sample[k] if sample != NULL else 1
                    add_scaled(half, low, row_low, scale)
                    add_scaled(half, high, row_high, scale)
            k = segment_stop
            if quantized and operation != MAX and (k == run_stop or k == stop):
                add_number(half, low, biases)
                add_number(half, high, biases)
                biases = 0
                run_stop = k + RUN

        if n_kept == 0:
            fill(half, low, <float>0)
            fill(half, high, <float>0)
        elif operation != MAX and job.mean:
            copy_divided(half, low, low, <float>n_kept)
            copy_divided(half, high, high, <float>n_kept)
        out_row = <char*>job.out + (b * job.out_stride + task.column_start) * itemsize
        if n_planes == 1 and job.out_encoding == FLOAT32:
            copy(half, <float*>out_row, low)
            copy(half, <float*>out_row + shift, high)
        else:
            interleave(n_planes, half, result, low)
            interleave(n_planes, half, result + shift, high)
            write_entries(job.out_encoding, n_columns, result, out_row)
    return True


cdef inline bint reduce_encoded_as(
    const entry_ft* entries, const int operation, const Job* job, const Task* task
) noexcept nogil:
    """reduce_encoded_block with the least power of two that covers the task's columns.

    Of integers of less than a byte, 16 bytes if there are as many: a vector's worth.
    """
    cdef Py_ssize_t n_columns = task.column_stop - task.column_start
    cdef Py_ssize_t half = narrowest_power(n_columns), n_planes = entries_a_byte(entries)
    if n_planes > 1 and half < 16 * n_planes <= min(n_columns, EMBAG_BLOCK_BYTES // 8):
        half = 16 * n_planes
    if half == 8:
        return reduce_encoded_block(entries, 8, operation, job, task)
    elif half == 16:
        return reduce_encoded_block(entries, 16, operation, job, task)
    elif half == 32:
        return reduce_encoded_block(entries, 32, operation, job, task)
    elif half == 64:
        return reduce_encoded_block(entries, 64, operation, job, task)
    elif half == 128:
        return reduce_encoded_block(entries, 128, operation, job, task)
    half = max(half, n_planes)
    return reduce_encoded_block(entries, half, operation, job, task)


cdef inline bint reduce_entries(
    const entry_ft* type_of_entries, const Job* job, const Task* task
) noexcept nogil:
    """Reduce the task's bags over its columns, no more than a block of them."""
    cdef const entry_ft* entries = <const entry_ft*>(
        job.table + job.entries + bytes_of(type_of_entries, task.column_start))
    if job.operation == MAX:
        return reduce_encoded_as(entries, MAX, job, task)
    if entry_ft is half_entries or entry_ft is bfloat_entries:
        if job.operation == SUM:
            return reduce_encoded_as(entries, SUM, job, task)
    return reduce_encoded_as(entries, WEIGHTED_SUM, job, task)


cdef bint reduce_double_to_float(const Job* job, const Task* task) noexcept nogil:
    return reduce_entries(<const double*>job.table, job, task)


cdef bint reduce_half(const Job* job, const Task* task) noexcept nogil:
    return reduce_entries(<const half_entries*>job.table, job, task)


cdef bint reduce_bfloat(const Job* job, const Task* task) noexcept nogil:
    return reduce_entries(<const bfloat_entries*>job.table, job, task)


cdef bint reduce_int8(const Job* job, const Task* task) noexcept nogil:
    return reduce_entries(<const int8_entries*>job.table, job, task)


cdef bint reduce_int4(const Job* job, const Task* task) noexcept nogil:
    return reduce_entries(<const int4_entries*>job.table, job, task)


cdef bint reduce_int2(const Job* job, const Task* task) noexcept nogil:
    return reduce_entries(<const int2_entries*>job.table, job, task)
