"""Teams of threads: what OpenMP does not look after. See `_threads.py`.

gcc's OpenMP keeps a team's threads for the thread that leads it. A fork carries over only
the thread that forked, and its team points at threads that are not there: its next
parallel region would wait for them for ever. Any other thread of the child has no team yet
and may lead one. So a thread that was carried over has its calls made by a helper.

The helper is a thread of the system's, not of Python's `threading`: what replaces that
(gevent) may run "threads" by turns on the very thread that waits here. And the wait is
deaf to signals: no exception of a signal's handler leaves a call before the helper has
stopped to write to the caller's arrays.

A module of its own: each level of the kernels has its copy of what they include, and there
may be but one of this.

Tested in tests/test_fork.py and tests/test_threads.py.
"""

from cpython.pythread cimport (
    PyThread_acquire_lock, PyThread_allocate_lock, PyThread_release_lock, PyThread_type_lock,
    WAIT_LOCK,
)
from cpython.ref cimport Py_INCREF
from libc.stdlib cimport free, malloc

cdef extern from "pythread.h":
    unsigned long PyThread_start_new_thread(void (*function)(void*), void* argument)
    unsigned long PYTHREAD_INVALID_THREAD_ID

cdef extern from "_teams.h" nogil:
    int embag_openmp_threads()
    int embag_n_processors()
    int embag_thread_limit()
    int embag_is_dynamic()
    int embag_n_places()
    int embag_place_size(int place)
    void embag_list_place(int place, int* processors)
    int embag_watch_forks()
    int embag_ready_team(int n, size_t stack_bytes)
    int embag_carried_over
    int embag_n_forks


cdef enum:
    SPARE_BYTES = 1 << 20  # far more than Python and OpenMP take for a thread beside its stack

cdef struct Locks:
    PyThread_type_lock wanted        # free while there is a call to make
    PyThread_type_lock done          # free when it has been made
    void* helper


cdef class Helper:
    """A thread that makes calls for the one thread that was carried over the last fork."""

    cdef:
        Locks* locks
        object function
        int n_threads
        size_t stack_bytes
        tuple arguments
        object result
        object error
        int fork                     # the process that it is a thread of

    def __cinit__(self):
        cdef void* spare
        cdef unsigned long started
        self.fork = embag_n_forks
        # The thread and what it holds never end; what could not be started is lost, too.
        self.locks = <Locks*>malloc(sizeof(Locks))
        # Kept free until the thread is there: Python ends the process if a thread that is
        # not its own finds no memory for its state.
        spare = malloc(SPARE_BYTES)
        if self.locks == NULL or spare == NULL:
            raise MemoryError("no memory for a thread")
        self.locks.wanted = PyThread_allocate_lock()
        self.locks.done = PyThread_allocate_lock()
        if self.locks.wanted == NULL or self.locks.done == NULL:
            raise MemoryError("no memory for locks")
        PyThread_acquire_lock(self.locks.wanted, WAIT_LOCK)
        PyThread_acquire_lock(self.locks.done, WAIT_LOCK)
        self.locks.helper = <void*>self
        started = PyThread_start_new_thread(wait_for_call, self.locks)
        free(spare)
        if started == PYTHREAD_INVALID_THREAD_ID:
            raise RuntimeError("can't start new thread")
        Py_INCREF(self)              # the thread's

    cdef object lead(self, object function, int n_threads, size_t stack_bytes, tuple arguments):
        self.function = function
        self.n_threads = n_threads
        self.stack_bytes = stack_bytes
        self.arguments = arguments
        PyThread_release_lock(self.locks.wanted)
        with nogil:
            PyThread_acquire_lock(self.locks.done, WAIT_LOCK)
        result, error = self.result, self.error
        self.function = self.arguments = self.result = self.error = None
        if error is not None:
            raise error
        return result


cdef void wait_for_call(void* locks) noexcept nogil:
    PyThread_acquire_lock((<Locks*>locks).wanted, WAIT_LOCK)
    make_calls((<Locks*>locks).helper)


cdef void make_calls(void* helper) noexcept with gil:
    cdef Helper self = <Helper>helper
    while True:
        try:
            self.result = lead_here(self.function, self.n_threads, self.stack_bytes,
                                    self.arguments)
        except BaseException as error:  # the caller's to see
            self.error = error
        PyThread_release_lock(self.locks.done)
        with nogil:
            PyThread_acquire_lock(self.locks.wanted, WAIT_LOCK)


cdef Helper helper = None

# The last call that could not have as many threads as it was to have; 0: none since one could.
cdef int n_asked = 0
cdef int n_had = 0


cdef bint has_helper():
    """Whether this process has a helper now; starts it if need be."""
    global helper
    try:
        while helper is None or helper.fork != embag_n_forks:
            helper = Helper()
    except (RuntimeError, MemoryError):
        return False
    return True


cdef object lead_here(object function, int n_threads, size_t stack_bytes, tuple arguments):
    """Make a call with a team that the calling thread leads."""
    cdef int n = 1
    if n_threads > 1:
        with nogil:
            n = embag_ready_team(n_threads, stack_bytes)
    remember(n_threads, n)
    return function(n, *arguments)


cdef void remember(int asked, int had) noexcept:
    global n_asked, n_had
    if had < asked:
        n_asked, n_had = asked, had
    elif asked >= n_asked:
        n_asked = n_had = 0


def lead(function, int n_threads, size_t stack_bytes, bint may_help, *arguments):
    """Return function(n, *arguments), where n is `n_threads`, or as many as there can be.

    From the question whether this thread was carried over a fork to the function's region no
    bytecode is run: a signal's handler may fork, and the child go on here.
    """
    if not embag_carried_over:
        return lead_here(function, n_threads, stack_bytes, arguments)
    if may_help and has_helper():
        return helper.lead(function, n_threads, stack_bytes, arguments)
    remember(n_threads, 1)
    return function(1, *arguments)


def shortage():
    """(asked, had) of the last call with fewer threads than it was to have; None if a call
    has had as many since."""
    return (n_asked, n_had) if n_asked > 0 else None


def n_forks():
    """How many forks this process is away from the one that began with embag."""
    return embag_n_forks


def watch_forks():
    """Begin to notice forks. Once."""
    if embag_watch_forks() != 0:
        raise MemoryError("no memory to notice forks")


def n_processors():
    """The processors that the calling thread may run on, as it was first seen."""
    return embag_n_processors()


def place_processors():
    """The numbers of the processors that OpenMP binds threads to; None if it binds none."""
    cdef int n_places = embag_n_places(), n, place, i
    cdef int* numbers
    if n_places <= 0:
        return None
    processors = set()
    for place in range(n_places):
        n = embag_place_size(place)
        numbers = <int*>malloc(max(1, n) * sizeof(int))
        if numbers == NULL:
            raise MemoryError("no memory to look at OpenMP's places")
        embag_list_place(place, numbers)
        for i in range(n):
            processors.add(numbers[i])
        free(numbers)
    return processors


def thread_limit():
    """The most threads that OpenMP lets any thread lead, itself included."""
    return embag_thread_limit()


def is_dynamic():
    """Whether OpenMP may give a call fewer threads than it asks for, as it sees fit."""
    return embag_is_dynamic() != 0


def openmp_threads():
    """The threads that OpenMP itself would give the calling thread."""
    return embag_openmp_threads()
