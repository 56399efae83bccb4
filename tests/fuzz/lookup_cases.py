"""Sound calls of `embedding_bag`, its gradients and the layer, and checks of their results."""

import operator
from typing import NamedTuple

import numpy as np
import reference

import embag

from .checked_call import Case
from .values import BFLOAT16, FLOAT8, integer, layouts, numbers, random_bytes

RAISES = (TypeError, ValueError, IndexError, RuntimeError)
MOST = 5000  # positions, bags and columns: the reference is slow
MODES = ["sum", "mean", "sqrtn", "max", "min"]
THREADS = [None, None, 1, 2, 3, 8, 2**31, 2**70, np.int64(2)]
FLOATS = ["f4", "f4", "f8"]
NARROW = ["f2", BFLOAT16]
EIGHT_BITS = ["i1", "u1", FLOAT8, "symmetric"]
PACKED = [(layout, bits) for layout in ("fused", "tbe") for bits in (8, 4, 2)]


# --- Arguments of sound calls ---------------------------------------------------------


class Bags(NamedTuple):
    input: object
    offsets: object
    include_last_offset: bool
    shape: tuple  # of input
    n_bags: int


def tables(rng, kinds=(*FLOATS, *NARROW, *PACKED, *EIGHT_BITS), *, often=4):
    """Return a table of one of these kinds; tables of floats have any layout."""
    kind = rng.choice(list(kinds))
    n_rows = rng.choice([0, 1, 2, 3, 5, 12, 12, 40, 40, 100])
    dim = rng.choice([0, 1, 2, 3, 4, 7, 8, 16, 17, 31, 33, 64, 65, 130, 300])
    special = rng.random() < 0.2
    if kind in PACKED:
        layout, bits = kind
        extra = rng.choice([0, 0, 3]) if layout == "tbe" else 0
        n_bytes = embag.quantized.row_bytes(bits, dim, layout)
        packed = random_bytes(rng, (n_rows, n_bytes + extra))
        if not special:
            factors = numbers(rng, (n_rows, 2))
            factors = factors.astype("f4" if kind == ("fused", 8) else "f2").view(np.uint8)
            at = n_bytes - factors.shape[1] if layout == "fused" else 0
            packed[:, at : at + factors.shape[1]] = factors
        packed = layouts(
            rng, packed, ["spaced", "reversed", "wide", "read-only", "map", "subclass"]
        )
        return embag.QuantizedTable.from_packed(packed, bits, dim, layout)
    if kind == "symmetric":
        q = layouts(rng, random_bytes(rng, (n_rows, dim)).view("i1"), ["spaced", "wide", "map"])
        scales = numbers(rng, rng.choice([(), (n_rows,), (n_rows, 1)]), special=special)
        with np.errstate(all="ignore"):
            return embag.QuantizedTable.from_int8(q, scales)
    with np.errstate(all="ignore"):
        table = numbers(rng, (n_rows, dim), special=special).astype(kind)
    ways = [
        "fortran",
        "spaced",
        "reversed",
        "wide",
        "misaligned",
        "read-only",
        "subclass",
        "masked",
    ]
    return layouts(rng, table, [*ways, "map", "matrix"], often=often)


def remapped(rng, table):
    """Return a table whose ids are mapped to the rows of another."""
    n_rows = rows_of(table)
    n_ids = rng.choice([0, 1, 5, 40])
    index_map = rng.choice([None, [rng.randrange(-1, n_rows) for _ in range(n_ids)]])
    n_ids = n_rows if index_map is None else n_ids
    dtype = rng.choice(["i4", "i8", "i2"])
    return embag.RemappedTable(
        table,
        None if index_map is None else np.array(index_map, dtype),
        rng.choice([None, numbers(rng, n_ids, special=rng.random() < 0.1).astype("f4")]),
    )


