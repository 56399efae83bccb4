"""`QuantizedTable`: construction, errors, dequantized floats, and the error of quantization."""

import copy
import pickle
import threading

import numpy as np
import pytest
from cases import SWAPPED, assert_same_bits
from processes import SCRIPTS, run_python

import embag
from embag import QuantizedTable, _encodings, quantized
from embag.quantized import row_bytes

FORMATS = [(bits, layout) for layout in ("fused", "tbe") for bits in (8, 4, 2)]
WIDTHS = [1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 100, 300]
PACKED = np.random.default_rng(0).integers(0, 256, (5, 14), np.uint8)


def fused(packed=PACKED, bits=8, dim=6, layout="fused"):
    return QuantizedTable.from_packed(packed, bits, dim, layout)


def parts(packed, bits, dim, layout):
    """Return codes, scales and biases; scales and biases are (n_rows, 1) float32."""
    wide = bits == 8 and layout == "fused"
    n_bytes, n_factors = (dim * bits + 7) // 8, 8 if wide else 4
    start, factor_start = (0, n_bytes) if layout == "fused" else (4, 0)
    factors = np.ascontiguousarray(packed[:, factor_start : factor_start + n_factors])
    with np.errstate(invalid="ignore"):  # aarch64 converts a signalling NaN with a warning
        factors = factors.view(np.float32 if wide else np.float16).astype(np.float32)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes = packed[:, start : start + n_bytes, None] >> shifts & (2**bits - 1)
    codes = codes.reshape(len(packed), n_bytes * 8 // bits)[:, :dim]
    return codes, factors[:, :1], factors[:, 1:]


def reference(packed, bits, dim, layout):
    codes, scales, biases = parts(packed, bits, dim, layout)
    with np.errstate(all="ignore"):
        return scales * codes.astype(np.float32) + biases


def random_packed(n_rows, bits, dim, layout, padding=0):
    rng = np.random.default_rng(dim)
    shape = (n_rows, row_bytes(bits, dim, layout) + padding)
    packed = rng.integers(0, 256, shape, np.uint8)  # also infinite and NaN scales
    numbers = rng.standard_normal((n_rows, 2)).astype(np.float32)
    if bits == 8 and layout == "fused":
        packed[::2, dim:] = numbers.view(np.uint8)[::2]
    elif layout == "fused":
        packed[::2, -4:] = numbers.astype(np.float16).view(np.uint8)[::2]
    else:
        packed[::2, :4] = numbers.astype(np.float16).view(np.uint8)[::2]
    return packed


# --- Attributes -----------------------------------------------------------------------


def test_attributes():
    table = fused()
    assert (table.bits, table.dim, table.layout) == (8, 6, "fused")
    assert table.shape == (5, 6)
    assert table.nbytes == 70
    assert np.shares_memory(table.packed, PACKED)  # not copied
    assert repr(table) == "QuantizedTable(5 rows, dim=6, bits=8, 70 bytes)"
    numpy_integers = fused(bits=np.uint8(4), dim=np.int64(20))
    assert [type(numpy_integers.bits), type(numpy_integers.dim)] == [int, int]


def test_only_the_bytes_are_mutable():
    table = fused(PACKED.copy())
    for name in ("packed", "bits", "dim", "layout", "shape", "other"):
        with pytest.raises((AttributeError, TypeError)):
            setattr(table, name, None)
    table.packed[...] = 0
    assert (table.dequantize() == 0).all()


def test_it_equals_only_itself_and_can_be_a_key():
    table = fused()
    assert table == table  # noqa: PLR0124
    assert table != fused()
    assert {table: 1}[table] == 1


@pytest.mark.parametrize("layout", ["fused", "tbe"])
@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda table: pickle.loads(pickle.dumps(table))]
)
def test_copies_and_pickles(duplicate, layout):
    for packed in (PACKED, PACKED[::-2], np.hstack([PACKED] * 2)[:, 3:17]):
        table = fused(packed, 4, 20, layout)
        twin = duplicate(table)
        assert type(twin) is QuantizedTable
        assert (twin.bits, twin.dim, twin.layout) == (4, 20, layout)
        np.testing.assert_array_equal(twin.packed, table.packed)
        assert_same_bits(twin.dequantize(), table.dequantize())


