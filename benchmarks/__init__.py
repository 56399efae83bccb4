"""Benchmarks of embag and comparable libraries. Start with `python -m benchmarks.run --help`.

run.py         run a process per contender, in turn, and compare neighbouring rounds
operations/    single lookups and gradients: the workloads and the contenders
pipeline/      from a Parquet file of ids to one of vectors, end to end
callers/       concurrent calls, the CPU time of idle threads, import time and memory
decoding/      rows of few bits, beside a bare loop that decodes and adds them
pages/         tables that do not fit in memory
tables.py      kinds of tables: rows of 8 bits, mapped ids
curves.py      time against the number of ids, bags, tables and threads
errors.py      the error of each encoding
latency.py     the percentiles of examples/serving
small_layer.py a small call of a layer of torch
texts.py       word vectors, beside model2vec
strings.py     strings to rows, for docs/ids.md
child.py       a process that answers requests: a contender, or a service
published.py   the published results, in results/: a file for each processor
picture.py     draw the README's picture of speed from them
speed_charts.py  draw docs/speed-KEY.svg: embag beside the fastest other library
charts.py      draw docs/charts: speed by width and encoding, curves, errors, latencies
machine.py     the processor, the machine and the versions, which every result includes
results/       results as JSON
"""
