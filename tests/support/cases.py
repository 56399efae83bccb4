"""The table of named cases, which most tests use, and helpers for them.

A case has ids, bags and the size of a table. Tests combine it with modes, options, dtypes,
levels and threads.
"""

import os
import sys
from dataclasses import dataclass, field

import numpy as np
import pytest

from embag import QuantizedTable
from embag._kernels import dispatch

# The levels that are built and that this machine runs; `make test-fast` takes the best one only.
LEVELS = [level for level in dispatch.built_levels() if level in dispatch.supported_levels()]
if os.environ.get("EMBAG_TEST_LEVELS") == "best":
    LEVELS = LEVELS[-1:]

# The characters of the machine's byte order, and of the other one, in names of dtypes.
NATIVE, SWAPPED = "<>" if sys.byteorder == "little" else "><"
# Integers that are no index arrays: ids of these dtypes are copied.
CONVERTED_INTEGERS = [
    *(np.int8, np.uint8, np.int16, np.uint16, np.uint32, np.uint64),
    *(f"{SWAPPED}i4", f"{SWAPPED}i8", f"{SWAPPED}u8"),
]


@dataclass(frozen=True)
class Case:
    name: str
    input: np.ndarray
    offsets: np.ndarray | None
    n_rows: int
    dim: int
    options: dict = field(default_factory=dict)

    def table(self, dtype=np.float32, seed=0):
        rng = np.random.default_rng(seed)
        return rng.standard_normal((self.n_rows, self.dim)).astype(dtype)

    def sample_weights(self, dtype=np.float32, seed=1):
        return np.random.default_rng(seed).standard_normal(self.input.shape).astype(dtype)


def ragged(lengths, n_rows, seed=0):
    lengths = np.asarray(lengths, np.int64)
    input = np.random.default_rng(seed).integers(0, n_rows, int(lengths.sum()))
    return input, np.cumsum(lengths) - lengths


def _case(name, lengths, n_rows=50, dim=8, **options):
    return Case(name, *ragged(lengths, n_rows), n_rows, dim, options)


def _two_d(name, shape, n_rows=50, dim=8, **options):
    input = np.random.default_rng(0).integers(0, n_rows, shape)
    return Case(name, input, None, n_rows, dim, options)


# Small widths, powers of two and register blocks of each level, and one more or less.
WIDTHS = [1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 33, 47, 48, 50, 63, 64, 65, 85, 96, 100]
WIDTHS += [112, 127, 128, 129, 160, 163, 193, 225, 255, 256, 257, 300, 385, 512, 513, 700]

CASES = [
    _case("empty_input", [], n_rows=5),
    _case("empty_bag_first", [0, 3, 2]),
    _case("empty_bag_middle", [3, 0, 0, 2]),
    _case("empty_bag_last", [3, 2, 0]),
    _case("all_bags_empty", [0, 0, 0]),
    _case("no_rows", [0, 0], n_rows=0),
    _case("no_columns", [2, 3], dim=0),
    _case("one_row", [4, 1], n_rows=1),
    _case("one_bag", [20], n_rows=1000, dim=64),
    _case("bags_of_one", [1] * 40, dim=64),
    _case("one_huge_bag", [3, 1000, 2, 0, 5], dim=80),
    _case("huge_bag_first", [700, 1, 1, 1], dim=33),
    _case("huge_bag_last", [1, 1, 700], dim=33),
    _case("ragged", np.random.default_rng(7).geometric(0.08, 90) - 1, dim=24),
    _case("wide_ragged", np.random.default_rng(8).geometric(0.1, 30) - 1, dim=900),
    Case("repeated_index", np.array([3, 3, 3, 7, 3, 3]), np.array([0, 4]), 10, 5),
    Case(
        "padding_only_bag",
        np.array([4, 4, 1, 4, 2, 4]),
        np.array([0, 2, 5]),
        6,
        19,
        {"padding_idx": 4},
    ),
    _case("padding_first_row", [5, 0, 30, 8], n_rows=4, dim=16, padding_idx=0),
    _case("padding_from_the_end", [5, 0, 30, 8], n_rows=4, dim=16, padding_idx=-1),
    Case(
        "short_last_offset",
        np.array([1, 2, 3, 4, 999, -5]),
        np.array([0, 1, 4]),
        10,
        6,
        {"include_last_offset": True},
    ),
    Case(
        "full_last_offset",
        np.array([1, 2, 3, 4]),
        np.array([0, 1, 4]),
        10,
        6,
        {"include_last_offset": True},
    ),
    Case("last_offset_alone", np.array([1, 2]), np.array([0]), 5, 3, {"include_last_offset": True}),
    _two_d("two_d", (6, 4), dim=64),
    _two_d("two_d_no_bags", (0, 4)),
    _two_d("two_d_empty_bags", (3, 0)),
    _two_d("two_d_padded", (9, 7), n_rows=5, dim=10, padding_idx=2),
    *(_case(f"dim_{dim}", [3, 0, 17, 1], n_rows=30, dim=dim) for dim in WIDTHS),
]

