"""Grouping by row equals a stable sort by NumPy, for any sizes, dtype and threads."""

import tracemalloc

import numpy as np
import pytest
import reference

from embag._grouping import Groups, group_by_row
from embag._kernels import dispatch
from embag._process.threads import Team

SIZES = [0, 1, 2, 3, 63, 64, 65, 255, 256, 1000, 4097, 70_000]
N_ROWS = [1, 2, 255, 256, 257, 2047, 2048, 2049, 2**20, 2**31 + 5, 2**40]
THREADS = (1, 2, 3, 8)


def expected_groups(input, n_positions, padding=-1):
    used = input.reshape(-1)[:n_positions].astype(np.int64)
    positions = np.argsort(used, kind="stable")
    positions = positions[used[positions] != padding]
    rows, starts = np.unique(used[positions], return_index=True)
    return rows, np.append(starts, len(positions)), positions


def check(input, n_positions, n_rows, padding=-1, threads=THREADS):
    expected = expected_groups(input, n_positions, padding)
    for n_threads in threads:
        groups = group_by_row(input, n_positions, n_rows, padding, Team(n_threads, 0))
        assert isinstance(groups, Groups)
        for name, result, right in zip(groups._fields, groups, expected, strict=True):
            message = f"{name}, {n_positions} of {n_rows} rows, {n_threads} threads"
            assert result.dtype == np.int64, message
            assert result.flags.c_contiguous, message
            np.testing.assert_array_equal(result, right, message)


