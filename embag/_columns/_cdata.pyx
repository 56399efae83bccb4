"""Arrow list columns of any library, read in place through Arrow's C data interface.

Columns come through the Arrow PyCapsule interface: three C structs (_cdata.h), which are read
here without a library. nanoarrow serves the same purpose, but 0.9 does not expose the buffers
of ListViews, and it would be one more dependency.

Counts and types are checked here, ranges of lists and ids where they are used. That a buffer is
as long as the lengths need cannot be checked; pyarrow is asked to validate its columns first
(readers.py).

Tested in tests/columns/.
"""

from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport int64_t
from libc.string cimport memset

cimport numpy as cnp

cnp.import_array()

cdef extern from "_cdata.h" nogil:
    struct ArrowSchema:
        const char* format
        const char* name
        int64_t n_children
        ArrowSchema** children
        ArrowSchema* dictionary
        void (*release)(ArrowSchema*) noexcept nogil

    struct ArrowArray:
        int64_t length
        int64_t null_count
        int64_t offset
        int64_t n_buffers
        int64_t n_children
        const void** buffers
        ArrowArray** children
        void (*release)(ArrowArray*) noexcept nogil

    struct ArrowArrayStream:
        int (*get_schema)(ArrowArrayStream*, ArrowSchema*) noexcept nogil
        int (*get_next)(ArrowArrayStream*, ArrowArray*) noexcept nogil
        const char* (*get_last_error)(ArrowArrayStream*) noexcept nogil
        void (*release)(ArrowArrayStream*) noexcept nogil


cdef int64_t MAX_ENTRIES = <int64_t>1 << 48     # of an array: no address space holds more

# NumPy types by Arrow format.
TYPES = {
    "c": cnp.NPY_INT8, "C": cnp.NPY_UINT8, "s": cnp.NPY_INT16, "S": cnp.NPY_UINT16,
    "i": cnp.NPY_INT32, "I": cnp.NPY_UINT32, "l": cnp.NPY_INT64, "L": cnp.NPY_UINT64,
    "e": cnp.NPY_FLOAT16, "f": cnp.NPY_FLOAT32, "g": cnp.NPY_FLOAT64,
}


cdef class Memory:
    """An array that a producer handed over, released with the last view of its buffers."""

    cdef ArrowArray array

    def __cinit__(self):
        memset(&self.array, 0, sizeof(ArrowArray))

    def __dealloc__(self):
        if self.array.release != NULL:
            self.array.release(&self.array)


cdef class Schema:
    cdef ArrowSchema schema

    def __cinit__(self):
        memset(&self.schema, 0, sizeof(ArrowSchema))

    def __dealloc__(self):
        if self.schema.release != NULL:
            self.schema.release(&self.schema)


cdef class Stream:
    cdef ArrowArrayStream stream

    def __cinit__(self):
        memset(&self.stream, 0, sizeof(ArrowArrayStream))

    def __dealloc__(self):
        if self.stream.release != NULL:
            self.stream.release(&self.stream)


