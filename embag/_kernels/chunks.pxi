# Work in chunks: the one place where threads are started, and where a long call looks for signals.

cdef enum:
    # What a chunk of a large call reads and writes at most, in bytes: a few ms of work.
    MOST_BYTES = 1 << 24
    # How long the regions of a large call take, about, in ns. Between them Python's signal handlers
    # run, so Ctrl-C waits for one region.
    REGION = 50_000_000
    MOST_OF_REGION = 20      # chunks for each thread: some may take much longer than those before

# A chunk of a kernel's work. False if something is bad.
ctypedef bint (*chunk_work)(
    void* job, const void* input, void* out, Py_ssize_t c, Py_ssize_t n_chunks
) noexcept nogil

# What is done between stages, by one thread.
ctypedef void (*serial_work)(void* job, Py_ssize_t n_chunks) noexcept nogil

cdef struct Stage:
    chunk_work work
    serial_work then       # NULL: nothing


cdef inline chunk_work by_types(
    bint is_float, bint is_wide, chunk_work float_32, chunk_work float_64,
    chunk_work double_32, chunk_work double_64,
) noexcept nogil:
    """The specialisation of a chunk's function for these floats and these ids."""
    if is_float:
        return float_64 if is_wide else float_32
    return double_64 if is_wide else double_32


cdef inline bint do_chunk(
    chunk_work work, void* job, const void* input, void* out, Py_ssize_t c, Py_ssize_t n_chunks
) noexcept nogil:
    """Do a chunk under the default floating-point settings: see platform.h."""
    cdef uint64_t floats = embag_use_default_floats()
    cdef bint done = work(job, input, out, c, n_chunks)
    embag_restore_floats(floats)
    return done


cdef struct Leader:
    # What the calling thread, which leads the team, has done of a stage.
    Py_ssize_t n_done      # chunks
    int64_t began          # the first of them
    int64_t stopped        # the last one


cdef inline bint do_chunk_in_team(
    chunk_work work, void* job, const void* input, void* out, Py_ssize_t c, Py_ssize_t n_chunks,
    Leader* leader,
) noexcept nogil:
    """Do a chunk; if this thread leads the team, take the time."""
    if not embag_leads():
        return do_chunk(work, job, input, out, c, n_chunks)
    if leader.n_done == 0:
        leader.began = embag_now()
    cdef bint done = do_chunk(work, job, input, out, c, n_chunks)
    leader.stopped = embag_now()
    leader.n_done += 1
    return done


cdef bint run_stages(
    const Stage* stages,             # IN
    int n_stages,
    void* job,
    const void* input,
    void* out,
    Py_ssize_t n_chunks,
    int n_threads,
    bint in_place,                   # chunk c is done by the same thread in all stages
    bint is_long,                    # it looks for signals, each of which may end it half-way
) except -1:
    """Do the stages with a team, each after the one before it. False as soon as something is
    bad in one. Raises what a signal handler raises, with some chunks done and others not.

    A stage is one parallel region, and several if the call is long.

    This function holds the GIL and releases it itself. In a function that does not hold it,
    prange would ask Python whether it does, and the answer is wrong once there has been a
    subinterpreter.
    """
    cdef Py_ssize_t few = SHARES * <Py_ssize_t>n_threads if is_long else n_chunks, size = few
    cdef Py_ssize_t c, first = 0, stop, n_bad = 0
    cdef int s = 0
    cdef chunk_work work
    cdef Leader leader
    cdef int64_t began, process = embag_process() if is_long else 0
    while s < n_stages:
        with nogil:
            while s < n_stages:
                work = stages[s].work
                stop = first + min(size, n_chunks - first)
                began = embag_now()
                leader.n_done = 0
                leader.began = leader.stopped = began
                if n_threads == 1:   # without OpenMP
                    for c in range(first, stop):
                        n_bad += not do_chunk(work, job, input, out, c, n_chunks)
                        if is_long and embag_now() - began > REGION:
                            stop = c + 1
                            break
                elif in_place:
                    for c in prange(first, stop, num_threads=n_threads, schedule="static",
                                    chunksize=1):
                        n_bad += not do_chunk_in_team(work, job, input, out, c, n_chunks, &leader)
                else:
                    for c in prange(first, stop, num_threads=n_threads, schedule="dynamic",
                                    chunksize=1):
                        n_bad += not do_chunk_in_team(work, job, input, out, c, n_chunks, &leader)
                if n_threads > 1 and leader.n_done > 0:
                    record_region(&leader, began, stop - first)
                if n_bad > 0:
                    break
                if is_long:
                    size = size_of_region(stop - first, embag_now() - began, n_threads)
                first = stop
                if first == n_chunks:
                    if stages[s].then != NULL:
                        stages[s].then(job, n_chunks)
                    s += 1
                    first = 0
                    size = few
                if is_long:
                    break
        if n_bad > 0:
            return False
        if s < n_stages:
            PyErr_CheckSignals()
            if embag_process() != process:
                n_threads = 1        # a handler has forked, and the team is the parent's
    return True


cdef bint run_in_place(
    const Stage* stages, int n_stages, void* job, const void* input, void* out,
    Py_ssize_t n_chunks, int n_threads,
) except -1:
    """run_stages, of work that is cut into as many chunks for each thread: one, if it is small."""
    return run_stages(stages, n_stages, job, input, out, n_chunks, n_threads, True,
                      n_chunks > n_threads)


cdef inline Py_ssize_t size_of_region(
    Py_ssize_t n_chunks, int64_t took, int n_threads
) noexcept nogil:
    """How many chunks the next region does, after one of so many that took so long: a multiple of
    the number of threads."""
    cdef double n = <double>n_chunks * REGION / <double>max(took, 1)
    return n_threads * <Py_ssize_t>max(1.0, min(n / n_threads, MOST_OF_REGION))


cdef void record_region(const Leader* leader, int64_t began, Py_ssize_t n_chunks) noexcept nogil:
    """Record what a region took, and an estimate of what it would take on one thread: the
    leader's time, for its share of the chunks."""
    embag_add_region(<double>(embag_now() - began),
                     <double>(leader.stopped - leader.began) / <double>leader.n_done
                     * <double>n_chunks)


def take_region():
    """The ns that the calling thread's regions took since it asked last, and the ns that they
    would take on one thread."""
    cdef double took, alone
    embag_take_region(&took, &alone)
    return took, alone


cdef bint run_chunks(
    chunk_work work, void* job, const void* input, void* out, Py_ssize_t n_chunks, int n_threads
) except -1:
    """Do all chunks with a team. False if something is bad."""
    cdef Stage stage = Stage(work, NULL)
    return run_stages(&stage, 1, job, input, out, n_chunks, n_threads, False,
                      is_large(n_chunks, n_threads))


cdef inline bint is_large(Py_ssize_t n_chunks, int n_threads) noexcept nogil:
    """Whether work is cut into more chunks than its threads need: see `shares_of`."""
    return n_chunks > SHARES * <Py_ssize_t>n_threads


cdef inline Py_ssize_t slices_of(double n_bytes) noexcept nogil:
    """How many chunks that many bytes are cut into."""
    return 1 + <Py_ssize_t>(min(n_bytes, 1e18) / MOST_BYTES)


cdef inline Py_ssize_t shares_of(int n_threads, double n_bytes) noexcept nogil:
    """How many chunks the work of a call is cut into: threads are not equally fast. More than
    SHARES for each thread if it reads and writes many bytes."""
    return max(SHARES * <Py_ssize_t>n_threads if n_threads > 1 else 1, slices_of(n_bytes))
