"""Benchmarks of embag and comparable libraries. Start with `python -m benchmarks.run --help`.

run.py         run a process per contender, in turn, and compare neighbouring rounds
operations/    single lookups and gradients: the workloads and the contenders
pipeline/      from a Parquet file of ids to one of vectors, end to end
callers/       concurrent calls, the CPU time of idle threads, import time and memory
decoding/      rows of few bits, beside a bare loop that decodes and adds them
pages/         tables that do not fit in memory
tables.py      kinds of tables: rows of 8 bits, mapped ids
child.py       a process that answers requests: a contender, or a service
published.py   the published results, in results/: a file for each processor
picture.py     draw the README's picture of speed from them
charts.py      draw a bar chart for each processor
machine.py     the processor, the machine and the versions, which every result includes
results/       results as JSON
"""
