"""Arrow columns of lists, read where they lie. See `_ragged.py`.

Any library's column comes by the Arrow PyCapsule interface: three structs of C (_arrow.h), a
standard that needs no library. nanoarrow, which is made for this, cannot give the buffers of
ListViews (0.9), and embag would need it for what NumPy users have at hand without it.

What a producer writes into the structs is believed where nothing else can be done: that its
addresses are good for as many entries as its lengths say (pyarrow is asked whether they are,
_containers.py). Counts and types are checked here, ranges of lists and ids where they are used.

Tested in tests/test_columns.py.
"""

from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport int64_t
from libc.string cimport memset

cimport numpy as cnp

cnp.import_array()

cdef extern from "_arrow.h" nogil:
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


cdef int64_t MOST = <int64_t>1 << 48     # entries: more cannot be addressed

# NumPy's types, by Arrow's formats.
TYPES = {
    "c": cnp.NPY_INT8, "C": cnp.NPY_UINT8, "s": cnp.NPY_INT16, "S": cnp.NPY_UINT16,
    "i": cnp.NPY_INT32, "I": cnp.NPY_UINT32, "l": cnp.NPY_INT64, "L": cnp.NPY_UINT64,
    "e": cnp.NPY_FLOAT16, "f": cnp.NPY_FLOAT32, "g": cnp.NPY_FLOAT64,
}


cdef class Memory:
    """What a producer handed over: let go with the last array that lies in it."""

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
    """What a column of lists consists of: (format, format of the items, chunks).

    `column` has `__arrow_c_stream__` or `__arrow_c_array__`. A table of one column is that
    column. The formats are Arrow's. `chunks` is None for any other type, else a list of

        (n_lists, valid, offsets, sizes, list_size, items, items_valid)

    - `offsets`: of List and LargeList, n_lists + 1 into `items`; of ListViews n_lists,
      with `sizes`; None for FixedSizeList, which has `list_size`
    - `items`: a read-only array; their number if all are null; None if they are no numbers
    - `valid`, `items_valid`: (bytes, bit of the first in them); None if all are
    """
    cdef Memory memory
    cdef Schema schema
    cdef Stream stream
    cdef list chunks = []
    cdef int error
    if not hasattr(column, "__arrow_c_stream__"):
        schema_capsule, array_capsule = column.__arrow_c_array__()
        schema, memory = take_schema(schema_capsule), take_array(array_capsule)
        lists, items, wanted = formats_of(&schema.schema)
        if not wanted:
            return lists, items, None
        chunks.append(read_chunk(memory, &schema.schema, lists, items))
        return lists, items, chunks

    stream, schema = take_stream(column.__arrow_c_stream__()), Schema()
    with nogil:
        error = stream.stream.get_schema(&stream.stream, &schema.schema)
    if error != 0:
        raise_for_stream(stream, error)
    lists, items, wanted = formats_of(&schema.schema)
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
    demand(schema.release != NULL, "a schema that was released")
    taken.schema = schema[0]
    schema.release = NULL
    return taken


cdef Memory take_array(object capsule):
    cdef Memory taken = Memory()
    cdef ArrowArray* array = <ArrowArray*>PyCapsule_GetPointer(capsule, "arrow_array")
    demand(array.release != NULL, "an array that was released")
    taken.array = array[0]
    array.release = NULL
    return taken


cdef Stream take_stream(object capsule):
    cdef Stream taken = Stream()
    cdef ArrowArrayStream* stream
    stream = <ArrowArrayStream*>PyCapsule_GetPointer(capsule, "arrow_array_stream")
    demand(stream.release != NULL, "a stream that was released")
    taken.stream = stream[0]
    stream.release = NULL
    return taken


cdef raise_for_stream(Stream stream, int error):
    cdef const char* message = stream.stream.get_last_error(&stream.stream)
    told = f"error {error}" if message == NULL else message.decode(errors="replace")
    raise ValueError(f"its stream failed: {told}")


cdef demand(bint good, str seen):
    if not good:
        raise ValueError(f"it must be as Arrow's C data interface has it, got {seen}")


cdef str text(const char* format):
    demand(format != NULL, "a type without a format")
    return format.decode(errors="replace")


cdef bint is_table(const ArrowSchema* schema):
    return text(schema.format) == "+s" and schema.n_children == 1


