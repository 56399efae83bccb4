"""`EmbeddingBagCollection.replace`: each call reads one table, and the old one is released."""

import gc
import itertools
import os
import re
import signal
import sys
import threading
import time
import weakref

import numpy as np
import pytest
from cases import low_precision_table
from processes import SCRIPTS, run_python

import embag
from embag import EmbeddingBagCollection, Feature


def table_of(value, n_rows=50, dim=64):
    return np.full((n_rows, dim), value, np.float32)


def collection():
    features = [Feature("a", "items"), Feature("b", "users", "max"), Feature("c", "items", "mean")]
    return EmbeddingBagCollection({"items": table_of(1), "users": table_of(2, dim=8)}, features)


def test_calls_read_the_new_table():
    ebc = collection()
    ids = {"a": [[0, 1]], "b": [[0]], "c": [[0, 1]]}
    np.testing.assert_array_equal(ebc(ids), [[2] * 64 + [2] * 8 + [1] * 64])
    items = table_of(5)
    assert ebc.replace("items", items) is None
    np.testing.assert_array_equal(ebc(ids), [[10] * 64 + [2] * 8 + [5] * 64])
    assert ebc.tables["items"] is items
    assert list(ebc.tables) == ["items", "users"]


@pytest.mark.parametrize("kind", ["float64", "float16", "fused8", "tbe4"])
def test_rows_and_encoding_may_differ(kind):
    ebc = collection()
    new = low_precision_table(kind, 70, 64)
    ebc.replace("items", new)
    result = ebc({"a": [[69]], "b": [[0]], "c": [[69]]})
    expected = embag.embedding_bag([[69]], new, mode="sum").astype(np.float32)
    np.testing.assert_array_equal(result[:, ebc.slices["a"]], expected)
    with pytest.raises(IndexError, match="out of range for a table of 70 rows"):
        ebc({"a": [[70]], "b": [[0]], "c": [[0]]})


def test_padding_counts_from_the_new_end():
    ebc = EmbeddingBagCollection({"t": table_of(1, 5)}, [Feature("a", "t", padding_idx=-1)])
    ebc.replace("t", table_of(1, 8))
    np.testing.assert_array_equal(ebc({"a": [[4, 7]]})[:, 0], [1])
    ebc = EmbeddingBagCollection({"t": table_of(1, 5)}, [Feature("a", "t", padding_idx=4)])
    with pytest.raises(ValueError, match="feature 'a': padding_idx must name one of the table's 4"):
        ebc.replace("t", table_of(1, 4))
    np.testing.assert_array_equal(ebc({"a": [[3, 4]]})[:, 0], [1])


def test_tables_that_do_not_fit_are_refused():
    ebc = collection()
    before = dict(ebc.tables)
    with pytest.raises(ValueError, match="name must be a key of tables, got 'shops'"):
        ebc.replace("shops", table_of(1))
    with pytest.raises(TypeError, match="name must be a str, got"):
        ebc.replace(["items"], table_of(1))
    with pytest.raises(
        ValueError,
        match=re.escape("table must have 64 columns, like the table it replaces, got 8"),
    ):
        ebc.replace("items", table_of(1, dim=8))
    with pytest.raises(ValueError, match=re.escape("table must be 2-D")):
        ebc.replace("items", np.zeros(3, np.float32))
    with pytest.raises(TypeError, match="table must be"):
        ebc.replace("items", [[1.0] * 64])
    assert dict(ebc.tables) == before


def test_out_may_share_memory_with_a_replaced_table():
    ebc = EmbeddingBagCollection({"t": table_of(3)}, [Feature("a", "t")])
    old = ebc.tables["t"]
    with pytest.raises(ValueError, match="out must share no memory with tables"):
        ebc({"a": [[0]]}, out=old[:1])
    ebc.replace("t", table_of(4))
    np.testing.assert_array_equal(ebc({"a": [[0]]}, out=old[:1]), [[4] * 64])


def test_the_old_table_is_released():
    ebc = collection()
    for value in range(3):
        old = weakref.ref(ebc.tables["items"])
        ebc.replace("items", table_of(value))
        gc.collect()
        assert old() is None


def test_counts_continue():
    ebc = EmbeddingBagCollection({"t": table_of(1, 5)}, [Feature("a", "t")], invalid="skip")
    ebc({"a": [[7]]})
    ebc.replace("t", table_of(1, 8))
    ebc({"a": [[7, 8]]})
    assert ebc.n_invalid == {"a": 2}


@pytest.mark.thorough
def test_every_call_sees_one_table_under_load():
    # Each table holds one value, and the new table is shorter and longer in turn: a mixture
    # of two would give two values in one result, a stale number of rows an error.
    features = [Feature(name, "items") for name in "abc"]
    ebc = EmbeddingBagCollection({"items": table_of(0)}, features, invalid="skip")
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 40, 3 * 64 * 5)
    offsets = np.arange(0, len(ids) + 1, 5)
    named = {name: ids.reshape(3, 64, 5)[i] for i, name in enumerate("abc")}
    slow = {name: part.tolist() for name, part in named.items()}
    stop = threading.Event()
    n_calls, mixed = itertools.count(), []
    seen = set()

    def call(i):
        calls = [
            lambda: ebc(ids, offsets),
            lambda: ebc(named, num_threads=2),
            lambda: ebc(slow),
        ]
        while not stop.is_set():
            values = np.unique(calls[i % 3]())
            next(n_calls)
            if len(values) != 1:
                mixed.append(values)
            seen.add(float(values[0]))

    threads = [threading.Thread(target=call, args=(i,)) for i in range(6)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        old = []
        end = time.monotonic() + 2
        n_tables = 0
        while time.monotonic() < end:
            n_tables += 1
            old.append(weakref.ref(ebc.tables["items"]))
            ebc.replace("items", table_of(n_tables, 40 + n_tables % 3))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)
    assert mixed == []
    assert len(seen) > 3
    assert next(n_calls) > 10
    assert ebc.n_invalid == dict.fromkeys("abc", 0)
    gc.collect()
    assert [ref for ref in old if ref() is not None] == []


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers")
def test_a_signal_handler_may_replace_tables():
    ebc = collection()
    n_replaced = itertools.count(1)
    handling = []

    def replace(*_):
        if not handling:  # a signal may come while another one is handled
            handling.append(None)
            ebc.replace("users", table_of(next(n_replaced), dim=8))
            handling.clear()

    kept = signal.signal(signal.SIGALRM, replace)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.0007)
    try:
        for value in range(3000):
            table = table_of(value, 2)
            ebc.replace("items", table)
            assert ebc.tables["items"] is table
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, kept)
    last = next(n_replaced) - 1
    assert last > 3
    assert ebc.tables["users"][0, 0] == last


def test_threads_may_replace_different_tables():
    names = [f"t{i}" for i in range(4)]
    ebc = EmbeddingBagCollection(
        {name: table_of(0, 3, 4) for name in names}, [Feature(name, name) for name in names]
    )

    def replace(name):
        for value in range(1, 301):
            table = table_of(value, 3, 4)
            ebc.replace(name, table)
            assert ebc.tables[name] is table

    threads = [threading.Thread(target=replace, args=(name,)) for name in names]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
    finally:
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)
    result = ebc({name: [[0]] for name in names})
    np.testing.assert_array_equal(result, [[300] * 16])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_fork_during_a_replacement_does_not_block_the_child():
    run_python("-W", "ignore", SCRIPTS / "fork_during_replacement.py")
