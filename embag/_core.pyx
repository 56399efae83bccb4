"""The kernels: gather rows of a table and reduce them per bag.

A bag is a run of positions in `input`; each position names a row of the table. For
each bag b and column d:

    out[b, d] = reduce(weight[input[k], d] for k in bag b)

The work is bound by memory, not by arithmetic, so a kernel has three concerns:

- A bag's accumulators stay in registers. A task's columns are covered by blocks no
  wider than the register file, and each block by two halves of one width, which
  overlap when that is no exact fit: `[0, half)` and `[n - half, n)`. A column in both
  is computed twice, to the same bits, so any width is vectorised without a tail.
  `half` is a literal at each call (see `reduce_as`), so the compiler unrolls the loops
  over columns and keeps both halves in vector registers.
- Rows are asked for before they are needed, across the ends of bags, every cache line
  that a row touches; from a table larger than the caches in bursts (see `Job.burst`).
- Nothing is read that was not checked: each index is compared with `n_rows` in the
  register that addresses the row, each bag's stop when it is read. Another thread
  that writes to `input` or `offsets` meanwhile cannot cause a wild read.

What a kernel is here: `noexcept nogil`, pointers and sizes in, `out` filled, True for
success. It allocates nothing, raises nothing and never sees a Python object. On
False the caller looks for the position to blame (`first_bad_offset`,
`first_bad_index`). Arguments are checked in `_arguments.py`, not here.

This file is compiled once per instruction-set level: `_core_v3.pyx` and
`_core_v4.pyx` only include it. Every level computes the same bits: additions happen
in the order of positions, and setup.py forbids contraction into FMA.

How this came to be, with figures: docs/design.md. Tested against `_reference.py` in
tests/.
"""

from libc.math cimport INFINITY, fabs, pow, sqrt
from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport free, malloc

from cython.parallel cimport prange

cimport numpy as cnp

cnp.import_array()

cdef extern from "_platform.h" nogil:
    void embag_prefetch(size_t address)
    int32_t embag_read_int32(const int32_t* source)
    int64_t embag_read_int64(const int64_t* source)
    int embag_cpu_level()
    enum: EMBAG_BLOCK_BYTES
    enum: EMBAG_OPENMP
    const char* EMBAG_COMPILER

ctypedef fused floating_ft:
    float
    double

ctypedef fused index_ft:
    int32_t
    int64_t

cdef enum:
    LINE = 64              # bytes of a cache line
    WIDEST_HALF = 128      # floats: half of the widest block of any level
    NORM_LANES = 8         # partial sums of a row's norm: the order is part of the result
    SHARES = 4             # of the work for each thread: they are not equally fast
    # How rows are asked for. Origin of the figures: docs/design.md, "Prefetch".
    CACHED_TABLE = 16 << 20     # bytes: a smaller table is taken to be in the caches
    NEAR = 16                   # rows ahead in a cached table
    FAR = 64                    # rows ahead, and rows a burst, in a larger one ...
    FAR_BYTES = 64 << 10        # ... or as many as this, where rows are wide ...
    FAR_LEAST = 8               # ... but not fewer than these

cdef enum Operation:
    SUM
    WEIGHTED_SUM
    MAX
    ARGMAX                 # MAX, and the winning rows

cdef struct Bags:
    # Bag b is the positions [bag_bound(b), bag_bound(b + 1)) of `input`.
    const void* offsets    # NULL: every bag has bag_size positions
    bint wide              # offsets are int64, else int32
    Py_ssize_t n_offsets   # from here on a bound is n_indices
    Py_ssize_t bag_size
    Py_ssize_t n_bags
    Py_ssize_t n_indices

cdef struct Job:
    Bags bags
    const char* table
    Py_ssize_t row_stride  # bytes, of either sign
    Py_ssize_t n_rows
    Py_ssize_t dim
    Py_ssize_t padding     # a row, or -1 for none
    int operation
    bint mean
    int64_t* max_indices   # (n_bags, dim), for ARGMAX alone
    # Rows are asked for `ahead` positions before they are used: one at each position,
    # or, if burst > 0, `burst` of them at every burst-th. Bursts keep the core's few
    # miss buffers for the requests while they last; requests mixed with the loads of
    # earlier rows take turns with them, which costs up to half of the bandwidth.
    Py_ssize_t ahead
    Py_ssize_t burst
    bint straddles         # blocks of rows need not be whole cache lines

