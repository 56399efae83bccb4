"""Pages of tables larger than memory: when they are prefetched, and which. No result changes."""

import ctypes
import mmap
import os
import sys
import time
from functools import partial

import numpy as np
import pytest
from cases import QUANTIZED, low_precision_table
from processes import run_python

import embag
from embag import tables
from embag._kernels import dispatch

PIECE, LARGEST = 1024, 16384  # positions, with prefetching and without
RETRY = 8192


@pytest.fixture
def kernels(level):
    kernels = dispatch.load_level(level)
    kernels.forget_strategies()
    yield kernels
    kernels.pin_pages(False)
    kernels.prefetch_pages_above(np.inf)
    kernels.forget_strategies()


# --- The choice, with a clock of the test's own -------------------------------------


def share(pieces):
    """Return the share of positions whose pages were prefetched."""
    return sum(n for fetched, n in pieces if fetched) / sum(n for _, n in pieces)


def test_tables_in_memory_are_left_alone(kernels):
    pieces = kernels.simulate_pages(lambda fetched, n: 500 if fetched else 30, 100, 1 << 20)
    assert pieces[0] == (True, PIECE)
    assert not any(fetched for fetched, _ in pieces[1:])
    assert pieces[-1] == (False, LARGEST)


def test_calls_of_few_positions_say_nothing(kernels):
    pieces = kernels.simulate_pages(lambda fetched, n: 1 if fetched else 80e3, 10, 3)
    assert pieces == [(False, 3)] * 10


@pytest.mark.parametrize("most", [20, 520, 1 << 20])  # positions of a call
def test_pages_on_the_disk_are_prefetched(kernels, most):
    pieces = kernels.simulate_pages(lambda fetched, n: 14e3 if fetched else 80e3, 3000, most)
    assert pieces[0][0]
    assert 0.98 < share(pieces) < 1  # the other way is tried now and then


def test_prefetching_that_does_not_help_is_given_up(kernels):
    pieces = kernels.simulate_pages(lambda fetched, n: 80e3 if fetched else 70e3, 2000, 1 << 20)
    assert 0 < share(pieces) < 0.25


def test_faults_without_a_disk_are_not_worth_it(kernels):
    pieces = kernels.simulate_pages(lambda fetched, n: 2500 if fetched else 2000, 100, 1 << 20)
    assert [fetched for fetched, _ in pieces] == [True] + 99 * [False]


@pytest.mark.parametrize("missing", [0.02, 0.05, 0.1, 0.5])
def test_tables_of_which_parts_are_missing(kernels, missing):
    def cost(fetched, n):
        return 500 + 14e3 * missing if fetched else 30 + 80e3 * missing

    pieces = kernels.simulate_pages(cost, 2000, 1 << 20)
    took = sum(cost(*piece) * piece[1] for piece in pieces) / sum(n for _, n in pieces)
    assert took <= 1.1 * cost(False, 1)
    if missing >= 0.1:
        assert took <= 1.15 * cost(True, 1)


