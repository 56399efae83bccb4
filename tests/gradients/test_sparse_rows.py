"""`SparseRows`: attributes, arithmetic, conversions, errors, and steps with the bits of NumPy."""

import copy
import fractions
import pickle
import sys

import numpy as np
import pytest
from cases import SWAPPED, assert_same_bits

import embag
from embag import SparseRows

VALUES = np.array([[1.0, 2.0], [3.0, 4.0]])


def rows(indices=(1, 3), values=VALUES, shape=(5, 2)):
    return SparseRows(list(indices) if isinstance(indices, tuple) else indices, values, shape)


# --- Attributes -----------------------------------------------------------------------


def test_attributes():
    sparse = rows()
    assert sparse.indices.dtype == np.int64
    assert sparse.indices.tolist() == [1, 3]
    assert np.shares_memory(sparse.values, VALUES)  # not copied
    assert sparse.shape == (5, 2)
    assert sparse.nbytes == 2 * 8 + 4 * 8
    assert repr(sparse) == "SparseRows(2 of 5 rows, dim=2, float64, 48 bytes)"
    single = rows((4,), np.zeros((1, 2), np.float32), [np.int32(5), np.uint8(2)])
    assert repr(single) == "SparseRows(1 of 5 rows, dim=2, float32, 16 bytes)"
    assert type(single.shape) is tuple
    assert [type(n) for n in single.shape] == [int, int]


@pytest.mark.parametrize(
    "dtype", [np.int8, np.uint8, np.int32, np.uint32, np.uint64, f"{SWAPPED}i8"]
)
def test_indices_of_any_integer_dtype(dtype):
    given = np.array([1, 3], dtype)
    sparse = rows(given)
    assert sparse.indices.dtype == np.int64
    assert sparse.indices.dtype.isnative
    assert sparse.indices.tolist() == [1, 3]
    assert given.flags.writeable
    assert rows(np.array([1, 0, 3], dtype)[::2]).indices.tolist() == [1, 3]


def test_only_the_values_are_mutable():
    sparse = rows(values=VALUES.copy())
    for name in ("indices", "values", "shape"):
        with pytest.raises(AttributeError):
            setattr(sparse, name, None)
    with pytest.raises(ValueError, match="read-only"):
        sparse.indices[0] = 4
    sparse.values[...] *= 2
    assert sparse.to_dense()[3].tolist() == [6, 8]


def test_it_equals_only_itself_and_can_be_a_key():
    sparse = rows()
    assert sparse == sparse  # noqa: PLR0124
    assert sparse != rows()
    assert {sparse: 1}[sparse] == 1


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (5, 0), (5, 3)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_rows(shape, dtype):
    sparse = SparseRows([], np.zeros((0, shape[1]), dtype), shape)
    assert sparse.nbytes == 0
    assert_same_bits(sparse.to_dense(), np.zeros(shape, dtype))
    weight = np.ones(shape, dtype)
    sparse.add_to(weight)
    assert (weight == 1).all()


def test_no_columns():
    sparse = SparseRows([1, 4], np.zeros((2, 0)), (5, 0))
    assert sparse.to_dense().shape == (5, 0)
    sparse.add_to(np.zeros((5, 0)))


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, copy.copy, lambda s: pickle.loads(pickle.dumps(s))]
)
def test_copies_and_pickles(duplicate):
    sparse = rows(values=VALUES.astype(np.float32))
    twin = duplicate(sparse)
    assert type(twin) is SparseRows
    assert twin.indices.tolist() == [1, 3]
    assert twin.indices.dtype == np.int64
    assert_same_bits(twin.values, sparse.values)
    assert twin.shape == (5, 2)
    weight = np.zeros((5, 2), np.float32)
    twin.add_to(weight)
    assert_same_bits(weight, sparse.to_dense())


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_the_indices_of_copies_and_pickles_are_read_only(duplicate):
    assert not duplicate(rows()).indices.flags.writeable


