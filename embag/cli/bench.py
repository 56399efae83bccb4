"""``embag bench``: measure embag on this machine, beside NumPy, SciPy and torch.

This is a quick measurement; benchmarks/ in the repository is the careful one. Results are
compared before they are timed, the contenders take turns, and each call has new ids. The table
of 1 M rows (256 MB) is larger than the caches of most processors.

Tested in tests/cli/.
"""

import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import click
import numpy as np
from numpy.typing import NDArray

import embag

_N_BAGS, _BAG, _DIM = 1024, 40, 64
_N_BATCHES = 16
_Pool = Callable[[NDArray[np.int64], NDArray[np.int64]], Any]


class _Figure(NamedTuple):
    table_rows: int
    contender: str
    ns_per_row: float
    gigabytes_per_second: float
    times_as_fast: float  # embag on one thread, relative to this contender


@click.command()
@click.option("--rows", metavar="N", type=click.IntRange(1), multiple=True, help="Rows of a table.")
@click.option("--rounds", metavar="N", type=click.IntRange(1), default=7, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
def command(rows: tuple[int, ...], rounds: int, as_json: bool) -> None:
    """Measure sums of 1024 bags of 40 rows, float32, 64 columns, on this machine.

    The tables have 10,000 rows, which fit in the caches, and 1,000,000, which do not, or --rows.
    embag runs with one thread and with all threads, and each other contender that is installed
    with one.
    """
    n_threads = embag.get_num_threads()  # before torch sets OpenMP to one thread
    sizes = rows or (10_000, 1_000_000)
    figures = [figure for n in sizes for figure in _measure(n, rounds, n_threads)]
    if as_json:
        print(json.dumps([figure._asdict() for figure in figures]))
        return
    print(f"sum, {_N_BAGS} bags of {_BAG} rows of {_DIM} float32; medians of {rounds} rounds")
    print(f"{'table':>14}  {'':16} {'ns per row':>10} {'GB/s':>7} {'embag is':>14}")
    for n, contender, ns, rate, times in figures:
        is_embag = contender.startswith("embag")
        faster = "" if is_embag else f"{times:.1f} x as fast"
        print(f"{n:>9,} rows  {contender:16} {ns:10.1f} {rate:7.1f} {faster:>14}")
    if any(figure.times_as_fast > 1 for figure in figures if "threads" in figure.contender):
        print("several threads were slower than one: other work on this machine? see embag doctor")


def _measure(n_rows: int, rounds: int, n_threads: int) -> list[_Figure]:
    rng = np.random.default_rng(0)
    table = embag.aligned_empty((n_rows, _DIM), np.float32)
    rng.standard_normal(out=table, dtype=np.float32)
    offsets = np.arange(0, _N_BAGS * _BAG, _BAG)
    batches = [rng.integers(0, n_rows, _N_BAGS * _BAG) for _ in range(_N_BATCHES)]
    contenders = _contenders(table, n_threads)

    expected = table[batches[0].reshape(_N_BAGS, _BAG)].astype(np.float64).sum(axis=1)
    for name, pool in contenders.items():
        if not np.allclose(pool(batches[0], offsets), expected, rtol=1e-4, atol=1e-4):
            raise click.ClickException(f"{name}: sums must be those of NumPy in float64")

    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, pool in contenders.items():
            start = time.perf_counter()
            for ids in batches:
                pool(ids, offsets)
            seconds[name].append(time.perf_counter() - start)
    n_gathered = _N_BATCHES * _N_BAGS * _BAG
    first = seconds[next(iter(contenders))]
    figures = []
    for name, times in seconds.items():
        ns = statistics.median(times) / n_gathered * 1e9
        ratios = [other / embag_time for other, embag_time in zip(times, first, strict=True)]
        bandwidth = table.itemsize * _DIM / ns
        figures.append(_Figure(n_rows, name, ns, bandwidth, statistics.median(ratios)))
    return figures


def _contenders(table: NDArray[np.float32], n_threads: int) -> dict[str, _Pool]:
    """Return the functions that sum bags, by contender; embag on one thread is first."""

    def pool_with_embag(n: int) -> _Pool:
        return lambda ids, offsets: embag.embedding_bag(
            ids, table, offsets, mode="sum", num_threads=n
        )

    contenders: dict[str, _Pool] = {"embag, 1 thread": pool_with_embag(1)}
    if n_threads > 1:
        contenders[f"embag, {n_threads} threads"] = pool_with_embag(n_threads)
    contenders["NumPy"] = lambda ids, offsets: np.add.reduceat(table[ids], offsets)
    if importlib.util.find_spec("scipy"):
        from scipy.sparse import csr_matrix

        def with_scipy(ids: NDArray[np.int64], offsets: NDArray[np.int64]) -> Any:
            bounds = np.append(offsets, len(ids))
            ones = np.ones(len(ids), np.float32)
            return csr_matrix((ones, ids, bounds), shape=(len(offsets), len(table))) @ table

        contenders["scipy, CSR"] = with_scipy
    if importlib.util.find_spec("torch"):
        import torch

        torch.set_num_threads(1)
        weight = torch.from_numpy(table)  # aligned to a cache line, as torch's own memory is

        def with_torch(ids: NDArray[np.int64], offsets: NDArray[np.int64]) -> Any:
            return torch.nn.functional.embedding_bag(
                torch.from_numpy(ids), weight, torch.from_numpy(offsets), mode="sum"
            ).numpy()

        contenders["torch, 1 thread"] = with_torch
    return contenders