def bags(rng, n_rows, n_bags=None, *, two_d=None, ilo=None, narrow=True):
    """Return bags of ids of a table with `n_rows` rows."""
    two_d = rng.random() < 0.3 if two_d is None else two_d
    ilo = rng.random() < 0.3 if ilo is None else ilo
    n_bags = rng.choice([0, 1, 1, 2, 3, 6]) if n_bags is None else n_bags
    size = rng.choice([0, 1, 2, 5])
    lengths = [size if two_d else rng.choice([0, 0, 1, 2, 5, 9, 40]) for _ in range(n_bags)]
    if n_rows == 0:
        size, lengths = 0, [0] * n_bags
    dtype = rng.choice(["i8"] * 4 + ["i4"] * 3 + [">i8", "u8", "i2"] + ["u1"] * (n_rows <= 256))
    ids = np.array([rng.randrange(n_rows) for _ in range(sum(lengths))], dtype)
    ways = ["spaced", "reversed", "misaligned", "read-only", "swapped", "subclass", "masked"]
    ways += ["map", "list", "tuple", "__array__", "buffer"] if narrow else ["map"]
    if two_d:
        ids = ids.reshape(n_bags, size)
        if n_bags == 0:  # empty lists have only one axis
            ways = ways[:5]
        return Bags(layouts(rng, ids, ways), None, ilo, ids.shape, n_bags)
    offsets = np.cumsum([0, *lengths]).astype(rng.choice(["i8", "i8", "i4", "u8", "i2"]))
    if not ilo:
        offsets = offsets[:-1].copy()
        if n_bags == 0:
            ids = ids[:0]
    elif rng.random() < 0.3:  # positions in no bag are not read
        ids = np.concatenate([ids, np.array([-1 % 2**7, n_rows % 2**7], ids.dtype)])
    return Bags(layouts(rng, ids, ways), layouts(rng, offsets, ways), ilo, ids.shape, n_bags)


def with_invalid_ids(rng, input):
    """Return ids of which some are out of range."""
    ids = np.array(plain(input))
    if ids.dtype.kind not in "iu":  # from an empty list
        return input
    info = np.iinfo(ids.dtype)
    for k in range(ids.size):
        if rng.random() < 0.2:
            ids.flat[k] = min(max(int(integer(rng)), int(info.min)), int(info.max))
    return ids


def count_invalid(call):
    """Return how many ids in the bags of a call are out of range."""
    ids, offsets = plain(call["input"]).reshape(-1), call.get("offsets")
    if offsets is not None and call.get("include_last_offset", False):
        ids = ids[: int(plain(offsets)[-1])]
    n_rows = rows_of(call["weight"])
    return sum(not 0 <= int(r) < n_rows for r in ids) if len(ids) <= MOST else None


def rows_of(table):
    return table.shape[0]


def sample_weights(rng, shape):
    dtype = rng.choice(["f4", "f4", "f8", "f2", "i4", "?"])
    weights = numbers(rng, shape, special=rng.random() < 0.1)
    with np.errstate(all="ignore"):
        weights = weights.astype(dtype)
    ways = ["fortran", "spaced", "misaligned", "map", "swapped"]
    return layouts(rng, weights, [*ways, "list"] if weights.size else ways)


