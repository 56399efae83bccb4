# The backward pass, beside the forward kernel that sums what each row is given.

cdef enum:
    DOT_LANES = 16         # partial sums of a dot product: the order is part of the result
    # Rows of a dense gradient that are prefetched ahead of the one that is added to. Origin:
    # docs/design.md, "Gradients".
    SCATTER_AHEAD = 8
    STEP_AHEAD = 16        # rows of a table that are prefetched ahead of the one that is added to


# --- Bags and positions -------------------------------------------------------

cdef struct Dividing:
    Bags bags
    const void* sample     # (n_indices,) of grad's dtype, or NULL
    const char* grad       # (n_bags, dim)
    Py_ssize_t grad_stride      # bytes, of either sign
    Py_ssize_t dim
    Py_ssize_t padding     # a row, or -1
    int divisor
    void* divisors         # (n_bags,) of grad's dtype


cdef bint divide_bags(
    const Dividing* job,             # IN
    const index_ft* input,           # IN   (n_indices,)
    floating_ft* out,                # OUT  (n_bags, dim)
    Py_ssize_t c,
    Py_ssize_t n_chunks,
) noexcept nogil:
    """Divide the gradients of a chunk of bags by the divisors of their sums; 0 where that is 0.
    False if an offset is bad."""
    cdef:
        const Bags* bags = &job.bags
        const floating_ft* sample = <const floating_ft*>job.sample
        Py_ssize_t first = cut(bags.n_bags, c, n_chunks), b, start, k
        Py_ssize_t stop = bag_bound(bags, first)
        double total, weight
        floating_ft divisor
    if not (0 <= stop <= bags.n_indices):
        return False
    for b in range(first, cut(bags.n_bags, c + 1, n_chunks)):
        start = stop
        stop = bag_bound(bags, b + 1)
        if not (start <= stop <= bags.n_indices):
            return False
        total = 0
        if sample == NULL and job.padding < 0:
            total = <double>(stop - start)
        else:
            for k in range(start, stop):
                if input[k] != job.padding:
                    weight = 1 if sample == NULL else sample[k]
                    total = total + (weight * weight if job.divisor == ROOT else weight)
        divisor = <floating_ft>(sqrt(total) if job.divisor == ROOT else total)
        (<floating_ft*>job.divisors)[b] = divisor
        if divisor == 0:
            fill(job.dim, out + b * job.dim, <floating_ft>0)
        else:
            copy_divided(job.dim, out + b * job.dim,
                         <const floating_ft*>(job.grad + b * job.grad_stride), divisor)
    return True


def divide_by_divisors(
    int n_threads,
    cnp.ndarray grad not None,       # IN   (n_bags, dim) float32 or float64, columns adjacent
    cnp.ndarray input not None,      # IN   (n_indices,) or (n_bags, bag_size), int32 or int64
    object offsets,                  # IN   (n_offsets,) int32 or int64; None if input is 2-D
    bint include_last_offset,
    object per_sample_weights,       # IN   like input, of grad's dtype; or None
    int mode,                        # one that divides
    Py_ssize_t padding,              # a row, or -1
    cnp.ndarray out not None,        # OUT  (n_bags, dim) of grad's dtype
    cnp.ndarray divisors not None,   # OUT  (n_bags,) of grad's dtype
) -> bool:
    """Fill `out` with what a mode that divides gives each row of a bag, before its weight: the
    bag's gradient, divided by what its sum was divided by. False if an offset is bad."""
    refuse_change(is_table(grad) and is_index_array(input)
                  and (offsets is None or is_index_array(offsets)))
    operation_of(mode, False, False)
    cdef:
        Dividing job = Dividing(
            describe_bags(input, offsets, include_last_offset), NULL,
            <const char*>cnp.PyArray_DATA(grad), cnp.PyArray_STRIDE(grad, 0),
            cnp.PyArray_DIM(grad, 1), padding, MODES[mode].divisor,
            cnp.PyArray_DATA(divisors))
        chunk_work work = by_types(
            cnp.PyArray_ITEMSIZE(grad) == 4, cnp.PyArray_ITEMSIZE(input) == 8,
            <chunk_work>divide_bags[int32_t, float], <chunk_work>divide_bags[int64_t, float],
            <chunk_work>divide_bags[int32_t, double], <chunk_work>divide_bags[int64_t, double])
    refuse_change(job.bags.n_bags >= 0 and cnp.PyArray_DIM(grad, 0) == job.bags.n_bags
                  and is_result(out, job.bags.n_bags, job.dim, cnp.PyArray_TYPE(grad))
                  and is_factors(divisors, job.bags.n_bags, cnp.PyArray_TYPE(grad))
                  and (per_sample_weights is None
                       or is_factors(per_sample_weights, job.bags.n_indices,
                                     cnp.PyArray_TYPE(grad))))
    if per_sample_weights is not None:
        job.sample = cnp.PyArray_DATA(<cnp.ndarray>per_sample_weights)
    return run_chunks(
        work, &job, cnp.PyArray_DATA(input), cnp.PyArray_DATA(out),
        shares_of(n_threads, 8 * (<double>job.bags.n_indices
                                  + 2 * <double>job.bags.n_bags * <double>job.dim)), n_threads)


