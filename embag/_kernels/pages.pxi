# Prefetching pages, for tables that do not fit in memory.
#
# A row whose page is on the disk takes a page fault, and faults come one after the other. If
# the pages of many rows are prefetched first (madvise, MADV_WILLNEED), the disk reads them
# together. This takes a system call a row, of half a microsecond, even if the page is in memory.
# So it is chosen per table by timing real lookups, piece by piece:
#
#     a table is new        its pages are prefetched
#     rows take SLOW        whichever is faster, with or without; the other way has a piece in
#                           each RETRY positions
#     rows are faster       all pages are there: nothing is prefetched, pieces become larger, and
#                           one in each CHECK positions is timed
#
# Only tables of more than `paged_above` bytes are timed. The state is written without locks:
# whatever the words hold is a valid state. No row is touched that a lookup may not read: ids are
# checked (`fetch_pages` in jobs.pxi).
#
# Tested in tests/process/test_pages.py. docs/tables.md has the figures.

cdef enum:
    N_PAGED = 64                # tables that can be told apart
    PAGED_PIECE = 1024          # positions whose pages are prefetched at once
    LEAST_PIECE = 32            # ... without prefetching, after a piece that was slow
    MOST_PIECE = 16384          # ... after many that were not
    MOST_PAGES = 65536          # positions of one bag whose pages are prefetched at once
    FEW_PAGES = 16              # positions: fewer say nothing about a table
    RETRY = 8192
    CHECK = 1024                # two readings of the clock take 50 ns
    # ns. Origin: faults that find their page in memory took 2 to 6 us, others 50 to 110.
    SLOW = 5000

cdef struct Paging:
    size_t key             # the table's address; 0: this is free
    float fetched          # ns a position of pieces with prefetching; 0: there was none
    float unfetched        # ... of the last piece without
    int64_t n_left         # positions until the other way is tried; or a fast piece is timed
    Py_ssize_t size        # positions of the next piece without

cdef Paging[N_PAGED] pagings
memset(pagings, 0, sizeof(pagings))

cdef double paged_above = INFINITY
cdef bint pages_pinned = False  # prefetch the pages of every table


cdef void forget_paging(Paging* paging, size_t key) noexcept nogil:
    """Begin with a new table."""
    paging.fetched = 0
    paging.unfetched = INFINITY
    paging.n_left = RETRY
    paging.size = LEAST_PIECE
    paging.key = key


cdef Paging* paging_of(size_t key) noexcept nogil:
    """The state of a table; it takes the place of another one if there is no room."""
    cdef size_t home = key * <size_t>2654435761 >> 20
    cdef int i
    cdef Paging* paging
    for i in range(N_PAGED):
        paging = &pagings[(home + <size_t>i) % N_PAGED]
        if paging.key == key:
            return paging
        if paging.key == 0:
            break
    else:
        paging = &pagings[home % N_PAGED]
    forget_paging(paging, key)
    return paging


cdef inline bint prefers_pages(const Paging* paging) noexcept nogil:
    return paging.unfetched > SLOW and paging.fetched < paging.unfetched


cdef bint takes_pages(const Paging* paging, Py_ssize_t n) noexcept nogil:
    """Whether to prefetch the pages of the next piece, where n positions are left."""
    if pages_pinned:
        return True
    if n < FEW_PAGES:
        return prefers_pages(paging) and paging.fetched > 0
    return prefers_pages(paging) != (paging.unfetched > SLOW and paging.n_left <= 0)


cdef inline Py_ssize_t paged_piece(const Paging* paging, bint fetched) noexcept nogil:
    """The positions of the next piece."""
    return PAGED_PIECE if fetched else max(LEAST_PIECE, min(MOST_PIECE, paging.size))


cdef inline int64_t begin_pages(Paging* paging, Py_ssize_t n) noexcept nogil:
    """The time at the start of a piece of n positions; 0: it need not be timed."""
    if n < FEW_PAGES:
        return 0
    if paging.unfetched <= SLOW and paging.size >= MOST_PIECE and n < paging.n_left:
        paging.n_left -= n
        return 0
    return embag_now()


cdef inline void end_pages(
    Paging* paging, bint fetched, Py_ssize_t n, int64_t began
) noexcept nogil:
    if began != 0:
        record_pages(paging, fetched, n, embag_now() - began)


cdef void record_pages(Paging* paging, bint fetched, Py_ssize_t n, int64_t ns) noexcept nogil:
    """Take note of the time of a piece of n positions."""
    cdef float cost = <float>ns / <float>n
    cdef bint preferred = prefers_pages(paging)
    if not fetched:
        paging.unfetched = cost
        paging.size = min(MOST_PIECE, 2 * paging.size) if cost <= SLOW else LEAST_PIECE
    elif paging.fetched == 0:
        paging.fetched = cost
    else:                            # one slow moment does not decide
        paging.fetched = (paging.fetched + cost) / 2
    if paging.unfetched <= SLOW:
        paging.n_left = CHECK
    elif fetched != preferred or preferred != prefers_pages(paging):
        paging.n_left = RETRY
    elif fetched and cost < SLOW:    # perhaps all pages are there
        paging.n_left = 0
    else:
        paging.n_left -= n


# --- As Python sees it --------------------------------------------------------

def prefetch_pages_above(double n_bytes):
    """Prefetch the pages of larger tables where it helps."""
    global paged_above
    paged_above = n_bytes


def pin_pages(bint pinned):
    """Prefetch the pages of every table at every lookup; False: where it helps."""
    global pages_pinned
    pages_pinned = pinned


def paged_tables():
    """For each table whose pages may be prefetched a dict: whether they are, and ns a row."""
    cdef int i
    return [
        {
            "prefetched": bool(prefers_pages(&pagings[i])),
            "ns per row, prefetched": pagings[i].fetched,
            "ns per row, not prefetched": pagings[i].unfetched,
        }
        for i in range(N_PAGED)
        if pagings[i].key != 0
    ]


def simulate_pages(object cost, Py_ssize_t n_pieces, Py_ssize_t most):
    """For tests: choose by a cost instead of the clock. cost(fetched, n) is called for the
    timed ones of n_pieces pieces of at most `most` positions; returns (fetched, n) of each."""
    cdef Paging paging
    cdef Py_ssize_t n
    cdef bint fetched
    forget_paging(&paging, 1)
    pieces = []
    for _ in range(n_pieces):
        fetched = takes_pages(&paging, most)
        n = min(most, paged_piece(&paging, fetched))
        pieces.append((fetched, n))
        if begin_pages(&paging, n) != 0:
            record_pages(&paging, fetched, n, <int64_t>(<double>cost(fetched, n) * <double>n))
    return pieces