def forward_arguments(rng, kinds=(*FLOATS, *FLOATS, *NARROW, *PACKED, *EIGHT_BITS), maps=True):
    """Return the arguments of a sound call by name."""
    table = tables(rng, kinds)
    is_double = getattr(table, "dtype", None) == np.float64
    if maps and rng.random() < 0.15:
        table = remapped(rng, table)
    some = bags(rng, rows_of(table))
    mode = rng.choice(MODES)
    call = {"input": some.input, "weight": table, "offsets": some.offsets, "mode": mode}
    if some.include_last_offset:
        call["include_last_offset"] = rng.choice([True, np.True_])
    plain = isinstance(table, np.ndarray) and table.dtype.char in "fd"
    if rng.random() < 0.3 and rows_of(table):
        call["padding_idx"] = rng.randrange(-rows_of(table), rows_of(table))
    selects = mode in ("max", "min")
    if not selects and rng.random() < 0.5:
        call["per_sample_weights"] = sample_weights(rng, some.shape)
    if selects:
        call["return_max_indices"] = rng.random() < 0.5
    else:
        call["sparse"], call["scale_grad_by_freq"] = rng.random() < 0.2, rng.random() < 0.2
    if plain and table.flags.writeable and rng.random() < 0.15:
        call["max_norm"] = rng.choice([0, 1, 2.5, 1e9, float("inf"), np.float32(1)])
        call["norm_type"] = rng.choice([2.0, 1, 3, 0.5, float("inf")])
    if rng.random() < 0.3:
        call["out_dtype"] = rng.choice(["f8"] if is_double else ["f4", np.float16, BFLOAT16, None])
    if rng.random() < 0.3:
        given = call.get("out_dtype")
        dtype = np.dtype(given or ("f8" if is_double else "f4"))
        call["out"] = np.full((some.n_bags, table.shape[1]), 7, dtype)
    call["num_threads"] = rng.choice(THREADS)
    return call


# --- Expected results -----------------------------------------------------------------


def plain(value):
    """Return an array-like as a plain ndarray."""
    if issubclass(type(value), np.ndarray):
        return np.ndarray.view(value, np.ndarray)
    return np.asarray(value)


def check_same_bits(result, expected):
    """Check that both have the same bits, except those of NaN."""
    result = plain(result)
    assert (result.dtype, result.shape) == (expected.dtype, expected.shape), (result, expected)
    a, b = (x.view(f"u{x.itemsize}") if x.size else x.reshape(-1) for x in
            map(np.ascontiguousarray, (result, expected)))  # fmt: skip
    different = a != b
    if different.any():
        both = np.isnan(result) & np.isnan(expected)
        assert not (different & ~both).any(), f"got\n{result}\nexpected\n{expected}"


def floats_of(table):
    """Return the table in the dtype of sums: float64 tables unchanged, others as float32."""
    array = plain(table)
    return array if array.dtype.char == "d" else array.astype(np.float32)


def expected_forward(call, weight=None):
    """Return the reduced bags and the winning rows, or None if the call is too large."""
    weight = call["weight"] if weight is None else weight
    input, offsets = plain(call["input"]), call.get("offsets")
    offsets = None if offsets is None else plain(offsets)
    n_bags = len(input) if offsets is None else len(offsets)
    if max(input.size, n_bags, weight.shape[1]) > MOST:
        return None
    padding, sample = call.get("padding_idx"), call.get("per_sample_weights")
    invalid, default = call.get("invalid", "raise"), call.get("default_idx")
    options = {
        "mode": call.get("mode", "mean"),
        "padding_idx": None if padding is None else operator.index(padding),
        "include_last_offset": bool(call.get("include_last_offset", False)),
        "invalid": invalid if isinstance(invalid, str) else operator.index(invalid),
        "default_idx": None if default is None else operator.index(default),
        "normalize": bool(call.get("normalize", False)),
    }
    if sample is not None:
        options["per_sample_weights"] = plain(sample)
    if isinstance(weight, embag.RemappedTable) or getattr(weight, "scales", None) is not None:
        return reference.mapped_embedding_bag(input, weight, offsets, **options)
    if isinstance(weight, embag.QuantizedTable):
        return reference.quantized_embedding_bag(input, weight, offsets, **options)
    return reference.embedding_bag(input, floats_of(weight), offsets, **options)


def renormed(call):
    """Return the table after `max_norm`, and the result of the call."""
    p = float(call.get("norm_type", 2.0))
    if call.get("max_norm") is None or call["weight"].size > MOST or 20 < p < float("inf"):
        return None
    if call.get("default_idx") is not None or call.get("invalid", "raise") not in ("raise", "skip"):
        return None  # these rows may be scaled, too: tests/lookups/test_reductions.py
    weight = floats_of(call["weight"]).copy()
    input, offsets = plain(call["input"]), call.get("offsets")
    last = bool(call.get("include_last_offset", False))
    offsets = None if offsets is None else plain(offsets)
    n_bags = len(input) if offsets is None else offsets.size
    if max(input.size, n_bags, weight.size) > MOST or not (np.abs(weight) < 1e30).all():
        return None
    positions = reference.bags_of(input, offsets, last)
    rows = {int(input.reshape(-1)[k]) for bag in positions for k in bag}
    if call.get("invalid") == "skip":
        rows = {r for r in rows if 0 <= r < len(weight)}
    reference.renorm(weight, rows, float(call["max_norm"]), p)
    return weight, expected_forward(call, weight)


