"""Single lookups and gradients; ../run.py runs them.

workloads.py      the workloads by name, with their targets
contenders/       the contenders: embag, torch, zentorch, FBGEMM, others, and the limit
gather_limit.c    the limit: read one word of each cache line of the rows, and nothing else
worker.py         run one contender on one workload, in a process of its own
table.py          render results as Markdown tables
"""
