"""RemappedTable and symmetric tables: the reference's bits, literals, errors."""

import itertools
import pickle

import numpy as np
import pytest
import reference
from cases import EIGHT_BITS, QUANTIZED, assert_same_bits, dtype_of, low_precision_table, ragged

import embag
from embag import QuantizedTable, RemappedTable

MODES = ("sum", "weighted", "mean", "weighted mean", "sqrtn", "max", "min")
N_ROWS, N_IDS, FIRST = 40, 70, 5
INPUT, OFFSETS = ragged([3, 0, 1, 8, 1, 1, 40, 2, 0], N_IDS + 4, seed=3)
INPUT = INPUT + FIRST - 2  # two ids below the first, two above the last
WEIGHTS = np.random.default_rng(4).standard_normal(len(INPUT))


def symmetric(kind, n_rows, dim, one_scale=False):
    q = low_precision_table(kind, n_rows, dim, seed=1)
    scales = np.float32(0.37) if one_scale else np.random.default_rng(2).standard_normal(n_rows)
    make = QuantizedTable.from_int8 if kind == "int8" else QuantizedTable.from_float8
    return make(q, scales)


def inner_table(kind, n_rows, dim):
    if kind.startswith("symmetric"):
        return symmetric(kind.split()[1], n_rows, dim)
    if kind in ("float32", "float64"):
        return np.random.default_rng(6).standard_normal((n_rows, dim)).astype(kind)
    return low_precision_table(kind, n_rows, dim, seed=1)


def remapped(kind, dim, scaled=True, dtype=np.int64):
    rng = np.random.default_rng(7)
    index_map = rng.integers(-1, N_ROWS, N_IDS).astype(dtype)
    index_map[[3, 50]] = -1
    scales = rng.standard_normal(N_IDS) if scaled else None
    return RemappedTable(inner_table(kind, N_ROWS, dim), index_map, scales, FIRST)


def options_of(mode):
    options = {"mode": mode.replace("weighted ", "").replace("weighted", "sum")}
    if "weighted" in mode:
        options["per_sample_weights"] = WEIGHTS
    return options


# --- Bits ---------------------------------------------------------------------

KINDS = ["float32", "float64", "float16", *QUANTIZED, "int8", "symmetric int8"]
KINDS += ["symmetric float8_e4m3fn"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_bits_of_remapped_tables(kind, mode, level, eager_threads):
    extras = [
        {},
        {"padding_idx": FIRST + 9},
        {"default_idx": FIRST + 11, "padding_idx": -1},
        {"default_idx": FIRST + 3, "normalize": True},  # the default has no row
    ]
    for i, extra in enumerate(extras):
        for scaled, invalid in ((True, "skip"), (i % 2 == 0, FIRST + 20)):
            dim = (1, 8, 37, 130)[i]
            table = remapped(kind, dim, scaled, (np.int32, np.int64)[i % 2])
            options = options_of(mode) | extra | {"invalid": invalid}
            expected, winners = reference.mapped_embedding_bag(INPUT, table, OFFSETS, **options)
            for n_threads, index_dtype in ((1, np.int64), (3, np.int32)):
                result = embag.embedding_bag(
                    INPUT.astype(index_dtype), table, OFFSETS, num_threads=n_threads, **options
                )
                assert_same_bits(result, expected, f"{kind} {options}")
            if mode in ("max", "min"):
                result, found = embag.embedding_bag(
                    INPUT, table, OFFSETS, return_max_indices=True, **options
                )
                assert_same_bits(result, expected, f"{kind} {options}")
                np.testing.assert_array_equal(found, winners)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["int8", "float8_e4m3fn", "float8_e5m2"])
def test_bits_of_symmetric_tables(kind, mode, level, eager_threads):
    for dim, one_scale in ((3, False), (64, True), (100, False)):
        table = symmetric(kind, N_IDS + 10, dim, one_scale)
        options = options_of(mode) | {"padding_idx": 9, "default_idx": 4}
        expected, _ = reference.mapped_embedding_bag(INPUT, table, OFFSETS, **options)
        for n_threads in (1, 3):
            result = embag.embedding_bag(INPUT, table, OFFSETS, num_threads=n_threads, **options)
            assert_same_bits(result, expected, f"{kind} {options}")
        with np.errstate(all="ignore"):
            entries = table.packed.astype(np.float32) * table.scales.reshape(-1, 1)
        assert_same_bits(table.dequantize(), entries)
        rows = [4, 0, 4]
        assert_same_bits(embag.embedding(rows, table), entries[rows])