cdef struct LookUp:
    Bags bags
    Py_ssize_t n_positions      # that are in bags
    int64_t* bag_of        # (n_positions,)
    Py_ssize_t n           # of the positions to look up
    int64_t* positions     # (n,)


cdef bint fill_bag_of(
    const LookUp* job, const void* _, void* __, Py_ssize_t c, Py_ssize_t n_chunks
) noexcept nogil:
    """Write the bag of each position of a chunk. False if one is in no bag."""
    cdef:
        Py_ssize_t k = cut(job.n_positions, c, n_chunks)
        Py_ssize_t stop = cut(job.n_positions, c + 1, n_chunks)
        Py_ssize_t b = bag_at(&job.bags, k), bound
    while k < stop:
        if b >= job.bags.n_bags:
            return False
        bound = min(bag_bound(&job.bags, b + 1), stop)
        while k < bound:
            job.bag_of[k] = b
            k += 1
        b += 1
    return True


cdef bint look_up(
    const LookUp* job,
    const floating_ft* sample,       # IN   (n_positions,)
    floating_ft* factors,            # OUT  (n,)
    Py_ssize_t c,
    Py_ssize_t n_chunks,
) noexcept nogil:
    """Replace positions by bags, and write their weights."""
    cdef Py_ssize_t i
    for i in range(cut(job.n, c, n_chunks), cut(job.n, c + 1, n_chunks)):
        factors[i] = sample[job.positions[i]]
        job.positions[i] = job.bag_of[job.positions[i]]
    return True


def look_up_weights(
    int n_threads,
    cnp.ndarray input not None,      # IN     (n_indices,) or (n_bags, bag_size)
    object offsets,                  # IN     (n_offsets,) int32 or int64; None if input is 2-D
    bint include_last_offset,
    cnp.ndarray per_sample_weights not None,  # IN  like input, contiguous
    cnp.ndarray positions not None,  # INOUT  (n,) int64, as `group_by_row` made them
    Py_ssize_t n_positions,          # how many entries of input are in bags
):
    """Replace each position by its bag; returns the weights of the positions.

    None if an offset is bad.
    """
    refuse_change(
        is_index_array(input) and (offsets is None or is_index_array(offsets))
        and is_index_array(positions) and cnp.PyArray_ITEMSIZE(positions) == 8
        and cnp.PyArray_SIZE(positions) <= n_positions
        and cnp.PyArray_TYPE(per_sample_weights) in (cnp.NPY_FLOAT32, cnp.NPY_FLOAT64)
        and is_factors(per_sample_weights, cnp.PyArray_SIZE(input),
                       cnp.PyArray_TYPE(per_sample_weights)))
    cdef:
        cnp.ndarray bag_of = empty_int64(n_positions)
        LookUp job = LookUp(
            describe_bags(input, offsets, include_last_offset), n_positions,
            <int64_t*>cnp.PyArray_DATA(bag_of), cnp.PyArray_SIZE(positions),
            <int64_t*>cnp.PyArray_DATA(positions))
        Stage[2] stages
        cnp.npy_intp[1] shape
        cnp.ndarray factors
    refuse_change(job.bags.n_bags >= 0 and n_positions <= job.bags.n_indices)
    shape[0] = job.n
    factors = cnp.PyArray_EMPTY(1, shape, cnp.PyArray_TYPE(per_sample_weights), 0)
    stages[0] = Stage(<chunk_work>fill_bag_of, NULL)
    stages[1] = Stage(<chunk_work>look_up[float], NULL)
    if cnp.PyArray_ITEMSIZE(per_sample_weights) == 8:
        stages[1].work = <chunk_work>look_up[double]
    done = run_in_place(stages, 2, &job, cnp.PyArray_DATA(per_sample_weights),
                        cnp.PyArray_DATA(factors), chunks_of_keys(n_positions, n_threads),
                        n_threads)
    return factors if done else None


