# Rows of floats to rows of few bits.
#
# Code q of a row stands for scale * q + bias. The bytes are those of FBGEMM, and so are
# the operations that lead to them, each rounded to float32. See quantized.py for where a
# row has what.

cdef enum:
    CODES = 64             # that are made together; whole bytes of each width
    FEW_CODES = 16         # the same near the end of a row
    RANGE_LANES = 16       # columns whose extremes are found together
    FACTOR_ROWS = 16       # rows whose factors are found together: one row's take long, not much

cdef struct Factors:
    # What FACTOR_ROWS rows have between their least and their greatest entry, and how.
    float low[FACTOR_ROWS]
    float high[FACTOR_ROWS]
    float spoilt[FACTOR_ROWS]        # 0 where every entry is finite, else NaN
    float scale[FACTOR_ROWS]
    float bias[FACTOR_ROWS]
    float inverse[FACTOR_ROWS]       # of the scale


cdef inline void stretch(
    const Py_ssize_t n, float* low, float* high, float* spoilt, const float* row
) noexcept nogil:
    cdef Py_ssize_t d
    for d in range(n):
        low[d] = row[d] if row[d] < low[d] else low[d]
        high[d] = row[d] if row[d] > high[d] else high[d]
        spoilt[d] = spoilt[d] + row[d] * <float>0


cdef inline void merge_lanes(
    const Py_ssize_t n, float* low, float* high, float* spoilt
) noexcept nogil:
    """The second n lanes into the first n."""
    cdef Py_ssize_t d
    for d in range(n):
        low[d] = low[n + d] if low[n + d] < low[d] else low[d]
        high[d] = high[n + d] if high[n + d] > high[d] else high[d]
        spoilt[d] = spoilt[d] + spoilt[n + d]


cdef inline bint is_negative(float x) noexcept nogil:
    return embag_bits_of_float(x) >> 31


cdef bint lowest_zero_is_negative(const float* row, Py_ssize_t dim) noexcept nogil:
    """Whether the minimum of a row whose minimum is a zero is -0.0.

    0.0 equals -0.0. Of a row that has both, this is the one that FBGEMM's vectors of 8
    lanes arrive at: each lane keeps its last, the first lane that has one wins, and the
    columns that fill no vector count only where no lane has one.
    """
    cdef Py_ssize_t lane, d, whole = dim // 8 * 8
    for lane in range(min(<Py_ssize_t>8, whole)):
        d = whole - 8 + lane
        while d >= 0:
            if row[d] == 0:
                return is_negative(row[d])
            d = d - 8
    for d in range(whole, dim):
        if row[d] == 0:
            return is_negative(row[d])
    return False


