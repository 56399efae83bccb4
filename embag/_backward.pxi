# The backward pass, beside the forward kernel that sums what each row is given.

cdef enum:
    DOT_LANES = 16         # partial sums of a dot product: the order is part of the result
    # Rows of a dense gradient that are asked for ahead of the one that is added to. Origin:
    # docs/design.md, "Gradients".
    SCATTER_AHEAD = 8


# --- Bags and positions -------------------------------------------------------

cdef bint divide_bags(
    const index_ft* input,           # IN   (n_indices,)
    const Bags* bags,
    Py_ssize_t bag_start,
    Py_ssize_t bag_stop,
    Py_ssize_t padding,
    const char* grad,                # IN   (n_bags, dim)
    Py_ssize_t grad_stride,          # bytes
    Py_ssize_t dim,
    floating_ft* out,                # OUT  (n_bags, dim)
) noexcept nogil:
    """Divide each bag's gradient by its entries that are not padding. False if an offset is
    bad."""
    cdef:
        Py_ssize_t b, start, stop = bag_bound(bags, bag_start), k, n
        const floating_ft* given
    if not (0 <= stop <= bags.n_indices):
        return False
    for b in range(bag_start, bag_stop):
        start = stop
        stop = bag_bound(bags, b + 1)
        if not (start <= stop <= bags.n_indices):
            return False
        n = stop - start
        if padding >= 0:
            n = 0
            for k in range(start, stop):
                n += input[k] != padding
        given = <const floating_ft*>(grad + b * grad_stride)
        copy_divided(dim, out + b * dim, given, <floating_ft>max(n, 1))
    return True


def divide_by_sizes(
    int n_threads,
    cnp.ndarray grad not None,       # IN   (n_bags, dim) float32 or float64, columns adjacent
    cnp.ndarray input not None,      # IN   (n_indices,) or (n_bags, bag_size), int32 or int64
    object offsets,                  # IN   (n_offsets,) int32 or int64; None if input is 2-D
    bint include_last_offset,
    Py_ssize_t padding,              # a row, or -1
    cnp.ndarray out not None,        # OUT  (n_bags, dim) of grad's dtype
):
    """Fill `out` with what a mean gives each row of a bag: the bag's gradient, divided by
    the number of its entries that are not padding. False if an offset is bad."""
    refuse_change(is_table(grad) and is_index_array(input)
                  and (offsets is None or is_index_array(offsets)))
    cdef:
        Bags bags = describe_bags(input, offsets, include_last_offset)
        void* indices = cnp.PyArray_DATA(input)
        void* result = cnp.PyArray_DATA(out)
        const char* grad_data = <const char*>cnp.PyArray_DATA(grad)
        Py_ssize_t stride = cnp.PyArray_STRIDE(grad, 0), dim = cnp.PyArray_DIM(grad, 1)
        Py_ssize_t c, start, stop, n_bad = 0
        bint is_float = cnp.PyArray_ITEMSIZE(grad) == 4
        bint is_wide = cnp.PyArray_ITEMSIZE(input) == 8
        uint64_t floats
    refuse_change(bags.n_bags >= 0 and cnp.PyArray_DIM(grad, 0) == bags.n_bags
                  and is_result(out, bags.n_bags, dim, cnp.PyArray_TYPE(grad)))
    with nogil:
        for c in prange(n_threads, num_threads=n_threads, use_threads_if=n_threads > 1,
                        schedule="static"):
            start = cut(bags.n_bags, c, n_threads)
            stop = cut(bags.n_bags, c + 1, n_threads)
            floats = embag_use_default_floats()
            if is_float and is_wide:
                n_bad += not divide_bags(
                    <const int64_t*>indices, &bags, start, stop, padding, grad_data, stride,
                    dim, <float*>result)
            elif is_float:
                n_bad += not divide_bags(
                    <const int32_t*>indices, &bags, start, stop, padding, grad_data, stride,
                    dim, <float*>result)
            elif is_wide:
                n_bad += not divide_bags(
                    <const int64_t*>indices, &bags, start, stop, padding, grad_data, stride,
                    dim, <double*>result)
            else:
                n_bad += not divide_bags(
                    <const int32_t*>indices, &bags, start, stop, padding, grad_data, stride,
                    dim, <double*>result)
            embag_restore_floats(floats)
    return n_bad == 0