def test_changes_are_noticed(kernels):
    n_calls = 0

    def cost(fetched, n):
        nonlocal n_calls
        n_calls += 1
        cold = 500 < n_calls <= 1000
        return (14e3 if fetched else 80e3) if cold else (500 if fetched else 30)

    pieces = kernels.simulate_pages(cost, 1500, 1 << 20)
    assert not any(fetched for fetched, _ in pieces[1:500])
    assert pieces[501:508] == 7 * [(True, PIECE)]
    assert share(pieces[501:1000]) > 0.98
    after = [fetched for fetched, _ in pieces[1001:]]
    assert not any(after[RETRY // PIECE :])


def test_a_slow_moment_passes(kernels):
    n_calls = 0

    def cost(fetched, n):
        nonlocal n_calls
        n_calls += 1
        return 1e6 if n_calls % 50 == 0 else (14e3 if fetched else 80e3)

    assert share(kernels.simulate_pages(cost, 2000, 1 << 20)) > 0.8


def test_few_positions_say_nothing(kernels):
    pieces = kernels.simulate_pages(lambda fetched, n: 80e3, 100, 15)
    assert not any(fetched for fetched, _ in pieces)


# --- In lookups --------------------------------------------------------------------


def made_tables():
    rng = np.random.default_rng(0)
    for dim in (3, 64, 300):
        yield rng.standard_normal((5000, dim)).astype(np.float32)
        for name in QUANTIZED:
            yield low_precision_table(name, 5000, dim)
    yield rng.standard_normal((5000, 20))
    yield rng.standard_normal((5000, 20)).astype(np.float16)
    yield rng.standard_normal((10_000, 70)).astype(np.float32)[::-2, 3:67]


def lookups(table):
    rng = np.random.default_rng(1)
    lengths = rng.integers(0, 60, 200)
    lengths[7] = 3000
    offsets = np.cumsum(lengths) - lengths
    ids = rng.integers(0, 5000, int(lengths.sum()))
    wild = np.where(np.arange(len(ids)) % 9, ids, rng.integers(-(2**62), 2**62, len(ids)))
    for n_threads in (1, 3):
        for mode in ("sum", "mean", "max"):
            options = {"mode": mode, "padding_idx": 7, "num_threads": n_threads}
            yield embag.embedding_bag(ids, table, offsets, **options)
            yield embag.embedding_bag(wild, table, offsets, invalid="skip", **options)
        yield embag.embedding_bag(ids.astype(np.int32)[:40].reshape(2, 20), table)
        with pytest.raises(IndexError) as caught:
            embag.embedding_bag(wild, table, offsets, num_threads=n_threads)
        yield np.array(str(caught.value))
        if getattr(table, "dtype", None) != np.float64:
            collection = embag.EmbeddingBagCollection(
                {"a": table, "b": table}, [embag.Feature(n, n) for n in ("a", "b")], invalid="skip"
            )
            with embag.num_threads(n_threads):
                yield collection({"a": (ids, offsets), "b": (wild, offsets)})
                yield collection({"a": ids[:40].reshape(2, 20), "b": wild[:40].reshape(2, 20)})


def test_prefetching_changes_no_bit(kernels, eager_threads):
    for table in made_tables():
        expected = [result.tobytes() for result in lookups(table)]
        kernels.prefetch_pages_above(-1)
        for _ in range(3):
            assert [result.tobytes() for result in lookups(table)] == expected
        assert kernels.paged_tables()
        kernels.prefetch_pages_above(np.inf)
        kernels.pin_pages(True)
        assert [result.tobytes() for result in lookups(table)] == expected
        kernels.pin_pages(False)


def test_smaller_tables_have_no_state(kernels):
    table = np.ones((5000, 64), np.float32)
    kernels.prefetch_pages_above(table.nbytes)
    embag.embedding_bag(np.zeros((100, 20), int), table)
    assert kernels.paged_tables() == []
    kernels.prefetch_pages_above(table.nbytes - 1)
    embag.embedding_bag(np.zeros((100, 20), int), table)
    assert len(kernels.paged_tables()) == 1


def test_more_tables_than_there_is_room_for(kernels):
    kernels.prefetch_pages_above(-1)
    made = [np.full((50, 4), k, np.float32) for k in range(100)]
    for _ in range(2):
        for k, table in enumerate(made):
            assert (embag.embedding_bag(np.zeros((3, 20), int), table) == k).all()
    assert len(kernels.paged_tables()) == 64


def test_the_variable_pins():
    code = (
        "import numpy as np, embag\n"
        "assert (embag.embedding_bag([[1] * 20], np.ones((5, 4), np.float32)) == 1).all()\n"
        "print(len(embag.show_config('dicts')['prefetching']['pages']))\n"
        "embag.show_config()"
    )
    printed = run_python("-c", code, EMBAG_PREFETCH="pages").stdout
    assert printed.startswith("1\n")
    assert "pages of a table larger than half of the memory" in printed
    assert run_python("-c", code, EMBAG_PREFETCH="none").stdout.startswith("0\n")


# --- Which pages are read -----------------------------------------------------------


def resident(array):
    """Return which pages of a mapped array are in memory, as the system counts them."""
    page = mmap.PAGESIZE
    start = array.ctypes.data // page * page
    n_pages = -(-(array.ctypes.data + array.nbytes - start) // page)
    found = np.empty(n_pages, np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = ctypes.c_void_p(start), ctypes.c_size_t(n_pages * page)
    assert libc.mincore(*arguments, ctypes.c_void_p(found.ctypes.data)) == 0
    return (found & 1).astype(bool)


@pytest.fixture
def cold(tmp_path, monkeypatch):
    """A mapped table of a page a row, of which nothing is in memory."""
    if sys.platform != "linux":
        pytest.skip("pages are prefetched on Linux only")
    monkeypatch.setattr(tables, "_memory_limit", lambda: 0)
    path = tmp_path / "table.safetensors"
    dim = mmap.PAGESIZE // 4
    embag.save_table(path, np.arange(4000 * dim, dtype=np.float32).reshape(4000, dim))
    table = embag.load_table(path)
    with open(path, "rb") as file:  # after the header was read
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if resident(table).any():
        pytest.skip("this file system keeps the file in memory")
    return table


def test_mapped_ids_beside_plain_ones(kernels):
    table = np.arange(64_000, dtype=np.float32).reshape(4000, 16)
    tables = {"a": table, "b": embag.RemappedTable(table, np.arange(4000)[::-1]), "c": table}
    features = [embag.Feature(name, name, mode="sum") for name in tables]
    ebc = embag.EmbeddingBagCollection(tables, features)
    ids = np.random.default_rng(0).integers(0, 4000, (3, 500))
    kernels.prefetch_pages_above(-1)
    kernels.pin_pages(True)
    with embag.num_threads(1):
        found = ebc(ids.reshape(-1), np.arange(4) * 500)
        expected = [table[ids[0]].sum(0), table[3999 - ids[1]].sum(0), table[ids[2]].sum(0)]
        np.testing.assert_array_equal(found, np.concatenate(expected)[None])
        ids[2, 499] = 4000
        with pytest.raises(IndexError, match=r"feature 'c': values.1499. = 4000 is out of range"):
            ebc(ids.reshape(-1), np.arange(4) * 500)
        kernels.prefetch_pages_above(np.inf)
        many = np.tile(ids, (1, 20))
        with pytest.raises(IndexError, match=r"feature 'c': values.20499. = 4000 is out of range"):
            ebc(many.reshape(-1), np.array([0, 10_000, 20_000, 30_000]))


def test_a_bag_of_many_ids(kernels):
    table = np.arange(4000, dtype=np.float64).reshape(4000, 1)
    ids = np.random.default_rng(0).integers(0, 4000, (1, 200_000))
    kernels.prefetch_pages_above(-1)
    kernels.pin_pages(True)
    found = embag.embedding_bag(ids, table, mode="sum", num_threads=1)
    assert found[0, 0] == ids.sum()


def wait_for_pages(table, expected):
    stop = time.monotonic() + 30
    while not np.array_equal(resident(table), expected):
        assert time.monotonic() < stop, np.flatnonzero(resident(table) != expected)
        time.sleep(0.01)


def pages_of(table, rows):
    """Return which pages of a table have some rows."""
    page = mmap.PAGESIZE
    first = table.ctypes.data % page
    expected = np.zeros(-(-(first + table.nbytes) // page), bool)
    for row in rows:
        start = first + row * table.shape[1] * 4
        expected[start // page : (start + table.shape[1] * 4 - 1) // page + 1] = True
    return expected


@pytest.mark.parametrize("as_collection", [False, True])
def test_pages_are_read_before_rows(cold, kernels, as_collection):
    # The first id is invalid, so no row is read: every page in memory was prefetched.
    rng = np.random.default_rng(0)
    ids = np.concatenate([[4000], 2 * rng.permutation(2000)[:300], [-1, 2**40, -(2**62)]])
    kernels.pin_pages(True)
    collection = embag.EmbeddingBagCollection({"a": cold}, [embag.Feature("f", "a")])
    ids = ids.reshape(1, -1)
    call = (
        partial(collection, {"f": ids})
        if as_collection
        else partial(embag.embedding_bag, ids, cold)
    )
    with pytest.raises(IndexError, match="4000"):
        call()
    wait_for_pages(cold, pages_of(cold, ids[0, 1:301]))


def test_nothing_outside_of_the_table_is_read(cold, kernels):
    kernels.pin_pages(True)
    part = cold[1000:3000:2]
    ids = np.array([[0, 5, 999, 1000, -1, -500, 1_000_000, 2**40, 7]])
    found = embag.embedding_bag(ids, part, padding_idx=7, invalid="skip", mode="sum")
    wait_for_pages(cold, pages_of(cold, [1000, 1010, 2998]))
    np.testing.assert_array_equal(found[0], part[0] + part[5] + part[999])