def is_ragged(value):
    """Return whether a corrupted argument is a ragged input."""
    if isinstance(value, list | tuple):
        try:
            return np.asarray(value).dtype == object
        except ValueError:
            return True
    return not issubclass(type(value), np.ndarray) or value.dtype == object


def check_forward(result, call):
    if is_ragged(call["input"]) and call.get("offsets") is None:
        return  # a corrupted call; ragged_cases.py checks ragged inputs
    parts = list(result) if isinstance(result, tuple) else [result]
    if call.get("return_n_valid", False):
        n_valid = parts.pop()
        assert n_valid.dtype == np.int64
        assert (n_valid >= 0).all()
        assert n_valid.sum() <= plain(call["input"]).size
    if call.get("return_n_invalid", False):
        count, expected = parts.pop(), 0
        if call.get("invalid", "raise") != "raise":
            expected = count_invalid(call)
        assert type(count) is int
        assert expected in (None, count), (count, expected)
    rows = parts.pop() if call.get("return_max_indices", False) else None
    (result,) = parts
    out, dtype = call.get("out"), call.get("out_dtype")
    assert out is None or result is out
    assert result.flags.c_contiguous
    table = getattr(call["weight"], "table", call["weight"])
    is_double = getattr(table, "dtype", None) == np.float64
    dtype = np.dtype(dtype or ("f8" if is_double else "f4"))
    assert result.dtype == dtype
    if call.get("max_norm") is not None:
        if (known := call.get("before")) is not None and known[1] is not None:
            rtol = 1e-9 if is_double else 1e-4
            weight, (expected, _) = known
            np.testing.assert_allclose(plain(call["weight"]), weight, rtol, 1e-30)
            if dtype.char in "fd" and call.get("mode", "mean") in ("max", "min"):
                np.testing.assert_allclose(result, expected, rtol, 1e-30)
        return
    expected = expected_forward(call)
    if expected is None:
        return
    with np.errstate(all="ignore"):
        check_same_bits(result, expected[0].astype(dtype))
    if rows is not None:
        check_same_bits(rows, expected[1])


def expected_backward(call):
    """Return the dense gradient of the table, and that of the weights."""
    weight, grad = floats_of(call["weight"]), plain(call["grad_output"])
    input, offsets = plain(call["input"]), call.get("offsets")
    offsets = None if offsets is None else plain(offsets)
    padding, sample = call.get("padding_idx"), call.get("per_sample_weights")
    padding = None if padding is None else operator.index(padding)
    if max(input.size, grad.size, len(weight)) > MOST:
        return None
    mode = call.get("mode", "mean")
    if mode in ("sqrtn", "min") or (mode == "mean" and sample is not None):
        return None  # tests/gradients/test_gradients_of_reductions.py compares with differences
    if call.get("default_idx") is not None or call.get("normalize") or "invalid" in call:
        return None
    with np.errstate(all="ignore"):
        grad = grad.astype(weight.dtype)
    dense, of_weights = reference.embedding_bag_backward(
        grad,
        input,
        weight,
        offsets,
        bool(call.get("scale_grad_by_freq", False)),
        call.get("mode", "mean"),
        None if sample is None else plain(sample),
        bool(call.get("include_last_offset", False)),
        padding,
    )
    if call.get("max_indices") is not None:
        dense[...] = 0
        for (b, d), r in np.ndenumerate(plain(call["max_indices"])):
            if r >= 0 and (padding is None or r != padding % len(weight)):
                dense[r, d] += grad[b, d]
    return dense, of_weights


