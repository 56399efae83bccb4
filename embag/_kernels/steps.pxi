# Steps of optimizers: rows of tables are changed by their gradients. These are given, or are sums
# of terms. Then positions are sorted by row (grouping.pxi), each gradient is summed into a buffer
# that stays in the cache, and its row of the table changes at once: so the gradient of a table is
# never in memory.
#
# Each row is changed by one thread, so the number of threads changes no bit. The sum of a row
# with a large share of all terms is cut by columns; such a row changes when all are summed.
#
# Tested in tests/gradients/test_optimizers.py.

cdef enum:
    TOGETHER = 4           # rows that change together
    # Cache lines of rows and states that are prefetched ahead: a core has fewer than that in
    # flight, and L1 holds several times as many.
    LINES_AHEAD = 96

cdef struct Steps:
    # A step on each of several tables.
    OptimizerStep* steps
    Task* tasks            # runs of rows, or of keys; or some columns of a row that is summed
    char** buffers         # of each task: for gradients, and for a row as floats
    char** cut_rows        # for each task that is a part of a row: where its row is summed; or NULL


cdef inline Py_ssize_t bytes_of_sums(const OptimizerStep* step) noexcept nogil:
    """The bytes of a row in the dtype of sums."""
    return step.dim * (8 if step.encoding == FLOAT64 else 4)


cdef inline Py_ssize_t room_of_row(const OptimizerStep* step) noexcept nogil:
    """The same in whole cache lines."""
    return (bytes_of_sums(step) + LINE - 1) // LINE * LINE


cdef inline void fetch_changed(const OptimizerStep* step, size_t r) noexcept nogil:
    """Prefetch a row that changes, and its states: perhaps a wild one, nothing is read."""
    cdef int s
    fetch_to_write(<size_t>step.table.first + r * <size_t>step.table.stride, step.table.n_bytes)
    for s in range(step.n_states):
        fetch_to_write(<size_t>step.states[s].first + r * <size_t>step.states[s].stride,
                       step.states[s].n_bytes)


# Not inline: once is enough.

cdef void decode_row(int encoding, Py_ssize_t dim, const char* row, float* to) noexcept nogil:
    if encoding == FLOAT16:
        decode(dim, <const half_entries*>row, to)
    else:
        decode(dim, <const bfloat_entries*>row, to)


cdef inline size_t row_of_key(const OptimizerStep* step, Py_ssize_t k) noexcept nogil:
    return <size_t>(step.sorting.keys[k] >> step.sorting.low_bits)


cdef inline Py_ssize_t end_of_row(
    const OptimizerStep* step, Py_ssize_t k, Py_ssize_t stop
) noexcept nogil:
    """Where the keys with the row of key k stop, at most at `stop`."""
    cdef size_t r = row_of_key(step, k)
    k += 1
    while k < stop and row_of_key(step, k) == r:
        k += 1
    return k


cdef inline const char* term_of_key(
    const OptimizerStep* step, Py_ssize_t k, Py_ssize_t* position
) noexcept nogil:
    """The gradient of the bag of a key, and with factors its position; NULL if it is bad."""
    cdef uint64_t mask = (<uint64_t>1 << step.sorting.low_bits) - 1
    cdef Py_ssize_t b = <Py_ssize_t>(step.sorting.keys[k] & mask)
    if step.factors != NULL:
        position[0] = b
        b = step.look_up.bag_of[b]
    if <size_t>b >= <size_t>step.n_grads:
        return NULL
    return step.grads.first + b * step.grads.stride


cdef inline bint sum_terms(
    const OptimizerStep* step,
    Py_ssize_t first,                # keys of one row
    Py_ssize_t last,
    Py_ssize_t start,                # columns
    Py_ssize_t stop,
    floating_ft* to,                 # OUT  (dim,)
) noexcept nogil:
    """Sum some columns of a row's terms, in the order of keys. False if one is bad."""
    cdef:
        const floating_ft* factors = <const floating_ft*>step.factors
        const char* term
        const floating_ft* grad
        Py_ssize_t n = stop - start, k, position = 0
    for k in range(first, last):
        term = term_of_key(step, k, &position)
        if term == NULL:
            return False
        grad = <const floating_ft*>term + start
        if k == first and factors == NULL:
            copy_sum(n, to + start, grad)
        elif k == first:
            copy_scaled(n, to + start, grad, factors[position])
        elif factors == NULL:
            add(n, to + start, grad)
        else:
            add_scaled(n, to + start, grad, factors[position])
    if step.divides:
        copy_divided(n, to + start, to + start, <floating_ft>(last - first))
    return True