cdef bint fill_bag_of(
    const Bags* bags,
    Py_ssize_t start,
    Py_ssize_t stop,
    int64_t* bag_of,                 # OUT  (n_positions,)
) noexcept nogil:
    """Write the bag of each position in a range. False if one is in no bag."""
    cdef Py_ssize_t b = bag_at(bags, start), k = start, bound
    while k < stop:
        if b >= bags.n_bags:
            return False
        bound = min(bag_bound(bags, b + 1), stop)
        while k < bound:
            bag_of[k] = b
            k += 1
        b += 1
    return True


cdef void look_up(
    const int64_t* bag_of,           # IN   (n_positions,)
    const floating_ft* sample,       # IN   (n_positions,)
    Py_ssize_t start,
    Py_ssize_t stop,
    int64_t* positions,              # INOUT  to bags
    floating_ft* factors,            # OUT
) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(start, stop):
        factors[i] = sample[positions[i]]
        positions[i] = bag_of[positions[i]]


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
        and is_factors(per_sample_weights, cnp.PyArray_SIZE(input),
                       cnp.PyArray_TYPE(per_sample_weights)))
    cdef:
        Bags bags = describe_bags(input, offsets, include_last_offset)
        cnp.ndarray bag_of = empty_int64(n_positions)
        Py_ssize_t n = cnp.PyArray_SIZE(positions), c, n_bad = 0
        int64_t* bag_list = <int64_t*>cnp.PyArray_DATA(bag_of)
        int64_t* places = <int64_t*>cnp.PyArray_DATA(positions)
        void* sample = cnp.PyArray_DATA(per_sample_weights)
        bint is_float = cnp.PyArray_ITEMSIZE(per_sample_weights) == 4
        cnp.npy_intp[1] shape
        cnp.ndarray factors
        void* weights
    refuse_change(bags.n_bags >= 0 and n_positions <= bags.n_indices)
    shape[0] = n
    factors = cnp.PyArray_EMPTY(1, shape, cnp.PyArray_TYPE(per_sample_weights), 0)
    weights = cnp.PyArray_DATA(factors)
    with nogil:
        for c in prange(n_threads, num_threads=n_threads, use_threads_if=n_threads > 1,
                        schedule="static"):
            n_bad += not fill_bag_of(
                &bags, cut(n_positions, c, n_threads), cut(n_positions, c + 1, n_threads), bag_list)
        if n_bad == 0:
            for c in prange(n_threads, num_threads=n_threads, use_threads_if=n_threads > 1,
                            schedule="static"):
                if is_float:
                    look_up(bag_list, <const float*>sample, cut(n, c, n_threads),
                            cut(n, c + 1, n_threads), places, <float*>weights)
                else:
                    look_up(bag_list, <const double*>sample, cut(n, c, n_threads),
                            cut(n, c + 1, n_threads), places, <double*>weights)
    return None if n_bad > 0 else factors


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
    """Ask for every line that n_bytes from an address touch."""
    cdef Py_ssize_t offset
    for offset in range(0, n_bytes, 64):     # LINE, but Cython wants a literal step
        embag_prefetch_to_write(address + <size_t>offset)
    embag_prefetch_to_write(address + <size_t>n_bytes - 1)


