# Arithmetic on some columns of a row.
#
# `n` is a literal once these functions are inlined: each loop becomes a few vector
# instructions, and the arrays that it works on become registers.

cdef enum:
    WIDEST_HALF = 128      # floats: half of the widest block of any level


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


cdef inline void multiply(
    const Py_ssize_t n, floating_ft* to, const floating_ft* row, floating_ft scale
) noexcept nogil:
    cdef Py_ssize_t d
    for d in range(n):
        to[d] = scale * row[d]


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

    The first of equals and the first NaN stay. No branches, so that it vectorises: as two
    comparisons, of which the first is true of NaN, too.
    """
    return (not x <= best) & (best == best)


cdef inline bint beats(const int operation, floating_ft x, floating_ft best) noexcept nogil:
    """Whether x takes best's place as the maximum, or minimum: `wins` mirrored."""
    if operation == MAX or operation == SCALED_MAX or operation == ARGMAX:
        return wins(x, best)
    return (not x >= best) & (best == best)


cdef inline double start_of(const int operation) noexcept nogil:
    """What every row is reduced with: the result of no rows at all, before it becomes 0."""
    if operation == MAX or operation == SCALED_MAX:
        return -INFINITY
    return INFINITY if operation == MIN or operation == SCALED_MIN else 0


cdef inline void choose(
    const Py_ssize_t n, const int operation, floating_ft* best, const floating_ft* row
) noexcept nogil:
    """Replace the best entries so far by those of a row that take their place."""
    cdef Py_ssize_t d
    for d in range(n):
        best[d] = row[d] if beats(operation, row[d], best[d]) else best[d]


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
