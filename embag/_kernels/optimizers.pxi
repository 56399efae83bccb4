# Steps of optimizers: a rule changes a row of a table, and of the optimizer's states, by the
# gradient of that row. embag/optim.py documents the rules.
#
# Rows are shared among threads, each row to one thread, so the number of threads changes no bit.
#
# Tested in tests/gradients/test_optimizers.py.

cdef enum:
    RULE_SGD               # numbers: lr
    RULE_MOMENTUM          # lr, momentum; state: the buffer
    RULE_ADAGRAD           # lr, eps; state: the sums of squares
    RULE_ROW_ADAGRAD       # lr, eps, weight decay, its kind; state: a sum of mean squares a row
    RULE_ADAM              # step size, beta1, beta2, eps; states: the two averages
    RULE_FTRL              # lr, l1, l2, beta; states: z, and the sums of squares
    N_RULES
    MOST_STATES = 2
    MOST_NUMBERS = 4

# Kinds of weight decay.
cdef enum:
    NO_DECAY
    L2_DECAY               # added to the gradient
    DECOUPLED_DECAY        # of the row itself

cdef struct RuleTraits:
    int n_states
    bint narrow            # a state has one column, else as many as the table

cdef RuleTraits[N_RULES] RULE_TRAITS
RULE_TRAITS[RULE_SGD] = RuleTraits(0, False)
RULE_TRAITS[RULE_MOMENTUM] = RuleTraits(1, False)
RULE_TRAITS[RULE_ADAGRAD] = RuleTraits(1, False)
RULE_TRAITS[RULE_ROW_ADAGRAD] = RuleTraits(1, True)
RULE_TRAITS[RULE_ADAM] = RuleTraits(2, False)
RULE_TRAITS[RULE_FTRL] = RuleTraits(2, False)

RULES = {
    "sgd": RULE_SGD,
    "momentum": RULE_MOMENTUM,
    "adagrad": RULE_ADAGRAD,
    "row_wise_adagrad": RULE_ROW_ADAGRAD,
    "adam": RULE_ADAM,
    "ftrl": RULE_FTRL,
}
DECAYS = {"none": NO_DECAY, "l2": L2_DECAY, "decoupled": DECOUPLED_DECAY}

cdef struct Rows:
    char* first            # of n_rows rows
    Py_ssize_t stride      # bytes
    Py_ssize_t n_bytes     # of a row

cdef struct OptimizerStep:
    int rule
    double[MOST_NUMBERS] numbers
    Py_ssize_t n_rows      # of the table
    Py_ssize_t dim
    Rows table
    Rows[MOST_STATES] states
    int n_states
    Rows grads             # (n, dim)
    Py_ssize_t n


cdef inline void fetch_to_change(const Rows* rows, Py_ssize_t r) noexcept nogil:
    """Prefetch every line of a row: perhaps a wild one, nothing is read."""
    cdef size_t row = <size_t>rows.first + <size_t>r * <size_t>rows.stride
    cdef Py_ssize_t offset
    for offset in range(0, rows.n_bytes, 64):    # LINE, but Cython wants a literal step
        embag_prefetch_to_write(row + <size_t>offset)
    embag_prefetch_to_write(row + <size_t>rows.n_bytes - 1)


cdef inline floating_ft decayed(
    floating_ft grad, floating_ft entry, floating_ft decay
) noexcept nogil:
    """The gradient with L2 decay; without decay the entry does not matter, even if it is NaN."""
    return grad + decay * entry if decay != 0 else grad


cdef inline double mean_square(
    const floating_ft* grad, const floating_ft* row, Py_ssize_t dim, floating_ft decay
) noexcept nogil:
    """The mean of (grad + decay * row) ** 2, in float64 and eight lanes."""
    cdef:
        double lanes[NORM_LANES]
        double total = 0
        double g
        Py_ssize_t d, j, n_whole = dim // NORM_LANES * NORM_LANES
    for j in range(NORM_LANES):
        lanes[j] = 0
    for d in range(0, n_whole, 8):           # NORM_LANES, but Cython wants a literal step
        for j in range(NORM_LANES):
            g = <double>decayed(grad[d + j], row[d + j], decay)
            lanes[j] = lanes[j] + g * g
    for d in range(n_whole, dim):
        g = <double>decayed(grad[d], row[d], decay)
        lanes[d - n_whole] += g * g
    for j in range(NORM_LANES):
        total = total + lanes[j]
    return total / <double>dim


