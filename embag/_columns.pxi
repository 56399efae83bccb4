# What is done to a few columns of a row.
#
# `n` is a literal once these are inlined: each loop becomes a few vector
# instructions, and the arrays that it works on become registers.

cdef inline void fill(const Py_ssize_t n, floating_ft* to, floating_ft value) noexcept nogil:
    cdef Py_ssize_t d
    for d in range(n):
        to[d] = value


cdef inline void copy(
    const Py_ssize_t n, floating_ft* to, const floating_ft* row
) noexcept nogil:
    cdef Py_ssize_t d
    for d in range(n):
        to[d] = row[d]


cdef inline void copy_sum(
    const Py_ssize_t n, floating_ft* to, const floating_ft* row
) noexcept nogil:
    """The sum of one row: -0.0 becomes the 0.0 that sums start from."""
    cdef Py_ssize_t d
    for d in range(n):
        to[d] = <floating_ft>0 + row[d]


cdef inline void copy_scaled(
    const Py_ssize_t n, floating_ft* to, const floating_ft* row, floating_ft scale
) noexcept nogil:
    cdef Py_ssize_t d
    for d in range(n):
        to[d] = <floating_ft>0 + scale * row[d]


cdef inline void copy_divided(
    const Py_ssize_t n, floating_ft* to, const floating_ft* row, floating_ft divisor
) noexcept nogil:
    cdef Py_ssize_t d
    for d in range(n):
        to[d] = row[d] / divisor


cdef inline void add(
    const Py_ssize_t n, floating_ft* total, const floating_ft* row
) noexcept nogil:
    cdef Py_ssize_t d
    for d in range(n):
        total[d] = total[d] + row[d]


cdef inline void add_scaled(
    const Py_ssize_t n, floating_ft* total, const floating_ft* row, floating_ft scale
) noexcept nogil:
    cdef Py_ssize_t d
    for d in range(n):
        total[d] = total[d] + scale * row[d]


cdef inline bint wins(floating_ft x, floating_ft best) noexcept nogil:
    """Whether x takes best's place as the maximum.

    The first of equals and the first NaN stay. No branches, so that it vectorises.
    """
    return (x > best) | ((x != x) & (best == best))


cdef inline void take_max(
    const Py_ssize_t n, floating_ft* best, const floating_ft* row
) noexcept nogil:
    cdef Py_ssize_t d
    for d in range(n):
        best[d] = row[d] if wins(row[d], best[d]) else best[d]


cdef inline void fetch(
    const Py_ssize_t half_bytes,
    size_t row,                      # an address, perhaps a wild one: this only asks
    Py_ssize_t shift_bytes,
    bint straddles,
) noexcept nogil:
    """Ask for every line that a block of a row touches.

    The lines at row + 64 i cover each half but perhaps its last line. The low half's is
    among the high half's; the high half's is asked for by its last byte, which can be
    left out (`straddles`) where blocks are whole lines.
    """
    cdef Py_ssize_t line
    for line in range((half_bytes + LINE - 1) // LINE):
        embag_prefetch(row + <size_t>(line * LINE))
    if 2 * half_bytes > LINE:
        for line in range((half_bytes + LINE - 1) // LINE):
            embag_prefetch(row + <size_t>(shift_bytes + line * LINE))
    if straddles:
        embag_prefetch(row + <size_t>(shift_bytes + half_bytes - 1))


cdef void fetch_bytes(size_t address, Py_ssize_t n_bytes) noexcept nogil:
    """Ask for every line that n_bytes from an address touch."""
    cdef Py_ssize_t offset
    for offset in range(0, n_bytes, 64):     # LINE, but Cython wants a literal step
        embag_prefetch(address + <size_t>offset)
    embag_prefetch(address + <size_t>n_bytes - 1)
