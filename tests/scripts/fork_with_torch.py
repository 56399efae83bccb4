"""Fork where torch and embag both have teams of threads.

Run as ``fork_with_torch.py torch`` or ``fork_with_torch.py embag``: the package to import first.
If gcc has built both, the first one brings the OpenMP of both.
"""

import sys

if sys.argv[1] == "torch":
    import torch

from threaded_calls import look_up, look_up_in_parallel, run_in_child

if sys.argv[1] == "embag":
    import torch


def child():
    look_up_in_parallel()
    run_in_child(look_up_in_parallel)


torch.set_num_threads(2)
matrix = torch.ones(600, 600)
product = matrix @ matrix  # by a team of torch's
look_up()
matrix @ matrix
run_in_child(child)
look_up()
assert (matrix @ matrix == product).all()
