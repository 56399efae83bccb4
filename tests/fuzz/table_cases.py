"""Sound calls for quantized tables, sparse rows, memory and settings."""

import contextlib
import io
import operator
import pickle

import numpy as np
import reference

import embag
from embag.quantized import row_bytes

from .checked_call import Case
from .lookup_cases import (
    FLOATS,
    MOST,
    NARROW,
    PACKED,
    THREADS,
    check_same_bits,
    floats_of,
    plain,
    rows_of,
    tables,
)
from .values import BFLOAT16, DTYPES, FLOAT8, layouts, numbers, random_bytes

REFUSES = (TypeError, ValueError)


# --- Quantized tables -----------------------------------------------------------------


def decoded(table):
    """Return the floats of a quantized table by definition."""
    with np.errstate(all="ignore"):
        q, scale, bias = reference.unpack(table.packed, table.bits, table.dim, table.layout)
        return scale[:, None] * q + bias[:, None]


def quantize_cases(rng):
    weight = tables(rng, [*FLOATS, *NARROW])
    finite = np.isfinite(plain(weight).astype(np.float64))
    with np.errstate(all="ignore"):
        finite &= np.abs(plain(weight).astype(np.float64)) < 1e4
    if not finite.all():
        weight = np.zeros(weight.shape, weight.dtype)
    bits = rng.choice([8, 8, 4, 2, np.int64(8)])
    call = {"weight": weight, "bits": bits, "num_threads": rng.choice(THREADS)}
    if rng.random() < 0.3:
        call["out"] = np.full((len(weight), row_bytes(bits, weight.shape[1])), 7, np.uint8)
    if rng.random() < 0.3:
        call["progress"] = lambda *_: None

    def check(table, given):
        shape = plain(given["weight"]).shape
        assert type(table) is embag.QuantizedTable
        assert (table.shape, table.bits) == (shape, given.get("bits", 8))
        assert (
            given.get("out") is None
            or np.shares_memory(table.packed, given["out"])
            or (table.packed.size == 0)
        )
        if max(table.packed.size, table.dim) < MOST:
            again = embag.quantize(given["weight"], int(table.bits), num_threads=1)
            np.testing.assert_array_equal(table.packed, again.packed)
            off = np.abs(decoded(table) - floats_of(given["weight"]))
            scale = reference.unpack(table.packed, table.bits, table.dim, "fused")[1][:, None]
            # Half a step, the rounding of scale and bias to float16, and the 1e-8 of the format.
            slack = 1e-6 if table.bits == 8 else 4e-3
            with np.errstate(all="ignore"):
                most = np.abs(floats_of(given["weight"])).max(axis=1, initial=0)[:, None]
                bound = scale * 0.501 + slack * (most + scale * 2**table.bits) + 1e-6
            assert not (off > bound).any() or not np.isfinite(bound).all()

    return Case("quantize", embag.quantize, call, check, REFUSES, writes=("out",), torn=("out",))


def from_packed_cases(rng):
    layout, bits = rng.choice(PACKED)
    dim, n_rows = rng.randint(0, 70), rng.choice([0, 1, 3, 20])
    n_bytes = row_bytes(bits, dim, layout) + (rng.choice([0, 0, 5]) if layout == "tbe" else 0)
    packed = layouts(
        rng, random_bytes(rng, (n_rows, n_bytes)), ["spaced", "reversed", "wide", "map"]
    )
    call = {"packed": packed, "bits": bits, "dim": dim, "layout": layout}

    def check(table, given):
        check_quantized(table)
        assert table.packed.size == 0 or np.shares_memory(table.packed, given["packed"])
        assert table.dim == operator.index(given["dim"])

    return Case(
        "QuantizedTable.from_packed", embag.QuantizedTable.from_packed, call, check, REFUSES
    )


