# Lists of Python's ints, as arrays. They are read as they are: no code of a user's runs, so
# that nothing can change meanwhile.

cdef bint is_sequence(object value):
    return type(value) is list or type(value) is tuple


cdef Py_ssize_t length_of(object sequence):
    return len(<list>sequence) if type(sequence) is list else len(<tuple>sequence)


cdef bint fill_ids(object sequence, int64_t* ids) except *:
    """Write the ints of a list or tuple. False if one is no int, or too large."""
    cdef Py_ssize_t i
    cdef int overflow = 0
    cdef PyObject* item
    for i in range(length_of(sequence)):
        item = (PyList_GET_ITEM(sequence, i) if type(sequence) is list
                else PyTuple_GET_ITEM(sequence, i))
        if not PyLong_CheckExact(<object>item):
            return False
        ids[i] = PyLong_AsLongLongAndOverflow(<object>item, &overflow)
        if overflow:
            return False
    return True


cdef object ids_of_list(object ids):
    """An int64 array of a list or tuple of ints; None of anything else."""
    cdef cnp.ndarray array
    if not is_sequence(ids):
        return None
    array = empty_int64(length_of(ids))
    return array if fill_ids(ids, <int64_t*>cnp.PyArray_DATA(array)) else None


def ids_of_lists(object lists, bint include_last_offset=True):
    """(ids, offsets) of a list or tuple of lists or tuples of ints; None of anything else."""
    cdef:
        Py_ssize_t n, b, total = 0
        cnp.ndarray ids, offsets
        int64_t* starts
        int64_t* items
    if not is_sequence(lists):
        return None
    n = length_of(lists)
    offsets = empty_int64(n + include_last_offset)
    starts = <int64_t*>cnp.PyArray_DATA(offsets)
    for b in range(n):
        bag = lists[b]
        if not is_sequence(bag):
            return None
        starts[b] = total
        total += length_of(bag)
    if include_last_offset:
        starts[n] = total
    ids = empty_int64(total)
    items = <int64_t*>cnp.PyArray_DATA(ids)
    for b in range(n):
        bag = lists[b]
        # No code has run since they were counted; if one had, nothing is written beyond.
        if not (is_sequence(bag) and length_of(bag) <= total - starts[b]
                and fill_ids(bag, items + starts[b])):
            return None
    return ids, offsets
