# Rules of optimizers: how a row of a table, and of the optimizer's states, changes by the
# gradient of that row. embag/optim.py documents the rules, steps.pxi applies them.
#
# Tested in tests/gradients/test_optimizers.py.

cdef enum:
    RULE_SGD               # numbers: lr
    RULE_MOMENTUM          # lr, momentum; state: the buffer
    RULE_ADAGRAD           # lr, eps; state: the sums of squares
    RULE_ROW_ADAGRAD       # lr, eps; state: a sum of mean squares a row
    RULE_ROW_ADAGRAD_L2    # lr, eps, weight decay, which is added to the gradient
    RULE_ROW_ADAGRAD_DECOUPLED  # lr, eps, weight decay
    RULE_ADAM              # step size, 1 - beta1, 1 - beta2, eps; states: the two averages
    RULE_FTRL              # lr, l1, 2 * l2, beta; states: z, and the sums of squares
    N_RULES
    MOST_STATES = 2
    MOST_NUMBERS = 4
    SQUARE_LANES = 32      # partial sums of a mean of squares: the order is part of the result

cdef struct RuleTraits:
    int n_states
    bint narrow            # a state has one column, else as many as the table

cdef RuleTraits[N_RULES] RULE_TRAITS
RULE_TRAITS[RULE_SGD] = RuleTraits(0, False)
RULE_TRAITS[RULE_MOMENTUM] = RuleTraits(1, False)
RULE_TRAITS[RULE_ADAGRAD] = RuleTraits(1, False)
RULE_TRAITS[RULE_ROW_ADAGRAD] = RuleTraits(1, True)
RULE_TRAITS[RULE_ROW_ADAGRAD_L2] = RuleTraits(1, True)
RULE_TRAITS[RULE_ROW_ADAGRAD_DECOUPLED] = RuleTraits(1, True)
RULE_TRAITS[RULE_ADAM] = RuleTraits(2, False)
RULE_TRAITS[RULE_FTRL] = RuleTraits(2, False)

RULES = {
    "sgd": RULE_SGD,
    "momentum": RULE_MOMENTUM,
    "adagrad": RULE_ADAGRAD,
    "row_wise_adagrad": RULE_ROW_ADAGRAD,
    "row_wise_adagrad_l2": RULE_ROW_ADAGRAD_L2,
    "row_wise_adagrad_decoupled": RULE_ROW_ADAGRAD_DECOUPLED,
    "adam": RULE_ADAM,
    "ftrl": RULE_FTRL,
}

cdef struct Rows:
    char* first
    Py_ssize_t stride      # bytes
    Py_ssize_t n_bytes     # of a row

cdef struct OptimizerStep:
    int rule
    double[MOST_NUMBERS] numbers
    Rows table
    int encoding           # of the table: one of floats
    Py_ssize_t n_rows
    Py_ssize_t dim
    Rows[MOST_STATES] states    # of the dtype of sums
    int n_states
    Py_ssize_t rows_ahead  # that are prefetched
    const uint8_t* active  # (n_rows,) whether a row may change; NULL: all may
    bint rounds_by_chance
    uint64_t chance        # of this step
    # Gradients, of the dtype of sums: of each row that changes, or, with terms, of bags.
    Rows grads
    Py_ssize_t n_grads
    const int64_t* rows    # (n_grads,) which rows change; NULL: all
    # Terms: sorted keys, one for each, of which the high bits are a row. The low bits are the bag
    # whose gradient is a term of that row, or with factors a position.
    bint is_summed
    Bags bags
    const void* input      # the ids, which become keys
    bint wide              # they are int64, else int32
    Grouping sorting
    LookUp look_up         # the bag of each position, if there are factors
    const void* factors    # of each position, of the dtype of sums; NULL: 1
    bint divides           # a sum is divided by the number of its terms


cdef inline floating_ft root_of(floating_ft x) noexcept nogil:
    if floating_ft is double:
        return sqrt(x)
    else:
        return sqrtf(x)


cdef inline double mean_square(
    const bint decays,               # a literal: whether the gradient is grad + decay * row
    const floating_ft* grad, const floating_ft* row, Py_ssize_t dim, floating_ft decay
) noexcept nogil:
    """The mean of the squares of a gradient, in float64.

    Lane j sums columns j, j + SQUARE_LANES, ...; then the lanes are folded in halves.
    """
    cdef:
        double lanes[SQUARE_LANES]
        double g
        Py_ssize_t d, j, n_whole = dim // SQUARE_LANES * SQUARE_LANES
    for j in range(SQUARE_LANES):
        lanes[j] = 0
    for d in range(0, n_whole, 32):          # SQUARE_LANES, but Cython wants a literal step
        for j in range(SQUARE_LANES):
            g = <double>(grad[d + j] + decay * row[d + j]) if decays else <double>grad[d + j]
            lanes[j] = lanes[j] + g * g
    for d in range(n_whole, dim):
        g = <double>(grad[d] + decay * row[d]) if decays else <double>grad[d]
        lanes[d - n_whole] += g * g
    for j in range(16):
        lanes[j] = lanes[j] + lanes[j + 16]
    for j in range(8):
        lanes[j] = lanes[j] + lanes[j + 8]
    for j in range(4):
        lanes[j] = lanes[j] + lanes[j + 4]
    return ((lanes[0] + lanes[2]) + (lanes[1] + lanes[3])) / <double>dim


