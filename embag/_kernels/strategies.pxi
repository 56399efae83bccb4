# Prefetch strategies: which rows are prefetched when, chosen while real lookups run.
#
# A strategy changes no bit of any result, only the time that it takes. The best one depends on
# the processor, the width of rows, where the table lies and what else is at work. So it is
# chosen per class of work, from a short list of candidates, by timing pieces of real lookups:
#
#     default    what is known of the processor, until some thousand rows were looked up at once
#     trying     each piece is timed with the next candidate; the better half stays (successive
#                halving), until one is left
#     settled    now and then a piece is timed with another candidate, between two pieces with
#                the chosen one; if it wins WINS times in a row, it is the chosen one
#
# The state is written without locks. What threads write at once may be lost; whatever the
# words hold is a valid state.
#
# Tested in tests/process/test_strategies.py. docs/design.md, "Prefetch", has the figures.

cdef enum:
    MOST_CANDIDATES = 11
    N_PREFETCHING = 10          # candidates that only prefetch; the others are for some classes
    N_CHOICES = 256             # classes that can be told apart; others keep the default
    PIECE = 4096                # positions that are timed at once ...
    LEAST_TIMED = 1024          # ... or fewer, of the part of one of several threads
    FEW = 64                    # positions: all rows of so few are prefetched before the first
    TRIALS = 2                  # of each candidate in a round
    WINS = 3
    # Pieces from one comparison to the next. Origin: a candidate takes 1.5 times as long as the
    # chosen one on average, so that comparing costs half a percent.
    PERIOD = 100
    FIRST_PAUSE = 10            # ... and at first, when a slow moment may have misled the choice
    NEAR_TABLE = 512 << 10      # bytes: of a smaller table nothing is prefetched by default
    CACHED_TABLE = 16 << 20     # bytes: a smaller table is assumed to be in the caches
    AHEAD_BYTES = 64 << 10      # wide rows: at most so many bytes are prefetched ahead ...
    LEAST_AHEAD = 8             # ... but at least so many rows

cdef enum:
    NEAR                        # where a table lies
    CACHED
    FAR

cdef enum Way:
    INTO_L2                     # prefetch rows into L2
    INTO_L1
    # Prefetch rows into L1; a burst before that, load a byte of each row, where its id is in
    # range. It has the row's page in the TLB, without which Arm processors may drop prefetches.
    AFTER_LOAD

cdef struct Strategy:
    Way way
    Py_ssize_t ahead       # positions from a row's prefetch to its use; 0: no prefetching
    # Rows that are prefetched at once: at each burst-th position. Large bursts keep the core's
    # few miss buffers for the prefetches while they last; prefetches mixed with the loads of
    # earlier rows take turns with them.
    Py_ssize_t burst

cdef Strategy[MOST_CANDIDATES] CANDIDATES
CANDIDATES[0] = Strategy(INTO_L1, 0, 0)
CANDIDATES[1] = Strategy(INTO_L1, 16, 0)
CANDIDATES[2] = Strategy(INTO_L1, 32, 0)
CANDIDATES[3] = Strategy(INTO_L1, 64, 0)
CANDIDATES[4] = Strategy(INTO_L1, 16, 4)
CANDIDATES[5] = Strategy(INTO_L1, 32, 16)
CANDIDATES[6] = Strategy(INTO_L1, 64, 16)
CANDIDATES[7] = Strategy(INTO_L2, 32, 4)
CANDIDATES[8] = Strategy(INTO_L2, 64, 8)
CANDIDATES[9] = Strategy(INTO_L2, 64, 64)
CANDIDATES[10] = Strategy(AFTER_LOAD, 32, 16)

cdef enum Phase:
    DEFAULT
    TRYING
    SETTLED