# --- The dense gradient -------------------------------------------------------
# Added up where it belongs, bag by bag. Threads share the columns, a cache line's worth of
# them at least, and each walks through all positions: every sum keeps its order.

cdef struct Columns:
    Py_ssize_t start
    Py_ssize_t stop


cdef Columns share_columns(
    Py_ssize_t dim, Py_ssize_t itemsize, Py_ssize_t c, Py_ssize_t n_chunks
) noexcept nogil:
    cdef:
        Py_ssize_t line = LINE // itemsize, n_lines = (dim + line - 1) // line
    return Columns(cut(n_lines, c, n_chunks) * line, min(cut(n_lines, c + 1, n_chunks) * line, dim))


cdef inline void fetch_to_write(size_t address, Py_ssize_t n_bytes) noexcept nogil:
    """Prefetch every line that n_bytes from an address touch, to be written."""
    cdef Py_ssize_t offset
    for offset in range(0, n_bytes, 64):     # LINE, but Cython wants a literal step
        embag_prefetch_to_write(address + <size_t>offset)
    embag_prefetch_to_write(address + <size_t>n_bytes - 1)


cdef struct Scatter:
    Bags bags
    const void* sample     # (n_indices,), or NULL
    const char* grad       # (n_bags, dim)
    Py_ssize_t grad_stride      # bytes, of either sign
    Py_ssize_t n_rows
    Py_ssize_t dim
    Py_ssize_t padding     # a row, or -1 for none
    Py_ssize_t bag_start   # the bags to do now
    Py_ssize_t bag_stop


cdef bint scatter_bags(
    Scatter* job, chunk_work work, const void* input, void* out, Py_ssize_t n_positions,
    int n_threads,
) except -1:
    """Do all bags: some, and then more. False if something is bad.

    Chunks are columns. A row is read and written.
    """
    cdef:
        double n_bytes = 2 * <double>n_positions * <double>job.dim * sizeof(double)
        double n_items = <double>job.bags.n_indices + <double>job.bags.n_bags
        Py_ssize_t n_slices = slices_of(n_bytes / (SHARES * n_threads)), s
    job.bag_stop = 0
    for s in range(n_slices):
        job.bag_start = job.bag_stop
        job.bag_stop = job.bags.n_bags
        if s < n_slices - 1:
            job.bag_stop = max(job.bag_start, first_bag_from(
                &job.bags, n_items / <double>n_slices * <double>(s + 1)))
        if s > 0:
            PyErr_CheckSignals()
        if not run_chunks(work, job, input, out, n_threads, n_threads):
            return False
    return True


