"""Single lookups and gradients; ../run.py runs them.

workloads.py      the workloads by name, with their targets
contenders.py     the contenders: embag, torch, FBGEMM, numba, SciPy, NumPy, and the limit
gather_limit.c    the limit: read only one word of each cache line of the rows
worker.py         run one contender on one workload, in a process of its own
table.py          render results as Markdown tables
"""