cdef const ArrowSchema* child_of(const ArrowSchema* schema, int64_t i) except NULL:
    demand(schema.children != NULL and schema.children[i] != NULL, "a type without its children")
    return schema.children[i]


cdef const ArrowArray* only_child_of(const ArrowArray* array) except NULL:
    demand(array.n_children == 1 and array.children != NULL and array.children[0] != NULL,
           "an array without its child")
    return array.children[0]


cdef tuple formats_of(const ArrowSchema* schema):
    """(format, format of the items, whether it is one of lists). A table of several columns
    has the format of the first one that is of lists for its items."""
    cdef int64_t i
    if is_table(schema):
        schema = child_of(schema, 0)
    lists = text(schema.format)
    if lists == "n":
        return lists, "n", True
    if lists == "+s":
        for i in range(schema.n_children):
            if is_of_lists(text(child_of(schema, i).format)):
                return lists, text(child_of(schema, i).format), False
    if not is_of_lists(lists):
        return lists, "", False
    demand(schema.n_children == 1, f"lists with {schema.n_children} children")
    schema = child_of(schema, 0)
    return lists, "dictionary" if schema.dictionary != NULL else text(schema.format), True


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
        demand(no_nulls(array), "a table with rows that are null")
        array = only_child_of(array)
        check_counts(array)
        demand(array.length - n >= start, "a column shorter than its table")
        start = start + array.offset
    if lists == "n":   # nothing but nulls
        return n, None, None, None, 0, 0, None
    child = only_child_of(array)
    check_counts(child)
    first_item, n_items = child.offset, child.length

    if lists.startswith("+w:"):
        list_size = int(lists.removeprefix("+w:"))
        demand(0 <= list_size <= MOST, "lists of such a size")
        demand(list_size == 0 or start + n <= n_items // list_size, "fewer items than its lists")
        first_item = first_item + start * list_size
        n_items = n * list_size
    elif n == 0:
        offsets = part(memory, NULL, 0, 0, type_number)
        sizes = offsets if is_view else None
        n_items = 0
    else:
        demand(array.n_buffers >= (3 if is_view else 2), "lists without offsets")
        offsets = part(memory, array.buffers[1], start, n if is_view else n + 1, type_number)
        if is_view:
            sizes = part(memory, array.buffers[2], start, n, type_number)

    return (n, bits(memory, array, start, n), offsets, sizes, list_size,
            items_of(memory, child, items, first_item, n_items),
            bits(memory, child, first_item, n_items) if items != "n" else None)


cdef check_counts(const ArrowArray* array):
    demand(array.n_buffers == 0 or array.buffers != NULL, "an array without its buffers")
    demand(0 <= array.length <= MOST and 0 <= array.offset <= MOST - array.length,
           f"{array.length} entries from {array.offset} on")


cdef bint no_nulls(const ArrowArray* array):
    return array.null_count == 0 or array.n_buffers == 0 or array.buffers[0] == NULL


cdef object bits(Memory memory, const ArrowArray* array, int64_t start, int64_t n):
    """Which of n entries are valid: (bytes, first bit); None if all are."""
    if n == 0 or no_nulls(array):
        return None
    first = start // 8
    return part(memory, array.buffers[0], first, (start + n + 7) // 8 - first,
                cnp.NPY_UINT8), start % 8


cdef object items_of(
    Memory memory, const ArrowArray* array, str format, int64_t start, int64_t n
):
    """The n items from `start` on."""
    if format == "n":
        return n
    type_number = TYPES.get(format)
    if type_number is None:
        return None
    demand(array.n_buffers >= 2, "items without values")
    return part(memory, array.buffers[1], start, n, type_number)


cdef cnp.ndarray part(
    Memory memory, const void* data, int64_t start, cnp.npy_intp n, int type_number
):
    """An array of the n entries from `start` on, which keeps their memory."""
    cdef cnp.ndarray array
    if n == 0:
        return cnp.PyArray_ZEROS(1, &n, type_number, 0)
    demand(data != NULL, "no memory where there should be some")
    itemsize = cnp.PyArray_DescrFromType(type_number).itemsize
    data = <const char*>data + start * <int64_t>itemsize
    array = cnp.PyArray_SimpleNewFromData(1, &n, type_number, <void*>data)
    cnp.set_array_base(array, memory)
    cnp.PyArray_CLEARFLAGS(array, cnp.NPY_ARRAY_WRITEABLE)
    return array
