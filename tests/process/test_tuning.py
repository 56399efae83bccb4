"""`embag.tune`."""

import numpy as np
import pytest

import embag
from embag._kernels import strategies

pytestmark = pytest.mark.skipif(
    strategies.pinned() is not None, reason="EMBAG_PREFETCH is set: there is nothing to choose"
)


@pytest.mark.parametrize("bits", [32, 8])
def test_tune_settles_each_mode(bits, eager_threads):
    table = np.random.default_rng(0).standard_normal((20_000, 32)).astype(np.float32)
    if bits < 32:
        table = embag.quantize(table, bits)
    tuned = embag.tune(table, n_threads=2)
    assert [(found.mode, found.n_threads) for found in tuned] == [
        (mode, n) for n in (1, 2) for mode in ("sum", "weighted sum", "max")
    ]
    for found in tuned:
        assert found.settled
        assert found.strategy in strategies.CANDIDATES
        assert set(found.ns_per_row) == set(strategies.CANDIDATES)
    rows = "float32 rows of up to 128 bytes" if bits == 32 else "8-bit (fused) rows of up to 64"
    reported = {
        choice["work"]: choice for choice in embag.show_config("dicts")["prefetching"]["choices"]
    }
    (work,) = [
        work
        for work in reported
        if work.startswith(f"sum, {rows}") and work.endswith("one thread") and "16 MiB" in work
    ]
    assert reported[work]["strategy"] == tuned[0].strategy


def test_a_table_whose_ids_are_mapped(eager_threads):
    rows = np.ones((20_000, 32), np.float32)
    assert all(found.settled for found in embag.tune(embag.RemappedTable(rows, first_id=7), 1))


def test_many_threads(eager_threads):
    tuned = embag.tune(np.ones((20_000, 32), np.float32), n_threads=4)
    assert [(found.n_threads, found.settled) for found in tuned] == [(1, True)] * 3 + [
        (4, True)
    ] * 3


def test_lookups_that_have_one_thread_are_tuned_for_one():
    assert {found.n_threads for found in embag.tune(np.ones((1000, 1), np.float32), 2)} == {1}


def test_any_layout(eager_threads):
    table = np.asfortranarray(np.ones((1000, 8), np.float32))
    assert len(embag.tune(table, n_threads=1)) == 3


def test_one_thread_alone():
    table = np.ones((1000, 8), np.float64)
    assert [found.n_threads for found in embag.tune(table, n_threads=1)] == [1, 1, 1]


def test_a_table_without_entries_has_nothing_to_tune():
    assert embag.tune(np.ones((0, 8), np.float32)) == []
    assert embag.tune(np.ones((8, 0), np.float32)) == []


def test_bad_arguments():
    with pytest.raises(TypeError, match=r"^weight must be a numpy\.ndarray, a QuantizedTable or"):
        embag.tune([[1.0]])
    with pytest.raises(ValueError, match=r"^n_threads must be at least 1, got 0$"):
        embag.tune(np.ones((3, 4), np.float32), n_threads=0)


def test_the_table_is_only_read():
    table = np.ones((1000, 8), np.float32)
    table.flags.writeable = False
    embag.tune(table, n_threads=1)