def symmetric_cases(rng):
    """Return a table of 8-bit entries with scales of their own."""
    is_int8 = rng.random() < 0.5
    n_rows, dim = rng.choice([0, 1, 3, 20]), rng.randint(0, 70)
    q = random_bytes(rng, (n_rows, dim)).view("i1" if is_int8 else FLOAT8)
    q = layouts(rng, q, ["spaced", "reversed", "wide", "map"])
    shape = rng.choice([(), (1,), (n_rows,), (n_rows, 1)])
    call = {"q": q, "scales": rng.choice([2, numbers(rng, shape, special=rng.random() < 0.1)])}

    def check(table, given):
        assert type(table) is embag.QuantizedTable
        assert table.shape == plain(given["q"]).shape
        if max(table.dim, len(table)) < MOST:
            with np.errstate(all="ignore"):
                values = plain(given["q"]).astype(np.float32)
                scales = table.scales.reshape(-1, 1)
                expected = values * scales
            check_same_bits(table.dequantize(), expected)

    name = "from_int8" if is_int8 else "from_float8"
    make = getattr(embag.QuantizedTable, name)
    return Case(f"QuantizedTable.{name}", make, call, check, REFUSES)


def remapped_cases(rng):
    """Return a table whose ids are mapped to the rows of another."""
    table = tables(rng)
    n_rows = rows_of(table)
    n_ids = rng.choice([0, 1, 5, 30])
    ids = [rng.randrange(-1, n_rows) for _ in range(n_ids)]
    call = {"table": table, "first_id": rng.choice([0, 0, 3, 2**40])}
    call["index_map"] = rng.choice([ids, np.array(ids, rng.choice(["i8", "i4", "i2"])), None])
    if rng.random() < 0.5:
        n_scales = n_rows if call["index_map"] is None else n_ids
        call["scales"] = numbers(rng, n_scales).astype(rng.choice(["f4", "f2", "i4"]))

    def check(remapped, given):
        index_map, first = given.get("index_map"), operator.index(given.get("first_id", 0))
        if max(*remapped.shape) > MOST:
            return
        rows = np.arange(len(remapped)) if index_map is None else remapped.index_map
        found = embag.embedding(np.arange(len(remapped)) + first, remapped)
        expected = embag.embedding(rows, given["table"], invalid="skip")
        if remapped.scales is not None:
            with np.errstate(all="ignore"):
                expected *= remapped.scales[:, None]
        expected[np.asarray(rows) < 0] = 0
        check_same_bits(found, expected)

    return Case("RemappedTable", embag.RemappedTable, call, check, REFUSES)


def check_quantized(table):
    """Read all of a table, unless it is too large."""
    assert type(table) is embag.QuantizedTable
    assert table.shape == (len(table.packed), table.dim)
    assert table.nbytes == table.packed.nbytes
    assert repr(table).startswith("QuantizedTable(")
    if max(table.dim, len(table.packed)) < MOST:
        check_same_bits(table.dequantize(), decoded(table))
        rows = np.arange(len(table.packed)).reshape(-1, 1)
        check_same_bits(embag.embedding_bag(rows, table, mode="max"), decoded(table))
        again = pickle.loads(pickle.dumps(table))
        np.testing.assert_array_equal(again.packed, table.packed)


def dequantize_cases(rng):
    table = tables(rng, PACKED)
    rows = np.array(
        [rng.randrange(rows_of(table)) for _ in range(9)] if rows_of(table) else [], "i8"
    )
    rows = rows.astype(rng.choice(["i8", "i4", "u1", "u8"]))
    given = layouts(rng, rows, ["spaced", "list", "read-only", "swapped", "__array__"])
    call = {"rows": rng.choice([given, given, None]) if isinstance(given, list) else given}
    call["num_threads"] = rng.choice(THREADS)

    def check(result, given):
        if given.get("rows") is None:
            check_same_bits(result, decoded(table))
        elif plain(given["rows"]).size < MOST:
            check_same_bits(result, decoded(table)[plain(given["rows"]).astype(np.int64)])

    name = "QuantizedTable.dequantize"
    return Case(name, table.dequantize, call, check, (*REFUSES, IndexError), hidden=(table,))