def check_backward(result, call):
    assert type(result) is embag.EmbeddingBagGrads
    wrt, sample = call.get("wrt"), call.get("per_sample_weights")
    assert (result.weight is None) == (wrt == "per_sample_weights")
    assert (result.per_sample_weights is None) == (sample is None or wrt == "weight")
    expected = expected_backward(call)
    if expected is None:
        return
    if call.get("sparse", False) and result.weight is not None:
        rows = result.weight
        assert (np.diff(rows.indices) > 0).all()
        check_same_bits(rows.to_dense(), expected[0])
    elif result.weight is not None:
        check_same_bits(result.weight, expected[0])
    if result.per_sample_weights is not None:
        check_same_bits(result.per_sample_weights, expected[1])


# --- Cases ----------------------------------------------------------------------------


def with_counts_and_rows(rng, call):
    """Add what to do with ids out of range and with empty bags, and counts, to a sound call."""
    n_rows = rows_of(call["weight"])
    more = call.get("max_norm") is None and n_rows > 0
    if rng.random() < 0.3:
        policies = ["raise", "skip", "skip"]
        if more:
            policies.append(rng.randrange(-n_rows, n_rows))
        call["invalid"] = rng.choice(policies)
        call["return_n_invalid"] = rng.choice([True, True, False, np.True_])
        if call["invalid"] != "raise":
            call["input"] = with_invalid_ids(rng, call["input"])
    if more and rng.random() < 0.3:
        call["default_idx"] = rng.randrange(-n_rows, n_rows)
    if rng.random() < 0.2:
        call["normalize"] = rng.random() < 0.8
    if rng.random() < 0.2:
        call["return_n_valid"] = rng.random() < 0.8
    return call


def forward_cases(rng):
    call = with_counts_and_rows(rng, forward_arguments(rng))
    return Case(
        "embedding_bag",
        embag.embedding_bag,
        call,
        check_forward,
        RAISES,
        writes=("out",),
        before=renormed,
    )


FORWARD_ONLY = ("out", "out_dtype", "max_norm", "norm_type", "return_max_indices")


def backward_arguments(rng, kinds=FLOATS):
    call = forward_arguments(rng, kinds, maps=False)
    for name in FORWARD_ONLY:
        call.pop(name, None)
    dim = call["weight"].shape[1]
    bounds = call["offsets"]
    if bounds is None:
        n_bags = len(plain(call["input"]))
    else:
        n_bags = len(plain(bounds)) - bool(call.get("include_last_offset", False))
    grad = numbers(rng, (n_bags, dim), special=rng.random() < 0.1)
    with np.errstate(all="ignore"):
        grad = grad.astype(rng.choice(["f4", "f4", "f8", "f2", "i8"]))
    ways = ["fortran", "spaced", "reversed", "wide", "misaligned", "read-only", "list", "swapped"]
    call["grad_output"] = layouts(rng, grad, ways)
    if rng.random() < 0.1 and n_bags:
        call["grad_output"] = np.broadcast_to(grad[:1], grad.shape)
    if dim == 0 or n_bags == 0:
        call["grad_output"] = grad
    if call["mode"] in ("max", "min") and rng.random() < 0.5:
        least = -1 if rows_of(call["weight"]) else 0
        winners = [rng.randrange(-1, max(0, rows_of(call["weight"]))) for _ in range(n_bags * dim)]
        call["max_indices"] = np.array(winners, "i8").reshape(n_bags, dim) if least else None
    if call["mode"] in ("max", "min"):
        call["sparse"] = rng.random() < 0.3
    n_rows = rows_of(call["weight"])
    if rng.random() < 0.2 and n_rows:
        call["default_idx"] = rng.choice([None, rng.randrange(-n_rows, n_rows)])
        call["invalid"] = rng.choice(["raise", "skip", rng.randrange(-n_rows, n_rows)])
        call["normalize"] = rng.random() < 0.5
    call["wrt"] = rng.choice([None, None, "weight"])
    if call.get("per_sample_weights") is not None and rng.random() < 0.3:
        call["wrt"] = "per_sample_weights"
    return call


