# Bags of positions: which positions a bag has, and whether ids and offsets are valid.

cdef struct Bags:
    # Bag b is the positions [bag_bound(b), bag_bound(b + 1)) of `input`.
    const void* offsets    # NULL: every bag has bag_size positions
    bint wide              # offsets are int64, else int32
    Py_ssize_t n_offsets   # from here on a bound is n_indices
    Py_ssize_t bag_size
    Py_ssize_t n_bags
    Py_ssize_t n_indices

# For include_last_offset: the offsets are part of longer ones. The last one is the end of
# the last bag, and the first may be larger than 0.
cdef enum:
    PART_OF_OFFSETS = 2
PART = PART_OF_OFFSETS


cdef inline Py_ssize_t bag_bound(const Bags* bags, Py_ssize_t b) noexcept nogil:
    """Where bag b starts and bag b - 1 stops, as it stands in memory: not checked."""
    if bags.offsets == NULL:
        return b * bags.bag_size
    if b >= bags.n_offsets:
        return bags.n_indices
    if bags.wide:
        return <Py_ssize_t>embag_read_int64(<const int64_t*>bags.offsets + b)
    return embag_read_int32(<const int32_t*>bags.offsets + b)


cdef inline Py_ssize_t positions_in(const Bags* bags, int include_last_offset) noexcept nogil:
    """The number of positions from the start of the first bag on; -1 if that start is invalid."""
    cdef Py_ssize_t first
    if bags.n_offsets == 0:
        return bags.n_indices
    first = bag_bound(bags, 0)
    if first == 0 or (include_last_offset == PART_OF_OFFSETS and 0 < first <= bags.n_indices):
        return bags.n_indices - first
    return -1


cdef inline Py_ssize_t read_index(const index_ft* input, Py_ssize_t k) noexcept nogil:
    """input[k], read once: the value that is checked is the value that is used."""
    if index_ft is int32_t:
        return embag_read_int32(input + k)
    else:
        return <Py_ssize_t>embag_read_int64(input + k)


cdef inline Py_ssize_t cut(Py_ssize_t n, Py_ssize_t c, Py_ssize_t n_chunks) noexcept nogil:
    """Where chunk c of n things starts and chunk c - 1 stops."""
    return n // n_chunks * c + min(c, n % n_chunks)


cdef Py_ssize_t bag_at(const Bags* bags, Py_ssize_t k) noexcept nogil:
    """The bag of position k; n_bags if it is in none. Ends whatever the offsets hold."""
    cdef Py_ssize_t low = 0, high = bags.n_bags, middle
    while low < high:
        middle = low + (high - low) // 2
        if bag_bound(bags, middle + 1) <= k:
            low = middle + 1
        else:
            high = middle
    return low


cdef Py_ssize_t first_bag_from(const Bags* bags, double work) noexcept nogil:
    """The first bag that starts at or after `work`, counted in positions and bags.

    A bag counts as one more than its positions: its output row is written even if it
    is empty. Bisection ends whatever the offsets hold.
    """
    cdef Py_ssize_t low = 0, high = bags.n_bags, middle
    while low < high:
        middle = low + (high - low) // 2
        if <double>bag_bound(bags, middle) + <double>middle < work:
            low = middle + 1
        else:
            high = middle
    return low


cdef Py_ssize_t find_bad_offset(const Bags* bags) noexcept nogil:
    """The first offset that is not 0 (the first), smaller than the one before it, or larger
    than n_indices; -1 if all are valid."""
    cdef Py_ssize_t i, bound, previous = 0
    for i in range(bags.n_offsets):
        bound = bag_bound(bags, i)
        if bound < previous or bound > bags.n_indices or (i == 0 and bound != 0):
            return i
        previous = bound
    return -1


cdef Py_ssize_t find_bad_index(
    const index_ft* input, Py_ssize_t n_indices, size_t n_rows, size_t first_id
) noexcept nogil:
    """The first position whose id is not one of the n_rows from first_id on; -1 if there is
    none."""
    cdef:
        Py_ssize_t start, k, stop
        bint bad
    for start in range(0, n_indices, 1024):
        stop = min(start + 1024, n_indices)
        bad = False
        for k in range(start, stop):
            bad = bad | (<size_t><Py_ssize_t>input[k] - first_id >= n_rows)
        if bad:
            for k in range(start, stop):
                if <size_t><Py_ssize_t>input[k] - first_id >= n_rows:
                    return k
    return -1


cdef Py_ssize_t count_bad(
    const index_ft* input, Py_ssize_t n_indices, size_t n_rows
) noexcept nogil:
    cdef Py_ssize_t n = 0, k
    for k in range(n_indices):
        n += <size_t><Py_ssize_t>input[k] >= n_rows
    return n