# --- Arithmetic -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("dim", [1, 3, 64])
def test_pairs_are_added_in_order(dtype, dim):
    rng = np.random.default_rng(dim)
    indices = rng.integers(0, 40, 500) ** 2
    values = (rng.standard_normal((500, dim)) * 10.0 ** rng.integers(-6, 6, (500, 1))).astype(dtype)
    expected = np.zeros((1600, dim), dtype)
    np.add.at(expected, indices, values)
    sparse = SparseRows.from_pairs(indices, values, (1600, dim))
    assert sparse.indices.tolist() == sorted(set(indices.tolist()))
    assert not sparse.indices.flags.writeable
    assert_same_bits(sparse.to_dense(), expected)
    for given in (np.asfortranarray(values), np.repeat(values, 2, axis=0)[::2]):
        twin = SparseRows.from_pairs(indices.tolist(), given, [1600, dim])
        assert_same_bits(twin.values, sparse.values)


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (5, 0), (2**62, 3)])
def test_pairs_of_none(shape):
    sparse = SparseRows.from_pairs([], np.zeros((0, shape[1])), shape)
    assert sparse.shape == shape
    assert sparse.values.shape == (0, shape[1])


def test_pairs_of_a_large_table():
    last = 2**62 - 1
    sparse = SparseRows.from_pairs([last, 0, last], np.array([[1.0], [2.0], [3.0]]), (2**62, 1))
    assert sparse.indices.tolist() == [0, last]
    assert sparse.values.tolist() == [[2], [4]]
    assert SparseRows.from_pairs([3, 3], np.zeros((2, 0)), (4, 0)).indices.tolist() == [3]


def test_pairs_do_not_share_memory():
    values = np.ones((2, 1))
    sparse = SparseRows.from_pairs([0, 1], values, (2, 1))
    sparse.values[...] = 7
    assert values.tolist() == [[1], [1]]


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (([5], VALUES[:1], (5, 2)), IndexError,
         "indices[0] = 5 is out of range for a table of 5 rows"),
        (([1, -1], VALUES, (5, 2)), IndexError,
         "indices[1] = -1 is out of range for a table of 5 rows"),
        (([1.0, 2.0], VALUES, (5, 2)), TypeError, "indices must be integers, got dtype float64"),
        (([[1, 2]], VALUES, (5, 2)), ValueError, "indices must be 1-D, got shape (1, 2)"),
        (([1], VALUES, (5, 2)), ValueError, "values must have shape (1, 2), got (2, 2)"),
        (([1], [[1.0, 2.0]], (5, 2)), TypeError, "values must be a numpy.ndarray, got list"),
        (([1], VALUES[:1].astype(int), (5, 2)), TypeError,
         "values must be float32 or float64 in native byte order, got int64"),
    ],
)  # fmt: skip
def test_errors_of_pairs(arguments, kind, message):
    with pytest.raises(kind) as caught:
        SparseRows.from_pairs(*arguments)
    assert str(caught.value) == message


def test_sums_are_those_of_pairs():
    rng = np.random.default_rng(1)
    a, b = (
        SparseRows(
            np.sort(rng.choice(30, 12, replace=False)),
            rng.standard_normal((12, 3)).astype(np.float32),
            (30, 3),
        )
        for _ in range(2)
    )
    assert_same_bits((a + b).to_dense(), a.to_dense() + b.to_dense())
    assert (a + b).indices.tolist() == sorted({*a.indices.tolist(), *b.indices.tolist()})
    with pytest.raises(
        TypeError, match=r"^both sides of \+ must have one dtype, got float32 and f"
    ):
        a + SparseRows([0], np.zeros((1, 3)), (30, 3))
    with pytest.raises(
        ValueError, match=r"^both sides of \+ must have one shape, got \(30, 3\) and"
    ):
        a + SparseRows([0], np.zeros((1, 3), np.float32), (31, 3))
    for other in (1, np.ones((30, 3), np.float32), None):
        with pytest.raises(TypeError, match="operand"):
            a + other
        if other is not None:
            with pytest.raises(TypeError):
                other + a