def ids(size, n_rows, dtype=np.int64, seed=0):
    """Return rows that include the first and the last one."""
    n_rows = min(n_rows, np.iinfo(dtype).max + 1)
    input = np.random.default_rng(seed).integers(0, n_rows, size, dtype)
    input[size // 2 :: 101], input[size // 3 :: 103] = 0, n_rows - 1
    return input


@pytest.mark.parametrize("n_rows", N_ROWS)
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_a_stable_sort(n_rows, dtype, level):
    for size in SIZES:
        input = ids(size, n_rows, dtype)
        check(input, size, n_rows, threads=THREADS if size < 5000 else (1, 3))
        for padding in {n_rows - 1, int(input[0]) if size else 0}:
            check(input, size, n_rows, padding, threads=(1, 3))


def test_the_rest_of_input_is_not_read(level):
    for shape in ((300,), (30, 10)):
        input = ids(300, 50).reshape(shape)
        for n_positions in (0, 1, 199, 299, 300):
            broken = input.copy()
            broken.reshape(-1)[n_positions:] = -7
            check(broken, n_positions, 50)
            check(broken, n_positions, 50, padding=int(input.flat[0]), threads=(1, 3))


@pytest.mark.parametrize("bad", [-1, 100, -(2**63), 2**63 - 1, 2**32])
def test_a_bad_index_returns_none(bad, level):
    for size in (1, 64, 5000):
        for place in {0, size // 2, size - 1}:
            input = ids(size, 100)
            input[place] = bad
            for padding in (-1, 99):
                for n_threads in (1, 3):
                    assert group_by_row(input, size, 100, padding, Team(n_threads, 0)) is None
    for n_threads in THREADS:
        assert group_by_row(np.zeros(1, np.int32), 1, 0, -1, Team(n_threads, 0)) is None
        assert group_by_row(np.array([-1], np.int32), 1, 2**40, -1, Team(n_threads, 0)) is None


def check_by_bag(input, offsets, include_last_offset, n_rows, padding=-1):
    """Check the same groups with each position replaced by its bag."""
    bags = reference.bags_of(input, offsets, include_last_offset)
    bag_of = np.repeat(np.arange(len(bags)), [len(bag) for bag in bags])
    rows, starts, positions = expected_groups(input, len(bag_of), padding)
    for n_threads in (1, 3):
        groups = group_by_row(
            input,
            len(bag_of),
            n_rows,
            padding,
            Team(n_threads, 0),
            by_bag=True,
            offsets=offsets,
            include_last_offset=include_last_offset,
        )
        np.testing.assert_array_equal(groups.rows, rows)
        np.testing.assert_array_equal(groups.starts, starts)
        np.testing.assert_array_equal(groups.members, bag_of[positions])


@pytest.mark.parametrize("n_rows", [1, 9, 3000, 2**40, 2**54, 2**62])
@pytest.mark.parametrize("offset_dtype", [np.int32, np.int64])
def test_bags_instead_of_positions(n_rows, offset_dtype, level):
    # 2**62 rows and more than 4 bags need more than 64 bits, as do 2**54 rows and 1025 bags.
    rng = np.random.default_rng(0)
    for n_bags in (1, 4, 5, 1024, 1025):
        for n in (0, 3, 2000):
            input = ids(n, n_rows)
            offsets = np.sort(rng.integers(0, n + 1, n_bags)).astype(offset_dtype)
            offsets[0] = 0
            offsets[n_bags // 2 :] = offsets[n_bags // 2]  # empty bags and a large one
            check_by_bag(input, offsets, False, n_rows, padding=n_rows - 1)
            if n_bags > 1:
                input[offsets[-1] :] = -7  # not read
                check_by_bag(input, offsets, True, n_rows)
    for shape in ((0, 3), (3, 0), (1, 7), (300, 1), (50, 20)):
        input = ids(shape[0] * shape[1], n_rows, offset_dtype).reshape(shape)
        check_by_bag(input, None, False, n_rows)


def test_only_padding(level):
    for n_threads in THREADS:
        groups = group_by_row(np.full(100, 3), 100, 9, 3, Team(n_threads, 0))
        assert [array.tolist() for array in groups] == [[], [0], []]


def test_popular_rows(level):
    rng = np.random.default_rng(0)
    n_rows = 50_000
    zipf = np.minimum(rng.zipf(1.2, 30_000), n_rows) - 1
    half = np.where(rng.random(30_000) < 0.5, 7, rng.integers(0, n_rows, 30_000))
    for input in (zipf, half, np.full(30_000, 12_345), np.arange(30_000), np.arange(30_000)[::-1]):
        for dtype in (np.int32, np.int64):
            for padding in (-1, 7):
                check(np.ascontiguousarray(input, dtype), 30_000, n_rows, padding, (1, 3))


def test_rows_and_positions_of_64_bits_and_more(level):
    # 1024 positions need 10 bits. Rows of up to 54 bits are sorted with them as one number;
    # larger rows are numbered first. Padding counts as one more row.
    for n_rows in (2**54 - 1, 2**54, 2**54 + 1, 2**62, 2**63 - 1):
        input = ids(1024, n_rows)
        input[5:900:7] = input[3]
        check(input, 1024, n_rows)
        for padding in (0, int(input[3]), int(input.min())):
            check(input, 1024, n_rows, padding, threads=(1, 3))
        check(input, 700, n_rows, n_rows - 1, threads=(1, 3))
        narrow = ids(1024, 1000, np.int32)
        check(narrow, 1024, n_rows, padding=int(narrow[0]), threads=(1, 3))
        for bad in {-1, min(n_rows, 2**63 - 2)} - {2**63 - 2}:
            input[77] = bad
            assert group_by_row(input, 1024, n_rows) is None
            assert group_by_row(input, 1024, n_rows, padding=0) is None


def test_padding_that_does_not_occur_among_very_many_rows(level):
    for input in (np.arange(7, 1031), np.arange(7, 1031, dtype=np.int32)):
        for padding in (0, 6, 1031, 2**61, 2**62 - 1):
            check(input, 1024, 2**62, padding)


def test_the_kernel_refuses_more_than_64_bits_and_other_layouts(level):
    group = dispatch.load_level(level).group_by_row
    with pytest.raises(OverflowError, match="more than 64 bits"):
        group(1, np.zeros(1024, np.int64), None, False, False, 1024, 2**54, 0)
    for input in (np.zeros(9, np.int64), np.zeros(10, np.int16)):
        with pytest.raises(RuntimeError, match="must not change"):
            group(1, input, None, False, False, 10, 5, -1)


@pytest.mark.parametrize("n_threads", THREADS)
@pytest.mark.parametrize("n_rows", [1000, 2**40])
def test_memory(n_threads, n_rows, level):
    # The peak is two lists of keys, and the rows and starts of the groups. The positions,
    # rows and starts remain.
    n = 100_000
    input = np.random.default_rng(0).integers(0, 1000, n) * (n_rows // 1000)
    tracemalloc.start()
    groups = group_by_row(input, n, n_rows, -1, Team(n_threads, 0))
    remain, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 * n + 16 * len(groups.rows) + 5_000
    assert remain < 8 * n + 16 * len(groups.rows) + 5_000