def test_unpickling_checks_the_contents():
    make, arguments = fused().__reduce__()
    with pytest.raises(ValueError, match="packed must have rows of"):
        make(arguments[0], 8, 7, "fused")


@pytest.mark.parametrize("kind", ["matrix", "masked", "memmap", "read_only", "rows_apart", "other"])
def test_arrays_of_any_kind(kind, tmp_path):
    class Misreporting(np.ndarray):
        shape = property(lambda _: (10**6, 14))
        dtype = property(lambda _: None)

    given = {
        "matrix": lambda: PACKED.view(np.matrix),
        "masked": lambda: np.ma.array(PACKED, mask=True),
        "memmap": lambda: np.memmap(tmp_path / "packed", np.uint8, "w+", shape=PACKED.shape),
        "read_only": lambda: np.frombuffer(PACKED.tobytes(), np.uint8).reshape(5, 14),
        "rows_apart": lambda: np.repeat(PACKED, 3, axis=0)[::3],
        "other": lambda: PACKED.view(Misreporting),
    }[kind]()
    if kind == "memmap":
        given[...] = PACKED
    table = fused(given)
    assert type(table.packed) is np.ndarray
    assert table.shape == (5, 6)
    assert_same_bits(table.dequantize(), reference(PACKED, 8, 6, "fused"))


# --- Errors ---------------------------------------------------------------------------


def bytes_of(*shape):
    return np.zeros(shape, np.uint8)


ERRORS = [
    (lambda: fused([[0]]), TypeError, "packed must be a numpy.ndarray, got list"),
    (lambda: fused(None), TypeError, "packed must be a numpy.ndarray, got None"),
    (lambda: fused(b"abc"), TypeError, "packed must be a numpy.ndarray, got bytes"),
    (lambda: fused(PACKED.view(np.int8)), TypeError, "packed must be uint8, got dtype int8"),
    (lambda: fused(PACKED.view(bool)), TypeError, "packed must be uint8, got dtype bool"),
    (
        lambda: fused(PACKED[0]),
        ValueError,
        "packed must be 2-D (n_rows, row_bytes), got shape (14,)",
    ),
    (
        lambda: fused(dim=7),
        ValueError,
        "packed must have rows of 15 bytes for 7 entries of 8 bits with layout 'fused', got 14",
    ),
    (
        lambda: fused(dim=5),
        ValueError,
        "packed must have rows of 13 bytes for 5 entries of 8 bits with layout 'fused', got 14",
    ),
    (
        lambda: fused(bits=4, dim=21, layout="tbe"),
        ValueError,
        "packed must have rows of at least 15 bytes for 21 entries of 4 bits with layout 'tbe', "
        "got 14",
    ),
    (
        lambda: fused(bytes_of(3, 28)[:, ::2]),
        ValueError,
        "packed must have the bytes of a row adjacent, got strides (28, 2)",
    ),
    (
        lambda: fused(np.asfortranarray(PACKED)),
        ValueError,
        "packed must have the bytes of a row adjacent, got strides (1, 5)",
    ),
    (lambda: fused(bits=1), ValueError, "bits must be 8, 4 or 2, got 1"),
    (lambda: fused(bits=8.0), TypeError, "bits must be an integer, got 8.0"),
    (lambda: fused(bits=None), TypeError, "bits must be an integer, got None"),
    (lambda: fused(dim=-1), ValueError, "dim must be from 0 to 2**62 - 1, got -1"),
    (
        lambda: fused(dim=2**70),
        ValueError,
        "dim must be from 0 to 2**62 - 1, got an integer of 71 bits",
    ),
    (lambda: fused(dim=True), TypeError, "dim must be an integer, got True"),
    (lambda: fused(layout="C"), ValueError, "layout must be 'fused' or 'tbe', got 'C'"),
    (lambda: fused(layout=None), ValueError, "layout must be 'fused' or 'tbe', got None"),
    (lambda: fused(layout=["tbe"]), ValueError, "layout must be 'fused' or 'tbe', got list"),
    # dequantize
    (lambda: fused().dequantize(3), ValueError, "rows must be 1-D, got shape ()"),
    (lambda: fused().dequantize([[1]]), ValueError, "rows must be 1-D, got shape (1, 1)"),
    (lambda: fused().dequantize([1.0]), TypeError, "rows must be integers, got dtype float64"),
    (lambda: fused().dequantize([True]), TypeError, "rows must be integers, got dtype bool"),
    (
        lambda: fused().dequantize([0, 5, -1]),
        IndexError,
        "rows[1] = 5 is out of range for a table of 5 rows",
    ),
    (
        lambda: fused().dequantize(np.array([0, -1], np.int32)),
        IndexError,
        "rows[1] = -1 is out of range for a table of 5 rows",
    ),
    (
        lambda: fused().dequantize(np.array([2**64 - 1], np.uint64)),
        IndexError,
        "rows[0] = 18446744073709551615 is out of range for a table of 5 rows",
    ),
    (
        lambda: fused(bytes_of(3, 8), dim=0).dequantize([2, 3]),
        IndexError,
        "rows[1] = 3 is out of range for a table of 3 rows",
    ),
    (
        lambda: fused().dequantize(num_threads=0),
        ValueError,
        "num_threads must be at least 1, got 0",
    ),
    (
        lambda: fused().dequantize(num_threads="2"),
        TypeError,
        "num_threads must be an integer, got '2'",
    ),
    # error
    (
        lambda: fused().error(np.zeros((6, 5), np.float32)),
        ValueError,
        "weight must have shape (5, 6), got (6, 5)",
    ),
    (
        lambda: fused().error(np.zeros(6)),
        ValueError,
        "weight must be 2-D (n_rows, dim), got shape (6,)",
    ),
    (lambda: fused().error([[0.0]]), TypeError, "weight must be a numpy.ndarray, got list"),
    (
        lambda: fused().error(PACKED),
        TypeError,
        "weight must be float32, float64, float16 or bfloat16 in native byte order, got uint8",
    ),
]