cdef void encode_row(
    const OptimizerStep* step, float* floats, char* row, Py_ssize_t r
) noexcept nogil:
    """Write a row, rounded; its floats may be rounded in place."""
    if step.rounds_by_chance:
        round_row(step.encoding, step.dim, floats, chance_of(step.chance, r))
    write_entries(step.encoding, step.dim, floats, row)


cdef struct Changes:
    # Some rows that change together: what a row has to wait for is done for all of them first.
    size_t[TOGETHER] rows
    size_t[TOGETHER] grads  # addresses
    int n


cdef inline bint add_change(
    Changes* changes, const OptimizerStep* step, size_t r, const char* grad
) noexcept nogil:
    """Add a row, if it may change. False if it is out of range."""
    if r >= <size_t>step.n_rows:
        return False
    if step.active == NULL or step.active[r]:
        changes.rows[changes.n] = r
        changes.grads[changes.n] = <size_t>grad
        changes.n += 1
    return True


cdef inline void make_changes(
    const int rule,                  # a literal: the step's
    const OptimizerStep* step,
    const Changes* changes,
    floating_ft* floats,             # (dim,) room for a row that is stored in fewer bits
) noexcept nogil:
    """Change rows by their gradients."""
    cdef:
        floating_ft numbers[MOST_NUMBERS]
        floating_ft sizes[TOGETHER]      # of the steps of rows; before, of their gradients
        floating_ft totals[TOGETHER]
        floating_ft* state[MOST_STATES]
        floating_ft* row
        const floating_ft* grad
        char* stored
        size_t r
        int i, s
        bint is_stored_in_fewer = not is_plain(step.encoding)
    for i in range(MOST_NUMBERS):
        numbers[i] = <floating_ft>step.numbers[i]
    if is_row_wise(rule):
        for i in range(changes.n):
            r = changes.rows[i]
            row = <floating_ft*>(<size_t>step.table.first + r * <size_t>step.table.stride)
            if floating_ft is float:
                if is_stored_in_fewer and rule == RULE_ROW_ADAGRAD_L2:
                    decode_row(step.encoding, step.dim, <const char*>row, floats)
                    row = floats
            sizes[i] = <floating_ft>mean_square(
                rule == RULE_ROW_ADAGRAD_L2, <const floating_ft*>changes.grads[i], row, step.dim,
                numbers[2])
        # Apart from the loop above: the roots and quotients of all rows are on their way at once.
        for i in range(changes.n):
            state[0] = <floating_ft*>(<size_t>step.states[0].first
                                      + changes.rows[i] * <size_t>step.states[0].stride)
            totals[i] = state[0][0] + sizes[i]
            state[0][0] = totals[i]
        for i in range(changes.n):
            sizes[i] = numbers[0] / (root_of(totals[i]) + numbers[1])
    for i in range(changes.n):
        r = changes.rows[i]
        stored = <char*>(<size_t>step.table.first + r * <size_t>step.table.stride)
        row = <floating_ft*>stored
        grad = <const floating_ft*>changes.grads[i]
        for s in range(MOST_STATES):     # of no state: an address that is not used
            state[s] = <floating_ft*>(<size_t>step.states[s].first
                                      + r * <size_t>step.states[s].stride)
        if floating_ft is float:
            if is_stored_in_fewer:
                decode_row(step.encoding, step.dim, stored, floats)
                row = floats
        follow(rule, step.dim, row, state[0], state[1], grad, numbers,
               sizes[i] if is_row_wise(rule) else <floating_ft>0)
        if floating_ft is float:
            if is_stored_in_fewer:
                encode_row(step, floats, stored, <Py_ssize_t>r)


# One function for each rule, called through a pointer: in one function they would compete for
# registers.

cdef void follow_sgd(
    const OptimizerStep* step, const Changes* changes, floating_ft* floats
) noexcept nogil:
    make_changes(RULE_SGD, step, changes, floats)


