# Group positions by row: which positions of `input` name row r, in ascending order?
#
# Each position k becomes a key of 64 bits: its row in the high bits, and k in the low
# ones, or its bag where that is what is wanted of it. A radix sort from the lowest digit
# of the row upwards, on just the bits that rows need, is stable: within a row the order
# of positions stays. Each pass counts digits per chunk of keys, turns the counts into
# places, and moves the keys there; chunks are contiguous, so the outcome does not depend on their
# number. No time or memory is proportional to n_rows.

cdef enum:
    # Bits of a row that one pass sorts by, at most: 2,048 places to write to are as many
    # cache lines as L2 holds with room to spare.
    DIGIT_BITS = 11
    MOST_PASSES = 6        # for the 64 bits of a key


cdef int n_bits(size_t x) noexcept nogil:
    """How many bits x needs."""
    cdef int n = 0
    while x > 0:
        x >>= 1
        n += 1
    return n


cdef inline Py_ssize_t chunks_of_keys(Py_ssize_t n_keys, int n_threads) noexcept nogil:
    """How many chunks keys are sorted in: as many for each thread, one if they are few."""
    return n_threads * slices_of(<double>n_keys * 2 * sizeof(uint64_t) / n_threads)


cdef struct Grouping:
    const Bags* bags       # NULL: the low bits of a key are the position, else its bag
    uint64_t* keys         # (n_keys,)
    uint64_t* other        # (n_keys,) where a pass moves them
    Py_ssize_t* counts     # (n_chunks, n_digits)
    Py_ssize_t n_keys      # one for each position; then those that are not padding
    size_t n_rows
    Py_ssize_t padding     # a row, or -1: sorted behind all rows
    int low_bits           # for the position or bag
    int row_bits           # for the row
    int digit_bits         # of these, that a pass sorts by
    uint64_t mask          # of a digit
    int shift              # of the digit that the next pass sorts by
    Py_ssize_t n_groups
    int64_t* rows          # (n_groups,)
    int64_t* starts        # (n_groups + 1,)


cdef inline Py_ssize_t* counts_of(const Grouping* job, Py_ssize_t c) noexcept nogil:
    return job.counts + c * <Py_ssize_t>(job.mask + 1)


cdef bint fill_keys(
    const Grouping* job,
    const index_ft* input,           # IN   (n_keys,)
    const float* _,
    Py_ssize_t c,
    Py_ssize_t n_chunks,
) noexcept nogil:
    """Make the keys of a chunk of positions and count their lowest digits. False if an index
    or an offset is bad."""
    cdef:
        Py_ssize_t start = cut(job.n_keys, c, n_chunks), stop = cut(job.n_keys, c + 1, n_chunks)
        Py_ssize_t padding = job.padding, k, r, b = 0, bag_stop = stop
        const Bags* bags = job.bags
        size_t n_rows = job.n_rows
        uint64_t mask = job.mask
        uint64_t* keys = job.keys
        Py_ssize_t* counts = counts_of(job, c)
        int low_bits = job.low_bits
    if bags != NULL and start < stop:
        b = bag_at(bags, start)
        if b >= bags.n_bags:
            return False
        bag_stop = bag_bound(bags, b + 1)
    memset(counts, 0, <size_t>(mask + 1) * sizeof(Py_ssize_t))
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
        counts[<uint64_t>r & mask] += 1
        keys[k] = (<uint64_t>r << low_bits) | <uint64_t>(k if bags == NULL else b)
    # Moves write all over the memory: the first one would have to wait for all of it.
    for k in range(start, stop, 512):        # the entries of a page
        job.other[k] = 0
    return True


cdef bint count_digits(
    const Grouping* job, const void* _, void* __, Py_ssize_t c, Py_ssize_t n_chunks
) noexcept nogil:
    cdef Py_ssize_t* counts = counts_of(job, c)
    cdef Py_ssize_t i
    memset(counts, 0, <size_t>(job.mask + 1) * sizeof(Py_ssize_t))
    for i in range(cut(job.n_keys, c, n_chunks), cut(job.n_keys, c + 1, n_chunks)):
        counts[(job.keys[i] >> job.shift) & job.mask] += 1
    return True


