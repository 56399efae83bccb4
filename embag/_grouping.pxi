# Group positions by row: which positions of `input` name row r, in ascending order?
#
# Each position k becomes a key of 64 bits: its row in the high bits, and k in the low
# ones, or its bag where that is what is wanted of it. A radix sort from the lowest digit
# of the row upwards, on just the bits that rows need, is stable: within a row the order
# of positions stays. Each pass counts digits per chunk of keys, turns the counts into
# places, and moves the keys there; chunks are contiguous, one for each thread, so the
# outcome does not depend on their number. No time or memory is proportional to n_rows.

cdef enum:
    # Bits of a row that one pass sorts by, at most: 2,048 places to write to are as many
    # cache lines as L2 holds with room to spare.
    DIGIT_BITS = 11


cdef int n_bits(size_t x) noexcept nogil:
    """How many bits x needs."""
    cdef int n = 0
    while x > 0:
        x >>= 1
        n += 1
    return n


cdef bint fill_keys(
    const index_ft* input,           # IN   (n_positions,)
    Py_ssize_t start,
    Py_ssize_t stop,
    size_t n_rows,
    Py_ssize_t padding,              # a row, or -1: sorted behind all rows
    const Bags* bags,                # IN   NULL: the low bits are the position, else its bag
    int low_bits,
    uint64_t digit_mask,
    Py_ssize_t* counts,              # OUT  (digit_mask + 1,) of the lowest digits
    uint64_t* keys,                  # OUT  (n_positions,)
) noexcept nogil:
    """Make the keys of a range of positions. False if an index or an offset is bad."""
    cdef Py_ssize_t k, r, b = 0, bag_stop = stop
    if bags != NULL and start < stop:
        b = bag_at(bags, start)
        if b >= bags.n_bags:
            return False
        bag_stop = bag_bound(bags, b + 1)
    memset(counts, 0, <size_t>(digit_mask + 1) * sizeof(Py_ssize_t))
    for k in range(start, stop):
        r = read_index(input, k)
        if <size_t>r >= n_rows:
            return False
        if r == padding:
            r = <Py_ssize_t>n_rows
        while k >= bag_stop:
            b += 1
            if b >= bags.n_bags:
                return False
            bag_stop = bag_bound(bags, b + 1)
        counts[<uint64_t>r & digit_mask] += 1
        keys[k] = (<uint64_t>r << low_bits) | <uint64_t>(k if bags == NULL else b)
    return True


cdef void count_digits(
    const uint64_t* keys,            # IN
    Py_ssize_t start,
    Py_ssize_t stop,
    int shift,
    uint64_t mask,
    Py_ssize_t* counts,              # OUT  (mask + 1,)
) noexcept nogil:
    cdef Py_ssize_t i
    memset(counts, 0, <size_t>(mask + 1) * sizeof(Py_ssize_t))
    for i in range(start, stop):
        counts[(keys[i] >> shift) & mask] += 1


cdef void count_to_places(
    Py_ssize_t* counts,              # INOUT  (n_chunks, n_digits)
    Py_ssize_t n_chunks,
    Py_ssize_t n_digits,
) noexcept nogil:
    """Turn how many keys a chunk has of a digit into where its first one goes."""
    cdef Py_ssize_t digit, c, n, place = 0
    for digit in range(n_digits):
        for c in range(n_chunks):
            n = counts[c * n_digits + digit]
            counts[c * n_digits + digit] = place
            place += n


cdef void move_keys(
    const uint64_t* keys,            # IN
    Py_ssize_t start,
    Py_ssize_t stop,
    int shift,
    uint64_t mask,
    Py_ssize_t* places,              # INOUT  (mask + 1,)
    uint64_t* to,                    # OUT  all keys
) noexcept nogil:
    cdef Py_ssize_t i, digit
    for i in range(start, stop):
        digit = <Py_ssize_t>((keys[i] >> shift) & mask)
        to[places[digit]] = keys[i]
        places[digit] += 1


cdef Py_ssize_t count_groups(
    const uint64_t* keys, Py_ssize_t start, Py_ssize_t stop, int low_bits   # keys: IN
) noexcept nogil:
    """How many groups begin in a range of the sorted keys."""
    cdef Py_ssize_t i, n = start == 0 and stop > 0
    for i in range(max(start, 1), stop):
        n += (keys[i] >> low_bits) != (keys[i - 1] >> low_bits)
    return n


cdef void write_groups(
    const uint64_t* keys,            # IN   sorted
    Py_ssize_t start,
    Py_ssize_t stop,
    int low_bits,
    Py_ssize_t group,                # the first to begin in this range
    int64_t* rows,                   # OUT  (n_groups,)
    int64_t* starts,                 # OUT  (n_groups,)
    int64_t* positions,              # OUT  (n_keys,)
) noexcept nogil:
    cdef:
        uint64_t mask = (<uint64_t>1 << low_bits) - 1
        Py_ssize_t i
    for i in range(start, stop):
        positions[i] = <int64_t>(keys[i] & mask)
        if i == 0 or (keys[i] >> low_bits) != (keys[i - 1] >> low_bits):
            rows[group] = <int64_t>(keys[i] >> low_bits)
            starts[group] = i
            group += 1


cdef Py_ssize_t first_key_from(
    const uint64_t* keys, Py_ssize_t n, size_t row, int low_bits   # keys: IN, sorted
) noexcept nogil:
    cdef Py_ssize_t low = 0, high = n, middle
    while low < high:
        middle = low + (high - low) // 2
        if (keys[middle] >> low_bits) < row:
            low = middle + 1
        else:
            high = middle
    return low


