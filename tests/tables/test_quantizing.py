"""`quantize`: its bytes against literals, NumPy and torch; inputs, outputs and errors."""

import re
import threading
import tracemalloc

import numpy as np
import pytest
from cases import SWAPPED, assert_same_bits

import embag
from embag import quantized
from embag.quantized import row_bytes

ALL_BITS = [8, 4, 2]
WIDTHS = [1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 32, 33, 47, 48, 63, 64, 65, 100, 129, 300]
FLOAT_MAX = float(np.finfo(np.float32).max)


def quantized_bytes(rows, bits):
    return embag.quantize(np.array(rows, np.float32), bits).packed


# --- Literals -------------------------------------------------------------------------

BY_HAND = [
    # bits, row, the bytes of its codes, scale, bias
    ("range", 8, [0, 1, 255], [0, 1, 255], 1, 0),
    ("moved", 8, [-10, 500, 245], [0, 255, 128], 2, -10),  # 127.5: to even
    ("ties", 8, [0, 0.5, 1.5, 2.5, 3.5, 255], [0, 0, 2, 2, 4, 255], 1, 0),
    ("constant", 8, [7, 7, 7], [0, 0, 0], 0, 7),
    ("one", 8, [-3], [0], 0, -3),
    ("none", 8, [], [], 0, 0),
    ("small", 8, [0, 1e-8], [0, 128], np.float32(1e-8) / np.float32(255), 0),  # 1e-8 is added
    ("first_lowest", 4, [0, 1, 2, 3, 4, 5, 14, 15], [0x10, 0x32, 0x54, 0xFE], 1, 0),
    ("odd", 4, [15, 15, 0, 15, 15], [0xFF, 0xF0, 0x0F], 1, 0),
    ("scaled", 4, [-1, 29, 3, 6], [0xF0, 0x42], 2, -1),  # 3.5: to even
    ("constant", 4, [7, 7, 7], [0, 0], 1, 7),
    ("none", 4, [], [], 1, 0),
    # 1.00064 is 1.0009765625 in float16: the range above it is negative.
    ("bias_above", 4, [1.00064, 1.00064], [0xFF], np.float32(1.00064 - 1.0009765625) / 15, 1.001),
    ("below_bias", 4, [1.00058, 1.0163], [0xF0], (1.0163 - 1.0009765625) / 15, 1.001),
    ("first_lowest", 2, [-1, 0, 1, 2], [0b11_10_01_00], 1, -1),
    ("odd", 2, [3, 3, 3, 3, 0, 3], [0xFF, 0b11_00], 1, 0),
    ("constant", 2, [7, 7, 7], [0], 1, 7),
    ("none", 2, [], [], 1, 0),
]


@pytest.mark.parametrize(
    ("bits", "row", "codes", "scale", "bias"),
    [case[1:] for case in BY_HAND],
    ids=[f"{case[0]}_{case[1]}" for case in BY_HAND],
)
def test_bytes_of_literals(bits, row, codes, scale, bias, level):
    factors = np.array([scale, bias], np.float32 if bits == 8 else np.float16)
    expected = codes + factors.view(np.uint8).tolist()
    assert quantized_bytes([row], bits).tolist() == [expected]


@pytest.mark.parametrize("bits", ALL_BITS)
def test_the_sign_of_a_bias_that_is_zero(bits, level):
    """The bias is the first zero of up to 8 columns; of more, the last of the first lane."""

    def bias(row):
        packed = quantized_bytes([row], bits)
        return packed[0, -4 if bits == 8 else -2 :].view(np.float32 if bits == 8 else np.float16)[0]

    for rest in ([], [1.0], [2.0] * 6):
        assert np.signbit(bias([-0.0, 0.0, *rest]))
        assert not np.signbit(bias([0.0, -0.0, *rest]))
    whole = np.ones(24, np.float32)
    whole[[3, 19]] = 0.0, -0.0  # both in lane 3
    assert np.signbit(bias(whole))
    whole[2] = 0.0  # in lane 2
    assert not np.signbit(bias(whole))
    assert not np.signbit(bias([*whole, -0.0]))
    assert np.signbit(bias([*np.ones(24), -0.0, 0.0]))
    all_zero = np.zeros(16, np.float32)
    all_zero[8] = -0.0
    assert np.signbit(bias(all_zero))