cdef void count_to_places(Grouping* job, Py_ssize_t n_chunks) noexcept nogil:
    """Turn how many keys a chunk has of a digit into where its first one goes."""
    cdef:
        Py_ssize_t* counts = job.counts
        Py_ssize_t n_digits = <Py_ssize_t>(job.mask + 1), digit, c, n, place = 0
    for digit in range(n_digits):
        for c in range(n_chunks):
            n = counts[c * n_digits + digit]
            counts[c * n_digits + digit] = place
            place += n


cdef bint move_keys(
    const Grouping* job, const void* _, void* __, Py_ssize_t c, Py_ssize_t n_chunks
) noexcept nogil:
    """Move a chunk's keys to their places in `other`."""
    cdef:
        const uint64_t* keys = job.keys
        uint64_t* to = job.other
        uint64_t mask = job.mask
        Py_ssize_t* places = counts_of(job, c)
        Py_ssize_t i, digit
        int shift = job.shift
    for i in range(cut(job.n_keys, c, n_chunks), cut(job.n_keys, c + 1, n_chunks)):
        digit = <Py_ssize_t>((keys[i] >> shift) & mask)
        to[places[digit]] = keys[i]
        places[digit] += 1
    return True


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


cdef void end_pass(Grouping* job, Py_ssize_t n_chunks) noexcept nogil:
    """Go on with the keys that were moved, and their next digit."""
    job.keys, job.other = job.other, job.keys
    job.shift += job.digit_bits
    if job.padding >= 0 and job.shift >= job.low_bits + job.row_bits:
        job.n_keys = first_key_from(job.keys, job.n_keys, job.n_rows, job.low_bits)


cdef bint count_groups(
    const Grouping* job, const void* _, void* __, Py_ssize_t c, Py_ssize_t n_chunks
) noexcept nogil:
    """Count the groups that begin in a chunk of the sorted keys."""
    cdef:
        Py_ssize_t start = cut(job.n_keys, c, n_chunks), stop = cut(job.n_keys, c + 1, n_chunks)
        Py_ssize_t i, n = start == 0 and stop > 0
    for i in range(max(start, 1), stop):
        n += (job.keys[i] >> job.low_bits) != (job.keys[i - 1] >> job.low_bits)
    job.counts[c] = n
    return True


cdef void number_groups(Grouping* job, Py_ssize_t n_chunks) noexcept nogil:
    """Turn how many groups begin in a chunk into the number of its first one."""
    cdef Py_ssize_t c, n
    for c in range(n_chunks):
        n = job.counts[c]
        job.counts[c] = job.n_groups
        job.n_groups += n


cdef bint write_groups(
    const Grouping* job, const void* _, int64_t* positions, Py_ssize_t c, Py_ssize_t n_chunks
) noexcept nogil:
    """Write the groups that begin in a chunk of the sorted keys, from number counts[c] on."""
    cdef:
        const uint64_t* keys = job.keys
        uint64_t mask = (<uint64_t>1 << job.low_bits) - 1
        Py_ssize_t i, group = job.counts[c]
        int low_bits = job.low_bits
    for i in range(cut(job.n_keys, c, n_chunks), cut(job.n_keys, c + 1, n_chunks)):
        positions[i] = <int64_t>(keys[i] & mask)
        if i == 0 or (keys[i] >> low_bits) != (keys[i - 1] >> low_bits):
            job.rows[group] = <int64_t>(keys[i] >> low_bits)
            job.starts[group] = i
            group += 1
    return True


