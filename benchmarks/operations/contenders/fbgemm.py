"""FBGEMM."""

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.operations.contenders.base import N_CHECKED, Collection
from benchmarks.operations.workloads import Batch, QuantizedRows, fill_table


class Fbgemm(Collection):
    """FBGEMM's table-batched embeddings for inference, with int32 ids as it prefers."""

    package = "fbgemm_gpu"

    def set_threads(self, n_threads: int) -> None:
        self.torch = importlib.import_module("torch")
        self.torch.set_num_threads(n_threads)

    def make_table(self, seed: int) -> tuple[Any, Any]:
        """Make all tables; `weight` is the module that holds them."""
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
