# Ids that are not the numbers of rows: pruned tables, shards, and tables with scales for ids.
#
# A task is done in pieces. The ids of a piece become rows, and their scales factors of these
# rows, before the piece is reduced, so the reducers see rows only. The bounds of
# the piece's bags are copied too, since another thread may change them in between.

cdef enum:
    MAPPED_PIECE = 1 << 13  # positions, or bags, that are mapped at once; a longer bag is one piece

cdef Py_ssize_t MOST_IDS = <Py_ssize_t>1 << 62     # so that sums of two fit

cdef bint lacked_memory = False     # since the last call that noticed

cdef struct Mapped:
    # A piece. In one block of memory, of which the first field is the start.
    int64_t* rows          # (n,) -1 for entries that do not count
    void* factors          # (n,) of the dtype of sums
    int64_t* bounds        # (n_bags + 1,)
    Py_ssize_t n_bytes     # of the block


cdef bint describe_mapping(
    Mapping* mapping,                # OUT
    object given,                    # (rows or None, scales or None, first_id, n_ids)
    Py_ssize_t n_rows,
    int sum_type,                    # NumPy's
) except? False:
    """Describe how ids name the rows of a table. False if the arrays do not fit."""
    rows, scales, mapping.first_id, mapping.n_ids = given
    mapping.rows = mapping.scales = NULL
    if not (0 <= mapping.first_id < MOST_IDS and 0 <= mapping.n_ids < MOST_IDS
            and (rows is not None or mapping.n_ids == n_rows)):
        return False
    if rows is not None:
        if not is_index_array(rows) or cnp.PyArray_SIZE(<cnp.ndarray>rows) != mapping.n_ids:
            return False
        mapping.rows = cnp.PyArray_DATA(<cnp.ndarray>rows)
        mapping.wide = cnp.PyArray_ITEMSIZE(<cnp.ndarray>rows) == 8
    if scales is not None:
        if not is_factors(scales, mapping.n_ids, sum_type):
            return False
        mapping.scales = cnp.PyArray_DATA(<cnp.ndarray>scales)
    return True


cdef inline Py_ssize_t first_id_of(const Job* job) noexcept nogil:
    return 0 if job.mapping == NULL else job.mapping.first_id


cdef inline Py_ssize_t n_ids_of(const Job* job) noexcept nogil:
    return job.n_rows if job.mapping == NULL else job.mapping.n_ids


cdef bint is_apart_from(cnp.ndarray array, object mapping):
    """Whether an array spans no address that the arrays of a mapping span."""
    return mapping is None or (is_apart(array, (<tuple>mapping)[0])
                               and is_apart(array, (<tuple>mapping)[1]))