cdef inline bint scatter_block(
    const Py_ssize_t half,
    const index_ft* input,           # IN     (n_indices,)
    const floating_ft* sample,       # IN     (n_indices,), or NULL
    const Scatter* job,              # IN
    Py_ssize_t start,                # of the bag
    Py_ssize_t stop,
    Py_ssize_t n_columns,            # half <= n_columns <= 2 * half
    const floating_ft* given,        # IN     the block of the bag's gradient
    floating_ft* out,                # INOUT  (n_rows, dim), from the block's first column on
) noexcept nogil:
    """Add a block of a bag's gradient to its rows. False if something is bad.

    The halves of a row may overlap: both are read before one is written.
    """
    cdef:
        floating_ft given_low[WIDEST_HALF]
        floating_ft given_high[WIDEST_HALF]
        floating_ft low[WIDEST_HALF]
        floating_ft high[WIDEST_HALF]
        floating_ft* row
        size_t n_rows = <size_t>job.n_rows
        Py_ssize_t dim = job.dim, padding = job.padding
        Py_ssize_t fetch_stop = min(stop, job.bags.n_indices - SCATTER_AHEAD)
        Py_ssize_t shift = n_columns - half, k, r
        Py_ssize_t n_bytes = n_columns * <Py_ssize_t>sizeof(floating_ft)
    copy(half, given_low, given)
    copy(half, given_high, given + shift)
    for k in range(start, stop):
        if k < fetch_stop:
            fetch_to_write(
                <size_t>out + <size_t>input[k + SCATTER_AHEAD] * <size_t>dim * sizeof(floating_ft),
                n_bytes)
        r = read_index(input, k)
        if <size_t>r >= n_rows:
            return False
        if r == padding:
            continue
        row = out + r * dim
        copy(half, low, row)
        copy(half, high, row + shift)
        if sample == NULL:
            add(half, low, given_low)
            add(half, high, given_high)
        else:
            add_scaled(half, low, given_low, sample[k])
            add_scaled(half, high, given_high, sample[k])
        copy(half, row, low)
        copy(half, row + shift, high)
    return True


cdef bint scatter_as(
    const index_ft* input,
    const floating_ft* sample,
    const Scatter* job,
    Py_ssize_t start,
    Py_ssize_t stop,
    Py_ssize_t n_columns,            # at most half as many as a block has registers for
    const floating_ft* given,
    floating_ft* out,
) noexcept nogil:
    """scatter_block with the least power of two that covers the columns twice."""
    cdef Py_ssize_t half = narrowest_power(n_columns)
    if half == 1:
        return scatter_block(1, input, sample, job, start, stop, n_columns, given, out)
    elif half == 2:
        return scatter_block(2, input, sample, job, start, stop, n_columns, given, out)
    elif half == 4:
        return scatter_block(4, input, sample, job, start, stop, n_columns, given, out)
    elif half == 8:
        return scatter_block(8, input, sample, job, start, stop, n_columns, given, out)
    elif half == 16:
        return scatter_block(16, input, sample, job, start, stop, n_columns, given, out)
    elif half == 32:
        return scatter_block(32, input, sample, job, start, stop, n_columns, given, out)
    return scatter_block(64, input, sample, job, start, stop, n_columns, given, out)


cdef bint scatter_columns(
    const Scatter* job,              # IN
    const index_ft* input,           # IN     (n_indices,)
    floating_ft* out,                # INOUT  (n_rows, dim)
    Py_ssize_t c,
    Py_ssize_t n_chunks,
) noexcept nogil:
    """Add a chunk of columns of each bag's gradient to its rows. False if something is bad."""
    cdef:
        Columns columns = share_columns(job.dim, sizeof(floating_ft), c, n_chunks)
        const floating_ft* sample = <const floating_ft*>job.sample
        # A block's gradient and a row of it are in registers at once.
        Py_ssize_t widest = EMBAG_BLOCK_BYTES // 2 // <Py_ssize_t>sizeof(floating_ft)
        Py_ssize_t n_columns = columns.stop - columns.start
        Py_ssize_t n_blocks = (n_columns + widest - 1) // widest
        Py_ssize_t b, start, stop = bag_bound(&job.bags, job.bag_start), block, d, n
        const floating_ft* given
    if job.bag_start == 0 and job.bags.n_offsets > 0 and stop != 0:
        return False
    for b in range(job.bag_start, job.bag_stop):
        start = stop
        stop = bag_bound(&job.bags, b + 1)
        if not (0 <= start <= stop <= job.bags.n_indices):
            return False
        given = <const floating_ft*>(job.grad + b * job.grad_stride)
        for block in range(n_blocks):
            d = columns.start + cut(n_columns, block, n_blocks)
            n = columns.start + cut(n_columns, block + 1, n_blocks) - d
            if not scatter_as(input, sample, job, start, stop, n, given + d, out + d):
                return False
    return True


