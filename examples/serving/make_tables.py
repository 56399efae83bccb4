"""Make a model with random weights: a folder with a table for each feature and a dense part.

The 26 features are those of MLPerf's recommender, with 1 to 100 ids per user.

    python make_tables.py model
    python make_tables.py model-float32 --float32    # the same weights, not quantized
"""

import argparse
import itertools
from pathlib import Path

import numpy as np

import embag

BAG_SIZES = [3, 2, 1, 2, 6, 1, 1, 1, 1, 7, 3, 8, 1, 6, 9, 5, 1, 1, 1, 12, 100, 27, 10, 3, 1, 1]
FEATURES = {f"feature_{i:02d}": size for i, size in enumerate(BAG_SIZES)}
DIM = 64
LAYERS = [len(FEATURES) * DIM, 256, 64, 1]


def make(folder, n_rows=100_000, float32=False):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for name in FEATURES:
        table = rng.standard_normal((n_rows, DIM), np.float32)
        embag.save_table(
            folder / f"{name}.safetensors", table if float32 else embag.quantize(table)
        )
    weights = [
        rng.standard_normal((n_in, n_out), np.float32) / np.float32(n_in**0.5)
        for n_in, n_out in itertools.pairwise(LAYERS)
    ]
    np.savez(folder / "dense.npz", *weights)


def make_requests(n, n_rows=100_000):
    """Return random users: a list of ids for each feature."""
    rng = np.random.default_rng(1)
    return [
        {name: rng.integers(n_rows, size=size).tolist() for name, size in FEATURES.items()}
        for _ in range(n)
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=100_000, help="of each table")
    parser.add_argument("--float32", action="store_true", help="do not quantize")
    args = parser.parse_args()
    make(args.folder, args.rows, args.float32)