cdef inline void follow_ftrl(
    floating_ft* row, floating_ft* z, floating_ft* squares, const floating_ft* grad,
    Py_ssize_t dim, const double* numbers,
) noexcept nogil:
    cdef:
        floating_ft lr = <floating_ft>numbers[0], l1 = <floating_ft>numbers[1]
        floating_ft l2 = <floating_ft>(2 * numbers[2]), beta = <floating_ft>numbers[3]
        floating_ft before, after, clipped
        Py_ssize_t d
    for d in range(dim):
        before = <floating_ft>sqrt(squares[d]) if floating_ft is double else sqrtf(squares[d])
        squares[d] = squares[d] + grad[d] * grad[d]
        after = <floating_ft>sqrt(squares[d]) if floating_ft is double else sqrtf(squares[d])
        z[d] = z[d] + (grad[d] - (after - before) / lr * row[d])
        clipped = l1 if z[d] > l1 else (-l1 if z[d] < -l1 else z[d])
        row[d] = (clipped - z[d]) / ((beta + after) / lr + l2)


cdef inline void follow(
    const OptimizerStep* step, floating_ft* row, floating_ft* state, floating_ft* other,
    const floating_ft* grad,
) noexcept nogil:
    """Change a row and its states by its gradient."""
    cdef:
        Py_ssize_t dim = step.dim, d
        floating_ft lr = <floating_ft>step.numbers[0], root
        floating_ft first = <floating_ft>step.numbers[1], second = <floating_ft>step.numbers[2]
        floating_ft eps = <floating_ft>step.numbers[3], keep, decay
    if step.rule == RULE_SGD:
        for d in range(dim):
            row[d] = row[d] - lr * grad[d]
    elif step.rule == RULE_MOMENTUM:
        for d in range(dim):
            state[d] = first * state[d] + grad[d]
            row[d] = row[d] - lr * state[d]
    elif step.rule == RULE_ADAGRAD:
        for d in range(dim):
            state[d] = state[d] + grad[d] * grad[d]
            root = sqrt(state[d]) if floating_ft is double else sqrtf(state[d])
            row[d] = row[d] - lr * (grad[d] / (root + first))
    elif step.rule == RULE_ROW_ADAGRAD:
        decay = second if step.numbers[3] == L2_DECAY else 0
        state[0] = state[0] + <floating_ft>mean_square(grad, row, dim, decay)
        root = sqrt(state[0]) if floating_ft is double else sqrtf(state[0])
        lr = lr / (root + first)
        keep = 1
        if step.numbers[3] == L2_DECAY:
            keep = 1 - lr * second
        elif step.numbers[3] == DECOUPLED_DECAY:
            keep = 1 - <floating_ft>step.numbers[0] * second
        for d in range(dim):
            row[d] = keep * row[d] - lr * grad[d]
    elif step.rule == RULE_ADAM:
        for d in range(dim):
            state[d] = state[d] + (1 - first) * (grad[d] - state[d])
            other[d] = other[d] + (1 - second) * (grad[d] * grad[d] - other[d])
            root = sqrt(other[d]) if floating_ft is double else sqrtf(other[d])
            row[d] = row[d] - lr * (state[d] / (root + eps))
    else:
        follow_ftrl(row, state, other, grad, dim, step.numbers)