# --- NumPy ----------------------------------------------------------------------------


def minimum(row):
    """Return the minimum of a row, and of zeros the one described above."""
    low = row.min()
    if low == 0:
        whole = len(row) // 8 * 8
        lanes = [row[lane:whole:8][::-1] for lane in range(8)]
        zeros = np.concatenate([*lanes, row[whole:]])
        low = zeros[zeros == 0][0]
    return low


def reference(rows, bits):
    """Return the bytes by definition, computed in float32 row by row."""
    one, last = np.float32(1), np.float32(2**bits - 1)
    n_rows, dim = rows.shape
    packed = np.zeros((n_rows, row_bytes(bits, dim)), np.uint8)
    for to, row in zip(packed, rows, strict=True):
        if bits == 8:
            bias = minimum(row)
            extent = row.max() - bias + np.float32(0)
            factors = np.array([extent / last, bias], np.float32)
            inverse = last / (extent + np.float32(1e-8))
        else:
            bias = np.float32(np.float16(minimum(row)))
            extent = row.max() - bias
            scale = np.float32(np.float16(extent / last)) or one
            factors = np.array([scale, bias], np.float16)
            inverse = one / scale
        codes = np.clip(np.rint((row - bias) * inverse), 0, last).astype(np.uint8)
        for d, code in enumerate(codes):
            to[d * bits // 8] |= code << (d * bits % 8)
        to[-factors.nbytes :] = factors.view(np.uint8)
    return packed


def tables(dim, n_rows=40):
    """Return finite tables by name. Some of their rows do not fit few bits."""
    rng = np.random.default_rng(dim)
    shape, one = (n_rows, dim), (n_rows, 1)
    base = rng.standard_normal(one)
    with np.errstate(all="ignore"):
        given = {
            "normal": rng.standard_normal(shape),
            "constant": np.repeat(base * 10 ** rng.uniform(-45, 38, one), dim, axis=1),
            "nearly_constant": base * (1 + rng.integers(0, 9, shape) * 2.0**-23),
            "half_rounds": base * (1 + rng.standard_normal(shape) * 10 ** rng.uniform(-8, -1, one)),
            "subnormal": rng.integers(-2000, 2000, shape) * 1.4e-45,
            "subnormal_halves": rng.standard_normal(shape) * 10 ** rng.uniform(-9, -4, one),
            "zeros": rng.choice([0.0, -0.0], shape),
            "relu": np.maximum(rng.choice([0.0, -0.0, 1.0, 2.5], shape), -0.0),
            "ties": rng.integers(-100, 100, shape) / 2,
            "large_halves": rng.standard_normal(shape) * 10 ** rng.uniform(3, 5, one),
            "large": rng.standard_normal(shape) * 10 ** rng.uniform(5, 37, one),
            "largest": rng.choice([FLOAT_MAX, 0, -1, 1e30], shape),
            "any_bits": rng.integers(0, 2**32, shape, dtype=np.uint32).view(np.float32),
        }
        for name, table in given.items():
            floats = np.float32(table)
            yield name, np.where(np.isfinite(floats), floats, 1)


def fits(rows, bits):
    """Return which rows have a finite scale and bias."""
    with np.errstate(all="ignore"):
        low, high = rows.min(axis=1), rows.max(axis=1)
        if bits == 8:
            return np.isfinite(high - low)
        bias = np.float32(np.float16(low))
        scale = np.float16((high - bias) / np.float32(2**bits - 1))
        return np.isfinite(bias) & np.isfinite(scale)


@pytest.mark.parametrize("bits", ALL_BITS)
def test_bytes_of_numpy(bits, level, eager_threads):
    for dim in WIDTHS:
        for name, table in tables(dim, 18):
            rows = table[fits(table, bits)]
            with np.errstate(under="ignore"):
                expected = reference(rows, bits)
            for n_threads in (1, 3):
                result = embag.quantize(rows, bits, num_threads=n_threads).packed
                np.testing.assert_array_equal(result, expected, f"{name}, dim {dim}")


@pytest.mark.parametrize("bits", ALL_BITS)
def test_the_same_bytes_for_any_threads_and_chunks(bits, level, eager_threads, monkeypatch):
    weight = np.random.default_rng(0).standard_normal((1001, 50), np.float32)
    expected = embag.quantize(weight, bits, num_threads=1).packed
    for n_threads in (1, 2, 5, 16):
        for chunk in (1, 700, 20_000):
            monkeypatch.setattr(quantized, "CHUNK_ENTRIES", chunk)
            result = embag.quantize(weight, bits, num_threads=n_threads).packed
            np.testing.assert_array_equal(result, expected)


@pytest.mark.torch
@pytest.mark.parametrize("bits", ALL_BITS)
def test_bytes_of_torch(bits, level):
    torch = pytest.importorskip("torch")
    name = {8: "byte", 4: "4bit", 2: "2bit"}[bits]
    prepack = getattr(torch.ops.quantized, f"embedding_bag_{name}_prepack")
    for dim in WIDTHS:
        if dim * bits % 8 != 0:  # torch requires whole bytes
            continue
        for name, table in tables(dim):
            rows = table[fits(table, bits)]
            expected = prepack(torch.from_numpy(rows)).numpy()
            result = embag.quantize(rows, bits).packed
            np.testing.assert_array_equal(result, expected, f"{name}, dim {dim}")


# --- Inputs ---------------------------------------------------------------------------


def misaligned(array):
    copied = np.empty(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
    copied[...] = array
    return copied


LAYOUTS = {
    "rows_apart": lambda a: np.repeat(a, 2, axis=0)[::2],
    "rows_reversed": lambda a: a[::-1].copy()[::-1],
    "columns_of_a_wider_array": lambda a: np.hstack([a, a, a])[:, a.shape[1] : 2 * a.shape[1]],
    "columns_apart": lambda a: np.repeat(a, 2, axis=1)[:, ::2],
    "columns_reversed": lambda a: a[:, ::-1].copy()[:, ::-1],
    "fortran": lambda a: np.array(a, order="F"),
    "misaligned": misaligned,
    "matrix": lambda a: a.view(np.matrix),
    "masked": lambda a: np.ma.array(a, mask=True),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_tables_of_any_layout(layout, dtype, level, monkeypatch):
    weight = np.random.default_rng(0).standard_normal((70, 33)).astype(dtype)
    expected = embag.quantize(weight.astype(np.float32), 4).packed
    monkeypatch.setattr(quantized, "CHUNK_ENTRIES", 1000)
    given = LAYOUTS[layout](weight)
    given.flags.writeable = False
    np.testing.assert_array_equal(embag.quantize(given, 4).packed, expected)
    np.testing.assert_array_equal(np.asarray(given), weight)


def test_a_table_that_repeats_one_row():
    weight = np.broadcast_to(np.arange(5, dtype=np.float32), (1000, 5))
    packed = embag.quantize(weight).packed
    assert (packed == packed[0]).all()
    assert packed[0, :5].tolist() == [0, 64, 128, 191, 255]


def test_entries_are_rounded_to_float32():
    weight = np.array([[0, 1 + 2**-24, 1 + 2**-24 + 2**-50, 0.1]])
    expected = embag.quantize(weight.astype(np.float32)).packed
    np.testing.assert_array_equal(embag.quantize(weight).packed, expected)


def test_bfloat16():
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    weight = np.random.default_rng(0).standard_normal((50, 9)).astype(bfloat16)
    for bits in ALL_BITS:
        table = embag.quantize(weight, bits)
        expected = embag.quantize(weight.astype(np.float32), bits)
        np.testing.assert_array_equal(table.packed, expected.packed)
        assert table.error(weight) == expected.error(weight.astype(np.float32))


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0)])
def test_no_entries(bits, shape, level):
    table = embag.quantize(np.zeros(shape, np.float32), bits)
    assert table.shape == shape
    assert_same_bits(table.dequantize(), np.zeros(shape, np.float32))
    around = np.full((shape[0], shape[1] + 4), -0.0, np.float32)  # which is not looked at
    around[:, 4:] = 0
    np.testing.assert_array_equal(embag.quantize(around[:, 4:], bits).packed, table.packed)
    if shape[1] == 0:
        np.testing.assert_array_equal(embag.quantize(around[:, :0], bits).packed, table.packed)


