"""Check a result: `python -m benchmarks.pipeline.check EVENTS OUT`.

Some hundred rows are compared with means that NumPy computes in float64. Rows may come in any
order. The contenders differ for lists without ids: the vector may be zero or null, or the row
may be missing.
"""

import sys
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.pipeline.data import MOST_IDS

N_CHECKED = 500


def check(events: Path, out: Path) -> None:
    n_rows = pq.ParquetFile(events).metadata.num_rows
    sample = np.unique(np.linspace(0, n_rows - 1, N_CHECKED).astype(np.int64))
    chosen = pc.field("user_id").isin(sample)
    lists = pq.read_table(events, filters=chosen)
    results = pq.read_table(out, filters=chosen)
    (column,) = set(results.column_names) - {"user_id"}
    users = results["user_id"].to_pylist()
    vectors = dict(zip(users, results[column].to_pylist(), strict=True))
    assert len(vectors) == len(users), "a row came twice"

    table = np.load(events.parent / "items.npy", mmap_mode="r")
    n_rows_with_ids = 0
    for user, ids in zip(lists["user_id"].to_pylist(), lists["item_ids"].to_pylist(), strict=True):
        if ids:
            rows = table[ids].astype(np.float64)
            bound = (MOST_IDS + 2) * 2**-23 * np.abs(rows).mean(axis=0)
            assert np.all(np.abs(vectors[user] - rows.mean(axis=0)) <= bound), f"row {user}"
            n_rows_with_ids += 1
        else:
            assert not any(vectors.get(user) or []), f"row {user} has no ids, but a vector"
    assert n_rows_with_ids >= len(sample) // 2
    n_results = pq.ParquetFile(out).metadata.num_rows
    n_missing = n_rows - n_results
    assert 0 <= n_missing <= 2 * n_rows / MOST_IDS, f"{n_results} rows of {n_rows}"


if __name__ == "__main__":
    check(Path(sys.argv[1]), Path(sys.argv[2]))