@pytest.mark.parametrize("factor", [2, -0.1, np.float32(0.3), np.float64(0.1), np.int8(-3), 1e300])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_products(dtype, factor):
    sparse = rows(values=VALUES.astype(dtype))
    with np.errstate(all="ignore"):
        expected = VALUES.astype(dtype) * dtype(float(factor))
    with np.errstate(all="raise"):
        for product in (sparse * factor, factor * sparse):
            assert type(product) is SparseRows
            assert_same_bits(product.values, expected)
            assert product.indices.tolist() == [1, 3]
    assert_same_bits(sparse.values, VALUES.astype(dtype))


@pytest.mark.parametrize("factor", ["2", None, 1j, np.ones(2), np.ones((2, 2)), True])
def test_products_with_other_factors_are_refused(factor):
    for multiply in (lambda: rows() * factor, lambda: factor * rows()):
        with pytest.raises(TypeError):
            multiply()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_norms(dtype):
    values = np.random.default_rng(0).standard_normal((50, 7)).astype(dtype)
    sparse = SparseRows(np.arange(50), values, (60, 7))
    for order in (1, 2, np.inf, np.float32(2)):
        norm = sparse.norm(order)
        assert type(norm) is float
        expected = np.linalg.norm(values.astype(np.longdouble).ravel(), order)
        np.testing.assert_allclose(norm, float(expected), rtol=1e-14)
    assert sparse.norm() == sparse.norm(2)
    assert SparseRows([], np.zeros((0, 2), dtype), (4, 2)).norm() == 0


@pytest.mark.parametrize("size", [1e300, 1e-300, 5e-324, 1.7e308])
def test_norms_neither_overflow_nor_vanish(size):
    assert rows(values=np.full((2, 2), size)[:, :2] * [[0, 1], [0, 0]]).norm() == size
    np.testing.assert_allclose(rows(values=np.full((2, 2), size / 4)).norm(), size / 4 * 2)


def test_norms_of_infinity_and_nan():
    values = np.array([[1.0, -np.inf], [2.0, 3.0]])
    with np.errstate(all="raise"):
        assert [rows(values=values).norm(order) for order in (1, 2, np.inf)] == [np.inf] * 3
        values[1, 0] = np.nan
        assert np.isnan([rows(values=values).norm(order) for order in (1, 2, np.inf)]).all()
        assert np.isnan(rows(values=values).clip_norm(1).values).all()
        values[1, 0] = 2
        clipped = rows(values=values).clip_norm(1).values
    assert np.isnan(clipped[0, 1])
    assert clipped[1].tolist() == [0, 0]


def test_clipping():
    sparse = rows()  # of norm sqrt(30)
    np.testing.assert_allclose(sparse.clip_norm(1).values, VALUES / np.sqrt(30), rtol=1e-15)
    for bound in (6, np.inf, np.float32(5.5), sparse.norm()):
        assert sparse.clip_norm(bound) is sparse
    assert not sparse.clip_norm(0).values.any()
    assert sparse.values.tolist() == VALUES.tolist()
    empty = SparseRows([], np.zeros((0, 2)), (4, 2))
    assert empty.clip_norm(0) is empty


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: rows().norm(3), ValueError, "ord must be 1, 2 or inf, got 3"),
        (lambda: rows().norm(-np.inf), ValueError, "ord must be 1, 2 or inf, got -inf"),
        (lambda: rows().norm("fro"), TypeError, "ord must be a number, got 'fro'"),
        (lambda: rows().clip_norm(-1), ValueError, "max_norm must be at least 0, got -1.0"),
        (lambda: rows().clip_norm(np.nan), ValueError, "max_norm must be at least 0, got nan"),
        (lambda: rows().clip_norm(None), TypeError, "max_norm must be a number, got None"),
        (lambda: rows().rows([1, 5]), IndexError,
         "subset[1] = 5 is out of range for a table of 5 rows"),
        (lambda: rows().rows([-1]), IndexError,
         "subset[0] = -1 is out of range for a table of 5 rows"),
        (lambda: rows().rows([1.0]), TypeError, "subset must be integers, got dtype float64"),
        (lambda: rows().rows([True, 2]), TypeError, "subset must be integers, got dtype bool"),
        (lambda: rows().rows([[1]]), ValueError, "subset must be 1-D, got shape (1, 1)"),
        (lambda: rows().rows(1), ValueError, "subset must be 1-D, got shape ()"),
        (lambda: rows().rows([True]), ValueError,
         "subset must have shape (5,) where it holds bools, got (1,)"),
    ],
)  # fmt: skip
def test_errors_of_norms_and_subsets(call, kind, message):
    with pytest.raises(kind) as caught:
        call()
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("subset", "expected"),
    [
        ([3], [3]),
        ([4, 3, 1, 3], [1, 3]),
        ([0, 2, 4], []),
        ([], []),
        (np.array([3], np.uint64), [3]),
        ([False, True, True, False, True], [1]),
        (np.ones(5, bool), [1, 3]),
    ],
)
def test_subsets(subset, expected):
    sparse = rows(values=VALUES.copy())
    part = sparse.rows(subset)
    assert part.indices.tolist() == expected
    assert not part.indices.flags.writeable
    assert part.shape == sparse.shape
    mask = np.isin(np.arange(5), expected)[:, None]
    assert_same_bits(part.to_dense(), np.where(mask, sparse.to_dense(), 0))
    assert not np.shares_memory(part.values, sparse.values)


