"""Arrow columns of any library, read in place through Arrow's C data interface.

Columns come through the Arrow PyCapsule interface: three C structs (_cdata.h), which are read
here without a library. nanoarrow serves the same purpose, but 0.9 does not expose the buffers
of ListViews, and it would be one more dependency.

    Source    a column that was opened: its `Type`, and its chunks
    Array     a chunk, or a part of one: it returns its buffers as NumPy arrays, and its children

arrow_types.py decides which types are read, and how. Counts are checked here, ranges of lists and
ids where they are used. That a buffer is as long as the lengths need cannot be checked; pyarrow is
asked to validate its columns first (readers.py).

Tested in tests/columns/.
"""

from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport int64_t
from libc.string cimport memset

cimport cython
cimport numpy as cnp

cnp.import_array()

cdef extern from "_cdata.h" nogil:
    struct ArrowSchema:
        const char* format
        const char* name
        int64_t flags
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
        ArrowArray* dictionary
        void (*release)(ArrowArray*) noexcept nogil

    struct ArrowArrayStream:
        int (*get_schema)(ArrowArrayStream*, ArrowSchema*) noexcept nogil
        int (*get_next)(ArrowArrayStream*, ArrowArray*) noexcept nogil
        const char* (*get_last_error)(ArrowArrayStream*) noexcept nogil
        void (*release)(ArrowArrayStream*) noexcept nogil


cdef int64_t MAX_ENTRIES = <int64_t>1 << 48     # of an array: no address space holds more
cdef int64_t NULLABLE = 2                       # a flag of a schema
cdef int MAX_DEPTH = 8                          # of the types that are read, more than any needs

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


cdef class Type:
    """A type: Arrow's format, the types of its children, and that of its dictionary."""

    cdef readonly str format
    cdef readonly str name
    cdef readonly bint is_nullable
    cdef readonly list children
    cdef readonly Type dictionary
    cdef readonly bint is_fixed    # FixedSizeLists
    cdef bint is_view              # ListViews
    cdef int offset_type           # of lists


cdef class Array:
    """Entries of an array, from `start` in its buffers on."""

    cdef Memory memory
    cdef const ArrowArray* array
    cdef int64_t start
    cdef readonly int64_t n
    cdef readonly Type type

    def valid(self):
        """Return which entries are valid, as (bytes, bit of the first); None if all are."""
        if self.n == 0 or self.array.null_count == 0:
            return None
        if self.array.n_buffers == 0 or self.array.buffers[0] == NULL:
            return None
        cdef int64_t first = self.start // 8
        cdef int64_t n_bytes = (self.start + self.n + 7) // 8 - first
        return self.view(0, first, n_bytes, cnp.NPY_UINT8), self.start % 8

    def values(self):
        """Return the numbers of an array whose format is in `TYPES`."""
        return self.view(1, self.start, self.n, TYPES[self.type.format])

    def offsets(self):
        """Return where lists start: n + 1 offsets, or n for ListViews; none without lists."""
        cdef int64_t n = self.n if self.n == 0 or self.type.is_view else self.n + 1
        return self.view(1, self.start, n, self.type.offset_type)

    def sizes(self):
        """Return the sizes of ListViews; None for other lists."""
        if not self.type.is_view:
            return None
        return self.view(2, self.start, self.n, self.type.offset_type)

    @property
    def list_size(self):
        """The size of FixedSizeLists."""
        size = int(self.type.format.removeprefix("+w:"))
        require(0 <= size <= MAX_ENTRIES, "lists of such a size")
        return size

    def child(self, int i):
        """Return a child, i >= 0: a field of structs, or the items of lists.

        The entries of a field, and those of FixedSizeLists, are those of this array; the items
        of other lists are all that are in memory.
        """
        cdef const ArrowArray* child
        cdef int64_t size, start = 0, n
        require(i < self.array.n_children and i < len(self.type.children)
                and self.array.children != NULL and self.array.children[i] != NULL,
                "an array without its children")
        child = self.array.children[i]
        check_counts(child)
        n = child.length
        if self.type.format == "+s":
            require(child.length - self.n >= self.start, "a field shorter than its structs")
            start, n = self.start, self.n
        elif self.type.is_fixed:
            size = self.list_size
            require(size == 0 or self.start + self.n <= child.length // size,
                    "fewer items than its lists")
            start, n = self.start * size, self.n * size
        return make_array(self.memory, child, self.type.children[i], child.offset + start, n)

    def dictionary(self):
        """Return the values of an array of codes."""
        require(self.array.dictionary != NULL, "codes without a dictionary")
        check_counts(self.array.dictionary)
        return make_array(self.memory, self.array.dictionary, self.type.dictionary,
                          self.array.dictionary.offset, self.array.dictionary.length)

    cdef cnp.ndarray view(self, int buffer, int64_t start, cnp.npy_intp n, int type_number):
        """Return entries of a buffer as a read-only array that keeps the memory alive."""
        cdef cnp.ndarray array
        cdef const char* data
        if n == 0:
            return cnp.PyArray_ZEROS(1, &n, type_number, 0)
        require(self.array.n_buffers > buffer, "an array without its buffers")
        data = <const char*>self.array.buffers[buffer]
        require(data != NULL, "a buffer without an address")
        data += start * <int64_t>cnp.PyArray_DescrFromType(type_number).itemsize
        array = cnp.PyArray_SimpleNewFromData(1, &n, type_number, <void*>data)
        cnp.set_array_base(array, self.memory)
        cnp.PyArray_CLEARFLAGS(array, cnp.NPY_ARRAY_WRITEABLE)
        return array