cdef struct Task:
    # A rectangle of the output: some bags, some columns.
    Py_ssize_t bag_start
    Py_ssize_t bag_stop
    Py_ssize_t column_start
    Py_ssize_t column_stop
    bint first             # nobody has asked for its first rows
    bint done


# --- Bags ---------------------------------------------------------------------

cdef inline Py_ssize_t bag_bound(const Bags* bags, Py_ssize_t b) noexcept nogil:
    """Where bag b starts and bag b - 1 stops, as it stands in memory: not checked."""
    if bags.offsets == NULL:
        return b * bags.bag_size
    if b >= bags.n_offsets:
        return bags.n_indices
    if bags.wide:
        return <Py_ssize_t>embag_read_int64(<const int64_t*>bags.offsets + b)
    return embag_read_int32(<const int32_t*>bags.offsets + b)


cdef inline Py_ssize_t read_index(const index_ft* input, Py_ssize_t k) noexcept nogil:
    """input[k], read once: what is checked is what is used."""
    if index_ft is int32_t:
        return embag_read_int32(input + k)
    else:
        return <Py_ssize_t>embag_read_int64(input + k)


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
    const Job* job,                  # IN
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
        Py_ssize_t n_lines = (job.dim + line_columns - 1) // line_columns
        double share = (<double>job.bags.n_indices + <double>job.bags.n_bags) / n_shares
        double size
        Py_ssize_t n_tasks = 0, b = 0, t, next_b, last, n_parts, part, room

    for t in range(n_shares):
        next_b = job.bags.n_bags
        if t < n_shares - 1:
            next_b = first_bag_from(&job.bags, share * (t + 1))
        if next_b <= b:
            continue
        # Only the last bag of a run can be larger than a share.
        last = next_b - 1
        size = <double>bag_bound(&job.bags, next_b) - <double>bag_bound(&job.bags, last)
        n_parts = min(<Py_ssize_t>max(1.0, min(size / share + 1, <double>n_shares)), n_lines)
        # One task is for the run's other bags, and one for each run to come.
        room = 3 * <Py_ssize_t>n_shares - n_tasks - 1 - (n_shares - 1 - t)
        n_parts = min(n_parts, room)
        if size <= share or n_parts <= 1:
            tasks[n_tasks] = Task(b, next_b, 0, job.dim, True, False)
            n_tasks += 1
        else:
            for part in range(n_parts):
                tasks[n_tasks] = Task(
                    last,
                    next_b,
                    part * n_lines // n_parts * line_columns,
                    min((part + 1) * n_lines // n_parts * line_columns, job.dim),
                    True,
                    False,
                )
                n_tasks += 1
            if b < last:
                tasks[n_tasks] = Task(b, last, 0, job.dim, True, False)
                n_tasks += 1
        b = next_b
    return n_tasks


# --- Columns ------------------------------------------------------------------
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


# --- The reduction ------------------------------------------------------------

cdef inline bint reduce_block(
    const Py_ssize_t half,
    const int operation,
    const index_ft* input,           # IN   (n_indices,)
    const floating_ft* sample,       # IN   (n_indices,), for WEIGHTED_SUM alone
    const Job* job,                  # IN
    const Task* task,                # IN   half <= its columns <= 2 * half
    floating_ft* out,                # OUT  (n_bags, dim)
) noexcept nogil:
    """Reduce the task's bags over one block of columns. False if something is bad.

    `half` and `operation` are literals where this is called.
    """
    cdef:
        floating_ft low[WIDEST_HALF]
        floating_ft high[WIDEST_HALF]
        floating_ft least = <floating_ft>(-INFINITY) if operation == MAX else 0
        floating_ft* out_row
        const floating_ft* row
        const char* table = job.table + task.column_start * <Py_ssize_t>sizeof(floating_ft)
        size_t n_rows = <size_t>job.n_rows
        Py_ssize_t stride = job.row_stride, padding = job.padding
        Py_ssize_t n_indices = job.bags.n_indices
        Py_ssize_t n_columns = task.column_stop - task.column_start
        Py_ssize_t shift = n_columns - half
        Py_ssize_t half_bytes = half * <Py_ssize_t>sizeof(floating_ft)
        Py_ssize_t shift_bytes = shift * <Py_ssize_t>sizeof(floating_ft)
        bint straddles = job.straddles
        Py_ssize_t ahead = job.ahead, burst = job.burst
        # A burst is due at burst_at; single rows are asked for up to single_stop.
        Py_ssize_t burst_at = 0 if burst > 0 else n_indices
        Py_ssize_t single_stop = 0 if burst > 0 else n_indices - ahead
        Py_ssize_t b, start, stop, k, next_k, r, n_kept

    stop = bag_bound(&job.bags, task.bag_start)
    if not (0 <= stop <= n_indices):
        return False
    if task.first:
        for k in range(stop, min(stop + ahead, n_indices)):
            fetch(half_bytes, <size_t>table + <size_t>input[k] * <size_t>stride,
                  shift_bytes, straddles)

    for b in range(task.bag_start, task.bag_stop):
        start = stop
        stop = bag_bound(&job.bags, b + 1)
        if not (start <= stop <= n_indices):
            return False
        out_row = out + b * job.dim + task.column_start
        if start == stop:
            fill(half, out_row, 0)
            fill(half, out_row + shift, 0)
            continue

        n_kept = 0
        fill(half, low, least)
        fill(half, high, least)
        k = start
        while k < stop:
            if k >= burst_at:
                for next_k in range(k + ahead, min(k + ahead + burst, n_indices)):
                    fetch(half_bytes, <size_t>table + <size_t>input[next_k] * <size_t>stride,
                          shift_bytes, straddles)
                burst_at = k + burst
            for k in range(k, min(stop, burst_at)):
                if k < single_stop:
                    fetch(half_bytes, <size_t>table + <size_t>input[k + ahead] * <size_t>stride,
                          shift_bytes, straddles)
                r = read_index(input, k)
                if <size_t>r >= n_rows:
                    return False
                if r == padding:
                    continue
                n_kept += 1
                row = <const floating_ft*>(table + r * stride)
                if operation == SUM:
                    add(half, low, row)
                    add(half, high, row + shift)
                elif operation == WEIGHTED_SUM:
                    add_scaled(half, low, row, sample[k])
                    add_scaled(half, high, row + shift, sample[k])
                else:
                    take_max(half, low, row)
                    take_max(half, high, row + shift)
            k = min(stop, burst_at)

        if n_kept == 0:
            fill(half, out_row, 0)
            fill(half, out_row + shift, 0)
        elif operation == SUM and job.mean:
            copy_divided(half, out_row, low, <floating_ft>n_kept)
            copy_divided(half, out_row + shift, high, <floating_ft>n_kept)
        else:
            copy(half, out_row, low)
            copy(half, out_row + shift, high)
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


cdef inline bint reduce_as(
    const int operation,
    const index_ft* input,
    const floating_ft* sample,
    const Job* job,
    const Task* task,
    floating_ft* out,
) noexcept nogil:
    """reduce_block with the narrowest half that covers the task's columns."""
    cdef Py_ssize_t half = narrowest_half(task.column_stop - task.column_start)
    if half == 1:
        return reduce_block(1, operation, input, sample, job, task, out)
    elif half == 2:
        return reduce_block(2, operation, input, sample, job, task, out)
    elif half == 4:
        return reduce_block(4, operation, input, sample, job, task, out)
    elif half == 8:
        return reduce_block(8, operation, input, sample, job, task, out)
    elif half == 16:
        return reduce_block(16, operation, input, sample, job, task, out)
    elif half == 24:
        return reduce_block(24, operation, input, sample, job, task, out)
    elif half == 32:
        return reduce_block(32, operation, input, sample, job, task, out)
    elif half == 40:
        return reduce_block(40, operation, input, sample, job, task, out)
    elif half == 48:
        return reduce_block(48, operation, input, sample, job, task, out)
    elif half == 56:
        return reduce_block(56, operation, input, sample, job, task, out)
    elif half == 64:
        return reduce_block(64, operation, input, sample, job, task, out)
    elif half == 80:
        return reduce_block(80, operation, input, sample, job, task, out)
    elif half == 96:
        return reduce_block(96, operation, input, sample, job, task, out)
    elif half == 112:
        return reduce_block(112, operation, input, sample, job, task, out)
    return reduce_block(WIDEST_HALF, operation, input, sample, job, task, out)


cdef bint reduce_argmax(
    const index_ft* input,           # IN   (n_indices,)
    const Job* job,                  # IN
    const Task* task,                # IN
    floating_ft* out,                # OUT  (n_bags, dim)
) noexcept nogil:
    """The maximum and its row, for any number of columns. False if something is bad.

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
        Py_ssize_t b, start, stop, k, r, d, first_row
        bint won

    stop = bag_bound(&job.bags, task.bag_start)
    if not (0 <= stop <= job.bags.n_indices):
        return False
    for b in range(task.bag_start, task.bag_stop):
        start = stop
        stop = bag_bound(&job.bags, b + 1)
        if not (start <= stop <= job.bags.n_indices):
            return False
        best = out + b * job.dim + task.column_start
        winners = job.max_indices + b * job.dim + task.column_start
        first_row = -1
        for k in range(start, stop):
            if k < job.bags.n_indices - job.ahead:
                fetch_bytes(
                    <size_t>table + <size_t>input[k + job.ahead] * <size_t>job.row_stride, n_bytes)
            r = read_index(input, k)
            if <size_t>r >= <size_t>job.n_rows:
                return False
            if r == job.padding:
                continue
            row = <const floating_ft*>(table + r * job.row_stride)
            if first_row < 0:
                first_row = r
                for d in range(n_columns):
                    best[d] = row[d]
                    winners[d] = r
                continue
            for d in range(n_columns):
                won = wins(row[d], best[d])
                best[d] = row[d] if won else best[d]
                winners[d] = r if won else winners[d]
        if first_row < 0:
            for d in range(n_columns):
                best[d] = 0
                winners[d] = -1
    return True


cdef bint reduce_columns(
    const index_ft* input,
    const floating_ft* sample,
    const Job* job,
    const Task* task,
    floating_ft* out,
) noexcept nogil:
    """Reduce the task's bags over its columns, no more than a block of them."""
    if job.operation == SUM:
        return reduce_as(SUM, input, sample, job, task, out)
    if job.operation == WEIGHTED_SUM:
        return reduce_as(WEIGHTED_SUM, input, sample, job, task, out)
    return reduce_as(MAX, input, sample, job, task, out)


cdef bint reduce_task(
    const index_ft* input,
    const floating_ft* sample,
    const Job* job,
    const Task* task,
    floating_ft* out,
) noexcept nogil:
    """Reduce the task's bags over all its columns.

    Wide rows take several blocks: one bag at a time, so that the parts of a row are
    fetched at about the same time. The rows of a short bag are asked for here, whole,
    and not again by each block; in a long bag each block asks for its part of the rows.
    """
    cdef:
        Task part
        Job quiet
        const Job* block_job
        const char* table = job.table + task.column_start * <Py_ssize_t>sizeof(floating_ft)
        Py_ssize_t n_indices = job.bags.n_indices
        Py_ssize_t fetched = 0, start, stop, k
        Py_ssize_t n_columns = task.column_stop - task.column_start
        Py_ssize_t widest = EMBAG_BLOCK_BYTES // <Py_ssize_t>sizeof(floating_ft)
        Py_ssize_t n_blocks = (n_columns + widest - 1) // widest
        Py_ssize_t n_bytes = n_columns * <Py_ssize_t>sizeof(floating_ft)
        Py_ssize_t b, block
    if job.operation == ARGMAX:
        return reduce_argmax(input, job, task, out)
    if n_blocks == 1:
        return reduce_columns(input, sample, job, task, out)
    part = task[0]
    quiet = job[0]
    quiet.burst = 0
    quiet.ahead = n_indices          # there is nothing that far ahead
    for b in range(task.bag_start, task.bag_stop):
        part.bag_start = b
        part.bag_stop = b + 1
        # Not checked yet: these only steer what is asked for.
        start = max(0, bag_bound(&job.bags, b))
        stop = min(n_indices, bag_bound(&job.bags, b + 1))
        if stop - start > job.ahead:
            block_job = job
            part.first = fetched <= start
            fetched = max(fetched, stop)
        else:
            block_job = &quiet
            part.first = False
            for k in range(max(start, fetched), min(stop + job.ahead, n_indices)):
                fetch_bytes(<size_t>table + <size_t>input[k] * <size_t>job.row_stride, n_bytes)
            fetched = max(fetched, min(stop + job.ahead, n_indices))
        for block in range(n_blocks):
            part.column_start = task.column_start + block * n_columns // n_blocks
            part.column_stop = task.column_start + (block + 1) * n_columns // n_blocks
            if not reduce_columns(input, sample, block_job, &part, out):
                return False
    return True


cdef bint reduce(
    const index_ft* input,
    const floating_ft* sample,
    const Job* job,
    Task* tasks,                     # room for 3 * SHARES * n_threads
    int n_threads,
    floating_ft* out,
) noexcept nogil:
    """Fill `out`: plan, then do the tasks. False if something is bad."""
    cdef Py_ssize_t n_tasks, t
    if job.bags.n_offsets > 0 and bag_bound(&job.bags, 0) != 0:
        return False
    if job.dim == 0:
        return True                  # the caller has checked the positions
    if n_threads == 1:               # here and now, without OpenMP
        tasks[0] = Task(0, job.bags.n_bags, 0, job.dim, True, False)
        return reduce_task(input, sample, job, tasks, out)
    n_tasks = plan(job, sizeof(floating_ft), SHARES * n_threads, tasks)
    for t in prange(n_tasks, num_threads=n_threads, schedule="dynamic", chunksize=1):
        tasks[t].done = reduce_task(input, sample, job, &tasks[t], out)
    for t in range(n_tasks):
        if not tasks[t].done:
            return False
    return True


# --- Norms --------------------------------------------------------------------

cdef double row_norm(const floating_ft* row, Py_ssize_t dim, double p) noexcept nogil:
    """The p-norm in float64, scaled by the largest entry so that no power overflows.

    The powers are summed in NORM_LANES lanes, then the lanes in order.
    """
    cdef:
        double lanes[NORM_LANES]
        double x, largest = 0, total = 0
        Py_ssize_t d
    for d in range(dim):
        x = fabs(<double>row[d])
        largest = x if wins(x, largest) else largest
    if p == INFINITY or largest == 0 or largest == INFINITY or largest != largest:
        return largest
    for d in range(NORM_LANES):
        lanes[d] = 0
    for d in range(dim):
        x = fabs(<double>row[d]) / largest
        lanes[d % NORM_LANES] += x * x if p == 2 else pow(x, p)
    for d in range(NORM_LANES):
        total = total + lanes[d]
    return largest * (sqrt(total) if p == 2 else pow(total, 1 / p))


cdef void renorm_row(
    floating_ft* row, Py_ssize_t dim, double max_norm, double norm_type   # row: INOUT
) noexcept nogil:
    cdef:
        double norm = row_norm(row, dim, norm_type), scale
        Py_ssize_t d
    if norm > max_norm:
        scale = max_norm / (norm + 1e-7)
        for d in range(dim):
            row[d] = <floating_ft>(row[d] * scale)


# --- What Python calls --------------------------------------------------------

cdef Bags describe_bags(cnp.ndarray input, object offsets, bint include_last_offset):
    """How `input` and `offsets` make bags; n_bags is -1 if their shapes do not."""
    cdef Bags bags
    cdef int n_axes = cnp.PyArray_NDIM(input)
    bags.n_indices = cnp.PyArray_SIZE(input)
    bags.offsets = NULL
    bags.wide = False
    bags.n_offsets = 0
    bags.bag_size = 0
    bags.n_bags = -1
    if offsets is None:
        if n_axes == 2:
            bags.bag_size = cnp.PyArray_DIM(input, 1)
            bags.n_bags = cnp.PyArray_DIM(input, 0)
    elif n_axes == 1 and cnp.PyArray_NDIM(<cnp.ndarray>offsets) == 1:
        bags.offsets = cnp.PyArray_DATA(<cnp.ndarray>offsets)
        bags.wide = cnp.PyArray_ITEMSIZE(<cnp.ndarray>offsets) == 8
        bags.n_offsets = cnp.PyArray_DIM(<cnp.ndarray>offsets, 0)
        if bags.n_offsets > 0 or (bags.n_indices == 0 and not include_last_offset):
            bags.n_bags = bags.n_offsets - include_last_offset
    return bags


def is_table(object array):
    """Whether `embedding_bag` reads this as its `weight`, as it stands."""
    if not cnp.PyArray_Check(array):
        return False
    cdef cnp.ndarray table = <cnp.ndarray>array
    cdef int type_number = cnp.PyArray_TYPE(table)
    return (
        cnp.PyArray_NDIM(table) == 2
        and (type_number == cnp.NPY_FLOAT32 or type_number == cnp.NPY_FLOAT64)
        and cnp.PyArray_ISALIGNED(table)
        and cnp.PyArray_ISNOTSWAPPED(table)
        and (cnp.PyArray_DIM(table, 1) <= 1
             or cnp.PyArray_DIM(table, 0) == 0   # its strides may be anything
             or cnp.PyArray_STRIDE(table, 1) == cnp.PyArray_ITEMSIZE(table))
    )


def is_index_array(object array):
    """Whether `embedding_bag` reads this as its `input` or `offsets`, as it stands."""
    if not cnp.PyArray_Check(array):
        return False
    cdef cnp.ndarray indices = <cnp.ndarray>array
    return (
        cnp.PyTypeNum_ISSIGNED(cnp.PyArray_TYPE(indices))
        and cnp.PyTypeNum_ISINTEGER(cnp.PyArray_TYPE(indices))
        and cnp.PyArray_ITEMSIZE(indices) >= 4
        and cnp.PyArray_ISCARRAY_RO(indices)
    )


def count_bags(
    cnp.ndarray input not None,      # IN   an index array
    object offsets,                  # IN   an index array, or None
    bint include_last_offset,
):
    """How many bags they make; -1 if their shapes make none."""
    return describe_bags(input, offsets, include_last_offset).n_bags


def empty_output(Py_ssize_t n_bags, cnp.ndarray weight not None):
    """A new (n_bags, dim) array of weight's dtype, its values arbitrary."""
    cdef cnp.npy_intp[2] shape
    shape[0] = n_bags
    shape[1] = cnp.PyArray_DIM(weight, 1)
    try:
        return cnp.PyArray_EMPTY(2, shape, cnp.PyArray_TYPE(weight), 0)
    except ValueError:               # NumPy's word for more bytes than can be counted
        raise MemoryError(f"cannot allocate an output of shape ({shape[0]}, {shape[1]})")


cdef bint is_result(object array, Py_ssize_t n_bags, Py_ssize_t dim, int type_number):
    """Whether this is an ndarray of that shape and type, contiguous and writeable."""
    if not cnp.PyArray_Check(array):
        return False
    cdef cnp.ndarray result = <cnp.ndarray>array
    return (
        cnp.PyArray_NDIM(result) == 2
        and cnp.PyArray_DIM(result, 0) == n_bags
        and cnp.PyArray_DIM(result, 1) == dim
        and cnp.PyArray_TYPE(result) == type_number
        and cnp.PyArray_ISCARRAY(result)
    )


cdef bint is_factors(object array, Py_ssize_t n_indices, int type_number):
    """Whether this is an ndarray of that size and type, contiguous."""
    if not cnp.PyArray_Check(array):
        return False
    cdef cnp.ndarray factors = <cnp.ndarray>array
    return (
        cnp.PyArray_SIZE(factors) == n_indices
        and cnp.PyArray_TYPE(factors) == type_number
        and cnp.PyArray_ISCARRAY_RO(factors)
    )


cdef void find_extent(cnp.ndarray array, size_t* start, size_t* stop):
    """The addresses that an array spans; an empty one spans none."""
    cdef Py_ssize_t reach
    cdef int axis
    start[0] = <size_t>cnp.PyArray_DATA(array)
    stop[0] = start[0] + <size_t>cnp.PyArray_ITEMSIZE(array)
    if cnp.PyArray_SIZE(array) == 0:
        stop[0] = start[0]
        return
    for axis in range(cnp.PyArray_NDIM(array)):
        reach = (cnp.PyArray_DIM(array, axis) - 1) * cnp.PyArray_STRIDE(array, axis)
        if reach < 0:
            start[0] += <size_t>reach
        else:
            stop[0] += <size_t>reach


def is_output(object array, cnp.ndarray weight not None, Py_ssize_t n_bags, tuple inputs not None):
    """Whether `embedding_bag` can write to this: it is like its `out`, and spans no
    address that an ndarray among the inputs spans."""
    cdef size_t start, stop, input_start, input_stop
    if not is_result(array, n_bags, cnp.PyArray_DIM(weight, 1), cnp.PyArray_TYPE(weight)):
        return False
    find_extent(<cnp.ndarray>array, &start, &stop)
    for item in inputs:
        if cnp.PyArray_Check(item):
            find_extent(<cnp.ndarray>item, &input_start, &input_stop)
            if start < input_stop and input_start < stop:
                return False
    return True


cdef int refuse_change(bint unchanged) except -1:
    """Arrays were checked, but code that ran since may have given them another layout."""
    if not unchanged:
        raise RuntimeError("arrays must not change during the call, got a change of layout")
    return 0


def embedding_bag(
    cnp.ndarray weight not None,     # IN   (n_rows, dim) float32 or float64, columns adjacent
    cnp.ndarray input not None,      # IN   (n_indices,) or (n_bags, bag_size), int32 or int64
    object offsets,                  # IN   (n_offsets,) int32 or int64; None if input is 2-D
    bint include_last_offset,
    object per_sample_weights,       # IN   like input, of weight's dtype; or None
    str mode not None,
    Py_ssize_t padding,              # a row, or -1
    int n_threads,
    cnp.ndarray out not None,        # OUT  (n_bags, dim) of weight's dtype
    object max_indices,              # OUT  (n_bags, dim) int64; or None
):
    """Fill `out`. False if an offset or an index is bad; `out` is then half-written.

    All arrays but `weight` are C-contiguous; all are aligned, native and checked. Their
    layout is looked at once more here, where nothing else runs: converting another
    argument may have run code that changed it, and no memory may be read or written for
    what an array was before. RuntimeError if one did change.
    """
    cdef:
        Job job
        Task only_task
        Task* tasks = &only_task
        bint is_float = cnp.PyArray_ITEMSIZE(weight) == 4
        bint is_wide = cnp.PyArray_ITEMSIZE(input) == 8
        Py_ssize_t row_bytes = cnp.PyArray_DIM(weight, 1) * cnp.PyArray_ITEMSIZE(weight)
        void* indices = cnp.PyArray_DATA(input)
        void* sample = NULL
        void* result = cnp.PyArray_DATA(out)
        bint done

    refuse_change(is_table(weight) and is_index_array(input)
                  and (offsets is None or is_index_array(offsets)))
    job.bags = describe_bags(input, offsets, include_last_offset)
    refuse_change(
        job.bags.n_bags >= 0
        and is_result(out, job.bags.n_bags, cnp.PyArray_DIM(weight, 1), cnp.PyArray_TYPE(weight))
        and (max_indices is None
             or is_result(max_indices, job.bags.n_bags, cnp.PyArray_DIM(weight, 1),
                          cnp.NPY_INT64))
        and (per_sample_weights is None
             or is_factors(per_sample_weights, job.bags.n_indices, cnp.PyArray_TYPE(weight)))
    )
    job.table = <const char*>cnp.PyArray_DATA(weight)
    job.row_stride = cnp.PyArray_STRIDE(weight, 0)
    job.n_rows = cnp.PyArray_DIM(weight, 0)
    job.dim = cnp.PyArray_DIM(weight, 1)
    job.padding = padding
    job.mean = mode == "mean"
    job.max_indices = NULL
    job.straddles = (<size_t>job.table % LINE != 0 or job.row_stride % LINE != 0
                     or row_bytes % LINE != 0 or row_bytes > EMBAG_BLOCK_BYTES)
    job.burst = 0
    job.ahead = NEAR
    if <double>row_bytes * <double>job.n_rows > CACHED_TABLE:
        job.burst = max(FAR_LEAST, min(FAR, FAR_BYTES // row_bytes))
        job.ahead = job.burst
    if mode != "max":
        job.operation = SUM if per_sample_weights is None else WEIGHTED_SUM
    elif max_indices is None:
        job.operation = MAX
    else:
        job.operation = ARGMAX
        job.max_indices = <int64_t*>cnp.PyArray_DATA(<cnp.ndarray>max_indices)
    if per_sample_weights is not None:
        sample = cnp.PyArray_DATA(<cnp.ndarray>per_sample_weights)

    if n_threads > 1:
        tasks = <Task*>malloc(3 * SHARES * <size_t>n_threads * sizeof(Task))
        if tasks == NULL:
            raise MemoryError("no memory to plan a call")
    with nogil:
        if is_float and is_wide:
            done = reduce(<const int64_t*>indices, <const float*>sample, &job, tasks,
                          n_threads, <float*>result)
        elif is_float:
            done = reduce(<const int32_t*>indices, <const float*>sample, &job, tasks,
                          n_threads, <float*>result)
        elif is_wide:
            done = reduce(<const int64_t*>indices, <const double*>sample, &job, tasks,
                          n_threads, <double*>result)
        else:
            done = reduce(<const int32_t*>indices, <const double*>sample, &job, tasks,
                          n_threads, <double*>result)
    if n_threads > 1:
        free(tasks)
    return done


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


def renorm(
    cnp.ndarray weight not None,     # INOUT (n_rows, dim) float32 or float64, columns adjacent
    cnp.ndarray rows not None,       # IN    (n,) int64, contiguous, each once and valid
    double max_norm,
    double norm_type,
    int n_threads,
):
    """Scale the named rows whose norm exceeds max_norm by max_norm / (norm + 1e-7)."""
    cdef:
        char* table = <char*>cnp.PyArray_DATA(weight)
        const int64_t* ids = <const int64_t*>cnp.PyArray_DATA(rows)
        Py_ssize_t stride = cnp.PyArray_STRIDE(weight, 0), dim = cnp.PyArray_DIM(weight, 1)
        Py_ssize_t n = cnp.PyArray_SIZE(rows), i
        bint is_float = cnp.PyArray_ITEMSIZE(weight) == 4
    refuse_change(is_table(weight) and cnp.PyArray_ISWRITEABLE(weight) and is_index_array(rows)
                  and cnp.PyArray_ITEMSIZE(rows) == 8
                  and find_bad_index(ids, n, <size_t>cnp.PyArray_DIM(weight, 0)) < 0)
    with nogil:
        for i in prange(n, num_threads=n_threads, use_threads_if=n_threads > 1,
                        schedule="static"):
            if is_float:
                renorm_row(<float*>(table + ids[i] * stride), dim, max_norm, norm_type)
            else:
                renorm_row(<double*>(table + ids[i] * stride), dim, max_norm, norm_type)


def build_info():
    """How this module was compiled: (compiler, OpenMP's version date or 0)."""
    return EMBAG_COMPILER.decode(), EMBAG_OPENMP


def cpu_level():
    """The highest x86-64 level that this machine runs: 4, 3 or 1; 0 if it is no x86-64."""
    return embag_cpu_level()