cdef bint step_rows_in(
    const OptimizerStep* step, const int64_t* rows, floating_ft* _, Py_ssize_t c,
    Py_ssize_t n_chunks
) noexcept nogil:
    cdef:
        Py_ssize_t stop = cut(step.n, c + 1, n_chunks), i, r
        int s
        floating_ft* state[MOST_STATES]
    for s in range(MOST_STATES):
        state[s] = NULL
    for i in range(cut(step.n, c, n_chunks), stop):
        if i + STEP_AHEAD < stop:
            r = i + STEP_AHEAD if rows == NULL else rows[i + STEP_AHEAD]
            fetch_to_change(&step.table, r)
            for s in range(step.n_states):
                fetch_to_change(&step.states[s], r)
        r = i if rows == NULL else read_index(rows, i)
        if <size_t>r >= <size_t>step.n_rows:
            return False
        for s in range(step.n_states):
            state[s] = <floating_ft*>(step.states[s].first + r * step.states[s].stride)
        follow(step, <floating_ft*>(step.table.first + r * step.table.stride), state[0], state[1],
               <const floating_ft*>(step.grads.first + i * step.grads.stride))
    return True


cdef Rows describe_rows(cnp.ndarray array):
    return Rows(<char*>cnp.PyArray_DATA(array), cnp.PyArray_STRIDE(array, 0),
                cnp.PyArray_DIM(array, 1) * cnp.PyArray_ITEMSIZE(array))


def step_rows(
    int n_threads,
    int rule,
    tuple numbers not None,          # of the rule, floats: see the enum
    cnp.ndarray table not None,      # INOUT  (n_rows, dim) float32 or float64, columns adjacent
    tuple states not None,           # INOUT  such tables: see RULE_TRAITS
    object rows,                     # IN     (n,) int64, contiguous, each once; None: all rows
    cnp.ndarray grads not None,      # IN     (n, dim) of the table's dtype, columns adjacent
) -> bool:
    """Change rows of a table and of an optimizer's states by their gradients, in place. False if
    a row is out of range; rows before it are changed."""
    cdef:
        OptimizerStep step
        cnp.ndarray state
        Py_ssize_t n_columns
        int i
        const void* ids = NULL
        chunk_work work = <chunk_work>step_rows_in[float]
    refuse_change(0 <= rule < N_RULES and len(states) == RULE_TRAITS[rule].n_states
                  and len(numbers) <= MOST_NUMBERS
                  and is_table(table) and is_table(grads) and cnp.PyArray_ISWRITEABLE(table)
                  and cnp.PyArray_TYPE(grads) == cnp.PyArray_TYPE(table)
                  and cnp.PyArray_DIM(grads, 1) == cnp.PyArray_DIM(table, 1))
    step.rule = rule
    step.n_rows = cnp.PyArray_DIM(table, 0)
    step.dim = cnp.PyArray_DIM(table, 1)
    step.n = cnp.PyArray_DIM(grads, 0)
    step.table = describe_rows(table)
    step.grads = describe_rows(grads)
    step.n_states = len(states)
    for i in range(MOST_NUMBERS):
        step.numbers[i] = numbers[i] if i < len(numbers) else 0
    for i in range(step.n_states):
        state = states[i]
        n_columns = 1 if RULE_TRAITS[rule].narrow else step.dim
        refuse_change(state is not None and is_table(state) and cnp.PyArray_ISWRITEABLE(state)
                      and cnp.PyArray_TYPE(state) == cnp.PyArray_TYPE(table)
                      and cnp.PyArray_DIM(state, 0) == step.n_rows
                      and cnp.PyArray_DIM(state, 1) == n_columns)
        step.states[i] = describe_rows(state)
    if rows is None:
        refuse_change(step.n == step.n_rows)
    else:
        refuse_change(is_index_array(rows) and cnp.PyArray_ITEMSIZE(<cnp.ndarray>rows) == 8
                      and cnp.PyArray_SIZE(<cnp.ndarray>rows) == step.n)
        ids = cnp.PyArray_DATA(<cnp.ndarray>rows)
    if step.dim == 0:
        return True
    if cnp.PyArray_ITEMSIZE(table) == 8:
        work = <chunk_work>step_rows_in[double]
    return run_chunks(work, &step, ids, NULL, shares_of(n_threads), n_threads)