def error_cases(rng):
    table = tables(rng, PACKED)
    weight = numbers(rng, table.shape, special=rng.random() < 0.2)
    with np.errstate(all="ignore"):
        weight = weight.astype(rng.choice([*FLOATS, *NARROW]))

    def check(result, given):
        assert type(result) is embag.QuantizationError
        assert all(type(number) is float for number in result)
        weight = plain(given["weight"]).astype(np.float64)
        with np.errstate(all="ignore"):
            off = np.abs(decoded(table).astype(np.float64) - weight)
        if off.size == 0:
            assert result == (0, 0, 1)
        else:
            np.testing.assert_allclose(result.max_abs, off.max())
            np.testing.assert_allclose(result.mean_abs, off.mean(), rtol=1e-6)
            assert np.isnan(result.cosine) or abs(result.cosine) <= 1

    call = {"weight": layouts(rng, weight)}
    # It accepts arrays only, not lists or tuples.
    sound = isinstance(call["weight"], np.ndarray) and call["weight"].dtype.isnative
    name = "QuantizedTable.error"
    return Case(name, table.error, call, check, REFUSES, hidden=(table,), sound=sound)


def row_bytes_cases(rng):
    def check(result, given):
        assert type(result) is int
        assert result >= operator.index(given["dim"]) * given["bits"] / 8

    layout, bits = rng.choice(PACKED)
    call = {"bits": bits, "dim": rng.randint(0, 70), "layout": layout}
    return Case("quantized.row_bytes", row_bytes, call, check, REFUSES)


def quantization_error_cases(rng):
    def check(result, given):
        assert all(map(operator.is_, result, given.values()))

    call = {"max_abs": 1.0, "mean_abs": rng.random(), "cosine": 1.0}
    return Case("QuantizationError", embag.QuantizationError, call, check, (TypeError,))


# --- Sparse rows ----------------------------------------------------------------------


def sparse_rows_cases(rng):
    n_rows, dim = rng.choice([0, 1, 5, 40, 2**31, 2**62]), rng.choice([0, 1, 3, 8, 65])
    n = min(n_rows, rng.choice([0, 1, 3, 9]))
    ids = np.array(sorted(rng.sample(range(n_rows), n)), np.int64)
    values = numbers(rng, (n, dim), special=rng.random() < 0.1).astype(rng.choice(FLOATS))
    ways = ["fortran", "spaced", "wide", "misaligned", "read-only", "subclass"]
    values = layouts(rng, values, ways)
    shape = rng.choice([(n_rows, dim), [n_rows, dim], np.array([n_rows, dim])])
    how = rng.randint(0, 4)
    if how <= 1:
        given = layouts(rng, ids, ["list", "swapped", "spaced", "__array__"])

        def check_made(rows, given):
            check_sparse(rows)
            check_same_bits(rows.values, plain(given["values"]))
            np.testing.assert_array_equal(rows.indices, plain(given["indices"]))

        call = {"indices": given, "values": values, "shape": shape}
        return Case("SparseRows", embag.SparseRows, call, check_made, (*REFUSES, IndexError))
    rows = embag.SparseRows(ids, values, (n_rows, dim))
    if how == 2 or n_rows > MOST:
        method = rng.choice(["to_dense", "to_scipy"])

        def check_whole(result, _given):
            if method == "to_scipy":
                assert result.shape == rows.shape
                result = result.toarray() if n_rows < MOST else None
            if n_rows < MOST:
                expected = np.zeros(rows.shape, values.dtype)
                expected[ids] = values
                np.testing.assert_array_equal(result, expected)

        return Case(
            f"SparseRows.{method}", getattr(rows, method), {}, check_whole, (),
            hidden=(rows,), sound=n_rows < 2**20,
        )  # fmt: skip
    weight = numbers(rng, (n_rows, dim)).astype(values.dtype)
    weight = layouts(rng, weight, ["fortran", "spaced", "reversed", "wide", "misaligned"])
    call = {"weight": weight, "alpha": rng.choice([1.0, -0.5, 0, 2, np.float32(3), 1e300])}
    call["num_threads"] = rng.choice(THREADS)

    def check_added(result, given):
        assert result is None
        if given.get("before") is None:
            return
        weight, expected = plain(given["weight"]), given["before"]
        with np.errstate(all="ignore"):
            factor = weight.dtype.type(float(given.get("alpha", 1.0)))
            expected[ids] += factor * plain(values)
        check_same_bits(weight, expected)

    def before(given):
        return np.array(plain(given["weight"])) if given["weight"].size < MOST else None

    return Case(
        "SparseRows.add_to", rows.add_to, call, check_added, REFUSES, writes=("weight",),
        before=before, hidden=(rows,),
    )  # fmt: skip