cdef void follow_momentum(
    const OptimizerStep* step, const Changes* changes, floating_ft* floats
) noexcept nogil:
    make_changes(RULE_MOMENTUM, step, changes, floats)


cdef void follow_adagrad(
    const OptimizerStep* step, const Changes* changes, floating_ft* floats
) noexcept nogil:
    make_changes(RULE_ADAGRAD, step, changes, floats)


cdef void follow_row_adagrad(
    const OptimizerStep* step, const Changes* changes, floating_ft* floats
) noexcept nogil:
    make_changes(RULE_ROW_ADAGRAD, step, changes, floats)


cdef void follow_row_adagrad_l2(
    const OptimizerStep* step, const Changes* changes, floating_ft* floats
) noexcept nogil:
    make_changes(RULE_ROW_ADAGRAD_L2, step, changes, floats)


cdef void follow_row_adagrad_decoupled(
    const OptimizerStep* step, const Changes* changes, floating_ft* floats
) noexcept nogil:
    make_changes(RULE_ROW_ADAGRAD_DECOUPLED, step, changes, floats)


cdef void follow_adam(
    const OptimizerStep* step, const Changes* changes, floating_ft* floats
) noexcept nogil:
    make_changes(RULE_ADAM, step, changes, floats)


cdef void follow_ftrl(
    const OptimizerStep* step, const Changes* changes, floating_ft* floats
) noexcept nogil:
    make_changes(RULE_FTRL, step, changes, floats)


ctypedef void (*follower)(const OptimizerStep*, const Changes*, void*) noexcept nogil

cdef struct Followers:
    follower of_floats
    follower of_doubles

cdef Followers[N_RULES] FOLLOWERS
FOLLOWERS[RULE_SGD] = Followers(<follower>follow_sgd[float], <follower>follow_sgd[double])
FOLLOWERS[RULE_MOMENTUM] = Followers(
    <follower>follow_momentum[float], <follower>follow_momentum[double])
FOLLOWERS[RULE_ADAGRAD] = Followers(
    <follower>follow_adagrad[float], <follower>follow_adagrad[double])
FOLLOWERS[RULE_ROW_ADAGRAD] = Followers(
    <follower>follow_row_adagrad[float], <follower>follow_row_adagrad[double])
FOLLOWERS[RULE_ROW_ADAGRAD_L2] = Followers(
    <follower>follow_row_adagrad_l2[float], <follower>follow_row_adagrad_l2[double])
FOLLOWERS[RULE_ROW_ADAGRAD_DECOUPLED] = Followers(
    <follower>follow_row_adagrad_decoupled[float], <follower>follow_row_adagrad_decoupled[double])
FOLLOWERS[RULE_ADAM] = Followers(<follower>follow_adam[float], <follower>follow_adam[double])
FOLLOWERS[RULE_FTRL] = Followers(<follower>follow_ftrl[float], <follower>follow_ftrl[double])


cdef inline void change_rows(
    const OptimizerStep* step, const Changes* changes, void* floats
) noexcept nogil:
    if step.encoding == FLOAT64:
        FOLLOWERS[step.rule].of_doubles(step, changes, floats)
    else:
        FOLLOWERS[step.rule].of_floats(step, changes, floats)


cdef bint change_given(
    const OptimizerStep* step, const Task* task, void* floats
) noexcept nogil:
    """Change the rows of a task by given gradients. False if one is out of range."""
    cdef:
        Py_ssize_t i = task.bag_start, stop = task.bag_stop, last, fetched = i
        Changes changes
        size_t r
    while i < stop:
        while fetched < min(i + step.rows_ahead, stop):
            fetch_changed(step, <size_t>(fetched if step.rows == NULL else step.rows[fetched]))
            fetched += 1
        changes.n = 0
        last = min(i + TOGETHER, stop)
        while i < last:
            r = <size_t>(i if step.rows == NULL else read_index(step.rows, i))
            if not add_change(&changes, step, r, step.grads.first + i * step.grads.stride):
                return False
            i += 1
        change_rows(step, &changes, floats)
    return True