cdef inline bint is_row_wise(const int rule) noexcept nogil:
    return (rule == RULE_ROW_ADAGRAD or rule == RULE_ROW_ADAGRAD_L2
            or rule == RULE_ROW_ADAGRAD_DECOUPLED)


cdef inline void follow(
    const int rule,                  # a literal
    Py_ssize_t dim,
    floating_ft* row,
    floating_ft* state,
    floating_ft* other,              # the second state
    const floating_ft* grad,
    const floating_ft* numbers,      # of the rule
    floating_ft size,                # of a row-wise step
) noexcept nogil:
    """Change a row and its states, all of the dtype of sums, by its gradient.

    A gradient of -0 counts as 0, which is what its sum would be.
    """
    cdef:
        floating_ft lr = numbers[0], first = numbers[1], second = numbers[2], third = numbers[3]
        floating_ft g, keep, root, before, clipped
        Py_ssize_t d
    if rule == RULE_SGD:
        for d in range(dim):
            row[d] = row[d] - lr * (<floating_ft>0 + grad[d])
    elif rule == RULE_MOMENTUM:
        for d in range(dim):
            state[d] = first * state[d] + (<floating_ft>0 + grad[d])
            row[d] = row[d] - lr * state[d]
    elif rule == RULE_ADAGRAD:
        for d in range(dim):
            g = <floating_ft>0 + grad[d]
            state[d] = state[d] + g * g
            row[d] = row[d] - lr * (g / (root_of(state[d]) + first))
    elif rule == RULE_ROW_ADAGRAD:
        for d in range(dim):
            row[d] = row[d] - size * (<floating_ft>0 + grad[d])
    elif is_row_wise(rule):
        keep = <floating_ft>1 - (size if rule == RULE_ROW_ADAGRAD_L2 else lr) * second
        for d in range(dim):
            row[d] = keep * row[d] - size * (<floating_ft>0 + grad[d])
    elif rule == RULE_ADAM:
        for d in range(dim):
            g = <floating_ft>0 + grad[d]
            state[d] = state[d] + first * (g - state[d])
            other[d] = other[d] + second * (g * g - other[d])
            row[d] = row[d] - lr * (state[d] / (root_of(other[d]) + third))
    else:
        for d in range(dim):
            g = <floating_ft>0 + grad[d]
            before = root_of(other[d])
            other[d] = other[d] + g * g
            root = root_of(other[d])
            state[d] = state[d] + (g - (root - before) / lr * row[d])
            clipped = first if state[d] > first else (-first if state[d] < -first else state[d])
            row[d] = (clipped - state[d]) / ((third + root) / lr + second)


# --- Rounding by chance -------------------------------------------------------
# An entry between two floats of 16 bits becomes either, with the odds of its distance to the
# other: on average nothing is lost. The chance of an entry depends on the seed, the step, the
# row and the column alone, so it is the same for any number of threads.

cdef enum:
    HALF_DIGITS = 10       # bits of the fraction
    BFLOAT_DIGITS = 7
    LEAST_HALF = -14       # exponents of the least normal numbers
    LEAST_BFLOAT = -126


cdef inline uint64_t mix(uint64_t x) noexcept nogil:
    """Scramble 64 bits: the last step of the generator SplitMix64."""
    x = (x ^ (x >> 30)) * <uint64_t>0xbf58476d1ce4e5b9ULL
    x = (x ^ (x >> 27)) * <uint64_t>0x94d049bb133111ebULL
    return x ^ (x >> 31)


cdef inline uint64_t chance_of(uint64_t chance, Py_ssize_t i) noexcept nogil:
    """The chance of one of many: a step of a seed, a row of a step, a column of a row."""
    return mix(chance + <uint64_t>0x9e3779b97f4a7c15ULL * (<uint64_t>i + 1))


cdef inline float round_by_chance(
    float x, uint64_t chance, int n_digits, int least
) noexcept nogil:
    """A neighbour of x with so many digits; x itself if it has no more, or is not finite."""
    cdef int exponent = <int>(embag_bits_of_float(x) >> 23 & 0xff) - 127
    cdef double unit
    if exponent == 128 or x == 0:
        return x
    unit = ldexp(1.0, max(exponent, least) - n_digits)
    return <float>(floor(<double>x / unit + ldexp(<double>(chance >> 32), -32)) * unit)


cdef void round_row(
    int encoding, Py_ssize_t dim, float* row, uint64_t chance
) noexcept nogil:
    """Round a row to the digits of its encoding, in place."""
    cdef bint is_half = encoding == FLOAT16
    cdef int n_digits = HALF_DIGITS if is_half else BFLOAT_DIGITS
    cdef int least = LEAST_HALF if is_half else LEAST_BFLOAT
    cdef Py_ssize_t d
    for d in range(dim):
        row[d] = round_by_chance(row[d], chance_of(chance, d), n_digits, least)
