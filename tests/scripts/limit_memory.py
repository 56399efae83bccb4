"""Call everything with a little more memory each time: what is allocated first fails first.

Run as ``limit_memory.py FOLDER``. For each call and number of threads, print its name, the
number, and how many times it raised MemoryError before it returned.
"""

import mmap
import resource
import sys
from pathlib import Path

import numpy as np

import embag
from embag._process import threads

threads.ENTRIES_PER_THREAD = 1


def make_calls(folder):
    """Return functions of the number of threads, by name."""
    rng = np.random.default_rng(0)
    table = rng.standard_normal((20_000, 64)).astype(np.float32)
    turned = np.asfortranarray(table)
    ids = rng.integers(0, 20_000, 300_000)
    narrow, offsets = ids.astype("i2"), np.arange(0, 300_000, 10)
    grad = np.ones((30_000, 64), np.float32)
    weights = np.ones(300_000)
    winners = embag.embedding_bag(ids, table, offsets, mode="max", return_max_indices=True)[1]
    small = embag.quantize(table)
    ebc = embag.EmbeddingBagCollection(
        {"t": table, "q": small}, [embag.Feature("a", "t"), embag.Feature("b", "q", "mean")]
    )
    rows = embag.embedding_bag_backward(grad, ids, table, offsets, sparse=True).weight
    path = folder / "table.npy"
    embag.save_table(path, table)

    def look_up(ids, table, n_threads=None, **options):
        return embag.embedding_bag(ids, table, offsets, num_threads=n_threads, **options)

    def backward(n_threads, **options):
        return embag.embedding_bag_backward(
            grad, ids, table, offsets, num_threads=n_threads, **options
        )

    weighted = {"mode": "sum", "per_sample_weights": weights}
    return {
        "plain": lambda t: look_up(ids, table, t),
        "turned": lambda t: look_up(ids, turned, t),
        "narrow": lambda t: look_up(narrow, table, t),
        "weighted": lambda t: look_up(ids, table, **weighted),
        "rounded": lambda t: look_up(ids, table, t, out_dtype="f2"),
        "winners": lambda t: look_up(ids, small, mode="max", return_max_indices=True)[0],
        "max_norm": lambda t: look_up(ids, table, t, max_norm=1e9),
        "dense gradient": lambda t: backward(t).weight,
        "gradient by frequency": lambda t: backward(t, scale_grad_by_freq=True).weight,
        "sparse gradient": lambda t: backward(t, sparse=True, mode="sum").weight.values,
        "gradient of weights": lambda t: backward(t, sparse=True, **weighted).per_sample_weights,
        "gradient of max": lambda t: backward(t, mode="max", max_indices=winners).weight,
        "to_dense": lambda t: rows.to_dense(),
        "flat collection": lambda t: ebc(np.tile(ids, 2), np.arange(0, 600_001, 10), num_threads=t),
        "named collection": lambda t: ebc(
            {"a": (ids, offsets), "b": ids.reshape(-1, 10)}, num_threads=t
        ),
        "quantize": lambda t: embag.quantize(table, 4, num_threads=t).packed,
        "quantize turned": lambda t: embag.quantize(turned, 4, num_threads=t).packed,
        "dequantize": lambda t: small.dequantize(num_threads=t),
        "error": lambda t: np.array(small.error(table)),
        "aligned_copy": lambda t: embag.aligned_copy(table),
        "load_table": lambda t: embag.load_table(path, "copy", num_threads=t),
    }


def limit_address_space(n_bytes):
    resource.setrlimit(resource.RLIMIT_AS, (n_bytes, resource.RLIM_INFINITY))


def address_space():
    return int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE


def count_failures(name, call, n_threads):
    """Raise the limit by 2 MiB until the call returns; return how often it failed."""
    expected = call(n_threads)
    n_failed = 0
    for step in range(125):
        try:
            limit_address_space(address_space() + (step << 21))
            try:
                result = call(n_threads)
            finally:
                limit_address_space(resource.RLIM_INFINITY)
        except MemoryError:
            n_failed += 1
            continue
        assert np.array_equal(result, expected), name
        assert np.array_equal(call(n_threads), expected), name
        return n_failed
    raise SystemExit(f"{name}: 250 MB are not enough")


for name, call in make_calls(Path(sys.argv[1])).items():
    for n_threads in (1, 2):
        print(name, n_threads, count_failures(name, call, n_threads), sep=", ", flush=True)