def backward_cases(rng):
    call = backward_arguments(rng, (*FLOATS, *NARROW))
    return Case(
        "embedding_bag_backward", embag.embedding_bag_backward, call, check_backward, RAISES
    )


def embedding_cases(rng):
    """Return a call of `embedding` with ids of some shape."""
    table = tables(rng)
    n_rows = rows_of(table)
    shape = rng.choice([(), (3,), (2, 2), (1, 2, 3), (0,), (2, 0)]) if n_rows else (0,)
    ids = np.array([rng.randrange(max(1, n_rows)) for _ in range(int(np.prod(shape)))], "i8")
    ids = ids.reshape(shape).astype(rng.choice(["i8", "i4", "u1"]))
    call = {"input": rng.choice([ids, ids.tolist()]) if ids.size else ids, "weight": table}
    call["num_threads"] = rng.choice(THREADS)
    if n_rows and rng.random() < 0.3:
        call["padding_idx"] = rng.randrange(-n_rows, n_rows)
        call["invalid"] = rng.choice(["raise", "skip", rng.randrange(-n_rows, n_rows)])
    plain_table = isinstance(table, np.ndarray) and table.dtype.char in "fd"
    dtype = np.dtype("f8" if plain_table and table.dtype.char == "d" else "f4")
    if plain_table and table.flags.writeable and rng.random() < 0.4:
        call["max_norm"], call["norm_type"] = float("inf"), rng.choice([1.0, 2.0])
    if rng.random() < 0.2:
        call["out_dtype"] = dtype
        call["out"] = np.full((*shape, table.shape[1]), 7, dtype)
    elif isinstance(table, np.ndarray) and table.itemsize > 1 and rng.random() < 0.2:
        call["out_dtype"] = table.dtype  # a copy, of any encoding

    def check(result, given):
        if given["weight"].shape[1] and not is_ragged(given["input"]):
            assert result.shape == (*np.shape(given["input"]), given["weight"].shape[1])
        is_plain = given["weight"] is table and isinstance(table, np.ndarray)
        is_plain = is_plain and (plain_table or given.get("out_dtype") == table.dtype)
        if is_plain and "invalid" not in given and given.get("max_norm") is None:
            check_same_bits(result, plain(given["weight"])[plain(given["input"]).astype("i8")])

    return Case("embedding", embag.embedding, call, check, RAISES, writes=("out",))


def embedding_backward_cases(rng):
    """Return a call of `embedding_backward` with ids of some shape."""
    table = tables(rng, FLOATS)
    n_rows, dim = table.shape
    shape = rng.choice([(), (3,), (2, 2), (0,)]) if n_rows else (0,)
    ids = np.array([rng.randrange(max(1, n_rows)) for _ in range(int(np.prod(shape)))], "i8")
    call = {
        "grad_output": np.ones((*shape, dim), table.dtype),
        "input": ids.reshape(shape),
        "weight": table,
        "scale_grad_by_freq": rng.random() < 0.2,
        "sparse": rng.random() < 0.3,
        "num_threads": rng.choice(THREADS),
    }
    if n_rows and rng.random() < 0.3:
        call["padding_idx"] = rng.randrange(-n_rows, n_rows)
        call["invalid"] = rng.choice(["raise", "skip", rng.randrange(-n_rows, n_rows)])

    def check(result, given):
        assert result.shape == given["weight"].shape

    return Case("embedding_backward", embag.embedding_backward, call, check, RAISES)


def grads_cases(rng):
    """The gradients are tuples of any two values."""

    def check(result, call):
        assert all(map(operator.is_, result, call.values()))

    kind = rng.choice([embag.EmbeddingBagGrads, embag.SegmentReduceGrads])
    call = dict.fromkeys(kind._fields, 1)
    return Case(kind.__name__, kind, call, check, (TypeError,))


