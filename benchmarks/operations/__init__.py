"""Single lookups and gradients; ../run.py runs them.

workloads.py      the workloads by name, with their targets
steps.py          training steps in float64, which results are compared with
contenders/       the contenders: embag, torch, zentorch, FBGEMM, others, and the limits
gather_limit.c    the limit: read one word of each cache line of the rows, and nothing else
update_limit.c    the limit of training steps: change one word of each line instead
worker.py         run one contender on one workload, in a process of its own
table.py          render results as Markdown tables
"""