cdef struct Scatter:
    Bags bags
    const char* grad       # (n_bags, dim)
    Py_ssize_t grad_stride      # bytes, of either sign
    Py_ssize_t n_rows
    Py_ssize_t dim
    Py_ssize_t padding     # a row, or -1 for none


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
    const index_ft* input,           # IN     (n_indices,)
    const floating_ft* sample,       # IN     (n_indices,), or NULL
    const Scatter* job,              # IN
    Columns columns,
    floating_ft* out,                # INOUT  (n_rows, dim)
) noexcept nogil:
    """Add the gradient of each bag to its rows. False if something is bad."""
    cdef:
        # A block's gradient and a row of it are in registers at once.
        Py_ssize_t widest = EMBAG_BLOCK_BYTES // 2 // <Py_ssize_t>sizeof(floating_ft)
        Py_ssize_t n_columns = columns.stop - columns.start
        Py_ssize_t n_blocks = (n_columns + widest - 1) // widest
        Py_ssize_t b, start, stop = bag_bound(&job.bags, 0), block, d, n
        const floating_ft* given
    if job.bags.n_offsets > 0 and stop != 0:
        return False
    for b in range(job.bags.n_bags):
        start = stop
        stop = bag_bound(&job.bags, b + 1)
        if not (start <= stop <= job.bags.n_indices):
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
):
    """Add the gradient of each bag to its rows, in the order of positions. False if an
    offset or an index is bad."""
    refuse_change(is_table(grad) and is_index_array(input)
                  and (offsets is None or is_index_array(offsets))
                  and cnp.PyArray_NDIM(out) == 2)
    cdef:
        Scatter job
        void* indices = cnp.PyArray_DATA(input)
        void* sample = NULL
        void* result = cnp.PyArray_DATA(out)
        Py_ssize_t itemsize = cnp.PyArray_ITEMSIZE(grad), c, n_bad = 0
        bint is_float = itemsize == 4, is_wide = cnp.PyArray_ITEMSIZE(input) == 8
        uint64_t floats
    job.bags = describe_bags(input, offsets, include_last_offset)
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
        sample = cnp.PyArray_DATA(<cnp.ndarray>per_sample_weights)
    if job.dim == 0 or job.bags.n_indices == 0:
        return True                  # however many bags there are
    with nogil:
        for c in prange(n_threads, num_threads=n_threads, use_threads_if=n_threads > 1,
                        schedule="static"):
            floats = embag_use_default_floats()
            if is_float and is_wide:
                n_bad += not scatter_columns(
                    <const int64_t*>indices, <const float*>sample, &job,
                    share_columns(job.dim, itemsize, c, n_threads), <float*>result)
            elif is_float:
                n_bad += not scatter_columns(
                    <const int32_t*>indices, <const float*>sample, &job,
                    share_columns(job.dim, itemsize, c, n_threads), <float*>result)
            elif is_wide:
                n_bad += not scatter_columns(
                    <const int64_t*>indices, <const double*>sample, &job,
                    share_columns(job.dim, itemsize, c, n_threads), <double*>result)
            else:
                n_bad += not scatter_columns(
                    <const int32_t*>indices, <const double*>sample, &job,
                    share_columns(job.dim, itemsize, c, n_threads), <double*>result)
            embag_restore_floats(floats)
    return n_bad == 0


cdef bint scatter_winners(
    const int64_t* max_indices,      # IN     (n_bags, dim)
    const char* grad,                # IN     (n_bags, dim)
    Py_ssize_t grad_stride,          # bytes
    Py_ssize_t n_bags,
    Py_ssize_t n_rows,
    Py_ssize_t dim,
    Py_ssize_t padding,
    Columns columns,
    floating_ft* out,                # INOUT  (n_rows, dim)
) noexcept nogil:
    """Add the gradient of each bag and column to the row that won. False if one is no row."""
    cdef:
        Py_ssize_t b, d, r
        const floating_ft* given
    for b in range(n_bags):
        given = <const floating_ft*>(grad + b * grad_stride)
        for d in range(columns.start, columns.stop):
            r = read_index(max_indices, b * dim + d)
            if r == -1 or r == padding:
                continue
            if <size_t>r >= <size_t>n_rows:
                return False
            out[r * dim + d] += given[d]
    return True


def scatter_max(
    int n_threads,
    cnp.ndarray grad not None,         # IN     (n_bags, dim) float32 or float64, columns adjacent
    cnp.ndarray max_indices not None,  # IN     (n_bags, dim) int64, contiguous
    Py_ssize_t padding,                # a row, or -1
    cnp.ndarray out not None,          # INOUT  (n_rows, dim) of grad's dtype
):
    """Add the gradient of each bag and column to the row that won there, in the order of
    bags. False if one is no row."""
    refuse_change(is_table(grad) and is_index_array(max_indices)
                  and cnp.PyArray_ITEMSIZE(max_indices) == 8
                  and cnp.PyArray_NDIM(max_indices) == 2
                  and cnp.PyArray_DIM(max_indices, 0) == cnp.PyArray_DIM(grad, 0)
                  and cnp.PyArray_DIM(max_indices, 1) == cnp.PyArray_DIM(grad, 1)
                  and cnp.PyArray_NDIM(out) == 2)
    cdef:
        const char* grad_data = <const char*>cnp.PyArray_DATA(grad)
        const int64_t* winners = <const int64_t*>cnp.PyArray_DATA(max_indices)
        Py_ssize_t stride = cnp.PyArray_STRIDE(grad, 0), itemsize = cnp.PyArray_ITEMSIZE(grad)
        Py_ssize_t n_bags = cnp.PyArray_DIM(grad, 0), dim = cnp.PyArray_DIM(grad, 1)
        Py_ssize_t n_rows = cnp.PyArray_DIM(out, 0)
        Py_ssize_t c, n_bad = 0
        void* result = cnp.PyArray_DATA(out)
        bint is_float = itemsize == 4
        uint64_t floats
    refuse_change(is_result(out, n_rows, dim, cnp.PyArray_TYPE(grad)))
    if dim == 0:
        return True                  # however many bags there are
    with nogil:
        for c in prange(n_threads, num_threads=n_threads, use_threads_if=n_threads > 1,
                        schedule="static"):
            floats = embag_use_default_floats()
            if is_float:
                n_bad += not scatter_winners(
                    winners, grad_data, stride, n_bags, n_rows, dim, padding,
                    share_columns(dim, itemsize, c, n_threads), <float*>result)
            else:
                n_bad += not scatter_winners(
                    winners, grad_data, stride, n_bags, n_rows, dim, padding,
                    share_columns(dim, itemsize, c, n_threads), <double*>result)
            embag_restore_floats(floats)
    return n_bad == 0


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


