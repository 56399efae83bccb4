"""The vectors of households: by a command, from Parquet to Parquet, and by other ways."""

import itertools
import json
import subprocess
import sys
import time

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from scipy.sparse import csr_array

import embag

COMMAND = (
    "pool histories.parquet --column products --weights weights --table products.npy "
    "--mode sum --keep household --name vector --out households.parquet"
)


def pool_files(folder):
    """Run `embag pool` in a folder; return its summary."""
    finished = subprocess.run(
        [sys.executable, "-m", "embag", *COMMAND.split(), "--json"],
        cwd=folder,
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(finished.stdout)


def read_vectors(folder):
    """Return the vectors written by `pool_files`, shape (n_households, n_dims)."""
    column = pq.read_table(folder / "households.parquet")["vector"].combine_chunks()
    return pc.list_flatten(column).to_numpy().reshape(len(column), -1)


def pool_with_embag(histories, table):
    """Pool the list columns as they are, with all threads."""
    return embag.embedding_bag(
        histories["products"], table, mode="sum", per_sample_weights=histories["weights"]
    )


def pool_with_numpy(histories, table):
    """Pool household by household."""
    vectors = np.empty((len(histories), table.shape[1]), np.float32)
    for household, (products, weights) in enumerate(_bags(histories)):
        vectors[household] = weights @ table[products]
    return vectors


def pool_with_scipy(histories, table):
    """Pool by the product of a sparse matrix and the table."""
    products, weights, ends = _flat(histories)
    return csr_array((weights, products, ends), (len(histories), len(table))) @ table


def times(histories, table, n_runs=15):
    """Return the seconds of each way on one thread: the best of several runs in turn."""
    ways = {"embag": pool_with_embag, "scipy": pool_with_scipy, "NumPy": pool_with_numpy}
    seconds = dict.fromkeys(ways, np.inf)
    with embag.num_threads(1):
        for way in ways.values():
            check(way(histories, table), histories, table)
        for _ in range(n_runs):
            for name, way in ways.items():
                start = time.perf_counter()
                way(histories, table)
                seconds[name] = min(seconds[name], time.perf_counter() - start)
    return seconds


def check(vectors, histories, table):
    """Raise unless vectors are the sums of the histories, up to rounding.

    The bound is twice that of a float32 sum of n products in any order, (n + 1) eps / 2 times
    the sum of their magnitudes, which also covers terms of higher order.
    """
    eps = np.finfo(np.float32).eps
    for household, (products, weights) in enumerate(_bags(histories)):
        exact = weights.astype(np.float64) @ table[products]
        bound = (len(products) + 1) * eps * (np.abs(weights) @ np.abs(table[products]))
        if not np.all(np.abs(vectors[household] - exact) <= bound):
            raise AssertionError(f"the vector of household {household} is not its sum")


def _flat(histories):
    """Return the concatenated products and weights, and the offsets of the lists."""
    lists = histories["products"].combine_chunks()
    weights = histories["weights"].combine_chunks()
    return lists.values.to_numpy(), weights.values.to_numpy(), lists.offsets.to_numpy()


def _bags(histories):
    products, weights, ends = _flat(histories)
    for start, end in itertools.pairwise(ends):
        yield products[start:end], weights[start:end]
