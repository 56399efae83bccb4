# The entries of a row, decoded: what is special to each encoding.
#
# - Floats of any width, and integers of 8 bits that are values themselves, are converted to
#   float, exactly where they are narrower. Those of 8 bits may have scales, for all rows or for
#   each, in an array of their own.
# - Other integers q stand for `scale * q + bias`, with a scale and a bias per row. A sum of
#   rows is the sum of `scale * q`, each added by a fused multiply-add, plus the sum of
#   the biases, which is one number for all columns: two instructions a vector fewer than
#   decoding each entry, and for these rows instructions are what a cached table costs.
#   Every RUN positions the biases are added in, so that the two sums stay near each other
#   and near the result, however long the bag.
# - Integers of less than a byte stay in planes: the first entries of all bytes, then the
#   second ones, and so on. That way no byte is shuffled; the planes are interleaved
#   when a bag is done.

cdef enum:
    RUN = 32               # positions between additions of the biases

# What a row's bytes are, as types to specialise by. float and double are rows of plain
# floats, which are reduced in their own type; all others are decoded to float.
cdef struct narrowed_entries:    # a float64, rounded to float as it is read
    double value
cdef struct half_entries:
    uint16_t bits
cdef struct bfloat_entries:
    uint16_t bits
cdef struct int8_entries:        # with scale and bias in float32
    uint8_t bits
cdef struct int8_half_entries:   # with scale and bias in float16, as all below
    uint8_t bits
cdef struct int4_entries:
    uint8_t bits
cdef struct int2_entries:
    uint8_t bits
cdef struct signed_entries:      # the entries of this and the next structs are values
    int8_t value
cdef struct unsigned_entries:
    uint8_t value
cdef struct e4m3_entries:
    uint8_t bits
cdef struct e5m2_entries:
    uint8_t bits

ctypedef fused entry_ft:
    float
    double
    narrowed_entries
    half_entries
    bfloat_entries
    int8_entries
    int8_half_entries
    int4_entries
    int2_entries
    signed_entries
    unsigned_entries
    e4m3_entries
    e5m2_entries


cdef inline bint are_plain(const entry_ft* entries) noexcept nogil:
    """Whether entries are of the type of sums."""
    return entry_ft is float or entry_ft is double


cdef inline bint are_quantized(const entry_ft* entries) noexcept nogil:
    return (entry_ft is int8_entries or entry_ft is int8_half_entries
            or entry_ft is int4_entries or entry_ft is int2_entries)


cdef inline bint may_have_scales(const entry_ft* entries) noexcept nogil:
    """Whether rows may have a scale each, in an array of their own."""
    return entry_ft is signed_entries or entry_ft is e4m3_entries or entry_ft is e5m2_entries


cdef inline Py_ssize_t factor_bytes_of(const entry_ft* entries) noexcept nogil:
    """The bytes of a row's scale, and of its bias."""
    return 4 if entry_ft is int8_entries else 2


cdef inline Py_ssize_t entries_a_byte(const entry_ft* entries) noexcept nogil:
    """How many planes a row is decoded to."""
    if entry_ft is int2_entries:
        return 4
    elif entry_ft is int4_entries:
        return 2
    else:
        return 1


cdef inline Py_ssize_t bytes_of(const entry_ft* entries, Py_ssize_t n) noexcept nogil:
    """The bytes of n entries, whole bytes."""
    return n * <Py_ssize_t>sizeof(entry_ft) // entries_a_byte(entries)


cdef inline void decode(const Py_ssize_t n, const entry_ft* entries, float* to) noexcept nogil:
    """n entries of a row, as floats; integers of less than a byte in planes."""
    cdef Py_ssize_t d
    if entry_ft is narrowed_entries:
        for d in range(n):
            to[d] = <float>entries[d].value
    elif entry_ft is half_entries:
        embag_halves_to_floats(n, <const char*>entries, to)
    elif entry_ft is bfloat_entries:
        for d in range(n):
            to[d] = embag_bfloat_to_float(entries[d].bits)
    elif entry_ft is signed_entries:
        embag_int8s_to_floats(n, <const char*>entries, to)
    elif entry_ft is e4m3_entries:
        embag_e4m3s_to_floats(n, <const char*>entries, to)
    elif entry_ft is e5m2_entries:
        embag_e5m2s_to_floats(n, <const char*>entries, to)
    elif (entry_ft is int8_entries or entry_ft is int8_half_entries
          or entry_ft is unsigned_entries):
        embag_bytes_to_floats(8, n, <const char*>entries, to)
    elif entry_ft is int4_entries:
        embag_bytes_to_floats(4, n // 2, <const char*>entries, to)
    elif entry_ft is int2_entries:
        embag_bytes_to_floats(2, n // 4, <const char*>entries, to)


cdef inline void interleave(
    const Py_ssize_t n_planes, const Py_ssize_t n, float* to, const float* planes
) noexcept nogil:
    """n entries in the order of columns."""
    cdef Py_ssize_t d, p
    for d in range(n // n_planes):
        for p in range(n_planes):
            to[d * n_planes + p] = planes[p * (n // n_planes) + d]


cdef inline float read_factor(const entry_ft* entries, const char* source) noexcept nogil:
    """A scale or a bias of such entries."""
    if entry_ft is int8_entries:
        return embag_read_float(source)
    return embag_half_to_float(embag_read_uint16(source))


cdef inline void write_entries(
    int encoding, Py_ssize_t n, const float* entries, char* out
) noexcept nogil:
    """Write n results to `out`, rounded to its dtype."""
    cdef Py_ssize_t d
    if encoding == FLOAT32:
        memcpy(out, entries, <size_t>n * sizeof(float))
    elif encoding == FLOAT16:
        embag_floats_to_halves(n, entries, <uint16_t*>out)
    elif encoding == BFLOAT16:
        for d in range(n):
            (<uint16_t*>out)[d] = embag_float_to_bfloat(entries[d])