cdef bint dot_positions(
    const index_ft* input,           # IN   (n_indices,)
    const Bags* bags,
    const char* table,               # IN   (n_rows, dim)
    Py_ssize_t row_stride,           # bytes
    Py_ssize_t n_rows,
    Py_ssize_t dim,
    const char* grad,                # IN   (n_bags, dim)
    Py_ssize_t grad_stride,          # bytes
    Py_ssize_t padding,
    Py_ssize_t ahead,
    Py_ssize_t start,
    Py_ssize_t stop,
    floating_ft* out,                # OUT  (n_indices,)
) noexcept nogil:
    """The dot products of a range of positions. False if something is bad."""
    cdef:
        Py_ssize_t row_bytes = dim * <Py_ssize_t>sizeof(floating_ft)
        Py_ssize_t b = bag_at(bags, start), k = start, bound, next_k, fetched = start, r
        const floating_ft* grad_row
    while k < stop:
        if b >= bags.n_bags:
            return False
        grad_row = <const floating_ft*>(grad + b * grad_stride)
        bound = min(bag_bound(bags, b + 1), stop)
        while k < bound:
            if k + ahead > fetched:
                # Asked for in bursts, as the forward kernel does, and by turns.
                next_k = min(k + 2 * ahead, stop)
                while fetched < next_k:
                    fetch_bytes(<size_t>table + <size_t>input[fetched] * <size_t>row_stride,
                                row_bytes)
                    fetched += 1
            r = read_index(input, k)
            if <size_t>r >= <size_t>n_rows:
                return False
            if r == padding:
                out[k] = 0
            else:
                out[k] = dot(grad_row, <const floating_ft*>(table + r * row_stride), dim)
            k += 1
        b += 1
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
):
    """Fill `out` with the dot product of each position's row and its bag's gradient; 0 at
    padding. False if an offset or an index is bad."""
    refuse_change(is_table(weight) and is_table(grad) and is_index_array(input)
                  and (offsets is None or is_index_array(offsets)))
    cdef:
        Bags bags = describe_bags(input, offsets, include_last_offset)
        const char* table = <const char*>cnp.PyArray_DATA(weight)
        const char* grad_data = <const char*>cnp.PyArray_DATA(grad)
        void* indices = cnp.PyArray_DATA(input)
        void* result = cnp.PyArray_DATA(out)
        Py_ssize_t row_stride = cnp.PyArray_STRIDE(weight, 0)
        Py_ssize_t grad_stride = cnp.PyArray_STRIDE(grad, 0)
        Py_ssize_t n_rows = cnp.PyArray_DIM(weight, 0), dim = cnp.PyArray_DIM(weight, 1)
        Py_ssize_t ahead = rows_a_burst(dim * cnp.PyArray_ITEMSIZE(weight))
        Py_ssize_t n_chunks = SHARES * n_threads if n_threads > 1 else 1
        Py_ssize_t c, start, stop, n_bad = 0
        bint is_float = cnp.PyArray_ITEMSIZE(weight) == 4
        bint is_wide = cnp.PyArray_ITEMSIZE(input) == 8
        uint64_t floats
    refuse_change(
        bags.n_bags >= 0
        and cnp.PyArray_DIM(grad, 0) == bags.n_bags and cnp.PyArray_DIM(grad, 1) == dim
        and cnp.PyArray_TYPE(grad) == cnp.PyArray_TYPE(weight)
        and is_factors(out, bags.n_indices, cnp.PyArray_TYPE(weight))
        and 0 <= n_positions <= bags.n_indices)
    with nogil:
        for c in prange(n_chunks, num_threads=n_threads, use_threads_if=n_threads > 1,
                        schedule="dynamic", chunksize=1):
            start = cut(n_positions, c, n_chunks)
            stop = cut(n_positions, c + 1, n_chunks)
            floats = embag_use_default_floats()
            if is_float and is_wide:
                n_bad += not dot_positions(
                    <const int64_t*>indices, &bags, table, row_stride, n_rows, dim, grad_data,
                    grad_stride, padding, ahead, start, stop, <float*>result)
            elif is_float:
                n_bad += not dot_positions(
                    <const int32_t*>indices, &bags, table, row_stride, n_rows, dim, grad_data,
                    grad_stride, padding, ahead, start, stop, <float*>result)
            elif is_wide:
                n_bad += not dot_positions(
                    <const int64_t*>indices, &bags, table, row_stride, n_rows, dim, grad_data,
                    grad_stride, padding, ahead, start, stop, <double*>result)
            else:
                n_bad += not dot_positions(
                    <const int32_t*>indices, &bags, table, row_stride, n_rows, dim, grad_data,
                    grad_stride, padding, ahead, start, stop, <double*>result)
            embag_restore_floats(floats)
    return n_bad == 0


