# Bags of positions, and how the output is shared among threads.

cdef struct Bags:
    # Bag b is the positions [bag_bound(b), bag_bound(b + 1)) of `input`.
    const void* offsets    # NULL: every bag has bag_size positions
    bint wide              # offsets are int64, else int32
    Py_ssize_t n_offsets   # from here on a bound is n_indices
    Py_ssize_t bag_size
    Py_ssize_t n_bags
    Py_ssize_t n_indices

# For include_last_offset: the offsets are a part of longer ones. The last tells where the
# last bag ends, and the first need not be 0.
cdef enum:
    PART_OF_OFFSETS = 2
PART = PART_OF_OFFSETS

cdef struct Task:
    # A rectangle of the output: some bags, some columns.
    Py_ssize_t bag_start
    Py_ssize_t bag_stop
    Py_ssize_t column_start
    Py_ssize_t column_stop
    bint first             # nobody has asked for its first rows
    bint done
    Py_ssize_t n_invalid   # indices out of range that were left out
    Py_ssize_t job         # where several are planned together: which it is of


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
    """How many positions there are from the first bag's on; -1 if that starts where it may not."""
    cdef Py_ssize_t first
    if bags.n_offsets == 0:
        return bags.n_indices
    first = bag_bound(bags, 0)
    if first == 0 or (include_last_offset == PART_OF_OFFSETS and 0 < first <= bags.n_indices):
        return bags.n_indices - first
    return -1


cdef inline Py_ssize_t read_index(const index_ft* input, Py_ssize_t k) noexcept nogil:
    """input[k], read once: what is checked is what is used."""
    if index_ft is int32_t:
        return embag_read_int32(input + k)
    else:
        return <Py_ssize_t>embag_read_int64(input + k)


cdef inline Py_ssize_t cut(Py_ssize_t n, Py_ssize_t c, Py_ssize_t n_chunks) noexcept nogil:
    """Where chunk c of n things starts and chunk c - 1 stops."""
    return n // n_chunks * c + min(c, n % n_chunks)


cdef Py_ssize_t bag_at(const Bags* bags, Py_ssize_t k) noexcept nogil:
    """The bag that position k is in; n_bags if it is in none. Ends whatever the offsets hold."""
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


cdef Py_ssize_t plan(
    const Bags* bags,                # IN
    Py_ssize_t dim,
    Py_ssize_t itemsize,
    int n_shares,
    Task* tasks,                     # OUT  room for 3 * n_shares
) noexcept nogil:
    """Cut the output into tasks of about equal work; returns how many.

    Contiguous runs of bags. A bag larger than a share is cut by columns,
    so that each sum keeps its order. The offsets are not checked yet: whatever they
    hold, every bag is in one run and the tasks stay within their room.
    """
    cdef:
        Py_ssize_t line_columns = LINE // itemsize
        Py_ssize_t n_lines = (dim + line_columns - 1) // line_columns
        # Offsets may be a part of longer ones: then the first is not 0.
        Py_ssize_t first = max(0, min(bag_bound(bags, 0), bags.n_indices))
        double share = (<double>(bags.n_indices - first) + <double>bags.n_bags) / n_shares
        double size
        Py_ssize_t n_tasks = 0, b = 0, t, next_b, last, n_parts, part, room

    for t in range(n_shares):
        next_b = bags.n_bags
        if t < n_shares - 1:
            next_b = first_bag_from(bags, first + share * (t + 1))
        if next_b <= b:
            continue
        # Only the last bag of a run can be larger than a share.
        last = next_b - 1
        size = <double>bag_bound(bags, next_b) - <double>bag_bound(bags, last)
        n_parts = min(<Py_ssize_t>max(1.0, min(size / share + 1, <double>n_shares)), n_lines)
        # One task is for the run's other bags, and one for each run to come.
        room = 3 * <Py_ssize_t>n_shares - n_tasks - 1 - (n_shares - 1 - t)
        n_parts = min(n_parts, room)
        if size <= share or n_parts <= 1:
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


def first_bad_offset(
    cnp.ndarray offsets not None,    # IN   (n_offsets,) int32 or int64, contiguous
    Py_ssize_t n_indices,
):
    """The first position whose offset is not 0 (at 0), below its predecessor, or beyond
    n_indices; -1 if there is none."""
    cdef:
        Bags bags
        Py_ssize_t i, bound, previous = 0
    refuse_change(is_index_array(offsets) and cnp.PyArray_NDIM(offsets) == 1)
    bags.offsets = cnp.PyArray_DATA(offsets)
    bags.wide = cnp.PyArray_ITEMSIZE(offsets) == 8
    bags.n_offsets = cnp.PyArray_DIM(offsets, 0)
    bags.n_indices = n_indices
    with nogil:
        for i in range(bags.n_offsets):
            bound = bag_bound(&bags, i)
            if bound < previous or bound > n_indices or (i == 0 and bound != 0):
                break
            previous = bound
        else:
            i = -1
    return i


cdef Py_ssize_t find_bad_index(
    const index_ft* input, Py_ssize_t n_indices, size_t n_rows
) noexcept nogil:
    cdef:
        Py_ssize_t start, k, stop
        bint bad
    for start in range(0, n_indices, 1024):
        stop = min(start + 1024, n_indices)
        bad = False
        for k in range(start, stop):
            bad = bad | (<size_t><Py_ssize_t>input[k] >= n_rows)
        if bad:
            for k in range(start, stop):
                if <size_t><Py_ssize_t>input[k] >= n_rows:
                    return k
    return -1


cdef Py_ssize_t count_bad(
    const index_ft* input, Py_ssize_t n_indices, size_t n_rows
) noexcept nogil:
    cdef Py_ssize_t n = 0, k
    for k in range(n_indices):
        n += <size_t><Py_ssize_t>input[k] >= n_rows
    return n


def first_bad_index(
    cnp.ndarray input not None,      # IN   int32 or int64, contiguous
    Py_ssize_t n_rows,
):
    """The first position, counted in C order, that names no row; -1 if there is none."""
    cdef:
        void* indices = cnp.PyArray_DATA(input)
        Py_ssize_t n_indices = cnp.PyArray_SIZE(input)
        bint is_wide = cnp.PyArray_ITEMSIZE(input) == 8
        Py_ssize_t position
    refuse_change(is_index_array(input))
    with nogil:
        if is_wide:
            position = find_bad_index(<const int64_t*>indices, n_indices, <size_t>n_rows)
        else:
            position = find_bad_index(<const int32_t*>indices, n_indices, <size_t>n_rows)
    return position