@pytest.mark.parametrize("kind", EIGHT_BITS)
def test_every_entry_of_8_bits_is_its_value(kind, level):
    entries = np.arange(256, dtype=np.uint8).reshape(-1, 1).repeat(33, axis=1)
    table = entries.view(dtype_of(kind))
    assert_same_bits(embag.embedding(np.arange(256), table), table.astype(np.float32))


@pytest.mark.parametrize("n_threads", [1, 3])
def test_pieces_and_long_bags(n_threads, level, eager_threads):
    # More positions, and more bags, than are mapped at once, and a bag of more than a piece.
    lengths = [1] * 20_000 + [0] * 40_000 + [30_000, 2] + [3] * 9_000
    input, offsets = ragged(lengths, N_IDS, seed=9)
    weights = np.random.default_rng(1).standard_normal(len(input)).astype(np.float32)
    table = remapped("float32", 7)
    ids_with_rows = np.flatnonzero(table.index_map >= 0)
    input = ids_with_rows[input % len(ids_with_rows)] + FIRST
    rows = table.table[table.index_map[input - FIRST]]
    factors = weights * table.scales[input - FIRST]
    result = embag.embedding_bag(
        input, table, offsets, mode="sum", per_sample_weights=weights, num_threads=n_threads
    )
    expected = embag.embedding_bag(
        np.arange(len(input)), rows, offsets, mode="sum", per_sample_weights=factors
    )
    assert_same_bits(result, expected)


def test_plain_and_other_calls_have_the_same_bits():
    table = remapped("float32", 12)
    for options in ({}, {"include_last_offset": True}, {"padding_idx": FIRST + 9}):
        offsets = np.append(OFFSETS, len(INPUT)) if "include_last_offset" in options else OFFSETS
        options |= {"mode": "sum", "invalid": "skip"}
        plain = embag.embedding_bag(INPUT, table, offsets, **options)
        counted, n_invalid = embag.embedding_bag(
            INPUT.tolist(), table, offsets.tolist(), return_n_invalid=True, **options
        )
        assert_same_bits(counted, plain)
        assert n_invalid == ((INPUT < FIRST) | (INPUT >= FIRST + N_IDS)).sum() > 0
        out = np.full_like(plain, 7)
        assert embag.embedding_bag(INPUT, table, offsets, out=out, **options) is out
        assert_same_bits(out, plain)


def test_results_in_another_dtype():
    table = remapped("float32", 12)
    sums = embag.embedding_bag(INPUT, table, OFFSETS, invalid="skip", mode="sum")
    half = embag.embedding_bag(
        INPUT, table, OFFSETS, invalid="skip", mode="sum", out_dtype=np.float16
    )
    assert_same_bits(half, sums.astype(np.float16))


# --- Collections --------------------------------------------------------------


@pytest.mark.parametrize("n_threads", [1, 3])
def test_collections(n_threads, level, eager_threads):
    tables = {kind: remapped(kind, 6) for kind in KINDS if kind != "float64"}
    tables["plain"] = np.random.default_rng(0).standard_normal((N_IDS + 20, 5)).astype(np.float32)
    tables["scales"] = symmetric("int8", N_IDS + 20, 9)
    features = [
        embag.Feature(f"{name} {mode}", name, mode=mode, padding_idx=FIRST + 9, default_idx=8)
        for name in tables
        for mode in ("sum", "mean", "max")
    ]
    ebc = embag.EmbeddingBagCollection(tables, features, invalid="skip")
    values = {feature.name: (INPUT, OFFSETS) for feature in features}
    for offsets in (OFFSETS, OFFSETS.tolist()):
        values = {feature.name: (INPUT, offsets) for feature in features}
        out, n_valid = ebc(values, num_threads=n_threads, return_n_valid=True)
        for f, feature in enumerate(features):
            expected, counts = embag.embedding_bag(
                INPUT, tables[feature.table], OFFSETS, invalid="skip", mode=feature.mode,
                padding_idx=FIRST + 9, default_idx=8, return_n_valid=True,
            )  # fmt: skip
            assert_same_bits(np.ascontiguousarray(out[:, ebc.slices[feature.name]]), expected)
            np.testing.assert_array_equal(n_valid[:, f], counts)
        assert_same_bits(ebc(values, num_threads=n_threads), out)
    weights = {name: WEIGHTS.astype(np.float32) for name in values if "max" not in name}
    weighted = ebc(values, per_sample_weights=weights, num_threads=n_threads)
    for feature in features:
        if feature.mode != "max":
            expected = embag.embedding_bag(
                INPUT, tables[feature.table], OFFSETS, invalid="skip", mode=feature.mode,
                padding_idx=FIRST + 9, default_idx=8, per_sample_weights=WEIGHTS,
            )  # fmt: skip
            assert_same_bits(np.ascontiguousarray(weighted[:, ebc.slices[feature.name]]), expected)