# --- Conversions ----------------------------------------------------------------------


def test_to_dense():
    sparse = rows()
    dense = sparse.to_dense()
    assert dense.tolist() == [[0, 0], [1, 2], [0, 0], [3, 4], [0, 0]]
    assert dense.flags.writeable
    assert sparse.to_dense() is not dense
    for values in (np.asfortranarray(VALUES), np.repeat(VALUES, 2, 0)[::2], VALUES.view(np.matrix)):
        assert_same_bits(rows(values=values).to_dense(), dense)
    for value in (-0.0, np.nan, np.inf):
        assert_same_bits(
            rows(values=np.full((2, 2), value)).to_dense()[1:2], np.full((1, 2), value)
        )


@pytest.mark.parametrize("n_rows", [2**50, 2**62])
def test_a_dense_form_too_large_for_memory_is_a_memory_error(n_rows):
    sparse = rows((1, n_rows - 1), shape=(n_rows, 2))
    assert repr(sparse) == f"SparseRows(2 of {n_rows} rows, dim=2, float64, 48 bytes)"
    with pytest.raises(MemoryError):
        sparse.to_dense()


def test_to_scipy():
    sparse_module = pytest.importorskip("scipy.sparse")
    values = np.array([[1.0, 0.0], [3.0, 4.0]], np.float32)
    for given in (values, np.asfortranarray(values), np.repeat(values, 2, axis=1)[:, ::2]):
        array = rows(values=given).to_scipy()
        assert isinstance(array, sparse_module.coo_array)
        assert array.shape == (5, 2)
        assert array.dtype == np.float32
        assert array.nnz == 4  # the explicit zero is kept
        assert array.has_canonical_format
        assert array.row.tolist() == [1, 1, 3, 3]
        assert array.col.tolist() == [0, 1, 0, 1]
        np.testing.assert_array_equal(array.toarray(), rows(values=given).to_dense())
        product = array.tocsr() @ np.ones(2, np.float32)
        assert product.tolist() == [0, 1, 0, 7, 0]
    assert rows((1, 2**40), shape=(2**41, 2)).to_scipy().shape == (2**41, 2)
    assert SparseRows([], np.zeros((0, 3)), (4, 3)).to_scipy().nnz == 0