@pytest.mark.parametrize(("called", "error", "message"), ERRORS, ids=[m for _, _, m in ERRORS])
def test_errors(called, error, message, level):
    with pytest.raises(error) as caught:
        called()
    assert type(caught.value) is error
    assert str(caught.value) == message


@pytest.mark.filterwarnings("ignore:Setting the:DeprecationWarning")
def test_a_shape_that_is_changed_later(level):
    given = np.zeros((4, 14), np.uint8)
    table = fused(given)
    given.shape = (7, 8)
    assert table.dequantize().shape == (4, 6)
    for name, value in (("shape", (2, 28)), ("shape", (56,)), ("dtype", np.int8)):
        table = fused(np.zeros((4, 14), np.uint8))
        setattr(table.packed, name, value)
        for use in (table.dequantize, lambda table=table: table.dequantize([0])):
            with pytest.raises(RuntimeError, match=r"^arrays must not change during the call"):
                use()


def test_attributes_that_are_forcibly_changed(level):
    rows = fused().packed
    encoding = _encodings.ENCODINGS["fused", 8]
    codes = -1, 0, 2, 3, 5, 6, 10, 11, 12, 99
    wrong = [_encodings.Table(rows, code, 6, None, None, encoding) for code in codes]
    wrong += [_encodings.Table(rows, 4, dim, None, None, encoding) for dim in (-1, 5, 7, 2**61)]
    forced = [("_encoded", value) for value in wrong] + [("dim", 7), ("dim", 2**61)]
    for name, value in forced:
        table = fused()
        object.__setattr__(table, name, value)
        with pytest.raises((RuntimeError, MemoryError)):
            table.dequantize()


@pytest.mark.parametrize("dim", [0, 1, 300])
def test_more_rows_than_can_be_counted(dim, level):
    row = np.zeros(row_bytes(8, dim), np.uint8)
    packed = np.lib.stride_tricks.as_strided(row, (2**52, len(row)), (0, 1))
    table = fused(packed, dim=dim)
    assert table.shape == (2**52, dim)
    assert table.dequantize([2**52 - 1]).shape == (1, dim)
    with pytest.raises(IndexError):
        table.dequantize([2**52])
    if dim == 0:
        assert table.dequantize().shape == (2**52, 0)
    else:
        with pytest.raises(MemoryError):
            table.dequantize()


# --- Dequantized floats ---------------------------------------------------------------


FLOAT32S = [*np.array([0.5, -4], np.float32).tobytes()]  # in the machine's byte order
FLOAT16S = [*np.array([0.5, -4], np.float16).tobytes()]