cdef int describe_grouping(
    Grouping* job,                   # OUT  all but where counts and results go
    const Bags* bags,                # NULL: the low bits of a key are the position, else its bag
    Py_ssize_t n_positions,
    Py_ssize_t n_rows,
    Py_ssize_t padding,              # a row to leave out, or -1
    uint64_t* keys,                  # (n_positions,)
    uint64_t* other,                 # (n_positions,)
) except -1:
    """Choose how the first ids of an index array are sorted.

    OverflowError if a row and a position need more than 64 bits.
    """
    cdef:
        Py_ssize_t n_labels = n_positions if bags == NULL else bags.n_bags
        int row_bits = n_bits(<size_t>max(0, n_rows - (padding < 0)))
        int low_bits = n_bits(<size_t>max(0, n_labels - 1))
        int n_passes = max(1, (row_bits + DIGIT_BITS - 1) // DIGIT_BITS)
    if row_bits + low_bits > 64:
        raise OverflowError("a row and a position need more than 64 bits")
    job.bags = bags
    job.keys = keys
    job.other = other
    job.n_keys = n_positions
    job.n_rows = <size_t>n_rows
    job.padding = padding
    job.low_bits = job.shift = low_bits
    job.row_bits = row_bits
    job.digit_bits = (row_bits + n_passes - 1) // n_passes
    job.mask = (<uint64_t>1 << job.digit_bits) - 1
    job.n_groups = 0
    return 0


cdef int sort_stages(const Grouping* job, bint is_wide, Stage* stages) noexcept nogil:
    """Write the stages that sort the keys, at most 2 * MOST_PASSES; returns how many."""
    cdef int n_stages = 0, done = 0
    while n_stages == 0 or done < job.row_bits:
        stages[n_stages] = Stage(<chunk_work>count_digits, <serial_work>count_to_places)
        stages[n_stages + 1] = Stage(<chunk_work>move_keys, <serial_work>end_pass)
        n_stages += 2
        done += job.digit_bits
    # The first digits are counted as they are made.
    stages[0].work = (<chunk_work>fill_keys[int64_t] if is_wide
                      else <chunk_work>fill_keys[int32_t])
    return n_stages


def group_by_row(
    int n_threads,
    cnp.ndarray input not None,      # IN   (n_indices,) or (n_bags, bag_size), int32 or int64
    object offsets,                  # IN   (n_offsets,) int32 or int64; None if input is 2-D
    bint include_last_offset,
    bint by_bag,                     # return each position's bag instead of the position
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
        Grouping job
        Stage[2 * MOST_PASSES + 1] stages
        Stage write = Stage(<chunk_work>write_groups, NULL)
        int n_stages
        Py_ssize_t n_chunks = chunks_of_keys(n_positions, n_threads)
        cnp.ndarray first = empty_int64(n_positions)
        cnp.ndarray second = empty_int64(n_positions)
        cnp.ndarray rows, starts
    refuse_change(not by_bag or bags.n_bags >= 0)
    describe_grouping(&job, &bags if by_bag else NULL, n_positions, n_rows, padding,
                      <uint64_t*>cnp.PyArray_DATA(first), <uint64_t*>cnp.PyArray_DATA(second))
    job.counts = <Py_ssize_t*>malloc(
        <size_t>n_chunks * <size_t>(job.mask + 1) * sizeof(Py_ssize_t))
    if job.counts == NULL:
        raise MemoryError("no memory to group positions")
    n_stages = sort_stages(&job, cnp.PyArray_ITEMSIZE(input) == 8, stages)
    stages[n_stages] = Stage(<chunk_work>count_groups, <serial_work>number_groups)
    try:
        if not run_in_place(stages, n_stages + 1, &job, cnp.PyArray_DATA(input), NULL, n_chunks,
                            n_threads):
            return None
        rows = empty_int64(job.n_groups)
        starts = empty_int64(job.n_groups + 1)
        job.rows = <int64_t*>cnp.PyArray_DATA(rows)
        job.starts = <int64_t*>cnp.PyArray_DATA(starts)
        job.starts[job.n_groups] = job.n_keys
        run_in_place(&write, 1, &job, NULL, job.other, n_chunks, n_threads)
    finally:
        free(job.counts)
    members = second if job.other == <uint64_t*>cnp.PyArray_DATA(second) else first
    return rows, starts, members[:job.n_keys]