def test_to_scipy_without_scipy(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.setitem(sys.modules, "scipy.sparse", None)
    with pytest.raises(ImportError) as caught:
        rows().to_scipy()
    assert str(caught.value) == ("SparseRows.to_scipy needs scipy: pip install 'embag-cpu[scipy]'")


# --- Steps ----------------------------------------------------------------------------


def misaligned(array):
    copied = np.empty(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
    copied[...] = array
    return copied


# Each makes an array of the same values; its base, if any, must keep its other values.
LAYOUTS = {
    "contiguous": np.copy,
    "rows_apart": lambda a: np.repeat(a, 2, axis=0)[::2],
    "rows_reversed": lambda a: a[::-1].copy()[::-1],
    "columns_of_a_wider_array": lambda a: np.hstack([a, a, a])[:, a.shape[1] : 2 * a.shape[1]],
    "columns_apart": lambda a: np.repeat(a, 2, axis=1)[:, ::2],
    "columns_reversed": lambda a: a[:, ::-1].copy()[:, ::-1],
    "fortran": lambda a: np.array(a, order="F"),
    "misaligned": misaligned,
}


def check_step(weight, sparse, alpha, n_threads=None, message=""):
    expected = np.array(weight)
    expected[sparse.indices] += weight.dtype.type(alpha) * sparse.values
    beside = None if weight.base is None else weight.base.copy()
    before = weight.copy()
    assert sparse.add_to(weight, alpha, num_threads=n_threads) is None
    assert_same_bits(np.ascontiguousarray(weight), expected, message)
    if beside is not None:  # with the old values restored, the base is unchanged
        weight[...] = before
        np.testing.assert_array_equal(weight.base, beside, message)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("dim", [1, 3, 16, 33, 600])
def test_a_step_has_the_bits_of_numpy(dtype, dim, level, eager_threads):
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((200, dim)).astype(dtype)
    for n in (0, 1, 2, 63, 199, 200):
        indices = np.sort(rng.choice(200, n, replace=False))
        sparse = SparseRows(indices, rng.standard_normal((n, dim)).astype(dtype), (200, dim))
        for n_threads in (1, 2, 3, 8):
            check_step(weight.copy(), sparse, -0.1, n_threads, f"{n} rows, {n_threads} threads")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("of_values", LAYOUTS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_step_of_any_layout(layout, of_values, dtype, level, eager_threads):
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((40, 19)).astype(dtype)
    values = rng.standard_normal((10, 19)).astype(dtype)
    sparse = SparseRows(range(0, 40, 4), LAYOUTS[of_values](values), (40, 19))
    for n_threads in (1, 3):
        check_step(LAYOUTS[layout](weight), sparse, 0.3, n_threads)


ALPHAS = [0, 1, -2, 0.1, -0.0, 1e-45, 1e-320, np.nan, np.inf, -np.inf, 10**20]
ALPHAS += [np.float32(0.1), np.float64(0.1), np.float16(0.1), np.int8(-3), fractions.Fraction(1, 3)]


@pytest.mark.parametrize("alpha", ALPHAS, ids=lambda alpha: f"{type(alpha).__name__}_{alpha}")
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_alpha_may_be_any_real_number(alpha, order, dtype, level):
    rng = np.random.default_rng(0)
    weight = np.array(rng.standard_normal((9, 20)), dtype, order=order)
    sparse = SparseRows([0, 4, 8], rng.standard_normal((3, 20)).astype(dtype), (9, 20))
    check_step(weight, sparse, float(alpha))
    check_step(weight, sparse, alpha)


def test_the_default_is_to_add():
    weight = np.ones((5, 2))
    rows().add_to(weight)
    assert weight.tolist() == [[1, 1], [2, 3], [1, 1], [4, 5], [1, 1]]
    rows().add_to(weight, alpha=-1)
    assert (weight == 1).all()


@pytest.mark.parametrize(
    "order",
    [
        "C",
        "F",
    ],
)
@pytest.mark.parametrize(("alpha", "value"), [(1e300, 1.0), (np.inf, 0.0), (1e30, 1e30)])
def test_a_step_does_not_warn(alpha, value, order, level):
    weight = np.zeros((5, 2), np.float32, order=order)
    rows(values=np.full((2, 2), value, np.float32)).add_to(weight, alpha)
    assert not np.isfinite(weight[[1, 3]]).any()
    assert not weight[[0, 2, 4]].any()


def test_special_values(level, eager_threads):
    specials = np.array([0.0, -0.0, 1.0, np.inf, -np.inf, np.nan, 1e-310, 1e308])
    rng = np.random.default_rng(0)
    weight, values = rng.choice(specials, (50, 37)), rng.choice(specials, (25, 37))
    sparse = SparseRows(range(1, 50, 2), values, (50, 37))
    with np.errstate(invalid="ignore", over="ignore"):
        for alpha in (1, -1, 0, 0.3):
            for n_threads in (1, 3):
                check_step(weight.copy(), sparse, alpha, n_threads)


def test_read_only_values_and_subclasses_are_accepted(level):
    values = VALUES.copy()
    values.flags.writeable = False
    weight = np.ones((5, 2))
    rows(values=values).add_to(weight.view(np.matrix), 2)
    assert weight.tolist() == [[1, 1], [3, 5], [1, 1], [7, 9], [1, 1]]


def test_values_may_be_other_rows_of_the_table(level):
    memory = np.ones((10, 2))
    rows((0, 1), memory[:2], (5, 2)).add_to(memory[5:])
    assert memory[:, 0].tolist() == [1] * 5 + [2, 2, 1, 1, 1]
    rows((0, 1), memory[1:5:2], (5, 2)).add_to(memory[::2])
    assert memory[:, 0].tolist() == [2, 1, 2, 1, 1, 2, 2, 1, 1, 1]


# --- Errors ---------------------------------------------------------------------------

WEIGHT = np.arange(10.0).reshape(5, 2)


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def step(weight=WEIGHT, *arguments, values=VALUES, **options):
    return lambda: rows(values=values).add_to(weight, *arguments, **options)


CONSTRUCTOR_ERRORS = [
    ({"values": [[1.0, 2.0]]}, TypeError, "values must be a numpy.ndarray, got list"),
    (
        {"values": VALUES.astype(int)},
        TypeError,
        "values must be float32 or float64 in native byte order, got int64",
    ),
    (
        {"values": VALUES.astype(f"{SWAPPED}f8")},
        TypeError,
        f"values must be float32 or float64 in native byte order, got {SWAPPED}f8",
    ),
    ({"values": VALUES[0]}, ValueError, "values must be 2-D (n_rows, dim), got shape (2,)"),
    ({"values": VALUES[:1]}, ValueError, "values must have shape (2, 2), got (1, 2)"),
    ({"shape": (5, 3)}, ValueError, "values must have shape (2, 3), got (2, 2)"),
    ({"indices": [1.0, 3.0]}, TypeError, "indices must be integers, got dtype float64"),
    ({"indices": [True, True]}, TypeError, "indices must be integers, got dtype bool"),
    ({"indices": None}, TypeError, "indices must be integers, got None"),
    ({"indices": [[1, 3]]}, ValueError, "indices must be 1-D, got shape (1, 2)"),
    ({"indices": 3}, ValueError, "indices must be 1-D, got shape ()"),
    (
        {"indices": [1, 5]},
        IndexError,
        "indices[1] = 5 is out of range for a table of 5 rows",
    ),
    (
        {"indices": [-1, 3]},
        IndexError,
        "indices[0] = -1 is out of range for a table of 5 rows",
    ),
    (
        {"indices": [], "values": VALUES[:0], "shape": (-1, 2)},
        ValueError,
        "shape must be two sizes of at least 0, got -1, 2",
    ),
    (
        {"indices": [3, 1]},
        ValueError,
        "indices must increase, got indices[1] = 1 after 3",
    ),
    (
        {"indices": [3, 3]},
        ValueError,
        "indices must increase, got indices[1] = 3 after 3",
    ),
    ({"shape": 5}, TypeError, "shape must be two integers, got 5"),
    ({"shape": None}, TypeError, "shape must be two integers, got None"),
    ({"shape": "52"}, TypeError, "shape must be two integers, got '52'"),
    ({"shape": (5, 2, 1)}, TypeError, "shape must be two integers, got tuple"),
    ({"shape": (5.0, 2)}, TypeError, "shape must be two integers, got tuple"),
    (
        {"shape": (2**63, 2)},
        ValueError,
        "shape must be two sizes of at least 0, got 9223372036854775808, 2",
    ),
    (
        {"shape": (2**70, 2)},
        ValueError,
        "shape must be two sizes of at least 0, got an integer of 71 bits, 2",
    ),
]

OVERLAP = np.zeros((5, 2))
STEP_ERRORS = [
    (step([[1.0]]), TypeError, "weight must be a numpy.ndarray, got list"),
    (step(WEIGHT.astype(np.float32)), TypeError, "weight must be float64, got float32"),
    (
        step(WEIGHT.astype(f"{SWAPPED}f8")),
        TypeError,
        f"weight must be float32 or float64 in native byte order, got {SWAPPED}f8",
    ),
    (step(WEIGHT[0]), ValueError, "weight must be 2-D (n_rows, dim), got shape (2,)"),
    (step(WEIGHT[:4]), ValueError, "weight must have shape (5, 2), got (4, 2)"),
    (step(read_only(WEIGHT)), ValueError, "weight must be writeable, got a read-only array"),
    (
        step(OVERLAP, values=OVERLAP[2:4]),
        ValueError,
        "weight must share no memory with values, got an overlap",
    ),
    (step(WEIGHT, True), TypeError, "alpha must be a number, got True"),
    (step(WEIGHT, "1"), TypeError, "alpha must be a number, got '1'"),
    (step(WEIGHT, None), TypeError, "alpha must be a number, got None"),
    (step(WEIGHT, 1j), TypeError, "alpha must be a number, got 1j"),
    (step(WEIGHT, np.ones(1)), TypeError, "alpha must be a number, got ndarray"),
    (step(WEIGHT, 10**400), ValueError, "alpha must fit a float64, got a larger number"),
    (step(num_threads=0), ValueError, "num_threads must be at least 1, got 0"),
    (step(num_threads=1.0), TypeError, "num_threads must be an integer, got 1.0"),
]


@pytest.mark.parametrize(
    ("changes", "kind", "message"), CONSTRUCTOR_ERRORS, ids=[str(e[0]) for e in CONSTRUCTOR_ERRORS]
)
def test_constructor_error(changes, kind, message, level):
    with pytest.raises(kind) as caught:
        rows(**changes)
    assert str(caught.value) == message
    assert type(caught.value) is kind


@pytest.mark.parametrize(("failing", "kind", "message"), STEP_ERRORS, ids=lambda e: str(e)[:60])
def test_step_error(failing, kind, message, level):
    before = WEIGHT.copy()
    with pytest.raises(kind) as caught:
        failing()
    assert str(caught.value) == message
    assert type(caught.value) is kind
    np.testing.assert_array_equal(WEIGHT, before)
    assert not OVERLAP.any()


@pytest.mark.parametrize("index", [-(2**63), -(2**31), -1, 5, 2**31, 2**32 + 1, 2**63 - 1])
def test_extreme_indices_are_errors(index, level):
    with pytest.raises(IndexError, match=rf"^indices\[0\] = {index} is out of range"):
        rows([index], VALUES[:1])
    with pytest.raises(IndexError, match="is out of range"):
        rows(np.array([2**64 - 1], np.uint64), VALUES[:1])


def dense_of(sparse):
    return sparse.to_dense()


def step_from_zeros(order):
    def step_of(sparse):
        weight = np.zeros((5, 2), order=order)
        sparse.add_to(weight)
        return weight

    return step_of


@pytest.mark.parametrize(
    "use",
    [
        step_from_zeros("C"),
        step_from_zeros("F"),
        dense_of,
    ],
    ids=["step", "strided_step", "to_dense"],
)
def test_indices_that_change_after_the_check_reach_no_other_row(use, level):
    # The caller may still write to the array: that is an error, or has no effect.
    for later in ([-1, 3], [1, 5], [1, 2**62], [-(2**63), 3], [3, 1], [3, 3]):
        given = np.array([1, 3])
        sparse = rows(given)
        given[:] = later
        if set(later) <= set(range(5)):
            use(sparse)  # out of order, but within the table
            continue
        try:
            result = use(sparse)
        except (RuntimeError, IndexError):
            continue
        np.testing.assert_array_equal(result, rows().to_dense())


def test_sparse_gradients_are_sparse_rows():
    grads = embag.embedding_bag_backward(
        np.ones((1, 2)), [3, 1, 3], WEIGHT, [0], mode="sum", sparse=True
    )
    sparse = grads.weight
    assert type(sparse) is SparseRows
    assert not sparse.indices.flags.writeable
    assert sparse.shape == (5, 2)
    assert sparse.to_dense().tolist() == [[0, 0], [1, 1], [0, 0], [2, 2], [0, 0]]
    sparse.values[...] = 0
