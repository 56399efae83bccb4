"""FBGEMM."""

import importlib
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.operations.contenders.base import N_CHECKED, Collection, Update
from benchmarks.operations.steps import LEARNING_RATE, OPTIMIZER_EPS
from benchmarks.operations.workloads import Batch, QuantizedRows, Workload, fill_table


class FbgemmModule(Collection):
    """Base of both: `weight` is a module that holds all tables."""

    package = "fbgemm_gpu"

    def set_threads(self, n_threads: int) -> None:
        self.torch = importlib.import_module("torch")
        self.torch.set_num_threads(n_threads)


class Fbgemm(FbgemmModule):
    """FBGEMM's table-batched embeddings for inference, with int32 ids as it prefers."""

    def make_table(self, seed: int) -> tuple[Any, Any]:
        workload = self.workload
        inference = f"{self.package}.split_table_batched_embeddings_ops_inference"
        common = f"{self.package}.split_table_batched_embeddings_ops_common"
        location = importlib.import_module(common).EmbeddingLocation.HOST
        types = importlib.import_module(f"{self.package}.split_embedding_configs").SparseType
        row_type = {"float32": types.FP32, "int8": types.INT8}[workload.dtype]
        tbe = importlib.import_module(inference).IntNBitTableBatchedEmbeddingBagsCodegen(
            [
                (f"table {t}", workload.n_rows, workload.dim, row_type, location)
                for t in range(workload.n_tables)
            ],
            device="cpu",
            output_dtype=types.FP32,
        )
        tbe.initialize_weights()
        tables = [
            self.fill(seed + t, weights.numpy(), numbers)
            for t, (weights, numbers) in enumerate(tbe.split_embedding_weights())
        ]
        return tbe, tables

    def fill(self, seed: int, weights: NDArray[np.uint8], numbers: Any) -> Any:
        """Fill a table in place; `numbers` are scales and biases in float16, None for floats."""
        if numbers is None:
            table = weights.view(np.float32)
            fill_table(table, seed)
            return table
        floats = self.make_floats(seed)
        quantize = self.torch.ops.fbgemm.FloatToFused8BitRowwiseQuantized
        fused = quantize(self.torch.from_numpy(floats)).numpy()
        codes, numbers32 = np.split(fused, [self.workload.dim], axis=1)
        weights[...] = codes
        numbers = numbers.numpy()
        numbers[...] = numbers32.view(np.float32).astype(np.float16).view(np.uint8)
        rows = QuantizedRows(weights, numbers, self.workload.bits)
        rows.assert_stands_for(floats[:N_CHECKED])
        return rows

    def convert(self, batch: Batch) -> Any:
        indices, offsets = super().convert(batch)
        return tuple(self.torch.from_numpy(a.astype(np.int32)) for a in (indices, offsets))

    def run(self, batches: Sequence[Any]) -> Any:
        function, result = self.weight, None
        with self.torch.inference_mode():
            for indices, offsets in batches:
                result = function(indices, offsets)
        return result


class FbgemmTrain(Update, FbgemmModule):
    """FBGEMM's table-batched embeddings for training: a lookup, and a backward pass that steps."""

    NAMES: ClassVar = {
        "sgd": "EXACT_SGD",
        "adagrad": "EXACT_ADAGRAD",
        "row-wise-adagrad": "EXACT_ROWWISE_ADAGRAD",
    }

    def __init__(self, workload: Workload, n_threads: int):
        super().__init__(workload, n_threads)
        self.grad_output = self.torch.from_numpy(self.grad_output).clone()  # in torch's memory

    def make_table(self, seed: int) -> tuple[Any, Any]:
        workload = self.workload
        training = importlib.import_module(
            f"{self.package}.split_table_batched_embeddings_ops_training"
        )
        common = f"{self.package}.split_table_batched_embeddings_ops_common"
        location = importlib.import_module(common).EmbeddingLocation.HOST
        types = importlib.import_module(f"{self.package}.split_embedding_configs").EmbOptimType
        tbe = training.SplitTableBatchedEmbeddingBagsCodegen(
            [(workload.n_rows, workload.dim, location, training.ComputeDevice.CPU)]
            * workload.n_tables,
            optimizer=types[self.NAMES[workload.optimizer]],
            learning_rate=LEARNING_RATE,
            eps=OPTIMIZER_EPS,
            device="cpu",
        )
        tables = [weights.detach().numpy() for weights in tbe.split_embedding_weights()]
        for t, table in enumerate(tables):
            fill_table(table, seed + t)
        return tbe, tables

    def convert(self, batch: Batch) -> Any:
        return tuple(self.torch.from_numpy(array) for array in super().convert(batch))

    def run(self, batches: Sequence[Any]) -> Any:
        function, result = self.weight, None
        for indices, offsets in batches:
            result = function(indices, offsets)
            result.backward(self.grad_output)
        return None if result is None else result.detach()
