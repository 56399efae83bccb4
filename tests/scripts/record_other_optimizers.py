"""Print the literals of tests/gradients/test_optimizers_of_others.py.

It requires fbgemm-gpu-cpu, torch and keras:

    KERAS_BACKEND=torch python tests/scripts/record_other_optimizers.py
"""

import sys
from importlib.metadata import version
from pathlib import Path

import keras
import numpy as np
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)

sys.path.append(str(Path(__file__).parents[1] / "support"))
import optimizer_steps as steps


def run_fbgemm(kind):
    """Return the table and the states after all steps."""
    module = SplitTableBatchedEmbeddingBagsCodegen(
        [(steps.N_ROWS, steps.DIM, EmbeddingLocation.HOST, ComputeDevice.CPU)],
        optimizer=kind,
        learning_rate=steps.LR,
        eps=steps.EPS,
        device="cpu",
    )
    (table,) = module.split_embedding_weights()
    table.detach().copy_(torch.from_numpy(steps.first_table()))
    for ids, grad in steps.batches():
        bounds = torch.tensor([*steps.OFFSETS, len(ids)])
        module(torch.from_numpy(ids), bounds).backward(torch.from_numpy(grad))
    states = [state for of_table in module.split_optimizer_states() for state in of_table]
    return [array.detach().numpy() for array in (table, *states)]


def run_keras():
    """Return the table and the states of FTRL; each row is a variable, changed if it occurs."""
    rows = [keras.Variable(row) for row in steps.first_table()]
    optimizer = keras.optimizers.Ftrl(
        steps.LR,
        initial_accumulator_value=steps.START,
        l1_regularization_strength=steps.L1,
        l2_regularization_strength=steps.L2,
        beta=steps.BETA,
    )
    optimizer.build(rows)
    for occurring, gradient in steps.gradients():
        values = [keras.ops.convert_to_tensor(g, "float32") for g in gradient]
        optimizer.apply(values, [rows[r] for r in occurring])
    arrays = rows, optimizer._linears, optimizer._accumulators
    return [np.stack([keras.ops.convert_to_numpy(one) for one in array]) for array in arrays]


def show(name, arrays):
    for part, array in zip(("table", *range(len(arrays) - 1)), arrays, strict=True):
        print(f"{name}, {part}:")
        for row in array.reshape(steps.N_ROWS, -1):
            print(" ".join(format(float(number), ".9g") for number in row))


print("fbgemm-gpu-cpu", version("fbgemm-gpu-cpu"), "keras", keras.__version__)
show("SGD of FBGEMM", run_fbgemm(EmbOptimType.EXACT_SGD))
show("Adagrad of FBGEMM", run_fbgemm(EmbOptimType.EXACT_ADAGRAD))
show("row-wise Adagrad of FBGEMM", run_fbgemm(EmbOptimType.EXACT_ROWWISE_ADAGRAD))
show("FTRL of Keras", run_keras())