def read_lists(object column):
    """Return the parts of a list column: (format, format of the items, chunks).

    `column` has `__arrow_c_stream__` or `__arrow_c_array__`. A table of one column is read as
    that column. The formats are Arrow's. `chunks` is None for a column of another type,
    otherwise a list of

        (n_lists, valid, offsets, sizes, list_size, items, items_valid)

    - `offsets`: n_lists + 1 offsets into `items` for List and LargeList; n_lists for ListViews,
      with `sizes`; None for FixedSizeList, which has `list_size`
    - `items`: a read-only array; the number of items if all are null; None if they are not
      numbers
    - `valid`, `items_valid`: (bytes, bit of the first entry); None if all are valid
    """
    cdef Memory memory
    cdef Schema schema
    cdef Stream stream
    cdef list chunks = []
    cdef int error
    if not hasattr(column, "__arrow_c_stream__"):
        schema_capsule, array_capsule = column.__arrow_c_array__()
        schema, memory = take_schema(schema_capsule), take_array(array_capsule)
        lists, items, wanted = read_formats(&schema.schema)
        if not wanted:
            return lists, items, None
        chunks.append(read_chunk(memory, &schema.schema, lists, items))
        return lists, items, chunks

    stream, schema = take_stream(column.__arrow_c_stream__()), Schema()
    with nogil:
        error = stream.stream.get_schema(&stream.stream, &schema.schema)
    if error != 0:
        raise_for_stream(stream, error)
    lists, items, wanted = read_formats(&schema.schema)
    if not wanted:
        return lists, items, None
    while True:
        memory = Memory()
        with nogil:
            error = stream.stream.get_next(&stream.stream, &memory.array)
        if error != 0:
            memory.array.release = NULL
            raise_for_stream(stream, error)
        if memory.array.release == NULL:
            return lists, items, chunks
        chunks.append(read_chunk(memory, &schema.schema, lists, items))


cdef Schema take_schema(object capsule):
    cdef Schema taken = Schema()
    cdef ArrowSchema* schema = <ArrowSchema*>PyCapsule_GetPointer(capsule, "arrow_schema")
    require(schema.release != NULL, "a schema that was released already")
    taken.schema = schema[0]
    schema.release = NULL
    return taken


cdef Memory take_array(object capsule):
    cdef Memory taken = Memory()
    cdef ArrowArray* array = <ArrowArray*>PyCapsule_GetPointer(capsule, "arrow_array")
    require(array.release != NULL, "an array that was released already")
    taken.array = array[0]
    array.release = NULL
    return taken


cdef Stream take_stream(object capsule):
    cdef Stream taken = Stream()
    cdef ArrowArrayStream* stream
    stream = <ArrowArrayStream*>PyCapsule_GetPointer(capsule, "arrow_array_stream")
    require(stream.release != NULL, "a stream that was released already")
    taken.stream = stream[0]
    stream.release = NULL
    return taken


cdef raise_for_stream(Stream stream, int error):
    cdef const char* message = stream.stream.get_last_error(&stream.stream)
    reason = f"error {error}" if message == NULL else message.decode(errors="replace")
    raise ValueError(f"its stream failed: {reason}")


cdef require(bint good, str seen):
    """Raise unless a condition of the C data interface holds."""
    if not good:
        raise ValueError(f"it must follow Arrow's C data interface, got {seen}")


cdef str decode_format(const char* format):
    require(format != NULL, "a type without a format")
    return format.decode(errors="replace")


cdef bint is_table(const ArrowSchema* schema):
    return decode_format(schema.format) == "+s" and schema.n_children == 1


cdef const ArrowSchema* get_child(const ArrowSchema* schema, int64_t i) except NULL:
    require(schema.children != NULL and schema.children[i] != NULL, "a type without its children")
    return schema.children[i]


cdef const ArrowArray* get_only_child(const ArrowArray* array) except NULL:
    require(array.n_children == 1 and array.children != NULL and array.children[0] != NULL,
            "an array without its child")
    return array.children[0]


cdef tuple read_formats(const ArrowSchema* schema):
    """Return (format, format of the items, whether this is a list column).

    For a table of several columns, the format of the items is that of its first list column.
    """
    cdef int64_t i
    if is_table(schema):
        schema = get_child(schema, 0)
    lists = decode_format(schema.format)
    if lists == "n":
        return lists, "n", True
    if lists == "+s":
        for i in range(schema.n_children):
            if is_of_lists(decode_format(get_child(schema, i).format)):
                return lists, decode_format(get_child(schema, i).format), False
    if not is_of_lists(lists):
        return lists, "", False
    require(schema.n_children == 1, f"lists with {schema.n_children} children")
    schema = get_child(schema, 0)
    return lists, "dictionary" if schema.dictionary != NULL else decode_format(schema.format), True


cdef bint is_of_lists(str format):
    return format in ("+l", "+L", "+vl", "+vL") or format.startswith("+w:")


