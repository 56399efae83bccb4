"""Teams of threads across forks and resource limits. See threads.py.

gcc's OpenMP keeps the threads of a team for the thread that leads it. A fork copies only the
thread that forked. In the child, its team refers to threads that do not exist, and its next
parallel region would wait for them forever. A new thread of the child has no team yet and may
lead one. So a helper thread makes the parallel calls of the thread that was carried over.

The helper is a system thread, not one of Python's `threading`: a replacement of that module
(gevent) may run "threads" in turn on the thread that waits here. The wait cannot be interrupted
by signals, so no exception of a signal handler leaves a call while the helper still writes to
the caller's arrays.

This is a module of its own because its state must exist once per process, and each level of the
kernels has its own copy of all that it includes.

Tested in tests/process/.
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
    SPARE_BYTES = 1 << 20  # far more than Python and OpenMP need for a thread beside its stack

cdef struct Locks:
    PyThread_type_lock wanted        # free while a call waits to be made
    PyThread_type_lock done          # free once it has been made
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
        int fork                     # embag_n_forks of the process that it belongs to

    def __cinit__(self):
        cdef void* spare
        cdef unsigned long started
        self.fork = embag_n_forks
        # Never freed: the thread does not end. After a failure here the memory leaks.
        self.locks = <Locks*>malloc(sizeof(Locks))
        # Freed once the thread has started: Python ends the process if a thread that it did not
        # start finds no memory for its state.
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
        Py_INCREF(self)              # for the thread

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
        except BaseException as error:  # raised in the caller, by `Helper.lead`
            self.error = error
        PyThread_release_lock(self.locks.done)
        with nogil:
            PyThread_acquire_lock(self.locks.wanted, WAIT_LOCK)


cdef Helper helper = None

# The last call with fewer threads than requested; 0 after a later call got as many.
cdef int n_requested = 0
cdef int n_granted = 0


cdef bint start_helper():
    """Start the helper of this process, unless it runs; return False if it cannot be started."""
    global helper
    try:
        while helper is None or helper.fork != embag_n_forks:
            helper = Helper()
    except (RuntimeError, MemoryError):
        return False
    return True


cdef object lead_here(object function, int n_threads, size_t stack_bytes, tuple arguments):
    """Call a function with a team that the calling thread leads."""
    cdef int n
    with nogil:
        n = embag_ready_team(n_threads, stack_bytes)
    record_team(n_threads, n)
    take_region()                    # of a call that raised
    result = function(n, *arguments)
    return result, take_region()


cdef void record_team(int requested, int granted) noexcept:
    """Record a shortage of threads, or its end."""
    global n_requested, n_granted
    if granted < requested:
        n_requested, n_granted = requested, granted
    elif requested >= n_requested:
        n_requested = n_granted = 0


cdef object take_region


def measure_by(take):
    """Let `take()` tell what the parallel regions of the calling thread took."""
    global take_region
    take_region = take


def lead(function, int n_threads, size_t stack_bytes, bint may_help, *arguments):
    """Return function(n, *arguments), where n is `n_threads`, or the most that can be started,
    and what its parallel regions took.

    No bytecode runs between the test of `embag_carried_over` and the parallel region: a signal
    handler could fork there, and the child would continue with a stale result of the test.
    """
    if not embag_carried_over:
        return lead_here(function, n_threads, stack_bytes, arguments)
    if may_help and start_helper():
        return helper.lead(function, n_threads, stack_bytes, arguments)
    record_team(n_threads, 1)
    return function(1, *arguments), (0.0, 0.0)


def shortage():
    """Return (requested, granted) threads of the last call that got too few; None if none did.

    A later call that got as many ends a shortage.
    """
    return (n_requested, n_granted) if n_requested > 0 else None


def n_forks():
    """Return the number of forks between the process that imported embag and this one."""
    return embag_n_forks


def watch_forks():
    """Start to count forks. Must be called once."""
    if embag_watch_forks() != 0:
        raise MemoryError("no memory to notice forks")


def n_processors():
    """Return the number of processors that the calling thread may run on, as first counted."""
    return embag_n_processors()


def place_processors():
    """Return the numbers of the processors that OpenMP binds threads to; None without binding."""
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
    """Return the largest team that OpenMP allows, with the thread that leads it."""
    return embag_thread_limit()


def is_dynamic():
    """Return whether OpenMP may give a call fewer threads than requested."""
    return embag_is_dynamic() != 0


def openmp_threads():
    """Return the number of threads that OpenMP would give the calling thread's next team."""
    return embag_openmp_threads()