def scatter(
    int n_threads,
    cnp.ndarray grad not None,       # IN     (n_bags, dim) float32 or float64, columns adjacent
    cnp.ndarray input not None,      # IN     (n_indices,) or (n_bags, bag_size), int32 or int64
    object offsets,                  # IN     (n_offsets,) int32 or int64; None if input is 2-D
    bint include_last_offset,
    object per_sample_weights,       # IN     like input, of grad's dtype; or None
    Py_ssize_t padding,              # a row, or -1
    cnp.ndarray out not None,        # INOUT  (n_rows, dim) of grad's dtype
) -> bool:
    """Add the gradient of each bag to its rows, in the order of positions. False if an
    offset or an index is bad."""
    refuse_change(is_table(grad) and is_index_array(input)
                  and (offsets is None or is_index_array(offsets))
                  and cnp.PyArray_NDIM(out) == 2)
    cdef:
        Scatter job
        chunk_work work = by_types(
            cnp.PyArray_ITEMSIZE(grad) == 4, cnp.PyArray_ITEMSIZE(input) == 8,
            <chunk_work>scatter_columns[int32_t, float],
            <chunk_work>scatter_columns[int64_t, float],
            <chunk_work>scatter_columns[int32_t, double],
            <chunk_work>scatter_columns[int64_t, double])
    job.bags = describe_bags(input, offsets, include_last_offset)
    job.sample = NULL
    job.grad = <const char*>cnp.PyArray_DATA(grad)
    job.grad_stride = cnp.PyArray_STRIDE(grad, 0)
    job.n_rows = cnp.PyArray_DIM(out, 0)
    job.dim = cnp.PyArray_DIM(grad, 1)
    job.padding = padding
    refuse_change(
        job.bags.n_bags >= 0 and cnp.PyArray_DIM(grad, 0) == job.bags.n_bags
        and is_result(out, job.n_rows, job.dim, cnp.PyArray_TYPE(grad))
        and (per_sample_weights is None
             or is_factors(per_sample_weights, job.bags.n_indices, cnp.PyArray_TYPE(grad))))
    if per_sample_weights is not None:
        job.sample = cnp.PyArray_DATA(<cnp.ndarray>per_sample_weights)
    if job.dim == 0 or job.bags.n_indices == 0:
        return True                  # however many bags there are
    return scatter_bags(&job, work, cnp.PyArray_DATA(input), cnp.PyArray_DATA(out),
                        job.bags.n_indices, n_threads)


cdef bint scatter_winners(
    const Scatter* job,                # IN
    const int64_t* max_indices,        # IN     (n_bags, dim)
    floating_ft* out,                  # INOUT  (n_rows, dim)
    Py_ssize_t c,
    Py_ssize_t n_chunks,
) noexcept nogil:
    """Add a chunk of columns of each bag's gradient to the rows that won. False if an id is
    out of range."""
    cdef:
        Columns columns = share_columns(job.dim, sizeof(floating_ft), c, n_chunks)
        Py_ssize_t b, d, r
        const floating_ft* given
    for b in range(job.bag_start, job.bag_stop):
        given = <const floating_ft*>(job.grad + b * job.grad_stride)
        for d in range(columns.start, columns.stop):
            r = read_index(max_indices, b * job.dim + d)
            if r == -1 or r == job.padding:
                continue
            if <size_t>r >= <size_t>job.n_rows:
                return False
            out[r * job.dim + d] += given[d]
    return True


