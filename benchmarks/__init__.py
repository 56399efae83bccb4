"""Benchmarks of embag beside its peers. Start with `python -m benchmarks.run --help`.

workloads.py      what is computed: one table of named workloads and their targets
contenders.py     who computes it: embag, torch, numba, SciPy, NumPy, and the limit
gather_limit.c    the limit: only touch the cache lines of the rows
worker.py         one contender at one workload, in a process of its own
run.py            starts the workers, has them work in turn, compares neighbours
process.py        threads, import time and peak memory of embag
pipeline/         from a Parquet file of ids to one of vectors, end to end
machine.py        the facts about machine and versions that every result carries
table.py          results to a Markdown table in a README
results/          what was measured, as JSON
"""