cdef bint change_summed(
    const OptimizerStep* step, const Task* task, floating_ft* buffer
) noexcept nogil:
    """Sum and change the rows of a task. False if something is bad."""
    cdef:
        Py_ssize_t stop = task.bag_stop, k = task.bag_start, next_k, fetched = k, position = 0
        int n_ahead = 0, i     # rows from k on that have been prefetched
        Changes changes
        floating_ft* total
        const char* grad
    while k < stop:
        while fetched < stop and n_ahead < step.rows_ahead:
            fetch_changed(step, row_of_key(step, fetched))
            fetch_bytes(True, <size_t>term_of_key(step, fetched, &position), step.grads.n_bytes)
            fetched = end_of_row(step, fetched, stop)
            n_ahead += 1
        changes.n = 0
        for i in range(TOGETHER):
            if k == stop:
                break
            next_k = end_of_row(step, k, stop)
            if next_k == k + 1 and step.factors == NULL:
                grad = term_of_key(step, k, &position)      # one term is its sum
                if grad == NULL:
                    return False
            else:
                total = buffer + changes.n * step.dim
                if not sum_terms(step, k, next_k, 0, step.dim, total):
                    return False
                grad = <const char*>total
            if not add_change(&changes, step, row_of_key(step, k), grad):
                return False
            k = next_k
            n_ahead -= 1
        change_rows(step, &changes, buffer + TOGETHER * step.dim)
    return True


cdef inline bint is_cut(const OptimizerStep* step, const Task* task) noexcept nogil:
    """Whether a task is some columns of a row."""
    return task.column_stop - task.column_start < step.dim


cdef bint sort_table(
    Steps* batch, const void* _, void* __, Py_ssize_t j, Py_ssize_t n_tables
) noexcept nogil:
    """Sort the keys of a table, on this thread. False if an id or an offset is bad."""
    cdef:
        OptimizerStep* step = &batch.steps[j]
        Stage[2 * MOST_PASSES] stages
        int n_stages = sort_stages(&step.sorting, step.wide, stages), s
    if not step.is_summed:
        return True
    if step.factors != NULL and not fill_bag_of(&step.look_up, NULL, NULL, 0, 1):
        return False
    for s in range(n_stages):
        if not stages[s].work(&step.sorting, step.input, NULL, 0, 1):
            return False
        stages[s].then(&step.sorting, 1)
    return True


cdef bint sort_in_team(OptimizerStep* step, int n_threads) except -1:
    """Sort the keys of a table with a team. False if an id or an offset is bad."""
    cdef Stage[2 * MOST_PASSES] stages
    cdef int n_stages = sort_stages(&step.sorting, step.wide, stages)
    cdef Py_ssize_t n_chunks = chunks_of_keys(step.sorting.n_keys, n_threads)
    if step.factors != NULL and not run_chunks(<chunk_work>fill_bag_of, &step.look_up, NULL, NULL,
                                               n_chunks, n_threads):
        return False
    return run_in_place(stages, n_stages, &step.sorting, step.input, NULL, n_chunks, n_threads)


cdef bint do_step(
    const Steps* batch, const void* _, void* __, Py_ssize_t t, Py_ssize_t n_tasks
) noexcept nogil:
    """Change the rows of a task; if it is a part of a row, only sum it. False if something is
    bad."""
    cdef:
        const Task* task = &batch.tasks[t]
        const OptimizerStep* step = &batch.steps[task.job]
        bint is_double = step.encoding == FLOAT64
        char* buffer = batch.buffers[t]
    if step.dim == 0:
        return True
    if is_cut(step, task):
        if is_double:
            return sum_terms(step, task.bag_start, task.bag_stop, task.column_start,
                             task.column_stop, <double*>batch.cut_rows[t])
        return sum_terms(step, task.bag_start, task.bag_stop, task.column_start,
                         task.column_stop, <float*>batch.cut_rows[t])
    if not step.is_summed:
        return change_given(step, task, buffer)
    return (change_summed(step, task, <double*>buffer) if is_double
            else change_summed(step, task, <float*>buffer))


