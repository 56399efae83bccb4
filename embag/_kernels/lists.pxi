# Lists of Python's ints, as arrays. They are read as they are, and no code of a user's runs
# meanwhile. Without the GIL, other threads may change them: a list of ints is locked while it is
# read, and a list of lists is copied first.

cdef bint is_sequence(object value):
    return type(value) is list or type(value) is tuple


cdef Py_ssize_t length_of(object sequence):
    return len(<list>sequence) if type(sequence) is list else len(<tuple>sequence)


cdef enum Filled:
    NOT_IDS                 # an item is no int, or too large
    FILLED
    CHANGED                 # the sequence has another length than it had


cdef Filled fill_ids(object sequence, int64_t* ids, Py_ssize_t n) except *:
    """Write the ints of a list or tuple that had n items."""
    cdef Py_ssize_t i
    cdef int overflow = 0
    cdef PyObject* item
    with cython.critical_section(sequence):
        if length_of(sequence) != n:
            return CHANGED
        for i in range(n):
            item = (PyList_GET_ITEM(sequence, i) if type(sequence) is list
                    else PyTuple_GET_ITEM(sequence, i))
            if not PyLong_CheckExact(<object>item):
                return NOT_IDS
            ids[i] = PyLong_AsLongLongAndOverflow(<object>item, &overflow)
            if overflow:
                return NOT_IDS
    return FILLED


cdef object ids_of_list(list ids):
    """An int64 array of a list of ints; None if other items are in it."""
    cdef cnp.ndarray array
    cdef Filled filled = CHANGED
    cdef Py_ssize_t n
    while filled == CHANGED:
        n = length_of(ids)
        array = empty_int64(n)
        filled = fill_ids(ids, <int64_t*>cnp.PyArray_DATA(array), n)
    return array if filled == FILLED else None


def ids_of_lists(object lists, bint include_last_offset=True):
    """(ids, offsets) of a list or tuple of lists or tuples of ints; None of anything else."""
    cdef:
        Py_ssize_t n, b, stop, total = 0
        Filled filled
        tuple bags
        cnp.ndarray ids, offsets
        int64_t* starts
        int64_t* items
    if not is_sequence(lists):
        return None
    bags = tuple(lists)
    n = len(bags)
    offsets = empty_int64(n + include_last_offset)
    starts = <int64_t*>cnp.PyArray_DATA(offsets)
    for b in range(n):
        bag = bags[b]
        if not is_sequence(bag):
            return None
        starts[b] = total
        total += length_of(bag)
    if include_last_offset:
        starts[n] = total
    ids = empty_int64(total)
    items = <int64_t*>cnp.PyArray_DATA(ids)
    for b in range(n):
        stop = starts[b + 1] if b + 1 < n else total
        filled = fill_ids(bags[b], items + starts[b], stop - starts[b])
        if filled == CHANGED:        # tuples do not change
            return ids_of_lists(tuple([tuple(bag) for bag in bags]), include_last_offset)
        if filled == NOT_IDS:
            return None
    return ids, offsets