cdef bint is_mapped_well(const Job* job, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """Whether all ids at some positions that are in range are mapped to rows, or to none, as
    they stand in memory."""
    cdef:
        const Mapping* mapping = job.mapping
        Py_ssize_t k, place, r
    if mapping.rows == NULL:
        return True
    for k in range(start, stop):
        r = index_of(job, k)
        if <size_t>r - <size_t>mapping.first_id < <size_t>mapping.n_ids:
            place = r - mapping.first_id
            if mapping.wide:
                r = read_index(<const int64_t*>mapping.rows, place)
            else:
                r = read_index(<const int32_t*>mapping.rows, place)
            if r < -1 or r >= job.n_rows:
                return False
    return True


cdef int demand_memory() except -1:
    """Raise if a kernel has found no memory for a piece."""
    global lacked_memory
    if lacked_memory:
        lacked_memory = False
        raise MemoryError("no memory to map ids to rows")
    return 0


cdef bint reserve(
    Mapped* piece, Py_ssize_t n, Py_ssize_t n_bags, Py_ssize_t factor_bytes
) noexcept nogil:
    """Make room for a piece. False if there is no memory."""
    global lacked_memory
    # No product overflows: there are arrays of as many entries.
    cdef Py_ssize_t n_bytes = (n + n_bags + 1) * <Py_ssize_t>sizeof(int64_t) + n * factor_bytes
    if n_bytes > piece.n_bytes:
        free(piece.rows)
        piece.rows = <int64_t*>malloc(<size_t>n_bytes)
        piece.n_bytes = n_bytes
        if piece.rows == NULL:
            lacked_memory = True
            return False
    piece.bounds = piece.rows + n
    piece.factors = piece.bounds + n_bags + 1
    return True


ctypedef fused map_ft:
    int32_t
    int64_t


cdef inline bint map_ids_by(
    const Job* job,                  # IN
    const index_ft* input,           # IN   (n,)
    const map_ft* index_map,         # IN   the row of each place, if mapped
    const floating_ft* sample,       # IN   (n,) or NULL
    const bint mapped,               # literals
    const bint scaled,
    Py_ssize_t n,
    int64_t* rows,                   # OUT  (n,) -1 for entries that do not count
    floating_ft* factors,            # OUT  (n,) if scaled
    Py_ssize_t* n_invalid,           # INOUT
) noexcept nogil:
    """Turn ids into rows, and find the factors of these. False if an id or a row is bad."""
    cdef:
        const Mapping* mapping = job.mapping
        size_t first = <size_t>mapping.first_id, n_ids = <size_t>mapping.n_ids
        const floating_ft* scales = <const floating_ft*>mapping.scales
        Py_ssize_t padding = job.padding, n_rows = job.n_rows, i, r, place
    for i in range(n):
        r = read_index(input, i)
        if <size_t>r - first >= n_ids:
            if not job.skip_invalid:
                return False
            n_invalid[0] += 1
            r = job.stand_in
            if r < 0:
                rows[i] = -1
                continue
        if r == padding:
            rows[i] = -1
            continue
        r = place = r - <Py_ssize_t>first
        if mapped:
            r = read_index(index_map, place)
            if <size_t>r >= <size_t>n_rows:
                if r != -1:
                    return False
                rows[i] = -1
                continue
        rows[i] = r
        if scaled:
            factors[i] = scales[place] if sample == NULL else sample[i] * scales[place]
    return True


cdef inline bint map_ids_as(
    const Job* job, const index_ft* input, const floating_ft* sample, Py_ssize_t n,
    int64_t* rows, floating_ft* factors, Py_ssize_t* n_invalid,
) noexcept nogil:
    """map_ids_by with the literals and the type of a job's mapping."""
    cdef const Mapping* mapping = job.mapping
    cdef const int32_t* narrow = <const int32_t*>mapping.rows
    cdef const int64_t* wide = <const int64_t*>mapping.rows
    if mapping.scales == NULL and mapping.rows == NULL:
        return map_ids_by(job, input, narrow, sample, False, False, n, rows, factors, n_invalid)
    elif mapping.scales == NULL and mapping.wide:
        return map_ids_by(job, input, wide, sample, True, False, n, rows, factors, n_invalid)
    elif mapping.scales == NULL:
        return map_ids_by(job, input, narrow, sample, True, False, n, rows, factors, n_invalid)
    elif mapping.rows == NULL:
        return map_ids_by(job, input, narrow, sample, False, True, n, rows, factors, n_invalid)
    elif mapping.wide:
        return map_ids_by(job, input, wide, sample, True, True, n, rows, factors, n_invalid)
    return map_ids_by(job, input, narrow, sample, True, True, n, rows, factors, n_invalid)


cdef bint map_ids(
    const Job* job,
    Py_ssize_t start,
    Py_ssize_t n,
    int64_t* rows,
    void* factors,
    Py_ssize_t* n_invalid,
) noexcept nogil:
    """map_ids_by for n ids from a position on."""
    cdef const void* sample = sample_from(job, job.sample, start)
    if job.out_encoding == FLOAT64 and job.wide:
        return map_ids_as(job, <const int64_t*>job.input + start, <const double*>sample, n, rows,
                          <double*>factors, n_invalid)
    if job.out_encoding == FLOAT64:
        return map_ids_as(job, <const int32_t*>job.input + start, <const double*>sample, n, rows,
                          <double*>factors, n_invalid)
    if job.wide:
        return map_ids_as(job, <const int64_t*>job.input + start, <const float*>sample, n, rows,
                          <float*>factors, n_invalid)
    return map_ids_as(job, <const int32_t*>job.input + start, <const float*>sample, n, rows,
                      <float*>factors, n_invalid)


cdef bint map_default(
    const Job* job, int64_t* row, void* factor
) noexcept nogil:
    """Find the default row, and its factor. False if the row is bad."""
    cdef Job alone = job[0]
    cdef int64_t default_id = job.default_row
    cdef Py_ssize_t ignored = 0
    alone.input = &default_id
    alone.wide = True
    alone.sample = NULL
    alone.padding = -1               # the default may be the padding row
    return map_ids(&alone, 0, 1, row, factor, &ignored)


cdef inline const void* sample_from(
    const Job* job, const void* sample, Py_ssize_t start
) noexcept nogil:
    """The weights from a position on."""
    if sample == NULL:
        return NULL
    return <const char*>sample + start * (8 if job.out_encoding == FLOAT64 else 4)


cdef inline bint choose_scaled_as(
    const Job* job,                  # IN   SCALED_MAX or SCALED_MIN; its ids are rows or -1
    const Task* task,                # IN
    const floating_ft* factors,      # IN   (n_indices,)
    floating_ft* row,                # a block of columns
) noexcept nogil:
    """Choose from rows that have factors. False if something is bad.

    Rows are decoded one by one: such tables are rare, and no kernel is compiled for them.
    """
    cdef:
        Job one = job[0]
        Task part = task[0]
        floating_ft* best
        Py_ssize_t widest = EMBAG_BLOCK_BYTES // sum_bytes(job)
        Py_ssize_t b, start, stop, k, n, d, column
        floating_ft value
        bint is_first
    one.bags.offsets = NULL          # one bag of one entry
    one.bags.bag_size = one.bags.n_bags = one.bags.n_indices = 1
    one.operation = MAX
    one.sample = NULL
    one.ones = False
    use_strategy(&one, Strategy(INTO_L1, 0, 0))
    part.bag_start = 0
    part.bag_stop = 1
    part.first = False
    stop = bag_bound(&job.bags, task.bag_start)
    for b in range(task.bag_start, task.bag_stop):
        start = stop
        stop = bag_bound(&job.bags, b + 1)
        if not (0 <= start <= stop <= job.bags.n_indices):
            return False
        column = task.column_start
        while column < task.column_stop:
            n = min(widest, task.column_stop - column)
            part.column_start = column
            part.column_stop = column + n
            best = <floating_ft*>result_of(job, b) + column
            is_first = True
            for k in range(start, stop):
                if (<const int64_t*>job.input)[k] < 0:
                    continue
                one.input = <const int64_t*>job.input + k
                one.out = row - column
                if not job.reduce_columns(&one, &part):
                    return False
                for d in range(n):
                    value = factors[k] * row[d]
                    if is_first or beats(job.operation, value, best[d]):
                        best[d] = value
                is_first = False
            if is_first:
                fill(n, best, 0)
            column += n
    return True


cdef bint choose_scaled(const Job* job, const Task* task) noexcept nogil:
    """choose_scaled_as for the type of a job's sums."""
    cdef double[2 * WIDEST_HALF] row
    if job.out_encoding == FLOAT64:
        return choose_scaled_as(job, task, <const double*>job.sample, row)
    return choose_scaled_as(job, task, <const float*>job.sample, <float*>row)


cdef bint do_mapped(const Job* job, Task* task) noexcept nogil:
    """do_task for a job whose ids are mapped."""
    cdef:
        Mapped piece = Mapped(NULL, NULL, NULL, 0)
        Job part = job[0]
        Task cut = task[0], inner
        int64_t default_row = -1
        double default_factor        # or room for a float
        Py_ssize_t start, stop, n, n_bags, b, n_invalid = 0, factor_bytes = 0
        bint scaled = job.mapping.scales != NULL, done = True
    part.mapping = NULL
    part.skip_invalid = True
    part.padding = part.stand_in = -1
    part.reduce_columns = reducer_of(job.encoding, job.out_encoding, True)
    part.wide = True
    if scaled:
        factor_bytes = 8 if job.out_encoding == FLOAT64 else 4
        part.operation = scaled_operation(job.operation)
    if job.default_row >= 0:
        done = map_default(job, &default_row, &default_factor)
        part.default_row = default_row
        if scaled:
            part.default_factor = &default_factor
    while done and cut.bag_start < task.bag_stop:
        start = position_of(job, cut.bag_start)
        cut.bag_stop = min(task.bag_stop, cut.bag_start + MAPPED_PIECE)
        stop = max(start, position_of(job, cut.bag_stop))
        if stop - start > MAPPED_PIECE:
            stop = cut_piece(job, &cut, start, MAPPED_PIECE)
        n, n_bags = stop - start, cut.bag_stop - cut.bag_start
        done = reserve(&piece, n, n_bags, factor_bytes) and map_ids(
            job, start, n, piece.rows, piece.factors, &n_invalid)
        if not done:
            break
        part.bags.n_bags = n_bags
        part.bags.n_indices = n
        if job.bags.offsets != NULL:
            for b in range(n_bags + 1):
                piece.bounds[b] = bag_bound(&job.bags, cut.bag_start + b) - start
            part.bags.offsets = piece.bounds
            part.bags.wide = True
            part.bags.n_offsets = n_bags + 1
        part.input = piece.rows
        part.n_positions = n
        part.weights = sample_from(job, job.weights, start)
        part.sample = piece.factors if scaled else part.weights
        note_ones(&part)
        part.out = result_of(job, cut.bag_start)
        if job.n_valid != NULL:
            part.n_valid = job.n_valid + cut.bag_start
        inner = Task(0, n_bags, task.column_start, task.column_stop, True, False, 0, 0)
        done = reduce_bags_of(&part, &inner)
        cut.bag_start = cut.bag_stop
    free(piece.rows)
    task.n_invalid = n_invalid if task.column_start == 0 else 0
    return done
