"""Tables of known contents, requests for them, and the results that NumPy expects.

All entries of tables are integers, so that sums are exact in every encoding.
"""

from typing import Any

import numpy as np

import embag

N_TABLES, N_ROWS, DIM = 26, 2000, 32
MODES = ("sum", "mean", "max")
ENCODINGS = ("float32", "float16", "8 bits", "4 bits")
N_VALUES = 7  # different contents of a table, in rotation; float16 can hold the entries of 7
STEP = 256  # the difference between the entries of successive contents
INVALID = (-1, -(2**62), N_ROWS + 2, 2**31, 2**40)  # ids out of range for every table


def make_table(number: int, version: int) -> Any:
    """Return a table after `version` swaps."""
    return encode(number, make_floats(number, version))


def make_floats(number: int, version: int) -> np.ndarray:
    """Return the entries of this table; it has 0, 1 or 2 rows more than the first."""
    pattern = make_pattern(number)
    return np.concatenate([pattern, pattern[: version % 3]]) + np.float32(STEP * value(version))


def encode(number: int, floats: np.ndarray) -> Any:
    encoding = ENCODINGS[number % len(ENCODINGS)]
    match encoding:
        case "float16":
            return floats.astype(np.float16)
        case "8 bits" | "4 bits":
            return embag.quantize(floats, bits=int(encoding[0]))
    return floats


def make_pattern(number: int) -> np.ndarray:
    """Return entries that quantization keeps exactly: each row has the minimum and the maximum."""
    top = 15 if ENCODINGS[number % len(ENCODINGS)] == "4 bits" else 255
    pattern = np.random.default_rng(number).integers(0, top + 1, (N_ROWS, DIM))
    pattern[:, 0], pattern[:, -1] = 0, top
    return pattern.astype(np.float32)


def value(version: int) -> int:
    return version % N_VALUES


class Request:
    """Ids for some features, one in a hundred out of range, and the expected result."""

    def __init__(self, seed: int, tables: list[int], n_bags: int, most_ids: int) -> None:
        rng = np.random.default_rng(seed)
        lengths, ids, self.n_invalid, parts = [], [], np.zeros(len(tables), np.int64), []
        for i, table in enumerate(tables):
            n = rng.integers(0, most_ids + 1, n_bags)
            values = rng.integers(0, N_ROWS, n.sum())
            is_invalid = rng.random(len(values)) < 0.01
            values[is_invalid] = rng.choice(INVALID, is_invalid.sum())
            self.n_invalid[i] = is_invalid.sum()
            lengths.append(n)
            ids.append(values)
            parts.append(reduce_bags(make_pattern(table), values, n, MODES[i % 3]))
        self.ids = np.concatenate(ids)
        self.offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
        self.named = {
            f"feature_{i}": (values, np.cumsum(n) - n)
            for i, (values, n) in enumerate(zip(ids, lengths, strict=True))
        }
        self.sums, self.steps, self.divisors = map(np.hstack, zip(*parts, strict=True))

    def expected(self, versions: list[int]) -> np.ndarray:
        """Return the expected result for tables after these numbers of swaps."""
        steps = np.repeat([np.float32(STEP * value(version)) for version in versions], DIM)
        return (self.sums + self.steps * steps) / self.divisors


def reduce_bags(
    pattern: np.ndarray, ids: np.ndarray, lengths: np.ndarray, mode: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the sums or maxima of bags, how often they include STEP, and their divisors."""
    shape = (len(lengths), DIM)
    sums, steps, divisors = (make(shape, np.float32) for make in (np.zeros, np.zeros, np.ones))
    for bag, part in enumerate(np.split(ids, np.cumsum(lengths)[:-1])):
        rows = pattern[part[(part >= 0) & (part < len(pattern))]]
        if len(rows):
            sums[bag] = rows.max(axis=0) if mode == "max" else rows.sum(axis=0)
            steps[bag] = 1 if mode == "max" else len(rows)
            divisors[bag] = len(rows) if mode == "mean" else 1
    return sums, steps, divisors