# "weighted" is a sum with weights.
REDUCTIONS = ["sum", "weighted", "mean", "max"]


def call_arguments(case, reduction, dtype, index_dtype=np.int64, offset_dtype=None):
    """Return the arguments of `embedding_bag`, and of the reference, for a case."""
    table = case.table(dtype)
    options = dict(case.options, mode="sum" if reduction == "weighted" else reduction)
    if reduction == "weighted":
        options["per_sample_weights"] = case.sample_weights(dtype)
    offsets = case.offsets
    if offsets is not None:
        offsets = offsets.astype(offset_dtype or index_dtype)
    return (case.input.astype(index_dtype), table, offsets), options


def assert_same_bits(result, expected, message=""):
    assert result.dtype == expected.dtype, message
    assert result.shape == expected.shape, message
    unsigned = {2: np.uint16, 4: np.uint32, 8: np.uint64}[expected.dtype.itemsize]
    with np.errstate(invalid="ignore"):  # float16 NaN may signal
        nan = np.isnan(expected)
        np.testing.assert_array_equal(np.isnan(result), nan, message)
    np.testing.assert_array_equal(
        np.where(nan, 0, result.view(unsigned)), np.where(nan, 0, expected.view(unsigned)), message
    )


# --- Low-precision tables -------------------------------------------------------------

NARROW_FLOATS = ["float16", "bfloat16"]
EIGHT_BITS = ["int8", "uint8", "float8_e4m3fn", "float8_e5m2"]
QUANTIZED = ["fused8", "fused4", "fused2", "tbe8", "tbe4", "tbe2"]


def dtype_of(name):
    if name == "bfloat16" or name.startswith("float8"):
        return np.dtype(getattr(pytest.importorskip("ml_dtypes"), name))
    return np.dtype(name)


def pack(integers, scale, bias, bits, layout, n_extra=0):
    """Return a QuantizedTable of these; unused bits are ones."""
    n_rows, dim = np.shape(integers)
    per_byte = 8 // bits
    n_bytes = -(-dim // per_byte)
    places = np.full((n_rows, n_bytes * per_byte), 2**bits - 1, np.uint8)
    places[:, :dim] = integers
    entries = np.zeros((n_rows, n_bytes), np.uint8)
    for p in range(per_byte):
        entries |= places[:, p::per_byte] << (p * bits)
    dtype = np.float32 if (layout, bits) == ("fused", 8) else np.float16
    factors = np.stack([scale, bias], axis=1).astype(dtype).view(np.uint8)
    extra = np.full((n_rows, n_extra), 255, np.uint8)
    parts = [entries, factors] if layout == "fused" else [factors, entries, extra]
    return QuantizedTable.from_packed(np.hstack(parts), bits, dim, layout)


def low_precision_table(kind, n_rows, dim, seed=0):
    """Return a table of one of the kinds above, or of another dtype by name."""
    rng = np.random.default_rng(seed)
    if kind in ("int8", "uint8"):
        return rng.integers(0, 256, (n_rows, dim), np.uint8).view(kind)
    if kind not in QUANTIZED:
        return rng.standard_normal((n_rows, dim)).astype(dtype_of(kind))
    layout, bits = kind[:-1], int(kind[-1])
    integers = rng.integers(0, 2**bits, (n_rows, dim))
    scale, bias = rng.standard_normal((2, n_rows)) * [[2.0**-bits], [1]]
    return pack(integers, scale, bias, bits, layout, n_extra=5 if layout == "tbe" else 0)