def group_by_row(
    int n_threads,
    cnp.ndarray input not None,      # IN   (n_indices,) or (n_bags, bag_size), int32 or int64
    object offsets,                  # IN   (n_offsets,) int32 or int64; None if input is 2-D
    bint include_last_offset,
    bint by_bag,                     # give each position's bag in the place of the position
    Py_ssize_t n_positions,          # how many entries of input to group: the first ones
    Py_ssize_t n_rows,
    Py_ssize_t padding,              # a row to leave out, or -1
):
    """(rows, starts, positions or bags), or None if an index is bad. See `_grouping.py`.

    OverflowError if a row and a position need more than 64 bits.
    """
    refuse_change(is_index_array(input) and 0 <= n_positions <= cnp.PyArray_SIZE(input)
                  and (offsets is None or is_index_array(offsets)))
    cdef:
        Bags bags = describe_bags(input, offsets, include_last_offset)
        const Bags* labels = &bags if by_bag else NULL
        Py_ssize_t n_labels = bags.n_bags if by_bag else n_positions
        bint is_wide = cnp.PyArray_ITEMSIZE(input) == 8
        void* indices = cnp.PyArray_DATA(input)
        int row_bits = n_bits(<size_t>max(0, n_rows - (padding < 0)))
        int low_bits = n_bits(<size_t>max(0, n_labels - 1))
        int n_passes = max(1, (row_bits + DIGIT_BITS - 1) // DIGIT_BITS)
        int digit_bits = (row_bits + n_passes - 1) // n_passes
        Py_ssize_t n_digits = <Py_ssize_t>1 << digit_bits
        uint64_t mask = <uint64_t>n_digits - 1
        Py_ssize_t n_chunks = n_threads
        Py_ssize_t c, n_bad = 0, n_kept = n_positions, n_groups = 0, n
        Py_ssize_t* counts
        uint64_t* keys
        uint64_t* spare
        int64_t* row_list
        int64_t* start_list
        int shift, digit_pass
    refuse_change(not by_bag or bags.n_bags >= 0)
    if row_bits + low_bits > 64:
        raise OverflowError("a row and a position need more than 64 bits")
    cdef:
        cnp.ndarray first = empty_int64(n_positions)
        cnp.ndarray second = empty_int64(n_positions)
        cnp.ndarray rows, starts
    keys = <uint64_t*>cnp.PyArray_DATA(first)
    spare = <uint64_t*>cnp.PyArray_DATA(second)
    counts = <Py_ssize_t*>malloc(<size_t>(n_chunks * n_digits) * sizeof(Py_ssize_t))
    if counts == NULL:
        raise MemoryError("no memory to group positions")
    with nogil:
        for c in prange(n_chunks, num_threads=n_threads, use_threads_if=n_threads > 1,
                        schedule="static"):
            if is_wide:
                n_bad += not fill_keys(
                    <const int64_t*>indices, cut(n_positions, c, n_chunks),
                    cut(n_positions, c + 1, n_chunks), <size_t>n_rows, padding,
                    labels, low_bits, mask, counts + c * n_digits, keys)
            else:
                n_bad += not fill_keys(
                    <const int32_t*>indices, cut(n_positions, c, n_chunks),
                    cut(n_positions, c + 1, n_chunks), <size_t>n_rows, padding,
                    labels, low_bits, mask, counts + c * n_digits, keys)
        if n_bad == 0:
            for digit_pass in range(n_passes):
                shift = low_bits + digit_pass * digit_bits
                if digit_pass > 0:       # the first digits are counted as they are made
                    for c in prange(n_chunks, num_threads=n_threads,
                                    use_threads_if=n_threads > 1, schedule="static"):
                        count_digits(
                            keys, cut(n_positions, c, n_chunks), cut(n_positions, c + 1, n_chunks),
                            shift, mask, counts + c * n_digits)
                count_to_places(counts, n_chunks, n_digits)
                for c in prange(n_chunks, num_threads=n_threads,
                                use_threads_if=n_threads > 1, schedule="static"):
                    move_keys(
                        keys, cut(n_positions, c, n_chunks), cut(n_positions, c + 1, n_chunks),
                        shift, mask, counts + c * n_digits, spare)
                keys, spare = spare, keys
            if padding >= 0:
                n_kept = first_key_from(keys, n_positions, <size_t>n_rows, low_bits)
            for c in prange(n_chunks, num_threads=n_threads, use_threads_if=n_threads > 1,
                            schedule="static"):
                counts[c] = count_groups(
                    keys, cut(n_kept, c, n_chunks), cut(n_kept, c + 1, n_chunks), low_bits)
            for c in range(n_chunks):
                n = counts[c]
                counts[c] = n_groups
                n_groups += n
    if n_bad > 0:
        free(counts)
        return None
    try:
        rows = empty_int64(n_groups)
        starts = empty_int64(n_groups + 1)
    except MemoryError:
        free(counts)
        raise
    row_list = <int64_t*>cnp.PyArray_DATA(rows)
    start_list = <int64_t*>cnp.PyArray_DATA(starts)
    start_list[n_groups] = n_kept
    with nogil:
        for c in prange(n_chunks, num_threads=n_threads, use_threads_if=n_threads > 1,
                        schedule="static"):
            write_groups(
                keys, cut(n_kept, c, n_chunks), cut(n_kept, c + 1, n_chunks), low_bits,
                counts[c], row_list, start_list, <int64_t*>spare)
    free(counts)
    if spare == <uint64_t*>cnp.PyArray_DATA(second):
        first = second
    return rows, starts, first[:n_kept]