cdef tuple read_chunk(Memory memory, const ArrowSchema* schema, str lists, str items):
    cdef:
        const ArrowArray* array = &memory.array
        int64_t n, start, first_item, n_items, list_size = 0
        bint is_view = lists.startswith("+v")
        int type_number = cnp.NPY_INT64 if lists.endswith("L") else cnp.NPY_INT32
        const ArrowArray* child
        object offsets = None, sizes = None
    check_counts(array)
    n, start = array.length, array.offset
    if is_table(schema):
        require(no_nulls(array), "a table with rows that are null")
        array = get_only_child(array)
        check_counts(array)
        require(array.length - n >= start, "a column shorter than its table")
        start = start + array.offset
    if lists == "n":   # all lists are null
        return n, None, None, None, 0, 0, None
    child = get_only_child(array)
    check_counts(child)
    first_item, n_items = child.offset, child.length

    if lists.startswith("+w:"):
        list_size = int(lists.removeprefix("+w:"))
        require(0 <= list_size <= MAX_ENTRIES, "lists of such a size")
        require(list_size == 0 or start + n <= n_items // list_size, "fewer items than its lists")
        first_item = first_item + start * list_size
        n_items = n * list_size
    elif n == 0:
        offsets = view_entries(memory, NULL, 0, 0, type_number)
        sizes = offsets if is_view else None
        n_items = 0
    else:
        require(array.n_buffers >= (3 if is_view else 2), "lists without offsets")
        offsets = view_entries(
            memory, array.buffers[1], start, n if is_view else n + 1, type_number
        )
        if is_view:
            sizes = view_entries(memory, array.buffers[2], start, n, type_number)

    return (n, validity(memory, array, start, n), offsets, sizes, list_size,
            read_items(memory, child, items, first_item, n_items),
            validity(memory, child, first_item, n_items) if items != "n" else None)


cdef check_counts(const ArrowArray* array):
    require(array.n_buffers == 0 or array.buffers != NULL, "an array without its buffers")
    require(0 <= array.length <= MAX_ENTRIES and 0 <= array.offset <= MAX_ENTRIES - array.length,
            f"{array.length} entries from {array.offset} on")


cdef bint no_nulls(const ArrowArray* array):
    return array.null_count == 0 or array.n_buffers == 0 or array.buffers[0] == NULL


cdef object validity(Memory memory, const ArrowArray* array, int64_t start, int64_t n):
    """Return which of n entries are valid, as (bytes, first bit); None if all are."""
    if n == 0 or no_nulls(array):
        return None
    first = start // 8
    n_bytes = (start + n + 7) // 8 - first
    return view_entries(memory, array.buffers[0], first, n_bytes, cnp.NPY_UINT8), start % 8


cdef object read_items(
    Memory memory, const ArrowArray* array, str format, int64_t start, int64_t n
):
    """Return the n items from `start` on; None if they are not numbers."""
    if format == "n":
        return n
    type_number = TYPES.get(format)
    if type_number is None:
        return None
    require(array.n_buffers >= 2, "items without values")
    return view_entries(memory, array.buffers[1], start, n, type_number)


cdef cnp.ndarray view_entries(
    Memory memory, const void* data, int64_t start, cnp.npy_intp n, int type_number
):
    """Return the n entries from `start` on as a read-only array that keeps `memory` alive."""
    cdef cnp.ndarray array
    if n == 0:
        return cnp.PyArray_ZEROS(1, &n, type_number, 0)
    require(data != NULL, "a buffer without an address")
    itemsize = cnp.PyArray_DescrFromType(type_number).itemsize
    data = <const char*>data + start * <int64_t>itemsize
    array = cnp.PyArray_SimpleNewFromData(1, &n, type_number, <void*>data)
    cnp.set_array_base(array, memory)
    cnp.PyArray_CLEARFLAGS(array, cnp.NPY_ARRAY_WRITEABLE)
    return array