def scatter_max(
    int n_threads,
    cnp.ndarray grad not None,         # IN     (n_bags, dim) float32 or float64, columns adjacent
    cnp.ndarray max_indices not None,  # IN     (n_bags, dim) int64, contiguous
    Py_ssize_t padding,                # a row, or -1
    cnp.ndarray out not None,          # INOUT  (n_rows, dim) of grad's dtype
) -> bool:
    """Add the gradient of each bag and column to the row that won there, in the order of
    bags. False if an id is out of range."""
    refuse_change(is_table(grad) and is_index_array(max_indices)
                  and cnp.PyArray_ITEMSIZE(max_indices) == 8
                  and cnp.PyArray_NDIM(max_indices) == 2
                  and cnp.PyArray_DIM(max_indices, 0) == cnp.PyArray_DIM(grad, 0)
                  and cnp.PyArray_DIM(max_indices, 1) == cnp.PyArray_DIM(grad, 1)
                  and cnp.PyArray_NDIM(out) == 2)
    cdef:
        Scatter job
        chunk_work work = <chunk_work>scatter_winners[float]
    memset(&job, 0, sizeof(Scatter))
    job.bags.n_bags = cnp.PyArray_DIM(grad, 0)
    job.grad = <const char*>cnp.PyArray_DATA(grad)
    job.grad_stride = cnp.PyArray_STRIDE(grad, 0)
    job.n_rows = cnp.PyArray_DIM(out, 0)
    job.dim = cnp.PyArray_DIM(grad, 1)
    job.padding = padding
    refuse_change(is_result(out, job.n_rows, job.dim, cnp.PyArray_TYPE(grad)))
    if cnp.PyArray_ITEMSIZE(grad) == 8:
        work = <chunk_work>scatter_winners[double]
    if job.dim == 0:
        return True                  # however many bags there are
    return scatter_bags(&job, work, cnp.PyArray_DATA(max_indices), cnp.PyArray_DATA(out),
                        job.bags.n_bags, n_threads)


# --- The gradient of the weights ----------------------------------------------

cdef inline floating_ft dot(
    const floating_ft* x, const floating_ft* y, Py_ssize_t n   # x, y: IN
) noexcept nogil:
    """Sum of products, in DOT_LANES lanes that are then folded in halves.

    Lane j sums the products of columns j, j + DOT_LANES, ... in that order.
    """
    cdef:
        floating_ft lanes[DOT_LANES]
        floating_ft rest[DOT_LANES]
        Py_ssize_t d, j, n_whole = n // DOT_LANES * DOT_LANES
    for j in range(DOT_LANES):
        lanes[j] = 0
    for d in range(0, n_whole, 16):          # DOT_LANES, but Cython wants a literal step
        for j in range(DOT_LANES):
            lanes[j] = lanes[j] + x[d + j] * y[d + j]
    if n_whole < n:
        for j in range(DOT_LANES):
            rest[j] = 0
        for d in range(n_whole, n):
            rest[d - n_whole] = x[d] * y[d]
        for j in range(DOT_LANES):
            lanes[j] = lanes[j] + rest[j]
    for j in range(8):
        lanes[j] = lanes[j] + lanes[j + 8]
    for j in range(4):
        lanes[j] = lanes[j] + lanes[j + 4]
    return (lanes[0] + lanes[2]) + (lanes[1] + lanes[3])


cdef struct Dot:
    Bags bags
    const char* table      # (n_rows, dim)
    Py_ssize_t row_stride  # bytes
    Py_ssize_t n_rows
    Py_ssize_t dim
    Py_ssize_t row_bytes
    const char* grad       # (n_bags, dim)
    Py_ssize_t grad_stride      # bytes
    Py_ssize_t n_positions      # that are in bags
    Py_ssize_t padding     # a row, or -1
    Choice* choice
    Strategy fetching


cdef bint dot_range(
    const Dot* job,                  # IN
    const index_ft* input,           # IN   (n_indices,)
    floating_ft* out,                # OUT  (n_indices,)
    Strategy fetching,
    Py_ssize_t start,
    Py_ssize_t stop,
) noexcept nogil:
    """The dot products of some positions. False if something is bad."""
    cdef:
        const char* table = job.table
        Py_ssize_t row_stride = job.row_stride, dim = job.dim
        Py_ssize_t row_bytes = dim * <Py_ssize_t>sizeof(floating_ft)
        Py_ssize_t b = bag_at(&job.bags, start), k = start, bound, next_k, fetched = start, r
        const floating_ft* grad_row
    while k < stop:
        if b >= job.bags.n_bags:
            return False
        grad_row = <const floating_ft*>(job.grad + b * job.grad_stride)
        bound = min(bag_bound(&job.bags, b + 1), stop)
        while k < bound:
            if fetching.ahead > 0 and k + fetching.ahead > fetched:
                next_k = min(k + fetching.ahead + max(1, fetching.burst), stop)
                while fetched < next_k:
                    fetch_bytes(fetching.way, <size_t>table
                                + <size_t>input[fetched] * <size_t>row_stride, row_bytes)
                    fetched += 1
            r = read_index(input, k)
            if <size_t>r >= <size_t>job.n_rows:
                return False
            if r == job.padding:
                out[k] = 0
            else:
                out[k] = dot(grad_row, <const floating_ft*>(table + r * row_stride), dim)
            k += 1
        b += 1
    return True