def test_replace_in_a_collection():
    ebc = embag.EmbeddingBagCollection(
        {"items": np.ones((9, 2), np.float32)}, [embag.Feature("clicked", "items")]
    )
    ebc.replace("items", RemappedTable(np.full((1, 2), 3, np.float32), [-1, 0, 0], first_id=4))
    assert ebc({"clicked": [[4, 5, 6]]}).tolist() == [[6, 6]]
    with pytest.raises(IndexError, match=r"= 3 is out of range .* of the ids 4 to 6"):
        ebc({"clicked": [[3]]})
    copy = pickle.loads(pickle.dumps(ebc))
    assert copy({"clicked": [[4, 5, 6]]}).tolist() == [[6, 6]]


# --- Literals -----------------------------------------------------------------

ROWS = np.array([[1, 2], [10, 20], [100, 200]], np.float32)


def test_a_pruned_table():
    table = RemappedTable(ROWS, [2, -1, 0])
    found, n_valid = embag.embedding_bag(
        [[0, 1], [1, 1], [2, 0]], table, mode="mean", return_n_valid=True
    )
    assert found.tolist() == [[100, 200], [0, 0], [50.5, 101]]
    assert n_valid.tolist() == [1, 0, 2]


def test_scales_are_of_rows_and_divide_no_mean():
    table = RemappedTable(ROWS, [0, 0], [2, 4])
    assert embag.embedding_bag([[0, 1]], table, mode="mean").tolist() == [[3, 6]]
    weights = np.array([[1, 3]])
    found = embag.embedding_bag([[0, 1]], table, mode="mean", per_sample_weights=weights)
    assert found.tolist() == [[3.5, 7]]


def test_max_indices_are_ids():
    table = RemappedTable(ROWS, [1, -1, 1, 0], [1, 1, 2, -100], first_id=7)
    found, winners = embag.embedding_bag(
        [[7, 8, 9, 10]], table, mode="max", return_max_indices=True
    )
    assert (found.tolist(), winners.tolist()) == ([[20, 40]], [[9, 9]])
    found, winners = embag.embedding_bag(
        [[7, 8, 9, 10]], table, mode="min", return_max_indices=True
    )
    assert (found.tolist(), winners.tolist()) == ([[-100, -200]], [[10, 10]])


def test_shards_add_up():
    ids = np.array([[0, 2, 4], [5, 1, 1]])
    table = np.random.default_rng(0).integers(-9, 9, (6, 3)).astype(np.float32)
    shards = [RemappedTable(table[:2]), RemappedTable(table[2:], first_id=2)]
    parts = [embag.embedding_bag(ids, shard, mode="sum", invalid="skip") for shard in shards]
    assert sum(parts).tolist() == embag.embedding_bag(ids, table, mode="sum").tolist()


def test_a_slice_of_a_symmetric_table_and_its_pickle():
    table = symmetric("int8", 9, 4)
    part = table[2:8:2]
    assert part.dequantize().tobytes() == table.dequantize()[2:8:2].tobytes()
    copy = pickle.loads(pickle.dumps(part))
    assert copy.dequantize().tobytes() == part.dequantize().tobytes()
    assert repr(table) == "QuantizedTable(9 rows, dim=4, int8, 72 bytes)"
    remapped_copy = pickle.loads(pickle.dumps(RemappedTable(table, [3, -1], [1, 2], first_id=6)))
    assert repr(remapped_copy) == "RemappedTable(2 ids from 6 on, 9 rows, dim=4, 96 bytes)"
    assert remapped_copy.shape == (2, 4)


def test_memory_of_the_error():
    table = symmetric("int8", 9, 4, one_scale=True)
    assert table.error(table.dequantize().astype(np.float64)).max_abs == 0


