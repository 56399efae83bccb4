"""From a Parquet file of ragged ids to one of vectors: `python -m benchmarks.pipeline --help`.

data.py        makes the files: events with lists of ids, and the table of their vectors
batches.py     a program that reads, pools and writes batches, in turn or at the same time
pools.py       who pools a batch: embag, torch, NumPy, polars, DuckDB
queries.py     a program that has polars or DuckDB do all of it in one query
check.py       a program that compares some rows of a result with the reference
contenders.py  who pools a file: the command line of each
__main__.py    runs them in turn, each in a process of its own, and writes the results
table.py       results to Markdown tables in a README
"""