cdef bint dot_positions(
    const Dot* job,                  # IN
    const index_ft* input,           # IN   (n_indices,)
    floating_ft* out,                # OUT  (n_indices,)
    Py_ssize_t c,
    Py_ssize_t n_chunks,
) noexcept nogil:
    """The dot products of a chunk of positions. False if something is bad."""
    cdef:
        Py_ssize_t start = cut(job.n_positions, c, n_chunks), piece_stop
        Py_ssize_t stop = cut(job.n_positions, c + 1, n_chunks)
        Strategy fetching = job.fetching
        Timed timed
    timed.candidate = -1
    while start < stop:
        piece_stop = stop
        if job.choice != NULL:
            timed = begin_piece(job.choice, stop - start)
            fetching = for_rows_of(CANDIDATES[timed.candidate if timed.candidate >= 0
                                              else known(job.choice)], job.row_bytes)
            if timed.candidate >= 0 and stop - start >= 2 * PIECE:
                piece_stop = start + PIECE
        if not dot_range(job, input, out, fetching, start, piece_stop):
            return False
        if timed.candidate >= 0:
            end_piece(job.choice, timed, piece_stop - start)
        start = piece_stop
    return True


def dot_rows(
    int n_threads,
    cnp.ndarray weight not None,     # IN   (n_rows, dim) float32 or float64, columns adjacent
    cnp.ndarray input not None,      # IN   (n_indices,) or (n_bags, bag_size), int32 or int64
    object offsets,                  # IN   (n_offsets,) int32 or int64; None if input is 2-D
    bint include_last_offset,
    cnp.ndarray grad not None,       # IN   (n_bags, dim) of weight's dtype, columns adjacent
    Py_ssize_t n_positions,          # how many entries of input are in bags
    Py_ssize_t padding,              # a row, or -1
    cnp.ndarray out not None,        # OUT  like input, of weight's dtype: the first n_positions
) -> bool:
    """Fill `out` with the dot product of each position's row and its bag's gradient; 0 at
    padding. False if an offset or an index is bad."""
    refuse_change(is_table(weight) and is_table(grad) and is_index_array(input)
                  and (offsets is None or is_index_array(offsets)))
    cdef:
        Dot job
        chunk_work work = by_types(
            cnp.PyArray_ITEMSIZE(weight) == 4, cnp.PyArray_ITEMSIZE(input) == 8,
            <chunk_work>dot_positions[int32_t, float], <chunk_work>dot_positions[int64_t, float],
            <chunk_work>dot_positions[int32_t, double],
            <chunk_work>dot_positions[int64_t, double])
    job.bags = describe_bags(input, offsets, include_last_offset)
    job.table = <const char*>cnp.PyArray_DATA(weight)
    job.row_stride = cnp.PyArray_STRIDE(weight, 0)
    job.n_rows = cnp.PyArray_DIM(weight, 0)
    job.dim = cnp.PyArray_DIM(weight, 1)
    job.grad = <const char*>cnp.PyArray_DATA(grad)
    job.grad_stride = cnp.PyArray_STRIDE(grad, 0)
    job.n_positions = n_positions
    job.padding = padding
    job.choice = NULL
    job.row_bytes = job.dim * cnp.PyArray_ITEMSIZE(weight)
    job.fetching = for_rows_of(pinned_strategy if is_pinned else Strategy(INTO_L1, FEW, FEW),
                               job.row_bytes)
    if not is_pinned:
        job.choice = choice_of(class_of(
            FLOAT32 if cnp.PyArray_ITEMSIZE(weight) == 4 else FLOAT64, DOT, job.row_bytes,
            <double>job.n_rows * <double>job.row_bytes, n_threads > 1))
    refuse_change(
        job.bags.n_bags >= 0
        and cnp.PyArray_DIM(grad, 0) == job.bags.n_bags and cnp.PyArray_DIM(grad, 1) == job.dim
        and cnp.PyArray_TYPE(grad) == cnp.PyArray_TYPE(weight)
        and is_factors(out, job.bags.n_indices, cnp.PyArray_TYPE(weight))
        and 0 <= n_positions <= job.bags.n_indices)
    return run_chunks(
        work, &job, cnp.PyArray_DATA(input), cnp.PyArray_DATA(out),
        shares_of(n_threads, <double>n_positions * <double>max(LINE, job.row_bytes)), n_threads)