cdef bint change_cut_row(
    const Steps* batch, const void* _, void* __, Py_ssize_t t, Py_ssize_t n_tasks
) noexcept nogil:
    """If the task is the first part of a row, change that row. False if something is bad."""
    cdef const Task* task = &batch.tasks[t]
    cdef const OptimizerStep* step = &batch.steps[task.job]
    cdef Changes changes
    if not is_cut(step, task) or task.column_start > 0:
        return True
    changes.n = 0
    if not add_change(&changes, step, row_of_key(step, task.bag_start), batch.cut_rows[t]):
        return False
    change_rows(step, &changes, batch.buffers[t])
    return True


cdef Rows describe_rows(cnp.ndarray array):
    return Rows(<char*>cnp.PyArray_DATA(array), cnp.PyArray_STRIDE(array, 0),
                cnp.PyArray_DIM(array, 1) * cnp.PyArray_ITEMSIZE(array))


cdef inline Py_ssize_t lines_of(const Rows* rows) noexcept nogil:
    return max(1, (rows.n_bytes + LINE - 1) // LINE)


cdef int describe_step(OptimizerStep* step, tuple optimizer) except -1:
    """Set what a step on a table does: see `step_tables`."""
    cdef:
        int rule, encoding, sum_type, i
        Py_ssize_t n_columns, n_lines
        tuple numbers, states
        cnp.ndarray table, state
    _, rule, numbers, table, encoding, states, active, chance = optimizer
    refuse_change(0 <= rule < N_RULES and len(states) == RULE_TRAITS[rule].n_states
                  and len(numbers) <= MOST_NUMBERS and table is not None
                  and cnp.PyArray_NDIM(table) == 2 and is_encoding(encoding)
                  and ENCODINGS[encoding].rounds
                  and is_encoded_table(table, encoding, cnp.PyArray_DIM(table, 1))
                  and cnp.PyArray_ISWRITEABLE(table))
    sum_type = ENCODINGS[encoding].sum_type
    step.rule = rule
    for i in range(MOST_NUMBERS):
        step.numbers[i] = numbers[i] if i < len(numbers) else 0
    step.table = describe_rows(table)
    step.encoding = encoding
    step.n_rows = cnp.PyArray_DIM(table, 0)
    step.dim = cnp.PyArray_DIM(table, 1)
    step.n_states = len(states)
    for i in range(step.n_states):
        state = states[i]
        n_columns = 1 if RULE_TRAITS[rule].narrow else step.dim
        refuse_change(state is not None and is_table(state) and cnp.PyArray_ISWRITEABLE(state)
                      and cnp.PyArray_TYPE(state) == sum_type
                      and cnp.PyArray_DIM(state, 0) == step.n_rows
                      and cnp.PyArray_DIM(state, 1) == n_columns)
        step.states[i] = describe_rows(state)
    n_lines = lines_of(&step.table)
    for i in range(step.n_states):
        n_lines += lines_of(&step.states[i])
    step.rows_ahead = max(TOGETHER + 1, LINES_AHEAD // n_lines)
    if active is not None:
        refuse_change(is_factors(active, step.n_rows, cnp.NPY_BOOL))
        step.active = <const uint8_t*>cnp.PyArray_DATA(<cnp.ndarray>active)
    if chance is not None:
        seed, n_steps = chance
        step.rounds_by_chance = True
        step.chance = chance_of(mix(seed), n_steps)
    return 0


cdef int describe_gradient(
    OptimizerStep* step, object rows, cnp.ndarray grads, tuple terms, object scratch, int n_threads
) except -1:
    """Set the gradient of a step: see `step_tables`."""
    cdef:
        int sum_type = ENCODINGS[step.encoding].sum_type
        cnp.ndarray input
        Py_ssize_t padding, n
        int64_t* room
    refuse_change(grads is not None and is_table(grads) and cnp.PyArray_TYPE(grads) == sum_type
                  and cnp.PyArray_DIM(grads, 1) == step.dim)
    step.grads = describe_rows(grads)
    step.n_grads = cnp.PyArray_DIM(grads, 0)
    if terms is None and rows is None:
        refuse_change(step.n_grads == step.n_rows)
        return 0
    if terms is None:
        refuse_change(is_index_array(rows) and cnp.PyArray_ITEMSIZE(<cnp.ndarray>rows) == 8
                      and cnp.PyArray_SIZE(<cnp.ndarray>rows) == step.n_grads)
        step.rows = <const int64_t*>cnp.PyArray_DATA(<cnp.ndarray>rows)
        return 0
    input, offsets, include_last_offset, n, padding, factors, divides = terms
    refuse_change(is_index_array(input) and (offsets is None or is_index_array(offsets))
                  and 0 <= n <= cnp.PyArray_SIZE(input)
                  and (factors is None
                       or is_factors(factors, cnp.PyArray_SIZE(input), sum_type))
                  and is_index_array(scratch) and cnp.PyArray_ITEMSIZE(<cnp.ndarray>scratch) == 8
                  and cnp.PyArray_SIZE(<cnp.ndarray>scratch)
                  >= count_scratch(n, factors is not None, n_threads))
    room = <int64_t*>cnp.PyArray_DATA(<cnp.ndarray>scratch)
    step.is_summed = True
    step.bags = describe_bags(input, offsets, include_last_offset)
    refuse_change(step.bags.n_bags == step.n_grads and padding < step.n_rows)
    step.input = cnp.PyArray_DATA(input)
    step.wide = cnp.PyArray_ITEMSIZE(input) == 8
    step.divides = divides
    describe_grouping(&step.sorting, &step.bags if factors is None else NULL, n, step.n_rows,
                      padding, <uint64_t*>room, <uint64_t*>room + n)
    step.sorting.counts = <Py_ssize_t*>room + 2 * n
    if factors is not None:
        step.factors = cnp.PyArray_DATA(<cnp.ndarray>factors)
        step.sorting.counts += n
        step.look_up.bags = step.bags
        step.look_up.n_positions = n
        step.look_up.bag_of = room + 2 * n
    return 0


def count_scratch(Py_ssize_t n_positions, bint weighted, int n_threads) -> int:
    """How many int64 `step_tables` needs to sort so many terms."""
    return ((3 if weighted else 2) * n_positions
            + (chunks_of_keys(n_positions, n_threads) << DIGIT_BITS))


# An optimizer makes one step at a time. Who may make it is settled in C, and so is the count of
# steps: a signal handler, which may raise, runs before or after. Without the GIL, a lock of the
# object keeps other threads out of the moment in which a turn begins or ends.

cdef class Progress:
    """How many steps an optimizer has made, and whether a call of it is running."""
    cdef public int64_t n_steps
    cdef bint busy


cdef int begin_turn(tuple progress) except -1:
    """Begin a call of some optimizers; RuntimeError if one of another is running."""
    cdef Py_ssize_t i
    for i in range(len(progress)):
        if not set_busy(<Progress?>progress[i], True):
            end_turn(progress[:i])
            raise RuntimeError("an optimizer must make one step at a time, got two calls at once")
    return 0


cdef bint set_busy(Progress progress, bint busy) except -1:
    """Set whether a call is running; return whether that is a change."""
    cdef bint before
    with cython.critical_section(progress):
        before = progress.busy
        progress.busy = busy
    return before != busy


cdef int end_turn(tuple progress) except -1:
    for each in progress:
        set_busy(<Progress?>each, False)
    return 0


cdef class Turn:
    """Keeps other calls of some optimizers out of a block."""
    cdef tuple progress

    def __cinit__(self, tuple progress not None):
        self.progress = progress

    def __enter__(self):
        begin_turn(self.progress)

    def __exit__(self, *_):
        end_turn(self.progress)


def step_tables(
    int n_threads,
    tuple progress not None,         # INOUT  of each optimizer
    # For each table (t, rule, numbers, table, encoding, states, active, chance):
    #   the number of the step
    #   the rule and its numbers, floats: see optimizers.pxi
    #   INOUT  the table, of an encoding of floats, and its states, (n_rows, dim) of the dtype of
    #          sums, or (n_rows, 1): see RULE_TRAITS
    #   IN     (n_rows,) bool: the rows that may change; or None
    #   by which chance entries are rounded: (seed, number of the step); None: to nearest
    tuple optimizers not None,
    # IN   For each table (rows, grads, terms, scratch):
    #   (n,) int64, contiguous, each once: the rows that change; None: all, or those of the terms
    #   their gradients (n, dim), of the dtype of sums, columns adjacent; with terms, those of bags
    #   terms: (input, offsets, include_last_offset, n_positions, padding, factors, divides). The
    #       gradient of a row is the sum of the gradients of the bags that the first n_positions
    #       of input put it in, times their factors (or None); divided by their number if `divides`
    #   OUT  int64, contiguous, `count_scratch` of them, if there are terms
    tuple gradients not None,
) -> bool:
    """Change rows of tables and of optimizers' states by their gradients, in place, and count the
    step. False if an id or an offset is bad: then nothing has changed, unless another thread
    changes arrays.
    """
    cdef Py_ssize_t i
    cdef bint done
    refuse_change(len(progress) == len(optimizers))
    begin_turn(progress)
    try:
        for i in range(len(progress)):
            # A negative number is that of an optimizer that has gone on with other arrays.
            if (<Progress>progress[i]).n_steps < 0 or (
                    (<Progress>progress[i]).n_steps + 1 != optimizers[i][0]):
                raise RuntimeError(
                    "an optimizer must make one step at a time, got two calls at once")
        done = make_steps(n_threads, optimizers, gradients)
        if done:
            for i in range(len(progress)):
                (<Progress>progress[i]).n_steps += 1
    finally:
        end_turn(progress)
    return done


cdef int make_steps(int n_threads, tuple optimizers, tuple gradients) except -1:
    """See `step_tables`; 0 if an id or an offset is bad."""
    cdef:
        Steps batch
        Stage[2] stages
        Py_ssize_t n_tables = len(optimizers), n_tasks = 0, t, j
        int n_summed = 0
        bint has_large = False       # tables, to be sorted in several chunks for each thread
        size_t most_tasks = 3 * (SHARES * <size_t>n_threads + <size_t>n_tables)
        size_t room = 0, room_of_cut = 0, n_bytes
        char* memory = NULL
        char* next_row
        bint done = True
    refuse_change(len(gradients) == n_tables)
    batch.steps = <OptimizerStep*>malloc(max(<size_t>1, <size_t>n_tables) * sizeof(OptimizerStep))
    batch.tasks = <Task*>malloc(most_tasks * sizeof(Task))
    batch.buffers = <char**>malloc(2 * most_tasks * sizeof(char*))
    try:
        if batch.steps == NULL or batch.tasks == NULL or batch.buffers == NULL:
            raise MemoryError("no memory to plan a step")
        batch.cut_rows = batch.buffers + most_tasks
        memset(batch.steps, 0, <size_t>n_tables * sizeof(OptimizerStep))
        for j in range(n_tables):
            describe_step(&batch.steps[j], optimizers[j])
            rows, grads, terms, scratch = gradients[j]
            describe_gradient(&batch.steps[j], rows, grads, terms, scratch, n_threads)
            room = max(room, <size_t>bytes_of_sums(&batch.steps[j]))
            n_summed += batch.steps[j].is_summed
            has_large = has_large or (batch.steps[j].is_summed and chunks_of_keys(
                batch.steps[j].sorting.n_keys, n_threads) > n_threads)
        room = ((TOGETHER + 1) * room + LINE - 1) // LINE * LINE
        # Few or large tables are sorted one after the other, many at the same time.
        if n_summed < n_threads or has_large:
            for j in range(n_tables):
                if batch.steps[j].is_summed:
                    done = done and sort_in_team(&batch.steps[j], n_threads)
        else:
            done = run_chunks(<chunk_work>sort_table, &batch, NULL, NULL, n_tables, n_threads)
        if not done:
            return 0
        n_tasks = plan_steps(&batch, n_tables, n_threads)
        for t in range(n_tasks):
            j = batch.tasks[t].job
            if is_cut(&batch.steps[j], &batch.tasks[t]) and batch.tasks[t].column_start == 0:
                room_of_cut += <size_t>room_of_row(&batch.steps[j])
        # On one thread all tasks have one buffer.
        n_bytes = room * <size_t>(n_tasks if n_threads > 1 else 1)
        memory = <char*>PyMem_RawMalloc(n_bytes + room_of_cut + LINE)    # seen by tracemalloc
        if memory == NULL:
            raise MemoryError("no memory for the gradients of some rows")
        batch.buffers[0] = memory + (LINE - <size_t>memory % LINE)
        next_row = batch.buffers[0] + n_bytes
        for t in range(n_tasks):
            batch.buffers[t] = batch.buffers[0] + (<size_t>t * room if n_threads > 1 else 0)
            batch.cut_rows[t] = NULL
            # The parts of a row are neighbours, the first one first.
            j = batch.tasks[t].job
            if is_cut(&batch.steps[j], &batch.tasks[t]):
                if batch.tasks[t].column_start == 0:
                    batch.cut_rows[t] = next_row
                    next_row += room_of_row(&batch.steps[j])
                else:
                    batch.cut_rows[t] = batch.cut_rows[t - 1]
        stages[0] = Stage(<chunk_work>do_step, NULL)
        stages[1] = Stage(<chunk_work>change_cut_row, NULL)
        # Not ended by a signal: a step is made or not.
        return run_stages(stages, 2 if room_of_cut > 0 else 1, &batch, NULL, NULL, n_tasks,
                          n_threads, False, False)
    finally:
        free(batch.steps)
        free(batch.tasks)
        free(batch.buffers)
        PyMem_RawFree(memory)


# --- Plans --------------------------------------------------------------------

cdef inline Py_ssize_t items_of(const OptimizerStep* step) noexcept nogil:
    """The number of terms, or of rows that are given gradients."""
    return step.sorting.n_keys if step.is_summed else step.n_grads


cdef inline double work_of(const OptimizerStep* step) noexcept nogil:
    """About how many bytes a step reads and writes."""
    return <double>items_of(step) * (
        2 * <double>step.table.n_bytes
        + (1 + 2 * step.n_states) * <double>bytes_of_sums(step))


cdef Py_ssize_t plan_steps(Steps* batch, Py_ssize_t n_tables, int n_threads) noexcept nogil:
    """Cut the steps into tasks of about equal work; returns how many."""
    cdef:
        Py_ssize_t j, t, first, n_tasks = 0
        int n_shares = SHARES * n_threads if n_threads > 1 else 1
        double total = 0, part
    for j in range(n_tables):
        total = total + work_of(&batch.steps[j])
    for j in range(n_tables):
        first = n_tasks
        part = max(1.0, ceil(n_shares * work_of(&batch.steps[j]) / max(total, 1.0)))
        n_tasks += plan_step(&batch.steps[j], <Py_ssize_t>part, batch.tasks + n_tasks)
        for t in range(first, n_tasks):
            batch.tasks[t].job = j
    return n_tasks


cdef Py_ssize_t plan_step(
    const OptimizerStep* step,
    Py_ssize_t n_shares,
    Task* tasks,                     # OUT  room for 3 * n_shares
) noexcept nogil:
    """Cut a step into tasks; returns how many. Each has whole rows, or some columns of one."""
    cdef:
        Py_ssize_t n = items_of(step), start = 0, stop, row_start, t, n_tasks = 0, part, n_parts
        Py_ssize_t line_columns = LINE // (8 if step.encoding == FLOAT64 else 4)
        Py_ssize_t n_lines = (step.dim + line_columns - 1) // line_columns
        Py_ssize_t share = max(1, n // n_shares)
        const uint64_t* keys = step.sorting.keys
        int low_bits = step.sorting.low_bits
    for t in range(n_shares):
        stop = row_start = cut(n, t + 1, n_shares)
        if stop <= start:
            continue
        if step.is_summed:
            row_start = first_key_from(keys, n, row_of_key(step, stop - 1), low_bits)
            stop = first_key_from(keys, n, row_of_key(step, stop - 1) + 1, low_bits)
        n_parts = min(n_lines, min(n_shares, (stop - row_start) // share + 1))
        if n_shares == 1 or stop - row_start <= share or n_parts <= 1:
            row_start = stop
        if start < row_start:
            tasks[n_tasks] = Task(start, row_start, 0, step.dim, True, False, 0, 0)
            n_tasks += 1
        if row_start < stop:
            for part in range(n_parts):
                tasks[n_tasks] = Task(
                    row_start,
                    stop,
                    part * n_lines // n_parts * line_columns,
                    min((part + 1) * n_lines // n_parts * line_columns, step.dim),
                    True,
                    False,
                    0,
                    0,
                )
                n_tasks += 1
        start = stop
    return n_tasks