cdef inline void find_range(
    const float* row,                # IN
    Py_ssize_t dim,
    Py_ssize_t i,
    Factors* factors,                # OUT  its low[i], high[i], spoilt[i]; zeros of no column
) noexcept nogil:
    cdef:
        float low[RANGE_LANES]
        float high[RANGE_LANES]
        float spoilt[RANGE_LANES]
        Py_ssize_t block, d
    if dim >= RANGE_LANES:
        for d in range(RANGE_LANES):
            low[d] = row[d]
    else:
        for d in range(RANGE_LANES):
            low[d] = row[d if d < dim else 0] if dim > 0 else 0
    for d in range(RANGE_LANES):
        high[d] = low[d]
        spoilt[d] = low[d] * <float>0
    for block in range(1, (dim + RANGE_LANES - 1) // RANGE_LANES):
        # The last columns together with some that were seen before: no harm is done.
        stretch(RANGE_LANES, low, high, spoilt,
                row + min(block * RANGE_LANES, dim - RANGE_LANES))
    merge_lanes(8, low, high, spoilt)
    merge_lanes(4, low, high, spoilt)
    merge_lanes(2, low, high, spoilt)
    merge_lanes(1, low, high, spoilt)
    factors.low[i] = low[0]
    if low[0] == 0:
        factors.low[i] = -<float>0 if lowest_zero_is_negative(row, dim) else <float>0
    factors.high[i] = high[0] + <float>0     # 0.0, not -0.0: so is the range of zeros
    factors.spoilt[i] = spoilt[0]


cdef inline float round_to_half(float x) noexcept nogil:
    return embag_half_to_float(embag_float_to_half(x))


cdef inline void find_factors(const int bits, Factors* rows) noexcept nogil:    # rows: INOUT
    """What the codes of rows are multiplied with and added to.

    For few bits scale and bias are halves. A least entry rounded up to a half may exceed
    the greatest: then the scale is negative.
    """
    cdef:
        Py_ssize_t i
        float last = (1 << bits) - 1
        float extent[FACTOR_ROWS]
    if bits == 8:
        for i in range(FACTOR_ROWS):
            rows.bias[i] = rows.low[i]
            extent[i] = rows.high[i] - rows.low[i]
            rows.scale[i] = extent[i] / last
            rows.inverse[i] = last / (extent[i] + <float>1e-8)
    else:
        for i in range(FACTOR_ROWS):
            rows.bias[i] = round_to_half(rows.low[i])
        for i in range(FACTOR_ROWS):
            extent[i] = rows.high[i] - rows.bias[i]
            rows.scale[i] = round_to_half(extent[i] / last)
        for i in range(FACTOR_ROWS):
            rows.scale[i] = rows.scale[i] if rows.scale[i] != 0 else <float>1
            rows.inverse[i] = <float>1 / rows.scale[i]


cdef inline bint is_good(const int bits, const Factors* rows, Py_ssize_t i) noexcept nogil:
    """Whether row i is finite, and so is what its codes stand for."""
    cdef:
        float last = (1 << bits) - 1
        float top = rows.scale[i] * last + rows.bias[i]
    return (rows.spoilt[i] == 0) & (top - top == 0)


cdef inline void round_block(
    const int bits,
    const Py_ssize_t n,
    const float* row,                # IN
    float bias,
    float inverse,                   # of the scale
    uint8_t* codes,                  # OUT
) noexcept nogil:
    """Codes of n columns, to the nearest, ties to even.

    What is at least 0 and below 2**23 has its integer part, rounded, in the last bits of
    its sum with 2**23.
    """
    cdef:
        Py_ssize_t d
        float x[CODES]
        float last = (1 << bits) - 1
    for d in range(n):
        x[d] = (row[d] - bias) * inverse
    if bits < 8:
        for d in range(n):
            x[d] = x[d] if x[d] > 0 else <float>0
        for d in range(n):
            x[d] = x[d] if x[d] < last else last
    for d in range(n):
        codes[d] = <uint8_t>embag_bits_of_float(x[d] + <float>8388608)


cdef inline void pack_block(
    const int bits, const Py_ssize_t n, const uint8_t* codes, uint8_t* packed
) noexcept nogil:
    """n bytes of codes; the first code of a byte has its lowest bits."""
    cdef:
        Py_ssize_t i
        uint16_t pairs[CODES]
        uint32_t fours[CODES]
    if bits == 8:
        for i in range(n):
            packed[i] = codes[i]
    elif bits == 4:
        for i in range(n):
            pairs[i] = embag_read_2_codes(codes + 2 * i)
        for i in range(n):
            pairs[i] = pairs[i] | pairs[i] >> 4
        for i in range(n):
            packed[i] = <uint8_t>pairs[i]
    else:
        for i in range(n):
            fours[i] = embag_read_4_codes(codes + 4 * i)
        for i in range(n):
            fours[i] = fours[i] | fours[i] >> 6 | fours[i] >> 12 | fours[i] >> 18
        for i in range(n):
            packed[i] = <uint8_t>fours[i]


cdef inline char* quantize_block(
    const int bits,
    const Py_ssize_t n,
    const float* row,                # IN   (n,)
    float bias,
    float inverse,
    char* out,                       # OUT
) noexcept nogil:
    """The codes of n columns, whole bytes; returns where the next are to go."""
    cdef:
        uint8_t codes[CODES]
        uint8_t packed[CODES]
    round_block(bits, n, row, bias, inverse, codes)
    pack_block(bits, n * bits // 8, codes, packed)
    memcpy(out, packed, n * bits // 8)
    return out + n * bits // 8


cdef inline void quantize_row(
    const int bits,
    const float* row,                # IN   (dim,)
    Py_ssize_t dim,
    float scale,
    float bias,
    float inverse,
    char* out,                       # OUT  codes, scale and bias
) noexcept nogil:
    cdef:
        float rest[FEW_CODES]
        char last[FEW_CODES]
        Py_ssize_t block, d, n = dim % FEW_CODES
    for block in range(dim // CODES):
        out = quantize_block(bits, CODES, row + block * CODES, bias, inverse, out)
    for block in range(dim // CODES * CODES // FEW_CODES, dim // FEW_CODES):
        out = quantize_block(bits, FEW_CODES, row + block * FEW_CODES, bias, inverse, out)
    if n > 0:
        for d in range(FEW_CODES):
            rest[d] = bias           # code 0: so are the bits of no column
        memcpy(rest, row + (dim - n), n * sizeof(float))
        quantize_block(bits, FEW_CODES, rest, bias, inverse, last)
        memcpy(out, last, entry_bytes(bits, n))
        out = out + entry_bytes(bits, n)
    if bits == 8:
        embag_write_float(out, scale)
        embag_write_float(out + 4, bias)
    else:
        embag_write_uint16(out, embag_float_to_half(scale))
        embag_write_uint16(out + 2, embag_float_to_half(bias))


cdef inline Py_ssize_t quantize_rows_of(
    const int bits,
    const char* table,               # IN   (n_rows, dim) float32
    Py_ssize_t row_stride,           # bytes
    Py_ssize_t dim,
    char* out,                       # OUT  (n_rows, out_stride), or NULL: only look
    Py_ssize_t out_stride,           # bytes
    Py_ssize_t start,
    Py_ssize_t stop,
) noexcept nogil:
    """Rows start to stop, up to the first that cannot be: returns it, else -1."""
    cdef:
        Factors factors
        Py_ssize_t r, n, i
    memset(&factors, 0, sizeof(factors))
    r = start
    while r < stop:
        n = min(stop - r, <Py_ssize_t>FACTOR_ROWS)
        for i in range(n):
            find_range(<const float*>(table + (r + i) * row_stride), dim, i, &factors)
        find_factors(bits, &factors)
        for i in range(n):
            if not is_good(bits, &factors, i):
                return r + i
            if out != NULL:
                quantize_row(
                    bits, <const float*>(table + (r + i) * row_stride), dim, factors.scale[i],
                    factors.bias[i], factors.inverse[i], out + (r + i) * out_stride)
        r = r + n
    return -1


cdef Py_ssize_t quantize_rows(
    const char* table,               # IN   (n_rows, dim) float32
    Py_ssize_t row_stride,           # bytes
    Py_ssize_t dim,
    int bits,
    char* out,                       # OUT  (n_rows, out_stride), or NULL: only look
    Py_ssize_t out_stride,           # bytes
    Py_ssize_t start,
    Py_ssize_t stop,
) noexcept nogil:
    if bits == 8:
        return quantize_rows_of(8, table, row_stride, dim, out, out_stride, start, stop)
    if bits == 4:
        return quantize_rows_of(4, table, row_stride, dim, out, out_stride, start, stop)
    return quantize_rows_of(2, table, row_stride, dim, out, out_stride, start, stop)


cdef struct Quantize:
    Py_ssize_t row_stride  # bytes
    Py_ssize_t out_stride
    Py_ssize_t n_rows
    Py_ssize_t dim
    int bits


cdef bint quantize_chunk(
    const Quantize* job, const char* table, char* out, Py_ssize_t c, Py_ssize_t n_chunks
) noexcept nogil:
    return quantize_rows(
        table, job.row_stride, job.dim, job.bits, out, job.out_stride,
        cut(job.n_rows, c, n_chunks), cut(job.n_rows, c + 1, n_chunks)) < 0


def quantize(
    int n_threads,
    cnp.ndarray weight not None,     # IN   (n_rows, dim) float32, columns adjacent
    int bits,
    cnp.ndarray out not None,        # OUT  (n_rows, row_bytes) uint8, contiguous
) -> bool:
    """Fill `out` with fused rows of 8, 4 or 2 bits. False if a row cannot be quantized."""
    refuse_change(
        is_table(weight) and cnp.PyArray_TYPE(weight) == cnp.NPY_FLOAT32
        and is_encoded_table(out, ENCODING_CODES["fused", bits], cnp.PyArray_DIM(weight, 1))
        and is_result(
            out, cnp.PyArray_DIM(weight, 0), cnp.PyArray_DIM(out, 1), cnp.NPY_UINT8))
    cdef Quantize job = Quantize(
        cnp.PyArray_STRIDE(weight, 0), cnp.PyArray_DIM(out, 1), cnp.PyArray_DIM(weight, 0),
        cnp.PyArray_DIM(weight, 1), bits)
    return run_chunks(<chunk_work>quantize_chunk, &job, cnp.PyArray_DATA(weight),
                      cnp.PyArray_DATA(out), shares_of(n_threads, 0), n_threads)


def first_bad_row(
    cnp.ndarray weight not None,     # IN   (n_rows, dim) float32, columns adjacent
    int bits,
) -> int:
    """The first row that cannot be quantized; -1 if there is none."""
    refuse_change(is_table(weight) and cnp.PyArray_TYPE(weight) == cnp.NPY_FLOAT32)
    cdef:
        const char* table = <const char*>cnp.PyArray_DATA(weight)
        Py_ssize_t row_stride = cnp.PyArray_STRIDE(weight, 0)
        Py_ssize_t n_rows = cnp.PyArray_DIM(weight, 0), dim = cnp.PyArray_DIM(weight, 1), row
        uint64_t floats
    with nogil:
        floats = embag_use_default_floats()
        row = quantize_rows(table, row_stride, dim, bits, NULL, 0, 0, n_rows)
        embag_restore_floats(floats)
    return row