# --- Steps --------------------------------------------------------------------

cdef struct AddRows:
    char* table            # (n_rows, dim)
    Py_ssize_t row_stride  # bytes
    Py_ssize_t n_rows
    Py_ssize_t dim
    const char* values     # (n, dim)
    Py_ssize_t value_stride     # bytes
    Py_ssize_t n
    double alpha


cdef bint add_rows_in(
    const AddRows* job, const int64_t* rows, floating_ft* _, Py_ssize_t c, Py_ssize_t n_chunks
) noexcept nogil:
    cdef:
        Py_ssize_t stop = cut(job.n, c + 1, n_chunks), dim = job.dim, i, d, r
        Py_ssize_t row_bytes = dim * <Py_ssize_t>sizeof(floating_ft)
        floating_ft alpha = <floating_ft>job.alpha
        floating_ft* row
        const floating_ft* value
    for i in range(cut(job.n, c, n_chunks), stop):
        if i + STEP_AHEAD < stop:
            fetch_bytes(False, <size_t>job.table
                        + <size_t>rows[i + STEP_AHEAD] * <size_t>job.row_stride, row_bytes)
        r = read_index(rows, i)
        if <size_t>r >= <size_t>job.n_rows:
            return False
        row = <floating_ft*>(job.table + r * job.row_stride)
        value = <const floating_ft*>(job.values + i * job.value_stride)
        for d in range(dim):
            row[d] = row[d] + alpha * value[d]
    return True


def add_rows(
    int n_threads,
    cnp.ndarray weight not None,     # INOUT  (n_rows, dim) float32 or float64, columns adjacent
    cnp.ndarray rows not None,       # IN     (n,) int64, contiguous, each once
    cnp.ndarray values not None,     # IN     (n, dim) of weight's dtype, columns adjacent
    double alpha,
) -> bool:
    """weight[rows] += alpha * values, in place. False if an id is out of range."""
    refuse_change(is_table(weight) and is_table(values) and is_index_array(rows)
                  and cnp.PyArray_ITEMSIZE(rows) == 8 and cnp.PyArray_ISWRITEABLE(weight)
                  and cnp.PyArray_TYPE(values) == cnp.PyArray_TYPE(weight)
                  and cnp.PyArray_DIM(values, 0) == cnp.PyArray_SIZE(rows)
                  and cnp.PyArray_DIM(values, 1) == cnp.PyArray_DIM(weight, 1))
    cdef:
        AddRows job = AddRows(
            <char*>cnp.PyArray_DATA(weight), cnp.PyArray_STRIDE(weight, 0),
            cnp.PyArray_DIM(weight, 0), cnp.PyArray_DIM(weight, 1),
            <const char*>cnp.PyArray_DATA(values), cnp.PyArray_STRIDE(values, 0),
            cnp.PyArray_SIZE(rows), alpha)
        chunk_work work = <chunk_work>add_rows_in[float]
    if cnp.PyArray_ITEMSIZE(weight) == 8:
        work = <chunk_work>add_rows_in[double]
    return run_chunks(work, &job, cnp.PyArray_DATA(rows), NULL, shares_of(n_threads, 0), n_threads)
