"""A hundred steps of other libraries' optimizers as literals: FBGEMM's and Keras' own.

The batches are those of tests/support/optimizer_steps.py, with repeated and absent rows. The
results are from `SplitTableBatchedEmbeddingBagsCodegen` of fbgemm-gpu-cpu 1.8.0 on the CPU and
from `keras.optimizers.Ftrl` of Keras 3.15.1 with torch 2.13.0, in float32.
tests/scripts/record_other_optimizers.py prints them. FBGEMM ignores weight decay on the CPU.

Each library may differ from the exact result by the rounding errors of the rule, which are bounded
operation by operation.
"""

import numpy as np
import optimizer_steps as steps
import pytest

from embag import optim

# The table, then the states: a line for each row.
RESULTS = {
    "sgd": """
        -0.59375 0.125 0.3125 -0.59375
        0.34375 -0.59375 0.09375 -0.578125
        0.375 -0.625 0 0.625
        0.078125 0.8125 -0.078125 0.390625
        0.203125 0.5625 -0.703125 0.1875
        -0.375 0.25 -0.75 -0.125
    """,
    "adagrad": """
        -0.665068686 -0.106996022 0.440493852 -0.60388428
        0.678133249 -0.566196918 0.105343454 -0.562549889
        0.428176314 -0.601427913 -0.115762323 0.587245464
        0.238122404 0.571076691 -0.235805407 0.472329229
        0.26890853 0.39774555 -0.645369649 0.085936442
        -0.375 0.25 -0.75 -0.125

        319.15625 439.03125 386.25 285.125
        315.8125 287.875 312.46875 139.109375
        12.75 12.75 12.75 12.75
        16.921875 18.375 18.546875 17.171875
        30.578125 28.59375 31.328125 21.25
        0 0 0 0
    """,
    "row-wise adagrad": """
        -0.599873066 -0.150450915 0.430463403 -0.52756238
        0.717242479 -0.549430072 0.0558078513 -0.631789804
        0.484729201 -0.58891499 -0.0170305595 0.594840288
        0.193837926 0.632011712 -0.224400088 0.46238327
        0.137522116 0.423714489 -0.753422618 0.0599987693
        -0.375 0.25 -0.75 -0.125

        357.390625
        263.816406
        12.75
        17.7539062
        27.9375
        0
    """,
    "ftrl": """
        -0.516853511 -0.0265983269 0.317528397 -0.190152973
        0.457432479 -0.140904114 0.0391668528 -0.227544695
        0.151407048 -0.0349340588 0 0.186773658
        0.0118120192 0.0249142293 -0.0435509607 0.0673614144
        0.1243122 0.00948102865 -0.279770732 0
        -0.375 0.25 -0.75 -0.125

        76.7087784 5.07886028 -51.8606606 27.0481625
        -67.6039963 20.2638435 -6.21611118 23.0037365
        -5.52753162 1.65999937 0.218772829 -6.70189381
        -0.943308473 -1.46939528 2.20148253 -3.04434919
        -6.56995583 -0.94913435 14.3112936 0.310762703
        0 0 0 0

        319.28125 439.15625 386.375 285.25
        315.9375 288 312.59375 139.234375
        12.875 12.875 12.875 12.875
        17.046875 18.5 18.671875 17.296875
        30.703125 28.71875 31.453125 21.375
        0.125 0.125 0.125 0.125
    """,
}

STATE = (steps.N_ROWS, steps.DIM)
# The optimizer, the rule, and the shape and first value of each state.
RULES = {
    "sgd": (lambda table: optim.SGD(table, steps.LR), steps.sgd, []),
    "adagrad": (
        lambda table: optim.Adagrad(table, steps.LR, eps=steps.EPS),
        steps.adagrad,
        [(STATE, 0)],
    ),
    "row-wise adagrad": (
        lambda table: optim.RowWiseAdagrad(table, steps.LR, eps=steps.EPS),
        steps.row_wise_adagrad,
        [((steps.N_ROWS, 1), 0)],
    ),
    "ftrl": (
        lambda table: optim.FTRL(
            table,
            steps.LR,
            l1=steps.L1,
            l2=steps.L2,
            beta=steps.BETA,
            initial_accumulator_value=steps.START,
        ),
        steps.ftrl,
        [(STATE, 0), (STATE, steps.START)],
    ),
}


def results_of(name):
    """Return the table and the states of the other library."""
    return [np.loadtxt(block.splitlines()) for block in RESULTS[name].split("\n\n")]


@pytest.mark.parametrize("name", RULES)
def test_a_hundred_steps(name, level):
    make, rule, starts = RULES[name]
    optimizer = make(steps.first_table())
    for ids, grad in steps.batches():
        optimizer.update(grad, ids, steps.OFFSETS, mode="sum")
    ours = [optimizer.table, *optimizer.states.values()]
    steps.assert_within_bounds(ours, results_of(name), steps.bounded_steps(rule, starts))
    absent = optimizer.table[steps.ABSENT]
    assert absent.tobytes() == steps.first_table()[steps.ABSENT].tobytes()
