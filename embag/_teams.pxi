# Teams of threads: what OpenMP does not look after. See `_threads.py`.
#
# gcc's OpenMP keeps a team's threads for the thread that leads it. A fork carries over only
# the thread that forked, and its team points at threads that are not there: its next
# parallel region would wait for them for ever. Any other thread of the child has no team yet
# and may lead one. So a thread that was carried over has its calls made by a helper.
#
# The helper is a thread of the system's, not of Python's `threading`: what replaces that
# (gevent) may run "threads" by turns on the very thread that waits here. And the wait is
# deaf to signals: no exception of a signal's handler leaves a call before the helper has
# stopped to write to the caller's arrays.

from cpython.pythread cimport (
    PyThread_acquire_lock, PyThread_allocate_lock, PyThread_free_lock, PyThread_release_lock,
    PyThread_type_lock, WAIT_LOCK,
)
from cpython.ref cimport Py_DECREF, Py_INCREF

cdef extern from "pythread.h":
    unsigned long PyThread_start_new_thread(void (*function)(void*), void* argument)
    unsigned long PYTHREAD_INVALID_THREAD_ID


cdef class Helper:
    """A thread that makes calls for the one thread that was carried over the last fork."""

    cdef:
        PyThread_type_lock wanted    # free while there is a call to make
        PyThread_type_lock done      # free when it has been made
        object function
        tuple arguments
        object result
        object error
        int fork                     # the process that it is a thread of

    def __cinit__(self):
        self.fork = embag_n_forks
        self.wanted = PyThread_allocate_lock()
        self.done = PyThread_allocate_lock()
        if self.wanted == NULL or self.done == NULL:
            raise MemoryError("no memory for locks")
        PyThread_acquire_lock(self.wanted, WAIT_LOCK)
        PyThread_acquire_lock(self.done, WAIT_LOCK)
        Py_INCREF(self)              # the thread's; it never ends
        if PyThread_start_new_thread(make_calls, <void*>self) == PYTHREAD_INVALID_THREAD_ID:
            Py_DECREF(self)
            raise RuntimeError("can't start new thread")

    def __dealloc__(self):           # if it could not be started
        if self.wanted != NULL:
            PyThread_free_lock(self.wanted)
        if self.done != NULL:
            PyThread_free_lock(self.done)

    cdef object call(self, object function, tuple arguments):
        self.function = function
        self.arguments = arguments
        PyThread_release_lock(self.wanted)
        with nogil:
            PyThread_acquire_lock(self.done, WAIT_LOCK)
        result, error = self.result, self.error
        self.function = self.arguments = self.result = self.error = None
        if error is not None:
            raise error
        return result


cdef void make_calls(void* helper) noexcept with gil:
    cdef Helper self = <Helper>helper
    while True:
        with nogil:
            PyThread_acquire_lock(self.wanted, WAIT_LOCK)
        try:
            self.result = self.function(*self.arguments)
        except BaseException as error:  # the caller's to see
            self.error = error
        PyThread_release_lock(self.done)


cdef Helper helper = None


def has_helper():
    """Whether this process has a helper now; starts it if need be."""
    global helper
    if helper is None or helper.fork != embag_n_forks:
        try:
            helper = Helper()
        except (RuntimeError, MemoryError):
            return False
    return True


def call_on_helper(function, *arguments):
    """Have the helper, which there is, make a call. For a thread that was carried over."""
    return helper.call(function, arguments)


def is_carried_over():
    """Whether the calling thread came into this process by a fork."""
    return embag_carried_over != 0


def is_forked():
    """Whether this process was forked from one that had imported embag."""
    return embag_n_forks > 0


def watch_forks():
    """Begin to notice forks. Once, in the module whose functions are then asked."""
    if embag_watch_forks() != 0:
        raise MemoryError("no memory to notice forks")


def n_processors():
    """The processors that the calling thread may run on, as it was first seen."""
    return embag_n_processors()


def openmp_threads():
    """The threads that OpenMP itself would give the calling thread."""
    return embag_openmp_threads()


def startable(int n_threads, size_t stack_bytes):
    """The largest team, up to n_threads, that the calling thread can lead."""
    cdef int n
    with nogil:
        n = embag_startable(n_threads, stack_bytes)
    return n