# --- Outputs --------------------------------------------------------------------------


def test_the_result_is_aligned():
    table = embag.quantize(np.ones((3, 4), np.float32))
    assert type(table) is embag.QuantizedTable
    assert (table.bits, table.dim, table.layout) == (8, 4, "fused")
    assert type(table.packed) is np.ndarray
    assert table.packed.ctypes.data % 64 == 0


def test_out():
    weight = np.random.default_rng(0).standard_normal((20, 7)).astype(np.float32)
    for bits in ALL_BITS:
        around = np.full((22, row_bytes(bits, 7)), 99, np.uint8)
        table = embag.quantize(weight, bits, out=around[1:-1])
        assert np.shares_memory(table.packed, around)
        np.testing.assert_array_equal(around[1:-1], embag.quantize(weight, bits).packed)
        assert (around[[0, -1]] == 99).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bits", ALL_BITS)
def test_from_file_to_file(bits, dtype, tmp_path, monkeypatch):
    weight = np.random.default_rng(0).standard_normal((3000, 20)).astype(dtype)
    np.save(tmp_path / "weight.npy", weight)
    expected = embag.quantize(weight, bits).packed
    given = np.load(tmp_path / "weight.npy", mmap_mode="r")
    out = np.lib.format.open_memmap(
        tmp_path / "packed.npy", mode="w+", dtype=np.uint8, shape=expected.shape
    )
    monkeypatch.setattr(quantized, "CHUNK_ENTRIES", 1000)
    monkeypatch.setattr(quantized, "SMALL_CHUNK_ENTRIES", 1000)
    tracemalloc.start()
    table = embag.quantize(given, bits, out=out)
    error = table.error(given)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000 < weight.nbytes
    assert error == embag.quantize(weight, bits).error(weight)
    out.flush()
    np.testing.assert_array_equal(np.load(tmp_path / "packed.npy"), expected)
    reread = np.load(tmp_path / "packed.npy", mmap_mode="r")
    twin = embag.QuantizedTable.from_packed(reread, bits, 20)
    assert_same_bits(twin.dequantize(), table.dequantize())