def sparse_arithmetic_cases(rng):
    """Return a call that makes sparse rows of pairs, or that measures or reduces some."""
    n_rows, dim = rng.choice([1, 5, 40]), rng.choice([0, 1, 3, 8, 65])
    ids = np.array([rng.randrange(n_rows) for _ in range(rng.choice([0, 1, 3, 60]))], np.int64)
    values = numbers(rng, (len(ids), dim), special=rng.random() < 0.1).astype(rng.choice(FLOATS))
    method = rng.choice(["from_pairs", "norm", "clip_norm", "rows"])
    if method == "from_pairs":
        ways = ["fortran", "spaced", "wide", "misaligned", "read-only", "subclass"]
        call = {
            "indices": layouts(rng, ids, ["list", "swapped", "spaced", "__array__"]),
            "values": layouts(rng, values, ways),
            "shape": (n_rows, dim),
        }

        def check_pairs(rows, given):
            check_sparse(rows)
            expected = np.zeros((n_rows, dim), rows.values.dtype)
            if rows.shape == expected.shape:
                with np.errstate(all="ignore"):
                    np.add.at(expected, plain(given["indices"]).astype("i8"), given["values"])
                check_same_bits(rows.to_dense(), expected)

        return Case(
            "SparseRows.from_pairs", embag.SparseRows.from_pairs, call, check_pairs,
            (*REFUSES, IndexError),
        )  # fmt: skip
    rows = embag.SparseRows.from_pairs(ids, values, (n_rows, dim))
    dense = rows.to_dense()
    few = [rng.randrange(n_rows) for _ in range(3)]
    subset = rng.choice([few, np.isin(np.arange(n_rows), few)])
    arguments = {
        "norm": {"ord": rng.choice([1, 2, float("inf"), np.float32(2)])},
        "clip_norm": {"max_norm": rng.choice([0, 1.5, float("inf")])},
        "rows": {"subset": subset},
    }[method]

    def check(result, given):
        if method == "norm":
            assert result >= 0 or np.isnan(dense).any()
            return
        check_sparse(result)
        if method == "rows" and given["subset"] is subset:
            kept = np.isin(np.arange(n_rows), few)[:, None]
            check_same_bits(result.to_dense(), np.where(kept, dense, dense.dtype.type(0)))

    return Case(
        f"SparseRows.{method}", getattr(rows, method), arguments, check, (*REFUSES, IndexError),
        hidden=(rows,),
    )  # fmt: skip


def check_sparse(rows):
    assert type(rows) is embag.SparseRows
    assert rows.indices.dtype == np.int64
    assert not rows.indices.flags.writeable
    assert rows.nbytes == rows.indices.nbytes + rows.values.nbytes
    assert repr(rows).startswith("SparseRows(")
    again = pickle.loads(pickle.dumps(rows))
    assert again.shape == rows.shape


# --- Memory and settings --------------------------------------------------------------


