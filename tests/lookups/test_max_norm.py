"""`max_norm` scales the used rows in place, each once, and only if nothing raises."""

import numpy as np
import pytest
import reference
from cases import LEVELS

import embag
from embag import _call
from embag._kernels import dispatch

INPUT = np.array([1, 1, 3, 5, 1, 7, 7, 0])
OFFSETS = np.array([0, 3, 3, 6])


def table_of(dtype, scale=1.0, dim=21):
    table = np.random.default_rng(0).standard_normal((9, dim))
    return (table * scale).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("norm_type", [2, 2.0, 1, 0.5, 3, np.inf])
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_rows_and_result(dtype, norm_type, mode, level, eager_threads):
    expected_table = table_of(dtype)
    expected, _ = reference.embedding_bag(
        INPUT, expected_table, OFFSETS, max_norm=1.5, norm_type=norm_type, mode=mode
    )
    for n_threads in (1, 3):
        table = table_of(dtype)
        result = embag.embedding_bag(
            INPUT, table, OFFSETS, 1.5, norm_type, mode=mode, num_threads=n_threads
        )
        eps = np.finfo(dtype).eps
        np.testing.assert_allclose(table, expected_table, rtol=4 * eps)
        np.testing.assert_allclose(result, expected, rtol=0, atol=8 * eps * 1.5)
        unused = [2, 4, 6, 8]
        np.testing.assert_array_equal(table[unused], table_of(dtype)[unused])


def test_levels_and_threads_change_no_bits(monkeypatch, eager_threads):
    tables = []
    for level in LEVELS:
        monkeypatch.setattr(_call, "kernels", dispatch.load_level(level))
        for n_threads in (1, 2, 8):
            table = table_of(np.float32, dim=163)
            embag.embedding_bag(INPUT, table, OFFSETS, 1.0, num_threads=n_threads)
            tables.append(table)
    for table in tables[1:]:
        np.testing.assert_array_equal(table, tables[0])


def test_tables_that_are_copied_are_scaled(level):
    expected = table_of(np.float32)
    result = embag.embedding_bag(INPUT, expected, OFFSETS, max_norm=1.0)
    for layout in (np.asfortranarray, lambda t: np.repeat(np.repeat(t, 2, 0), 2, 1)[::2, ::2]):
        table = layout(table_of(np.float32))
        np.testing.assert_array_equal(
            embag.embedding_bag(INPUT, table, OFFSETS, max_norm=1.0), result
        )
        np.testing.assert_array_equal(table, expected)


def test_padding_rows_are_scaled_and_the_tail_is_not(level):
    table = np.full((4, 2), 10.0)
    embag.embedding_bag(
        [0, 1, 2], table, [0, 2], max_norm=1, padding_idx=1, include_last_offset=True
    )
    assert (np.linalg.norm(table, axis=1) < 1.001).tolist() == [True, True, False, False]


@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_no_power_overflows_or_vanishes(scale, level):
    for dtype, norm_type in ((np.float32, 2), (np.float32, 40), (np.float64, 300)):
        table = table_of(dtype, scale)
        original = table.astype(np.float64)
        embag.embedding_bag(INPUT, table, OFFSETS, scale / 10, norm_type)
        used = np.unique(INPUT)
        norms = [
            abs(row).max() * np.linalg.norm(row / abs(row).max(), norm_type)
            for row in original[used]
        ]
        expected = original[used] * (scale / 10 / (np.array(norms) + 1e-7))[:, None]
        np.testing.assert_allclose(table[used], expected.astype(dtype), rtol=1e-6)


def test_a_max_norm_of_zero_clears_rows_and_keeps_nan(level):
    table = np.array([[3.0, 4.0], [np.nan, 1.0]])
    embag.embedding_bag([0, 1], table, [0], max_norm=0)
    np.testing.assert_array_equal(table, [[0, 0], [np.nan, 1]])


@pytest.mark.parametrize("norm_type", [1.5, 2.0, 3.0, np.inf])
def test_a_row_of_infinite_norm(norm_type, level):
    table = np.array([[np.inf, 4.0], [-np.inf, 1.0], [3.0, 4.0]])
    embag.embedding_bag([0, 1], table, [0], max_norm=1, norm_type=norm_type)
    np.testing.assert_array_equal(table, [[np.nan, 0], [np.nan, 0], [3, 4]])


def test_inputs_that_share_memory_with_the_table_are_read_first(level):
    table = np.array([[3.0, 4.0], [6.0, 8.0]])
    other = table.copy()
    options = {"max_norm": 1, "mode": "sum"}
    expected = embag.embedding_bag(
        [0, 1], other, [0], per_sample_weights=other[0].copy(), **options
    )
    result = embag.embedding_bag([0, 1], table, [0], per_sample_weights=table[0], **options)
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"input": [1, 9]}, IndexError),
        ({"offsets": [0, 3]}, ValueError),
        ({"offsets": [1]}, ValueError),
        ({"padding_idx": 9}, ValueError),
        ({"norm_type": -1}, ValueError),
        ({"out": np.zeros((1, 3))}, ValueError),
        ({"num_threads": 0}, ValueError),
        ({"mode": "median"}, ValueError),
    ],
)
def test_a_call_that_raises_leaves_the_table_unchanged(changes, kind, level):
    table = np.full((9, 2), 10.0)
    arguments = {"input": [1, 2], "weight": table, "offsets": [0], "max_norm": 1.0} | changes
    with pytest.raises(kind):
        embag.embedding_bag(**arguments)
    assert (table == 10).all()
