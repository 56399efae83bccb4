# Modes: how the rows of a bag are reduced.
#
# MODES is the one table of them; embag/_modes.py reads it. An operation is what the kernels do
# to each row. A mode that needs a new one also needs
#
# - its arithmetic: `start_of`, and `choose` or `add_...`, in arithmetic.pxi
# - a line in `reduce_entries`, in blocks.pxi, which compiles it; one in `reduce_argmax_of` if
#   its winning rows can be asked for
# - its name in `OPERATION_NAMES`, in strategies.pxi
# - the mode's name in `ModeName`, in _modes.py
# - its gradient in backward.py, unless it is that of a sum, or of the rows that won

cdef enum:
    MODE_SUM
    MODE_MEAN
    MODE_SQRTN
    MODE_MAX
    MODE_MIN
    MODE_DIVIDED_SUM       # for gradients: a weighted sum, divided by the number of entries
    N_MODES

cdef enum:
    NO_OPERATION           # the mode does not have it
    SUM
    WEIGHTED_SUM
    MAX
    MIN
    SCALED_MAX             # MAX of rows that have factors: in mapping.pxi
    SCALED_MIN
    ARGMAX                 # MAX, and the winning rows
    ARGMIN

# What the result is divided by.
cdef enum:
    NOTHING
    COUNT                  # the number of entries that count
    TOTAL                  # the sum of their weights; without weights their number
    ROOT                   # the root of the sum of their squared weights, or of their number

cdef struct ModeTraits:
    int plain              # the operation
    int weighted           # ... with a weight for each row
    int selecting          # ... that also returns the rows that won
    int divisor

cdef ModeTraits[N_MODES] MODES
MODES[MODE_SUM] = ModeTraits(SUM, WEIGHTED_SUM, NO_OPERATION, NOTHING)
MODES[MODE_MEAN] = ModeTraits(SUM, WEIGHTED_SUM, NO_OPERATION, TOTAL)
MODES[MODE_SQRTN] = ModeTraits(SUM, WEIGHTED_SUM, NO_OPERATION, ROOT)
MODES[MODE_MAX] = ModeTraits(MAX, NO_OPERATION, ARGMAX, NOTHING)
MODES[MODE_MIN] = ModeTraits(MIN, NO_OPERATION, ARGMIN, NOTHING)
MODES[MODE_DIVIDED_SUM] = ModeTraits(SUM, WEIGHTED_SUM, NO_OPERATION, COUNT)


cdef inline bint chooses(const int operation) noexcept nogil:
    """Whether each entry of the result is that of one row."""
    return operation >= MAX


cdef inline bint is_scaled(const int operation) noexcept nogil:
    return operation == SCALED_MAX or operation == SCALED_MIN


cdef inline int scaled_operation(int operation) noexcept nogil:
    """The operation on rows that have factors."""
    if operation == SUM:
        return WEIGHTED_SUM
    if operation == MAX:
        return SCALED_MAX
    return SCALED_MIN if operation == MIN else operation


cdef dict codes_of_modes = {
    "sum": MODE_SUM,
    "mean": MODE_MEAN,
    "sqrtn": MODE_SQRTN,
    "max": MODE_MAX,
    "min": MODE_MIN,
}
MODE_CODES = codes_of_modes
DIVIDED_SUM = MODE_DIVIDED_SUM


def mode_traits(int mode):
    """(takes weights, has winning rows, is a sum, divides) of a mode."""
    operation_of(mode, False, False)
    cdef ModeTraits traits = MODES[mode]
    return (traits.weighted != NO_OPERATION, traits.selecting != NO_OPERATION,
            not chooses(traits.plain), traits.divisor != NOTHING)


cdef int operation_of(int mode, bint weighted, bint selecting) except -1:
    """What a mode does to each row. Raises if the mode is unknown or does not do it."""
    cdef int operation = NO_OPERATION
    if 0 <= mode < N_MODES:
        if not (weighted or selecting):
            operation = MODES[mode].plain
        elif not selecting:
            operation = MODES[mode].weighted
        elif not weighted:
            operation = MODES[mode].selecting
    if operation == NO_OPERATION:
        raise RuntimeError(
            f"mode must be one that the kernels have, got {mode}"
            f"{' with weights' if weighted else ''}{' with winning rows' if selecting else ''}")
    return operation