def test_progress(monkeypatch):
    monkeypatch.setattr(quantized, "CHUNK_ENTRIES", 12)
    seen = []
    embag.quantize(np.ones((7, 4), np.float32), progress=lambda *done: seen.append(done))
    assert seen == [(3, 7), (6, 7), (7, 7)]
    monkeypatch.setattr(quantized, "CHUNK_ENTRIES", 1)
    embag.quantize(np.ones((2, 4), np.float32), progress=lambda *done: seen.append(done))
    assert seen[3:] == [(1, 2), (2, 2)]
    embag.quantize(np.ones((0, 4), np.float32), progress=seen.append)
    assert len(seen) == 5


def test_progress_that_raises(monkeypatch):
    monkeypatch.setattr(quantized, "CHUNK_ENTRIES", 4)
    out = np.full((3, 12), 99, np.uint8)

    def stop(done, _):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embag.quantize(np.zeros((3, 4), np.float32), out=out, progress=stop)
    assert (out[:2] == 0).all()
    assert (out[2] == 99).all()


@pytest.mark.filterwarnings("ignore:Setting the shape:DeprecationWarning")
def test_progress_that_changes_shapes(monkeypatch):
    monkeypatch.setattr(quantized, "CHUNK_ENTRIES", 4)
    weight = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    expected = embag.quantize(weight).packed.copy()
    out = np.zeros((6, 12), np.uint8)

    def change(done, _):
        weight.shape = (4, 6) if done % 2 else (24,)
        out.shape = (72,) if done % 2 else (12, 6)

    embag.quantize(weight, out=out, progress=change)
    np.testing.assert_array_equal(out.reshape(6, 12), expected)


# --- Errors ---------------------------------------------------------------------------

W = np.ones((3, 4), np.float32)
READ_ONLY = np.zeros((3, 12), np.uint8)
READ_ONLY.flags.writeable = False
OVERLAP = np.zeros((12, 12), np.uint8)


def call(weight=W, *args, **options):
    return lambda: embag.quantize(weight, *args, **options)


def rows(*values, dtype=np.float64):
    """Return a float64 table of these rows after a row of ones."""
    return np.array([[1] * len(values[0]), *values], dtype)