def aligned_empty_cases(rng):
    shape = rng.choice(
        [(), (3,), (2, 5), (0, 4), 7, [3, 4], np.int64(3), np.array([2, 3]), (600_000,)]
    )
    call = {"shape": shape, "dtype": rng.choice(["f4", np.float64, "u1", BFLOAT16, ">i8", "f4,i8"])}

    def check(result, given):
        shape = given["shape"]
        if isinstance(shape, tuple | list):
            assert result.shape == tuple(map(int, shape))
        assert result.dtype == np.dtype(given.get("dtype", np.float32))
        assert result.flags.c_contiguous
        assert result.flags.writeable
        boundary = 2 << 20 if result.nbytes >= 2 << 20 else 64
        assert result.ctypes.data % boundary == 0 or result.size == 0

    return Case("aligned_empty", embag.aligned_empty, call, check, REFUSES)


def aligned_copy_cases(rng):
    names = [name for name in DTYPES if not np.dtype(name).hasobject and np.dtype(name).itemsize]
    dtype = np.dtype(rng.choice(names))
    array = np.zeros(rng.choice([(), (3,), (2, 5), (0, 4), (3, 1, 2)]), dtype)
    if dtype.kind in "iuf":
        array += np.arange(array.size).reshape(array.shape).astype(dtype)
    ways = ["fortran", "spaced", "reversed", "misaligned", "read-only", "subclass", "map"]

    def check(result, given):
        source = plain(given["array"])
        assert (result.shape, result.dtype) == (source.shape, source.dtype)
        assert type(result) is np.ndarray
        assert result.size == 0 or not np.shares_memory(result, source)
        if source.size < MOST:
            assert result.tobytes() == np.ascontiguousarray(source).tobytes()

    call = {"array": layouts(rng, array, ways)}
    return Case("aligned_copy", embag.aligned_copy, call, check, REFUSES)


def set_num_threads_cases(rng):
    def call(n):
        from embag._process import threads  # noqa: PLC0415

        kept = threads._set_by_user
        try:
            assert embag.set_num_threads(n) is None
            return embag.get_num_threads()
        finally:
            threads._set_by_user = kept

    def check(result, given):
        assert 1 <= result <= (2**70 if given["n"] is None else operator.index(given["n"]))

    n = rng.choice([None, 1, 2, 64, 2**31, 2**70, np.int8(3)])
    return Case("set_num_threads", call, {"n": n}, check, REFUSES)


def num_threads_cases(rng):
    def check(result, given):
        with result:
            assert 1 <= embag.get_num_threads() <= operator.index(given["n"])

    n = rng.choice([1, 2, 64, 2**31, 2**70, np.int8(3)])
    return Case("num_threads", embag.num_threads, {"n": n}, check, (TypeError, ValueError))


def get_num_threads_cases(rng):
    def check(result, _given):
        assert type(result) is int
        assert result >= 1

    return Case("get_num_threads", embag.get_num_threads, {}, check, ())


def show_config_cases(rng):
    def call(**given):
        with contextlib.redirect_stdout(io.StringIO()) as text:
            result = embag.show_config(**given)
        return result, text.getvalue()

    def check(result, given):
        config, text = result
        if given.get("mode") == "dicts":
            assert config["version"] == embag.__version__
        else:
            assert config is None
            assert text.startswith(f"embag {embag.__version__}")

    given = {"mode": rng.choice(["stdout", "dicts"])}
    return Case("show_config", call, given, check, (ValueError,))


def tune_cases(rng):
    weight = tables(rng, [*FLOATS, *NARROW])
    with np.errstate(all="ignore"):
        floats = plain(weight).astype(np.float32)
    if rng.random() < 0.3 and np.isfinite(floats).all():
        weight = embag.quantize(floats)

    def check(result, given):
        assert 3 * (0 not in given["weight"].shape) <= len(result) <= 6
        for tuned in result:
            assert tuned.strategy in tuned.ns_per_row or not tuned.settled

    call = {"weight": weight, "n_threads": rng.choice([None, 1, 2, np.int64(2)])}
    return Case("tune", embag.tune, call, check, REFUSES)
