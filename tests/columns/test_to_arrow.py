"""`to_arrow`: results as Arrow arrays that share their memory."""

import sys

import numpy as np
import pytest
from cases import SWAPPED

import embag

pytest.importorskip("nanoarrow")
pa = pytest.importorskip("pyarrow")

ROWS = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_arrow_array_shares_memory(dtype):
    array = ROWS.astype(dtype)
    column = pa.array(embag.to_arrow(array))
    assert column.type == pa.list_(pa.from_numpy_dtype(dtype), 3)
    assert column.values.buffers()[1].address == array.ctypes.data
    assert column.null_count == 0
    np.testing.assert_array_equal(column.flatten().to_numpy().reshape(4, 3), array)


def test_polars_accepts_it():
    pl = pytest.importorskip("polars")
    column = pl.Series(embag.to_arrow(ROWS, mask=[False, True, False, False]))
    assert column.dtype == pl.Array(pl.Float32, 3)
    assert column.to_list() == [ROWS[0].tolist(), None, ROWS[2].tolist(), ROWS[3].tolist()]


def test_the_memory_outlives_the_array():
    column = embag.to_arrow(np.full((1000, 64), 3, np.float32))
    assert np.asarray(pa.array(column).flatten()).tolist() == [3.0] * 64000


def test_other_layouts_are_copied():
    for array in (ROWS[:, ::2], np.asfortranarray(ROWS), ROWS.astype(f"{SWAPPED}f4"), ROWS[::-1]):
        assert embag.to_arrow(array).to_pylist() == array.tolist()


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0)])
def test_empty_results(shape):
    column = pa.array(embag.to_arrow(np.zeros(shape, np.float32)))
    assert len(column) == shape[0]
    assert column.type.list_size == shape[1]


def test_nulls_for_empty_bags():
    lists = pa.array([[1, 2], [], None, [3]])
    out = embag.embedding_bag(lists, ROWS)
    column = embag.to_arrow(out, mask=embag.empty_bags(lists))
    assert [row is None for row in column.to_pylist()] == [False, True, True, False]


@pytest.mark.parametrize(
    ("array", "mask", "kind", "message"),
    [
        ([[1.0]], None, TypeError, "array must be a numpy.ndarray, got list"),
        (ROWS.astype(np.int32), None, TypeError,
         "array must be float16, float32 or float64, got int32"),
        (ROWS[0], None, ValueError, "array must be 2-D (n_rows, dim), got shape (3,)"),
        (ROWS, [0, 1, 0, 0], TypeError, "mask must be bools, got dtype int64"),
        (ROWS, [True], ValueError, "mask must have shape (4,), got (1,)"),
        (np.zeros((0, 2**31), np.float32), None, ValueError,
         "array must have less than 2**31 columns, got 2147483648"),
    ],
)  # fmt: skip
def test_errors(array, mask, kind, message):
    with pytest.raises(kind) as caught:
        embag.to_arrow(array, mask=mask)
    assert str(caught.value) == message


def test_without_nanoarrow(monkeypatch):
    monkeypatch.setitem(sys.modules, "nanoarrow", None)
    with pytest.raises(ImportError, match=r"pip install 'embag-cpu\[arrow\]'"):
        embag.to_arrow(ROWS)