# --- Steps --------------------------------------------------------------------

cdef bint add_rows_in(
    floating_ft* table,              # INOUT  (n_rows, dim)
    Py_ssize_t row_stride,           # bytes
    Py_ssize_t n_rows,
    Py_ssize_t dim,
    const int64_t* rows,             # IN   (n,)
    const char* values,              # IN   (n, dim)
    Py_ssize_t value_stride,         # bytes
    const double* factor,
    Py_ssize_t start,
    Py_ssize_t stop,
) noexcept nogil:
    cdef:
        Py_ssize_t i, d, r
        floating_ft alpha = <floating_ft>embag_read_double(factor)
        Py_ssize_t row_bytes = dim * <Py_ssize_t>sizeof(floating_ft)
        floating_ft* row
        const floating_ft* value
    for i in range(start, stop):
        if i + NEAR < stop:
            fetch_bytes(<size_t>table + <size_t>rows[i + NEAR] * <size_t>row_stride, row_bytes)
        r = read_index(rows, i)
        if <size_t>r >= <size_t>n_rows:
            return False
        row = <floating_ft*>(<char*>table + r * row_stride)
        value = <const floating_ft*>(values + i * value_stride)
        for d in range(dim):
            row[d] = row[d] + alpha * value[d]
    return True


def add_rows(
    int n_threads,
    cnp.ndarray weight not None,     # INOUT  (n_rows, dim) float32 or float64, columns adjacent
    cnp.ndarray rows not None,       # IN     (n,) int64, contiguous, each once
    cnp.ndarray values not None,     # IN     (n, dim) of weight's dtype, columns adjacent
    double alpha,
):
    """weight[rows] += alpha * values, in place. False if one is no row."""
    refuse_change(is_table(weight) and is_table(values) and is_index_array(rows)
                  and cnp.PyArray_ITEMSIZE(rows) == 8 and cnp.PyArray_ISWRITEABLE(weight)
                  and cnp.PyArray_TYPE(values) == cnp.PyArray_TYPE(weight)
                  and cnp.PyArray_DIM(values, 0) == cnp.PyArray_SIZE(rows)
                  and cnp.PyArray_DIM(values, 1) == cnp.PyArray_DIM(weight, 1))
    cdef:
        void* table = cnp.PyArray_DATA(weight)
        const char* value_data = <const char*>cnp.PyArray_DATA(values)
        const int64_t* row_list = <const int64_t*>cnp.PyArray_DATA(rows)
        Py_ssize_t row_stride = cnp.PyArray_STRIDE(weight, 0)
        Py_ssize_t value_stride = cnp.PyArray_STRIDE(values, 0)
        Py_ssize_t n_rows = cnp.PyArray_DIM(weight, 0), dim = cnp.PyArray_DIM(weight, 1)
        Py_ssize_t n = cnp.PyArray_SIZE(rows), c, n_bad = 0
        Py_ssize_t n_chunks = SHARES * n_threads if n_threads > 1 else 1
        bint is_float = cnp.PyArray_ITEMSIZE(weight) == 4
        uint64_t floats
    with nogil:
        for c in prange(n_chunks, num_threads=n_threads, use_threads_if=n_threads > 1,
                        schedule="dynamic", chunksize=1):
            floats = embag_use_default_floats()
            if is_float:
                n_bad += not add_rows_in(
                    <float*>table, row_stride, n_rows, dim, row_list, value_data, value_stride,
                    &alpha, cut(n, c, n_chunks), cut(n, c + 1, n_chunks))
            else:
                n_bad += not add_rows_in(
                    <double*>table, row_stride, n_rows, dim, row_list, value_data, value_stride,
                    &alpha, cut(n, c, n_chunks), cut(n, c + 1, n_chunks))
            embag_restore_floats(floats)
    return n_bad == 0