# --- Errors -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([[1.0]],), TypeError, "table must be a numpy.ndarray, a QuantizedTable or"),
        ((RemappedTable(ROWS),), TypeError, "table must be an array .* got a RemappedTable"),
        ((ROWS, [[0]]), ValueError, r"index_map must be 1-D, got shape \(1, 1\)"),
        ((ROWS, [0.5]), TypeError, "index_map must be integers"),
        ((ROWS, [0, 3]), ValueError, r"index_map must hold rows of .* got index_map\[1\] = 3"),
        ((ROWS, np.array([0, 2**64 - 1], np.uint64)), ValueError, r"index_map\[1\] = 184467440"),
        ((ROWS, [-2]), ValueError, r"got index_map\[0\] = -2"),
        ((ROWS, [2**70]), ValueError, r"got index_map\[0\] = 9223372036854775807"),
        ((ROWS, [0, 1], [1.0]), ValueError, r"scales must have shape \(2,\).* got \(1,\)"),
        ((ROWS, None, [1, 2, 3j]), TypeError, "scales must cast to float32"),
        ((ROWS, None, None, -1), ValueError, "first_id must be at least 0"),
        ((ROWS, None, None, 2**62), ValueError, "first_id must be .* less than"),
        ((ROWS, None, None, 1.0), TypeError, "first_id must be an integer"),
    ],
)  # fmt: skip
def test_errors(arguments, error, message):
    with pytest.raises(error, match=message):
        RemappedTable(*arguments)


@pytest.mark.parametrize(
    ("q", "scales", "error", "message"),
    [
        (ROWS, 1, TypeError, "q must be int8, got dtype float32"),
        (np.zeros(3, np.int8), 1, ValueError, "q must be 2-D"),
        (np.zeros((3, 4), np.int8)[:, ::2], 1, ValueError, "q must have the entries of a row"),
        (np.zeros((3, 4), np.int8), [1, 2], ValueError, r"scales must be one number or 3"),
        (np.zeros((3, 4), np.int8), "a", (TypeError, ValueError), "scales must"),
    ],
)
def test_errors_of_symmetric_tables(q, scales, error, message):
    with pytest.raises(error, match=message):
        QuantizedTable.from_int8(q, scales)
    if q.ndim == 2:
        with pytest.raises(TypeError, match="q must be float8_e4m3fn or float8_e5m2"):
            QuantizedTable.from_float8(q, scales)


def test_ids_out_of_range():
    table = RemappedTable(ROWS, [2, -1, 0], first_id=10)
    message = "out of range for a table of 3 rows, of the ids 10 to 12"
    for call in (
        lambda ids: embag.embedding_bag(ids, table, [0]),
        lambda ids: embag.embedding_bag([ids, ids], table),
        lambda ids: embag.embedding(ids, table),
        lambda ids: embag.embedding_bag(ids, table, [0], out=np.zeros((1, 2), np.float32)),
    ):
        for bad in (9, 13, -1, 2**62, -(2**63)):
            with pytest.raises(IndexError, match=f"= {bad} is {message}"):
                call([11, bad])
    with pytest.raises(ValueError, match=r"padding_idx must name .* of the ids 10 to 12, got 9"):
        embag.embedding_bag([11], table, [0], padding_idx=9)
    with pytest.raises(ValueError, match=r"padding_idx must name .* of the ids 10 to 12, got 9"):
        embag.embedding_bag(np.array([[11]]), table, padding_idx=9)
    with pytest.raises(ValueError, match="max_norm must be None"):
        embag.embedding_bag([11], table, [0], max_norm=1)


@pytest.mark.parametrize("offsets", [[0, 9, 3], [0, 3, 2], [0, 2, 9], [1, 2, 3]])
@pytest.mark.parametrize("n_threads", [1, 3])
def test_offsets_are_checked(offsets, n_threads, eager_threads, level):
    ids, offsets = np.array([10, 11, 12, 10]), np.array(offsets)
    for scales, mode in itertools.product((None, [1, 2, 3]), ("sum", "max", "min")):
        table = RemappedTable(ROWS, [2, -1, 0], scales, first_id=10)
        with pytest.raises(ValueError, match=r"^offsets must "):
            embag.embedding_bag(ids, table, offsets, mode=mode, num_threads=n_threads)


