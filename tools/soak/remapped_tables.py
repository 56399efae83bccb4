"""Remapped tables: lookups give the results of the plain table with the same rows.

Some tables do not change. The others are in a collection, whose tables another thread replaces by
tables with other entries, whose rows have moved.
"""

import itertools
from collections.abc import Callable

import numpy as np

import embag
from tools.soak.contents import (
    MODES,
    N_ROWS,
    encode,
    make_floats,
    make_pattern,
    reduce_bags,
)
from tools.soak.harness import Timer, WrongResultError, check_equal

N_REMAPPED = 8  # tables of the collection
N_IDS, FIRST_ID = 3000, 1000  # of the tables that do not change
INVALID = (-1, -(2**62), 0, FIRST_ID - 1, FIRST_ID + N_IDS, 2**40)


def make_remapped_table(number: int, version: int) -> embag.RemappedTable:
    """Return a table with the rows of `make_table`, moved to other places for each version."""
    floats = make_floats(number, version)
    places = np.random.default_rng(version).permutation(len(floats))
    moved = np.empty_like(floats)
    moved[places] = floats
    return embag.RemappedTable(encode(number, moved), places)


def bags_of_remapped_table(number: int, n_bags: int, most_ids: int) -> Callable[[Timer], None]:
    """Return work on a table whose ids share rows, with scales; one in ten has no row."""
    rng = np.random.default_rng(number)
    index_map = rng.integers(0, N_ROWS, N_IDS)
    index_map[rng.random(N_IDS) < 0.1] = -1
    scales = rng.integers(1, 4, N_IDS).astype(np.float32)
    pattern = make_pattern(number)
    table = embag.RemappedTable(encode(number, pattern), index_map, scales, FIRST_ID)
    plain = pattern[index_map] * scales[:, np.newaxis]
    cases = []
    for mode in MODES:
        lengths = rng.integers(0, most_ids + 1, n_bags)
        ids = rng.integers(0, N_IDS, lengths.sum())
        is_invalid = rng.random(len(ids)) < 0.01
        counts = (index_map[ids] >= 0) & ~is_invalid  # the other ids are skipped
        sums, _, divisors = reduce_bags(plain, np.where(counts, ids, -1), lengths, mode)
        ids += FIRST_ID
        ids[is_invalid] = rng.choice(INVALID, is_invalid.sum())
        cases.append((mode, ids, np.cumsum(lengths) - lengths, sums / divisors, is_invalid.sum()))
    turn = itertools.cycle(cases)

    def work(timer: Timer) -> None:
        mode, ids, offsets, expected, n_expected = next(turn)
        with timer:
            result, n_invalid = embag.embedding_bag(
                ids, table, offsets, mode=mode, invalid="skip", return_n_invalid=True
            )
        check_equal(timer, result, expected, f"{mode} of remapped table {number}")
        if n_invalid != n_expected:
            raise WrongResultError(f"{n_invalid} ids out of range, not {n_expected}")

    return work