@pytest.mark.parametrize(
    ("packed", "bits", "layout", "floats"),
    [
        ([0, 1, 255, *FLOAT32S], 8, "fused", [-4, -3.5, 123.5]),
        ([*FLOAT16S, 0, 1, 255], 8, "tbe", [-4, -3.5, 123.5]),
        ([0x10, 0x2, *FLOAT16S], 4, "fused", [-4, -3.5, -3]),
        ([*FLOAT16S, 0x10, 0xF2, 77], 4, "tbe", [-4, -3.5, -3]),
        ([0b11_10_01_00, *FLOAT16S], 2, "fused", [-4, -3.5, -3]),
        ([*FLOAT16S, 0b11_10_01_00], 2, "tbe", [-4, -3.5, -3]),
    ],
)
def test_floats_of_literals(packed, bits, layout, floats, level):
    table = fused(np.array([packed], np.uint8), bits, 3, layout)
    assert_same_bits(table.dequantize(), np.array([floats], np.float32))


@pytest.mark.parametrize(("bits", "layout"), FORMATS)
def test_floats_of_numpy(bits, layout, level, eager_threads):
    for dim in WIDTHS:
        for padding in (0, 3) if layout == "tbe" else (0,):
            packed = random_packed(40, bits, dim, layout, padding)
            table = fused(packed, bits, dim, layout)
            expected = reference(packed, bits, dim, layout)
            for n_threads in (1, 3, 8):
                result = table.dequantize(num_threads=n_threads)
                assert_same_bits(result, expected, f"dim {dim}")


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, np.uint64, f"{SWAPPED}i4"])
@pytest.mark.parametrize(("bits", "layout"), FORMATS)
def test_some_rows(bits, layout, dtype, level, eager_threads):
    packed = random_packed(99, bits, 21, layout)
    for given in (packed, np.repeat(packed, 2, axis=0)[::2], packed[::-1].copy()[::-1]):
        table = fused(given, bits, 21, layout)
        expected = reference(packed, bits, 21, layout)
        for n in (0, 1, 17, 500):
            rows = np.random.default_rng(n).integers(0, 99, n).astype(dtype)
            for n_threads in (1, 4):
                result = table.dequantize(rows, num_threads=n_threads)
                assert_same_bits(result, expected[rows])
        assert_same_bits(table.dequantize([98, 0, 98]), expected[[98, 0, 98]])
        assert table.dequantize([]).shape == (0, 21)


def test_the_first_bad_row_is_named(level, eager_threads):
    table = fused(np.zeros((50, 14), np.uint8))
    rows = np.zeros(2000, np.int64)
    for k in (0, 1, 999, 1999):
        rows[k:] = 2**40
        rows[k] = 50
        for n_threads in (1, 3, 8):
            with pytest.raises(IndexError, match=rf"^rows\[{k}\] = 50 is"):
                table.dequantize(rows, num_threads=n_threads)
        rows[:] = 0


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", [np.int64, np.int32])
def test_rows_written_by_another_thread(dtype, level, eager_threads):
    table = fused(np.zeros((50, 14), np.uint8))
    rows = np.zeros(20_000, dtype)
    stop = threading.Event()

    def scribble():
        rng = np.random.default_rng(0)
        extremes = [-1, 50, np.iinfo(dtype).max, np.iinfo(dtype).min]
        while not stop.is_set():
            k = rng.integers(len(rows))
            rows[k] = rng.choice(extremes)
            rows[k] = 0

    thread = threading.Thread(target=scribble)
    thread.start()
    try:
        for _ in range(100):
            try:
                assert (table.dequantize(rows, num_threads=3) == 0).all()
            except (IndexError, RuntimeError) as error:
                assert str(error).startswith(("rows[", "arrays must not change"))
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("layout", ["fused", "tbe"])
def test_every_half(layout, level):
    """Use each float16 as the scale of code 1, and as the bias of code 0 or of scale 0."""
    halves = np.arange(2**16, dtype=np.uint16)
    zeros, codes = np.zeros_like(halves), np.full(2**16, 0b01_00, np.uint8)[:, None]
    for factors in ([halves, zeros], [zeros, halves]):
        columns = np.stack(factors, axis=1).view(np.uint8)
        packed = np.hstack([codes, columns] if layout == "fused" else [columns, codes])
        table = fused(packed, 2, 2, layout)
        assert_same_bits(table.dequantize(), reference(packed, 2, 2, layout))