FLOATS = "weight must be float32, float64, float16 or bfloat16 in native byte order"
ERRORS = [
    (call([[1.0]]), TypeError, "weight must be a numpy.ndarray, got list"),
    (call(None), TypeError, "weight must be a numpy.ndarray, got None"),
    (call(W.astype(int)), TypeError, f"{FLOATS}, got int64"),
    (call(W.astype(f"{SWAPPED}f4")), TypeError, f"{FLOATS}, got {SWAPPED}f4"),
    (call(W.astype(np.longdouble)), TypeError, f"{FLOATS}, got {np.dtype(np.longdouble).str}"),
    (call(W.astype(complex)), TypeError, f"{FLOATS}, got complex128"),
    (call(W.astype(object)), TypeError, f"{FLOATS}, got object"),
    (call(W.astype("S4")), TypeError, f"{FLOATS}, got |S4"),
    (call(W[0]), ValueError, "weight must be 2-D (n_rows, dim), got shape (4,)"),
    (call(W[None]), ValueError, "weight must be 2-D (n_rows, dim), got shape (1, 3, 4)"),
    (call(W, 16), ValueError, "bits must be 8, 4 or 2, got 16"),
    (call(W, 0), ValueError, "bits must be 8, 4 or 2, got 0"),
    (call(W, -8), ValueError, "bits must be 8, 4 or 2, got -8"),
    (call(W, 2**100), ValueError, "bits must be 8, 4 or 2, got an integer of 101 bits"),
    (call(W, 8.0), TypeError, "bits must be an integer, got 8.0"),
    (call(W, True), TypeError, "bits must be an integer, got True"),
    (call(W, "8"), TypeError, "bits must be an integer, got '8'"),
    (call(num_threads=0), ValueError, "num_threads must be at least 1, got 0"),
    (call(num_threads=1.0), TypeError, "num_threads must be an integer, got 1.0"),
    (call(progress=True), TypeError, "progress must be callable, got True"),
    (call(out=[[0]]), TypeError, "out must be a numpy.ndarray, got list"),
    (call(out=np.zeros((3, 12))), TypeError, "out must have the result's dtype uint8, got float64"),
    (
        call(out=np.zeros((3, 12), np.int8)),
        TypeError,
        "out must have the result's dtype uint8, got int8",
    ),
    (
        call(out=np.zeros((3, 11), np.uint8)),
        ValueError,
        "out must have shape (3, 12), got (3, 11)",
    ),
    (call(out=np.zeros(36, np.uint8)), ValueError, "out must have shape (3, 12), got (36,)"),
    (
        call(out=np.zeros((6, 12), np.uint8)[::2]),
        ValueError,
        "out must be C-contiguous and aligned, got strides (24, 1)",
    ),
    (call(out=READ_ONLY), ValueError, "out must be writeable, got a read-only array"),
    (
        call(OVERLAP[:3, :8].view(np.float16), out=OVERLAP[:3]),
        ValueError,
        "out must share no memory with weight, got an overlap",
    ),
    (call(rows([1, np.nan])), ValueError, "weight must have finite rows, got nan in row 1"),
    (
        call(rows([1, 2], [-np.inf, 0]), 4),
        ValueError,
        "weight must have finite rows, got -inf in row 2",
    ),
    (
        call(rows([3e38, -3e38], dtype=np.float32)),
        ValueError,
        "weight must have entries and ranges of rows that fit float32, "
        "got entries from -3e+38 to 3e+38 in row 1",
    ),
    (
        call(rows([0, 1e39])),
        ValueError,
        "weight must have entries and ranges of rows that fit float32, "
        "got entries from 0 to 1e+39 in row 1",
    ),
    (
        call(rows([70000, 70001]), 4),
        ValueError,
        "weight must have rows whose least entry fits float16, got 70000 in row 1",
    ),
    (
        call(rows([-1e300, 0]), 2),
        ValueError,
        "weight must have rows whose least entry fits float16, got -1e+300 in row 1",
    ),
    (
        call(rows([0, 1e6]), 4),
        ValueError,
        "weight must have rows whose range / 15 fits float16, got entries from 0 to 1e+06 in row 1",
    ),
    (
        call(rows([-60000, 140000]), 2),
        ValueError,
        "weight must have rows whose range / 3 fits float16, "
        "got entries from -60000 to 140000 in row 1",
    ),
]


