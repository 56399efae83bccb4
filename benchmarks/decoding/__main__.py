"""A bare decode-and-add loop beside embag: `python -m benchmarks.decoding`.

For rows of float16 and of 8, 4 and 2 bits, 2 M rows or --rows, one thread: `decode.c` with the
fastest of many ways to prefetch, embag with the strategy that it chose, and embag with the
fastest of its candidates, in turn. The results are compared first. x86-64 with AVX-512.
"""

import argparse
import ctypes
import itertools
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import embag
from benchmarks import machine
from embag._kernels.dispatch import kernels

SOURCE = Path(__file__).with_name("decode.c")
CASES = ((16, 64), (16, 128), (8, 64), (8, 128), (4, 128), (2, 128))  # bits, columns
BAG, N_BAGS, N_BATCHES = 40, 1024, 12
WAYS = [
    (near, ahead, burst)
    for near, ahead, burst in itertools.product(
        (True, False), (8, 16, 32, 64, 96, 128), (1, 4, 8, 16, 64)
    )
    if burst <= ahead
]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decoding", description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    print(machine.facts())
    print(f"{'rows':>14} {'bare loop':>10} {'embag':>8} {'pinned':>8}  share  ways")
    for bits, dim in CASES:
        _measure(bits, dim, arguments.rows, arguments.rounds)


def _measure(bits: int, dim: int, n_rows: int, n_rounds: int) -> None:
    rng = np.random.default_rng(0)
    floats = rng.standard_normal((n_rows, dim), dtype=np.float32)
    table: Any = embag.aligned_copy(floats.astype(np.float16))
    packed = table
    if bits < 16:
        table = embag.quantize(floats, bits)
        packed = table.packed
    del floats
    batches = [rng.integers(0, n_rows, N_BAGS * BAG) for _ in range(N_BATCHES)]
    offsets = np.arange(0, N_BAGS * BAG, BAG)
    out = np.empty((N_BAGS, dim), np.float32)
    function = _compile(bits, dim)

    def bare(ids: Any, way: tuple[bool, int, int]) -> None:
        function(packed.ctypes.data, ids.ctypes.data, len(ids), out.ctypes.data, *way)

    def pool(ids: Any, way: Any = None) -> Any:
        return embag.embedding_bag(ids, table, offsets, mode="sum", num_threads=1)

    for way in WAYS:
        bare(batches[0], way)
        # In the loop, the entries of a byte are one after the other by planes of 16 bytes.
        planes = 1 if bits == 16 else 8 // bits
        found = out.reshape(N_BAGS, -1, planes, 16).swapaxes(2, 3).reshape(N_BAGS, dim)
        np.testing.assert_allclose(found, pool(batches[0]), rtol=1e-3, atol=1e-3)

    way = _fastest(WAYS, bare, batches)
    pins = kernels.candidate_strategies()

    def pinned(ids: Any, pin: Any) -> None:
        kernels.pin_strategy(pin)
        pool(ids)
        kernels.pin_strategy(None)

    pin = _fastest(pins, pinned, batches)
    for _ in range(30):
        pool(batches[0])
    times = [
        (
            _time(lambda ids: bare(ids, way), batches),
            _time(pool, batches),
            _time(lambda ids: pinned(ids, pin), batches),
        )
        for _ in range(n_rounds)
    ]
    loop, ours, best = (statistics.median(column) for column in zip(*times, strict=True))
    share = statistics.median(one[0] / one[1] for one in times)
    name = "float16" if bits == 16 else f"{bits} bits"
    print(
        f"{name:>8} x {dim:3} {loop:10.2f} {ours:8.2f} {best:8.2f}  {share:5.2f}  {way} {pin}",
        flush=True,
    )


def _fastest(ways: list[Any], run: Callable[[Any, Any], Any], batches: list[Any]) -> Any:
    least = dict.fromkeys(ways, float("inf"))
    for _ in range(3):
        for way in ways:
            least[way] = min(least[way], _time(lambda ids, way=way: run(ids, way), batches))
    return min(least, key=lambda one: least[one])


def _time(run: Callable[[Any], Any], batches: list[Any]) -> float:
    """Return ns per row."""
    start = time.perf_counter()
    for ids in batches:
        run(ids)
    return (time.perf_counter() - start) / (len(batches) * N_BAGS * BAG) * 1e9


def _compile(bits: int, dim: int) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        library = str(Path(folder, "library.so"))
        options = ["-O3", "-march=native", f"-DBITS={bits}", f"-DDIM={dim}"]
        subprocess.run(["cc", *options, "-shared", "-fPIC", "-o", library, SOURCE], check=True)
        function = ctypes.CDLL(library).sum_bags
    function.restype = None
    function.argtypes = [
        *(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p),
        *(ctypes.c_int, ctypes.c_int64, ctypes.c_int64),
    ]
    return function


if __name__ == "__main__":
    main()
