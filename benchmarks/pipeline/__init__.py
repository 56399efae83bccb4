"""From a Parquet file of ragged ids to one of vectors: `python -m benchmarks.pipeline --help`.

data.py        make the files: events with lists of ids, and a table of vectors
batches.py     a program that reads, pools and writes batches, in turn or concurrently
pools.py       functions that pool a batch: embag, torch, NumPy, polars, DuckDB
queries.py     a program that pools a file with one query of polars or DuckDB
check.py       a program that compares rows of a result with the reference
contenders.py  the contenders, with their command lines
__main__.py    run the contenders in turn, each in a process of its own
table.py       render results as a Markdown table
"""