@pytest.mark.parametrize(("called", "error", "message"), ERRORS, ids=[m for _, _, m in ERRORS])
def test_errors(called, error, message, level):
    with pytest.raises(error) as caught:
        called()
    assert type(caught.value) is error
    assert str(caught.value) == message
    assert (W == 1).all()


@pytest.mark.parametrize("bits", ALL_BITS)
def test_a_bad_entry_anywhere(bits, level):
    for dim in (1, 3, 8, 15, 16, 17, 40, 64, 65):
        for d in range(dim):
            for bad in (np.nan, np.inf, -np.inf):
                weight = np.ones((1, dim), np.float32)
                weight[0, d] = bad
                with pytest.raises(ValueError, match=f"finite rows, got {bad} in row 0"):
                    embag.quantize(weight, bits)


@pytest.mark.parametrize("bits", ALL_BITS)
def test_the_first_bad_row_is_named_and_those_before_it_are_written(
    bits, level, eager_threads, monkeypatch
):
    rng = np.random.default_rng(bits)
    good = rng.standard_normal((500, 6)).astype(np.float32)
    expected = embag.quantize(good, bits).packed
    for r in (0, 1, 15, 16, 17, 130, 499):
        weight = good.copy()
        weight[r, 2] = np.nan
        weight[rng.integers(r, 500, 20), 5] = np.inf
        for chunk in (1, 60, 10**6):
            monkeypatch.setattr(quantized, "CHUNK_ENTRIES", chunk)
            for n_threads in (1, 3, 16):
                out = np.zeros_like(expected)
                with pytest.raises(ValueError, match=rf"got (nan|inf) in row {r}$"):
                    embag.quantize(weight, bits, out=out, num_threads=n_threads)
                np.testing.assert_array_equal(out[:r], expected[:r])


@pytest.mark.parametrize("n_rows", [2**50, 2**56])
def test_a_result_too_large_for_memory_is_a_memory_error(n_rows):
    weight = np.broadcast_to(np.ones(8, np.float32), (n_rows, 8))
    with pytest.raises(MemoryError):
        embag.quantize(weight)


class Index:
    """An integer whose conversion runs an action."""

    def __init__(self, value, action):
        self.value, self.action = value, action

    def __index__(self):
        self.action()
        return self.value


@pytest.mark.filterwarnings("ignore:Setting the shape:DeprecationWarning")
def test_conversions_that_run_code():
    weight = np.ones((3, 4), np.float32)

    def change():
        weight.shape = (12, 1)

    assert embag.quantize(weight, Index(8, change)).shape == (12, 1)

    def fail():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        embag.quantize(weight, Index(8, fail))


@pytest.mark.thorough
def test_values_written_by_another_thread(level, eager_threads):
    weight = np.ones((400, 40), np.float32)
    stop = threading.Event()

    def scribble():
        rng = np.random.default_rng(0)
        while not stop.is_set():
            weight[rng.integers(400), rng.integers(40)] = rng.choice([1, np.nan, np.inf, 1e30, 0])

    thread = threading.Thread(target=scribble)
    thread.start()
    try:
        for _ in range(100):
            for bits in ALL_BITS:
                try:
                    table = embag.quantize(weight, bits, num_threads=3)
                    assert np.isfinite(table.dequantize()).all()
                except ValueError as error:
                    assert str(error).startswith("weight must have ")
                except RuntimeError as error:
                    assert str(error).startswith("arrays must not change during the call")
                weight[...] = 1
    finally:
        stop.set()
        thread.join()


def test_row_bytes():
    assert [row_bytes(bits, 5) for bits in ALL_BITS] == [13, 7, 6]
    assert [row_bytes(bits, 5, "tbe") for bits in ALL_BITS] == [9, 7, 6]
    for bad, message in (
        ((3, 5), "bits must be 8, 4 or 2, got 3"),
        ((8, -1), "dim must be from 0 to 2**62 - 1, got -1"),
        ((8, 5, "C"), "layout must be 'fused' or 'tbe', got 'C'"),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            row_bytes(*bad)