def test_a_map_that_changes():
    index_map = np.array([0, 1, 2] + [0] * 30_000)
    table = RemappedTable(ROWS, index_map)
    features = [embag.Feature("a", "rows"), embag.Feature("b", "a"), embag.Feature("c", "a")]
    ebc = embag.EmbeddingBagCollection({"a": table, "rows": ROWS}, features)
    unpooled = embag.EmbeddingBagCollection(
        {"a": table, "rows": ROWS},
        [features[0], embag.Feature("b", "a", mode="none", invalid="skip")],
    )
    index_map[1] = 7
    many = np.zeros((20_000, 1), int)
    many[-1] = 1
    out, wide, ones = np.full((1, 2), 5, np.float32), np.full((20_000, 2), 5, np.float32), [[1]]
    of_features = np.full((1, 6), 5, np.float32)
    for call in (
        lambda: embag.embedding_bag(ones, table),
        lambda: embag.embedding_bag(ones, table, out=out),
        lambda: embag.embedding_bag([[9**9, 1]], table, out=out, invalid="skip"),
        lambda: embag.embedding_bag([[9**9, 0]], table, out=out, invalid=1),
        lambda: embag.embedding_bag([[9**9]], table, out=out, invalid="skip", default_idx=1),
        lambda: embag.embedding_bag(many, table, out=wide, mode="sum", num_threads=1),
        lambda: embag.embedding_bag(ones, table, mode="max", return_max_indices=True),
        lambda: embag.embedding([-1, 1], table, invalid="skip"),
        lambda: embag.embedding(ones, table, invalid="skip", out=out.reshape(1, 1, 2)),
        lambda: ebc({"a": [[0]], "b": [[0]], "c": [[1]]}),
        lambda: ebc(np.array([0, 0, 1]), np.arange(4), out=of_features),
        lambda: unpooled({"a": [[0]], "b": [1]}, out=out),
    ):
        with pytest.raises(ValueError, match=r"index_map must hold .* got index_map\[1\] = 7"):
            call()
    for array in (out, wide, of_features):
        assert (array == 5).all()
    # Ids that are not used do not matter.
    assert embag.embedding_bag([[0]], table, out=out, return_n_valid=True)[1] == [1]


def test_out_lies_apart_from_the_map_and_the_scales():
    memory = np.zeros((6, 2), np.float32)
    numbers = memory.reshape(-1)
    for table, ids in (
        (RemappedTable(ROWS, None, numbers[:3]), [[0], [1], [2]]),
        (RemappedTable(ROWS, numbers.view(np.int32)), [[0], [1], [2]]),
        (RemappedTable(memory, [0, 1, 2]), [[0], [1], [2]]),
        (QuantizedTable.from_int8(np.zeros((6, 2), np.int8), numbers[:6]), [[0], [1], [2]]),
    ):
        assert any(np.shares_memory(memory, array) for array in table._encoded.memory())
        for given in (ids, np.array(ids)):
            with pytest.raises(ValueError, match="out must share no memory with weight"):
                embag.embedding_bag(given, table, out=memory[:3])
            with pytest.raises(ValueError, match="out must share no memory with weight"):
                embag.embedding(np.ravel(given), table, out=memory[:3])
    assert not memory.any()


def test_out_lies_apart_from_the_ids_of_features_without_bags():
    ebc = embag.EmbeddingBagCollection(
        {"a": ROWS}, [embag.Feature("p", "a"), embag.Feature("u", "a", mode="none")]
    )
    memory = np.zeros((1, 2), np.float32)
    with pytest.raises(ValueError, match=r"out must share no memory with values\['u'\]"):
        ebc({"p": [[1]], "u": memory.reshape(-1).view(np.int64)}, out=memory)
    assert not memory.any()


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("n_threads", [1, 3])
def test_results_in_out(dtype, scaled, n_threads, level, eager_threads):
    table = remapped("float32", 8, scaled, dtype)
    input = np.clip(INPUT, FIRST, FIRST + N_IDS - 1)
    expected, _ = reference.mapped_embedding_bag(input, table, OFFSETS, mode="mean")
    out = np.full(expected.shape, np.nan, np.float32)
    assert embag.embedding_bag(input, table, OFFSETS, out=out, num_threads=n_threads) is out
    assert_same_bits(out, expected)
    # Nothing is written for a bad id, nor for a row that the map has got since: the last of so many
    # that others would be done before.
    input = np.append(np.full(20_000, FIRST), FIRST + 20)
    offsets, options = np.arange(0, len(input), 20), {"num_threads": n_threads}
    out = np.full((len(offsets), 8), 7, np.float32)
    for row in (-2, N_ROWS):
        changed = RemappedTable(table.table, table.index_map.copy(), first_id=FIRST)
        changed.index_map[input[-1] - FIRST] = row
        with pytest.raises(ValueError, match=f"index_map must hold rows .* = {row}"):
            embag.embedding_bag(input, changed, offsets, out=out, **options)
        assert (out == 7).all()
    for bad in (FIRST - 1, FIRST + N_IDS):
        changed = input.copy()
        changed[-1] = bad
        with pytest.raises(IndexError, match=f"= {bad} is out of range"):
            embag.embedding_bag(changed, table, offsets, out=out, **options)
        assert (out == 7).all()
