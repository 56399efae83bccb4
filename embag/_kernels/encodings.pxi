# Encodings: how a row of a table holds its entries.
#
# ENCODINGS is the one table of them; embag/_encodings.py reads it. An encoding that is added
# to it also needs
#
# - a type of entries and its `decode`, and `write_entries` if results may have it, in
#   entries.pxi; what that needs of the processor in platform.h
# - a function in blocks.pxi, such as `reduce_half`, and its line in REDUCERS, in forward.pxi
# - for arrays of a dtype of NumPy's: `encoding_of` in calls.pxi
# - for files: its names in _files/headers.py

cdef enum:
    FLOAT32
    FLOAT64
    FLOAT16
    BFLOAT16
    INT8
    INT4
    INT2
    TBE_INT8
    TBE_INT4
    TBE_INT2
    SIGNED_INT8            # from here on, entries are values
    UNSIGNED_INT8
    E4M3
    E5M2
    N_ENCODINGS

cdef struct EncodingTraits:
    int bits               # of an entry
    int type_number        # NumPy's, of an array of such rows
    int sum_type           # NumPy's, of what rows are summed in
    int factor_bytes       # of a row's scale, and of its bias; 0: it has none
    # Scale and bias are in front of the entries, which other bytes may follow; else behind.
    bint factors_first
    bint rounds            # results may be rounded to it, or have it as it is

cdef EncodingTraits[N_ENCODINGS] ENCODINGS
ENCODINGS[FLOAT32] = EncodingTraits(32, cnp.NPY_FLOAT32, cnp.NPY_FLOAT32, 0, False, True)
ENCODINGS[FLOAT64] = EncodingTraits(64, cnp.NPY_FLOAT64, cnp.NPY_FLOAT64, 0, False, True)
ENCODINGS[FLOAT16] = EncodingTraits(16, cnp.NPY_FLOAT16, cnp.NPY_FLOAT32, 0, False, True)
# NumPy has no bfloat16: `_encodings.py` views such arrays as integers.
ENCODINGS[BFLOAT16] = EncodingTraits(16, cnp.NPY_UINT16, cnp.NPY_FLOAT32, 0, False, True)
ENCODINGS[INT8] = EncodingTraits(8, cnp.NPY_UINT8, cnp.NPY_FLOAT32, 4, False, False)
ENCODINGS[INT4] = EncodingTraits(4, cnp.NPY_UINT8, cnp.NPY_FLOAT32, 2, False, False)
ENCODINGS[INT2] = EncodingTraits(2, cnp.NPY_UINT8, cnp.NPY_FLOAT32, 2, False, False)
ENCODINGS[TBE_INT8] = EncodingTraits(8, cnp.NPY_UINT8, cnp.NPY_FLOAT32, 2, True, False)
ENCODINGS[TBE_INT4] = EncodingTraits(4, cnp.NPY_UINT8, cnp.NPY_FLOAT32, 2, True, False)
ENCODINGS[TBE_INT2] = EncodingTraits(2, cnp.NPY_UINT8, cnp.NPY_FLOAT32, 2, True, False)
ENCODINGS[SIGNED_INT8] = EncodingTraits(8, cnp.NPY_INT8, cnp.NPY_FLOAT32, 0, False, False)
ENCODINGS[UNSIGNED_INT8] = EncodingTraits(8, cnp.NPY_UINT8, cnp.NPY_FLOAT32, 0, False, False)
# NumPy has no 8-bit floats either.
ENCODINGS[E4M3] = EncodingTraits(8, cnp.NPY_UINT8, cnp.NPY_FLOAT32, 0, False, False)
ENCODINGS[E5M2] = EncodingTraits(8, cnp.NPY_UINT8, cnp.NPY_FLOAT32, 0, False, False)

# The codes by name, for `_encodings.py`. "fused" and "tbe" are the layouts of QuantizedTable.
ENCODING_CODES = {
    "float32": FLOAT32,
    "float64": FLOAT64,
    "float16": FLOAT16,
    "bfloat16": BFLOAT16,
    ("fused", 8): INT8,
    ("fused", 4): INT4,
    ("fused", 2): INT2,
    ("tbe", 8): TBE_INT8,
    ("tbe", 4): TBE_INT4,
    ("tbe", 2): TBE_INT2,
    "int8": SIGNED_INT8,
    "uint8": UNSIGNED_INT8,
    "float8_e4m3fn": E4M3,
    "float8_e5m2": E5M2,
}


cdef inline bint is_encoding(int encoding) noexcept nogil:
    return 0 <= encoding < N_ENCODINGS


cdef inline bint is_plain(int encoding) noexcept nogil:
    """Whether rows are added as they are: floats of the type of sums."""
    return ENCODINGS[encoding].type_number == ENCODINGS[encoding].sum_type


cdef inline Py_ssize_t entry_bytes(const int bits, Py_ssize_t n) noexcept nogil:
    """The bytes of n entries."""
    if bits >= 8:
        return n * (bits // 8)
    return n // (8 // bits) + (n % (8 // bits) > 0)


cdef Py_ssize_t row_bytes_of(int encoding, Py_ssize_t dim) noexcept nogil:
    """The bytes of a row that are read."""
    return (entry_bytes(ENCODINGS[encoding].bits, dim)
            + 2 * <Py_ssize_t>ENCODINGS[encoding].factor_bytes)


def row_bytes(int encoding, Py_ssize_t dim) -> int:
    """The bytes of a row of `dim` entries, without padding behind it."""
    demand_encoding(encoding)
    return row_bytes_of(encoding, dim)


def encoding_traits(int encoding):
    """(bits, factor_bytes, factors_first, rounds) of an encoding."""
    demand_encoding(encoding)
    cdef EncodingTraits traits = ENCODINGS[encoding]
    return traits.bits, traits.factor_bytes, traits.factors_first, traits.rounds


cdef int demand_encoding(int encoding) except -1:
    """Raise for an unknown code."""
    if not is_encoding(encoding):
        raise RuntimeError(f"encoding must be from 0 to {N_ENCODINGS - 1}, got {encoding}")
    return 0