LAYER_OPTIONS = (
    *("scale_grad_by_freq", "mode", "sparse", "include_last_offset", "padding_idx"),
    *("default_idx", "invalid", "normalize"),
)


def layer_cases(rng):
    """Return a call of a constructor, or of a layer of sound arguments."""
    backward = rng.random() < 0.5
    if backward:
        call = backward_arguments(rng)
    else:
        call = with_counts_and_rows(rng, forward_arguments(rng, FLOATS, maps=False))
    if call.pop("out_dtype", None) is not None:
        call.pop("out", None)
    if call["mode"] in ("max", "min"):
        call.pop("sparse", None)
    table = call.pop("weight")
    options = {name: call.pop(name) for name in LAYER_OPTIONS if name in call}
    for name in ("max_norm", "norm_type"):
        if name in call:
            options[name] = call.pop(name)
    how = rng.randint(0, 3)
    if how == 0:
        sizes = {"num_embeddings": table.shape[0], "embedding_dim": table.shape[1]}
        given = rng.choice([{"_weight": table}, {}, {"dtype": "f8", "rng": 3}])
        return Case(
            "EmbeddingBag", new_layer, {**sizes, **options, **given}, check_layer,
            (TypeError, ValueError),
        )  # fmt: skip
    if how == 1:
        return Case(
            "EmbeddingBag.from_pretrained",
            embag.EmbeddingBag.from_pretrained,
            {"embeddings": table, **options},
            check_layer,
            (TypeError, ValueError),
        )
    layer = embag.EmbeddingBag.from_pretrained(table, **options)
    as_call = {"weight": table, **options}

    def check(result, given):
        whole = {**as_call, **given}
        if backward:
            check_backward(result, whole)
        else:
            check_forward(result, whole)

    if backward and how == 2:
        return update_case(rng, plain(table), options, call)
    if backward:
        return Case("EmbeddingBag.backward", layer.backward, call, check, RAISES, hidden=(table,))
    return Case(
        "EmbeddingBag.forward",
        layer,
        call,
        check,
        RAISES,
        writes=("out",),
        before=lambda given: renormed({**as_call, **given}),
        hidden=() if "max_norm" in options else (table,),
    )


def update_case(rng, table, options, call):
    """Return a call of `EmbeddingBag.update`, which changes a copy of the table."""
    layer = embag.EmbeddingBag.from_pretrained(np.array(table, order="C"), **options)
    call["wrt"] = rng.choice(["weight", None])
    call["optimizer"] = embag.optim.SGD(layer.weight, lr=0.5)

    def update(**given):
        try:
            return layer.update(**given)
        except Exception:
            assert layer.weight.tobytes() == table.tobytes()
            raise

    def check(result, given):
        given = {name: value for name, value in given.items() if name != "optimizer"}
        expected = np.array(table, order="C")
        twin = embag.EmbeddingBag.from_pretrained(expected, **options)
        grads = twin.backward(**given)
        with np.errstate(all="ignore"):
            embag.optim.SGD(expected, lr=0.5).step(grads.weight)
        check_same_bits(layer.weight, expected)
        assert (result is None) == (grads.per_sample_weights is None)
        if result is not None:
            check_same_bits(result, grads.per_sample_weights)

    return Case("EmbeddingBag.update", update, call, check, RAISES)


def new_layer(**given):
    """Make a layer, unless its seed has so many numbers that NumPy would take minutes."""
    if max(np.shape(given.get("rng")), default=0) > 10**6:
        given["rng"] = "too long"
    return embag.EmbeddingBag(**given)


def check_layer(layer, call):
    assert type(layer) is embag.EmbeddingBag
    assert repr(layer).startswith("EmbeddingBag(")
    given = call.get("_weight", call.get("embeddings"))
    assert layer.weight.shape == (layer.num_embeddings, layer.embedding_dim)
    assert given is None or layer.weight is given
    if layer.num_embeddings and layer.max_norm is None and layer.weight.size < MOST:
        layer.forward([[0, layer.num_embeddings - 1]])