def test_the_product_is_rounded_before_the_sum(level):
    # 255 * (1 + 2**-23) is 255 + 2**-15 in float32.
    factors = np.array([1 + 2**-23, -255], np.float32)
    row = np.r_[np.full(40, 255, np.uint8), factors.view(np.uint8)]
    result = fused(row[None], 8, 40).dequantize()
    assert_same_bits(result, np.full((1, 40), 2**-15, np.float32))


@pytest.mark.torch
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_the_bytes_and_floats_of_torch(bits, level):
    torch = pytest.importorskip("torch")
    name = {8: "byte", 4: "4bit", 2: "2bit"}[bits]
    weight = torch.randn(60, 36, generator=torch.Generator().manual_seed(0))
    packed = getattr(torch.ops.quantized, f"embedding_bag_{name}_prepack")(weight)
    expected = getattr(torch.ops.quantized, f"embedding_bag_{name}_unpack")(packed).numpy()
    table = fused(packed.numpy(), bits, 36)
    # torch may round once where embag rounds twice.
    tolerance = np.finfo(np.float32).eps * np.abs(expected).max()
    np.testing.assert_allclose(table.dequantize(), expected, rtol=0, atol=tolerance)
    assert table.error(weight.numpy()).cosine > (0.9999 if bits == 8 else 0.9)


@pytest.mark.torch
def test_the_bytes_of_fbgemm():
    pytest.importorskip("torch")
    script = SCRIPTS / "compare_with_fbgemm.py"
    result = run_python("-W", "ignore", script, check=False, timeout=300)
    if result.returncode == 77:
        pytest.skip("fbgemm_gpu is not installed")
    assert result.returncode == 0, result.stderr[-3000:]


# --- The error of quantization --------------------------------------------------------


def test_error_of_literals():
    # Rows of 2 bits with scale 1 and bias 0.
    factors = np.array([1, 0], np.float16).tobytes()
    packed = np.array([[0b11_10_01_00, *factors]] * 2 + [[0, *factors]] * 2, np.uint8)
    table = fused(packed, 2, 4)
    weight = np.array([[0, 1, 2, 3], [0, 1, 2, -1], [0, 0, 0, 0], [1, 0, 0, 0]], np.float32)
    error = table.error(weight)
    assert type(error) is embag.QuantizationError
    assert error.max_abs == 4
    assert error.mean_abs == 5 / 16
    assert error.cosine == pytest.approx((1 + 2 / np.sqrt(14 * 6) + 1 + 0) / 4, rel=1e-15)
    assert [type(figure) for figure in error] == [float] * 3


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_error_of_numpy(bits, dtype, level, monkeypatch):
    weight = np.random.default_rng(0).standard_normal((200, 30)).astype(dtype)
    table = embag.quantize(weight, bits)
    a, b = weight.astype(np.float64), table.dequantize().astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    expected = (
        np.abs(a - b).max(),
        np.abs(a - b).mean(),
        ((a * b).sum(axis=1) / norms).mean(),
    )
    for chunk in (1, 1000, 10**6):
        monkeypatch.setattr(quantized, "SMALL_CHUNK_ENTRIES", chunk)
        error = table.error(weight)
        assert error.max_abs == expected[0]
        assert error == pytest.approx(expected, rel=1e-12)
        assert table.error(np.asfortranarray(weight)) == pytest.approx(error, rel=1e-12)


def test_error_is_within_half_a_step():
    weight = np.random.default_rng(0).uniform(-1, 1, (100, 64)).astype(np.float32)
    for bits, share in ((8, 0.501), (4, 0.51), (2, 0.51)):
        assert embag.quantize(weight, bits).error(weight).max_abs < share * 2 / (2**bits - 1)


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0)])
def test_error_without_entries(shape):
    weight = np.zeros(shape, np.float32)
    assert embag.quantize(weight).error(weight) == (0, 0, 1)


def test_error_of_entries_that_are_not_finite():
    weight = np.ones((5, 6), np.float32)
    table = embag.quantize(weight)
    weight[2, 3] = np.nan
    assert np.isnan(table.error(weight)).all()
    weight[2, 3] = np.inf
    assert table.error(weight)[:2] == (np.inf, np.inf)