cdef inline Strategy for_rows_of(Strategy strategy, Py_ssize_t row_bytes) noexcept nogil:
    """A strategy for rows of a size: fewer rows at once where they are wide."""
    cdef Py_ssize_t most = max(LEAST_AHEAD, AHEAD_BYTES // max(1, row_bytes))
    return Strategy(strategy.way, min(strategy.ahead, most), min(strategy.burst, most))


cdef struct Choice:
    uint64_t key           # the class of work; 0: this is free
    int phase
    int chosen             # a candidate
    int in_race            # a bit for each candidate that is still tried
    int turn               # of the candidates that are tried
    int n_timed            # pieces in this round; or since the last comparison began
    int64_t n_rows         # positions looked up since the last comparison
    int64_t pause          # positions from one comparison to the next
    int challenger         # the next candidate to be compared with the chosen one
    int wins               # of it, in a row
    int n_switches         # how often another one was chosen since the first
    float before           # ns a position of the pieces of a comparison: chosen ...
    float challenged       # ... challenger
    float[MOST_CANDIDATES] least    # ns a position of each candidate: the least seen

cdef Choice[N_CHOICES] choices
memset(choices, 0, sizeof(choices))

cdef Strategy pinned_strategy
cdef bint is_pinned = False


# Work that is not an operation on rows of a table has a number here.
cdef enum:
    DOT = 64                    # dot products with rows: the gradient of weights
    IN_FLIGHT = 65              # how many bytes a collection prefetches of later features

# Bytes of the jobs of a collection that are prefetched and not done.
cdef enum:
    N_BUDGETS = 3
cdef double[N_BUDGETS] BUDGETS
BUDGETS[0] = 16 << 10
BUDGETS[1] = 64 << 10
BUDGETS[2] = 256 << 10


cdef uint64_t class_of(
    int encoding, int operation, Py_ssize_t row_bytes, double table_bytes, bint several
) noexcept nogil:
    """The class of work: what a row is, what is done to it, where the table lies, and whether
    several threads work on the call."""
    cdef int width = 0
    while width < 7 and (<Py_ssize_t>LINE << width) < row_bytes:
        width += 1
    return (<uint64_t>1 << 32 | <uint64_t>encoding << 16 | <uint64_t>operation << 8
            | <uint64_t>width << 3 | <uint64_t>place_of(table_bytes) << 1 | several)


cdef inline int operation_in(uint64_t key) noexcept nogil:
    return key >> 8 & 0xff


cdef inline int place_in(uint64_t key) noexcept nogil:
    return (key >> 1) & 3


cdef inline int place_of(double table_bytes) noexcept nogil:
    if table_bytes <= NEAR_TABLE:
        return NEAR
    return CACHED if table_bytes <= CACHED_TABLE else FAR


cdef inline int candidates_of(uint64_t key) noexcept nogil:
    """The number of candidates for a class of work."""
    if operation_in(key) == IN_FLIGHT:
        return N_BUDGETS
    if EMBAG_TOUCHES and operation_in(key) != DOT and place_in(key) == FAR:
        return MOST_CANDIDATES
    return N_PREFETCHING


cdef int default_of(uint64_t key) noexcept nogil:
    """The candidate for a class before any is timed."""
    cdef int place = place_in(key)
    if operation_in(key) == IN_FLIGHT:
        return 1
    if place == NEAR:
        return 0
    if place == CACHED:
        return 1
    return 9 if embag_cpu_family() == 25 else 6 if (key >> 3) & 7 < 3 else 1


cdef Choice* choice_of(uint64_t key) noexcept nogil:
    """The choice for a class of work; NULL if there is no room for one more."""
    cdef int i, c
    for i in range(N_CHOICES):
        c = <int>((key * <uint64_t>2654435761 >> 20 & 0xffff) + <uint64_t>i) % N_CHOICES
        if choices[c].key == key:
            return &choices[c]
        if choices[c].key == 0:
            choices[c].chosen = default_of(key)
            choices[c].phase = DEFAULT
            choices[c].key = key
            return &choices[c]
    return NULL


cdef inline int candidate_in(const int* candidate, int n) noexcept nogil:
    """A candidate, whatever another thread has written or writes now: read once, and checked."""
    cdef int32_t read = embag_read_int32(<const int32_t*>candidate)
    return read if 0 <= read < n else 0


cdef int next_candidate(Choice* choice) noexcept nogil:
    """The candidate to time the next piece with; -1: no piece need be timed."""
    cdef int n = candidates_of(choice.key), candidate, i, rank
    if choice.phase == DEFAULT:
        choice.in_race = (1 << n) - 1
        choice.n_timed = 0
        for i in range(n):
            choice.least[i] = INFINITY
        choice.phase = TRYING
    if choice.phase == TRYING:
        # The candidates take turns, so that a slow moment hits all. Pieces of other threads
        # have begun in between.
        rank = <int>(<unsigned int>choice.turn % <unsigned int>max(1, popcount(choice.in_race)))
        choice.turn = <int>(<unsigned int>choice.turn + 1)
        for candidate in range(n):
            if choice.in_race >> candidate & 1:
                if rank == 0:
                    return candidate
                rank -= 1
        return 0
    if choice.n_rows < choice.pause:
        return -1
    if choice.n_timed == 1:
        return candidate_in(&choice.challenger, n)
    return candidate_in(&choice.chosen, n)


cdef void record(Choice* choice, int candidate, float cost) noexcept nogil:
    """Take note of a piece's ns a position."""
    cdef int n = candidates_of(choice.key)
    cdef bint won
    choice.least[candidate] = min(choice.least[candidate], cost)
    if choice.phase == TRYING:
        choice.n_timed += 1
        if choice.n_timed >= TRIALS * popcount(choice.in_race) and all_timed(choice):
            halve(choice)
        return
    if candidate != (choice.challenger if choice.n_timed == 1 else choice.chosen):
        return                       # of another thread, which began before this comparison
    choice.n_timed += 1
    if choice.n_timed == 1:
        choice.before = cost
    elif choice.n_timed == 2:
        choice.challenged = cost
    else:
        won = choice.challenged < <float>0.98 * min(choice.before, cost)
        choice.n_timed = 0
        choice.n_rows = 0
        choice.wins = choice.wins + 1 if won else 0
        if choice.wins >= WINS:
            choice.chosen, choice.challenger = choice.challenger, choice.chosen
            choice.n_switches += 1
            choice.wins = 0
            cost = choice.before = choice.challenged
        elif won:
            choice.n_rows = choice.pause             # the same one again
            return
        choice.least[candidate_in(&choice.chosen, n)] = min(choice.before, cost)
        choice.pause = min(PERIOD * PIECE, choice.pause + choice.pause // 8)
        choice.challenger = (choice.challenger + 1) % n
        if choice.challenger == choice.chosen:
            choice.challenger = (choice.challenger + 1) % n


cdef bint all_timed(const Choice* choice) noexcept nogil:
    """Whether each candidate in the race has been timed."""
    cdef int candidate
    for candidate in range(candidates_of(choice.key)):
        if choice.in_race >> candidate & 1 and choice.least[candidate] == INFINITY:
            return False
    return True


cdef void halve(Choice* choice) noexcept nogil:
    """Leave the better half of the candidates in the race; settle on the last one."""
    cdef int n = candidates_of(choice.key), n_stay = popcount(choice.in_race) // 2
    cdef int stay = 0, candidate, best, i
    for i in range(max(1, n_stay)):
        best = -1
        for candidate in range(n):
            if choice.in_race >> candidate & 1 and not stay >> candidate & 1 and (
                    best < 0 or choice.least[candidate] < choice.least[best]):
                best = candidate
        stay |= 1 << max(0, best)
    choice.in_race = stay
    choice.n_timed = 0
    if n_stay <= 1:
        choice.chosen = candidate_in(&best, n)
        choice.challenger = (choice.chosen + 1) % n
        choice.n_rows = 0
        choice.pause = FIRST_PAUSE * PIECE
        choice.wins = 0
        choice.n_switches = 0
        choice.phase = SETTLED


# --- Pieces -------------------------------------------------------------------

cdef struct Timed:
    # A piece that is being timed.
    int candidate          # -1: it is not
    int64_t began


cdef inline int known(const Choice* choice) noexcept nogil:
    """The candidate that is best known for a class of work."""
    return candidate_in(&choice.chosen, candidates_of(choice.key))


cdef Timed begin_piece(Choice* choice, Py_ssize_t n_left) noexcept nogil:
    """Begin a piece of work of which n_left positions are left: PIECE of them are timed if the
    candidate is not negative, else all that are left are done at once."""
    cdef Timed timed
    timed.candidate = -1
    timed.began = 0
    if n_left >= LEAST_TIMED:
        timed.candidate = next_candidate(choice)
    if timed.candidate < 0:
        choice.n_rows += n_left
    else:
        timed.began = embag_now()
    return timed


cdef void end_piece(Choice* choice, Timed timed, Py_ssize_t n) noexcept nogil:
    """End a piece of n positions."""
    if timed.candidate >= 0 and n >= LEAST_TIMED:
        record(choice, timed.candidate, <float>(embag_now() - timed.began) / <float>n)


cdef inline int popcount(int bits) noexcept nogil:
    cdef int n = 0
    while bits != 0:
        bits &= bits - 1
        n += 1
    return n


# --- As Python sees it --------------------------------------------------------

WAYS = {"L2": INTO_L2, "L1": INTO_L1}
if EMBAG_TOUCHES:
    WAYS["load"] = AFTER_LOAD


def pin_strategy(object strategy):
    """Prefetch by (way, ahead, burst) alone; None: choose."""
    global is_pinned, pinned_strategy
    is_pinned = False
    if strategy is not None:
        way, ahead, burst = strategy
        pinned_strategy = Strategy(<Way><int>way, ahead, burst)
        is_pinned = True


def candidate_strategies():
    """The candidates, as (way, ahead, burst)."""
    cdef int i
    return [(<int>CANDIDATES[i].way, CANDIDATES[i].ahead, CANDIDATES[i].burst)
            for i in range(MOST_CANDIDATES if EMBAG_TOUCHES else N_PREFETCHING)]


def candidate_budgets():
    """The candidates of a collection, in bytes."""
    cdef int i
    return [<int64_t>BUDGETS[i] for i in range(N_BUDGETS)]


OPERATION_NAMES = {
    SUM: "sum",
    WEIGHTED_SUM: "weighted sum",
    MAX: "max",
    MIN: "min",
    SCALED_MAX: "max of scaled rows",
    SCALED_MIN: "min of scaled rows",
    ARGMAX: "max with winning rows",
    ARGMIN: "min with winning rows",
    DOT: "gradient of weights",
    IN_FLIGHT: "bytes of later features",
}
PHASE_NAMES = {DEFAULT: "default", TRYING: "trying", SETTLED: "settled"}


def strategy_class(int encoding, int mode, bint weighted, Py_ssize_t dim, Py_ssize_t n_rows,
                   bint several) -> int:
    """The class of lookups in a table."""
    demand_encoding(encoding)
    cdef Py_ssize_t n_bytes = row_bytes_of(encoding, dim)
    return class_of(encoding, operation_of(mode, weighted, False), n_bytes,
                    <double>n_bytes * <double>n_rows, several)


def strategy_choices():
    """For each class of work that was seen a dict of its key and its choice."""
    cdef Choice choice
    cdef int c, i
    found = []
    for c in range(N_CHOICES):
        choice = choices[c]              # once: another thread may give the place to another class
        if choice.key != 0:
            found.append({
                "key": choice.key,
                "encoding": <int>(choice.key >> 16 & 0xffff),
                "operation": OPERATION_NAMES[operation_in(choice.key)],
                "width": <int>(choice.key >> 3 & 7),
                "place": place_in(choice.key),
                "several": bool(choice.key & 1),
                "phase": PHASE_NAMES.get(choice.phase, "settled"),
                "chosen": known(&choice),
                "n_switches": choice.n_switches,
                "least": [choice.least[i] for i in range(candidates_of(choice.key))],
            })
    return found


def forget_strategies(object key=None):
    """Choose anew for one class of work, or for all, and for the pages of all tables."""
    cdef Choice* choice
    if key is None:
        memset(choices, 0, sizeof(choices))
        memset(pagings, 0, sizeof(pagings))
        return
    choice = choice_of(key)
    if choice != NULL:
        choice.phase = DEFAULT


def scribble_choices(bytes noise not None):
    """For tests: put noise into all that threads write without locks."""
    cdef Choice before
    cdef int c
    for c in range(N_CHOICES):
        before = choices[c]
        memcpy(&choices[c], <const char*>noise, min(<size_t>len(noise), sizeof(Choice)))
        choices[c].key = before.key
    for c in range(N_PAGED):
        memcpy(&pagings[c], <const char*>noise, min(<size_t>len(noise), sizeof(Paging)))


def simulate_choice(object cost, Py_ssize_t n_pieces, bint far=True, Py_ssize_t n_threads=1):
    """Choose a strategy by a cost in place of the clock: cost(candidate, piece) is called for
    each of n_pieces pieces, as many of them at a time as there are threads; the candidates are
    returned in the order in which they were used."""
    cdef Choice choice
    cdef int candidate
    cdef Py_ssize_t piece
    memset(&choice, 0, sizeof(choice))
    choice.key = class_of(FLOAT32, SUM, 256, CACHED_TABLE * (2.0 if far else 1.0), False)
    choice.chosen = default_of(choice.key)
    used, begun = [], []
    for piece in range(n_pieces):
        candidate = next_candidate(&choice)
        if candidate < 0:
            choice.n_rows += PIECE
            used.append(known(&choice))
            cost(known(&choice), piece)
        else:
            used.append(candidate)
            begun.append((candidate, cost(candidate, piece)))
        if len(begun) >= n_threads:
            candidate, took = begun.pop(0)
            record(&choice, candidate, took)
    return used, known(&choice)