cdef class Source:
    """A column of any library, opened: its type, and its chunks."""

    cdef readonly Type type
    cdef Stream stream
    cdef Memory memory

    def __init__(self, object column):
        """Open a column, which has `__arrow_c_stream__` or `__arrow_c_array__`."""
        cdef Schema schema
        cdef int error
        if hasattr(column, "__arrow_c_stream__"):
            self.stream, schema = take_stream(column.__arrow_c_stream__()), Schema()
            with nogil:
                error = self.stream.stream.get_schema(&self.stream.stream, &schema.schema)
            if error != 0:
                raise_for_stream(self.stream, error)
        else:
            schema_capsule, array_capsule = column.__arrow_c_array__()
            schema, self.memory = take_schema(schema_capsule), take_array(array_capsule)
        self.type = read_type(&schema.schema, 0)

    def read_chunks(self):
        """Return the chunks, each an `Array`. A stream is read to its end, so call this once."""
        cdef Memory memory
        cdef int error
        if self.stream is None:
            return [make_chunk(self.memory, self.type)]
        chunks = []
        while True:
            memory = Memory()
            with nogil:
                error = self.stream.stream.get_next(&self.stream.stream, &memory.array)
            if error != 0:
                memory.array.release = NULL
                raise_for_stream(self.stream, error)
            if memory.array.release == NULL:
                return chunks
            chunks.append(make_chunk(memory, self.type))


# A struct is moved out of its capsule once. The lock of the capsule keeps other threads of embag
# from moving it at the same time.

cdef Schema take_schema(object capsule):
    cdef Schema taken = Schema()
    cdef ArrowSchema* schema = <ArrowSchema*>PyCapsule_GetPointer(capsule, "arrow_schema")
    with cython.critical_section(capsule):
        taken.schema = schema[0]
        schema.release = NULL
    require(taken.schema.release != NULL, "a schema that was released already")
    return taken


cdef Memory take_array(object capsule):
    cdef Memory taken = Memory()
    cdef ArrowArray* array = <ArrowArray*>PyCapsule_GetPointer(capsule, "arrow_array")
    with cython.critical_section(capsule):
        taken.array = array[0]
        array.release = NULL
    require(taken.array.release != NULL, "an array that was released already")
    return taken


cdef Stream take_stream(object capsule):
    cdef Stream taken = Stream()
    cdef ArrowArrayStream* stream
    stream = <ArrowArrayStream*>PyCapsule_GetPointer(capsule, "arrow_array_stream")
    with cython.critical_section(capsule):
        taken.stream = stream[0]
        stream.release = NULL
    require(taken.stream.release != NULL, "a stream that was released already")
    return taken


cdef raise_for_stream(Stream stream, int error):
    cdef const char* message = stream.stream.get_last_error(&stream.stream)
    reason = f"error {error}" if message == NULL else message.decode(errors="replace")
    raise ValueError(f"its stream failed: {reason}")


cdef require(bint good, str seen):
    """Raise unless a condition of the C data interface holds."""
    if not good:
        raise ValueError(f"it must follow Arrow's C data interface, got {seen}")


cdef Type read_type(const ArrowSchema* schema, int depth):
    """Return a type, with the types in it down to a depth that no type needs."""
    cdef Type found = Type()
    cdef int64_t i
    require(schema.format != NULL, "a type without a format")
    found.format = schema.format.decode(errors="replace")
    found.is_fixed = found.format.startswith("+w:")
    found.is_view = found.format.startswith("+v")
    found.offset_type = cnp.NPY_INT64 if found.format.endswith("L") else cnp.NPY_INT32
    found.name = "" if schema.name == NULL else schema.name.decode(errors="replace")
    found.is_nullable = schema.flags & NULLABLE
    found.children = []
    if depth < MAX_DEPTH:
        for i in range(schema.n_children):
            require(schema.children != NULL and schema.children[i] != NULL,
                    "a type without its children")
            found.children.append(read_type(schema.children[i], depth + 1))
        if schema.dictionary != NULL:
            found.dictionary = read_type(schema.dictionary, depth + 1)
    return found


cdef Array make_chunk(Memory memory, Type type):
    check_counts(&memory.array)
    return make_array(memory, &memory.array, type, memory.array.offset, memory.array.length)


cdef Array make_array(
    Memory memory, const ArrowArray* array, Type type, int64_t start, int64_t n
):
    cdef Array made = Array()
    made.memory, made.array, made.type = memory, array, type
    made.start, made.n = start, n
    return made


cdef check_counts(const ArrowArray* array):
    require(array.n_buffers == 0 or array.buffers != NULL, "an array without its buffers")
    require(0 <= array.length <= MAX_ENTRIES and 0 <= array.offset <= MAX_ENTRIES - array.length,
            f"{array.length} entries from {array.offset} on")
