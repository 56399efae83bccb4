"""The contenders: a class for each.

A contender has a table as its users would make it, filled in place. Its `run` is a plain loop of
calls, so the time of the loop is that of the calls. Packages are imported where they are used:
each contender runs in a process without the others, because two OpenMP runtimes in one process
disturb each other. `missing` and `unsuited` return the reason if a contender cannot take part.
"""

import ctypes
import importlib
import importlib.util
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.operations.workloads import (
    Batch,
    QuantizedRows,
    Workload,
    assert_collection,
    assert_gradients,
    assert_result,
    fill_table,
    numpy_dtype,
    split_batch,
)

N_CHECKED = 10_000  # quantized rows that are compared with the floats they were made of
LEARNING_RATE = 2.0**-10  # a power of two, so that multiplying by it is exact


class Contender:
    """A way to compute a workload.

    `weight` is the table for the package, and `table` the same memory as the reference reads it.
    """

    package = ""
    note = ""

    def __init__(self, workload: Workload, n_threads: int):
        self.module: Any = importlib.import_module(self.package)
        self.workload = workload
        self.set_threads(n_threads)
        self.weight, self.table = self.make_table(seed=1)

    @classmethod
    def missing(cls) -> str | None:
        """Return the reason if this contender cannot run on this machine."""
        if importlib.util.find_spec(cls.package) is None:
            return f"{cls.package} is not installed"
        return None

    @classmethod
    def unsuited(cls, workload: Workload, n_threads: int) -> str | None:
        """Return the reason if this contender cannot compute this workload."""
        return None

    def set_threads(self, n_threads: int) -> None:
        """Set the number of threads, if the environment variables of worker.py do not."""

    def make_table(self, seed: int) -> tuple[Any, Any]:
        """Return `weight` and `table`."""
        table = self.allocate((self.workload.n_rows, self.workload.dim))
        fill_table(table, seed)
        return table, table

    def allocate(self, shape: tuple[int, int]) -> NDArray[Any]:
        return np.empty(shape, numpy_dtype(self.workload.dtype))

    def make_floats(self, seed: int) -> NDArray[np.float32]:
        """Return the table of floats that a quantized table is made of."""
        floats = np.empty((self.workload.n_rows, self.workload.dim), np.float32)
        fill_table(floats, seed)
        return floats

    def convert(self, batch: Batch) -> Any:
        """Convert a batch to the types of the contender; this is not timed."""
        return batch

    def count_rows(self, batch: Batch) -> int:
        """Return the number of rows that are read."""
        return len(batch.indices)

    def run(self, batches: Sequence[Any]) -> Any:
        """Compute all batches in turn; return the last result."""
        raise NotImplementedError

    def check(self, batch: Batch) -> None:
        self.assert_result(batch, self.run([self.convert(batch)]))

    def assert_result(self, batch: Batch, result: Any) -> None:
        assert_result(self.workload, self.table, batch, result)


class EmbeddingBag(Contender):
    """Base of torch and embag, which share the signature of the function."""

    @classmethod
    def unsuited(cls, workload: Workload, n_threads: int) -> str | None:
        if workload.dtype == "bfloat16" and importlib.util.find_spec("ml_dtypes") is None:
            return "ml_dtypes is not installed"
        return None

    def set_threads(self, n_threads: int) -> None:
        self.module.set_num_threads(n_threads)

    def convert(self, batch: Batch) -> Any:
        options: dict[str, Any] = {}
        if batch.sample_weights is not None:
            options["per_sample_weights"] = batch.sample_weights
        if self.workload.padding_idx is not None:
            options["padding_idx"] = self.workload.padding_idx
        return batch.indices, batch.offsets, options

    def call_all(self, function: Any, table: Any, batches: Sequence[Any]) -> Any:
        mode, result = self.workload.mode, None
        if any(options for _, _, options in batches):
            for indices, offsets, options in batches:
                result = function(indices, table, offsets, mode=mode, **options)
        else:  # unpacking an empty dict would take a tenth of the smallest call
            for indices, offsets, _ in batches:
                result = function(indices, table, offsets, mode=mode)
        return result


class Embag(EmbeddingBag):
    """embag with a table in memory of `aligned_empty`, or a quantized one."""

    package = "embag"

    def make_table(self, seed: int) -> tuple[Any, Any]:
        if not self.workload.is_quantized:
            return super().make_table(seed)
        floats, bits = self.make_floats(seed), self.workload.bits
        quantized = self.module.quantize(floats, bits)
        return quantized, _fused_rows(quantized.packed, bits, floats)

    def allocate(self, shape: tuple[int, int]) -> NDArray[Any]:
        return self.module.aligned_empty(shape, numpy_dtype(self.workload.dtype))

    def run(self, batches: Sequence[Any]) -> Any:
        return self.call_all(self.module.embedding_bag, self.weight, batches)


class EmbagNumpy(Embag):
    """embag with a table that NumPy allocated."""

    def allocate(self, shape: tuple[int, int]) -> NDArray[Any]:
        return np.empty(shape, numpy_dtype(self.workload.dtype))


class Torch(EmbeddingBag):
    """torch's `embedding_bag` in inference mode, on a tensor that torch allocated."""

    package = "torch"

    def make_table(self, seed: int) -> tuple[Any, Any]:
        shape = self.workload.n_rows, self.workload.dim
        tensor = self.module.empty(shape, dtype=getattr(self.module, self.workload.dtype))
        table = self.to_array(tensor)
        fill_table(table, seed)
        return tensor, table

    def to_array(self, tensor: Any) -> NDArray[Any]:
        """View a tensor as an array; `Tensor.numpy` does not support bfloat16."""
        dtype = numpy_dtype(str(tensor.dtype).removeprefix("torch."))
        return tensor.view(self.module.uint8).numpy().view(dtype)

    def convert(self, batch: Batch) -> Any:
        tensor = self.module.from_numpy
        indices, offsets, options = super().convert(batch)
        if "per_sample_weights" in options:
            options["per_sample_weights"] = tensor(options["per_sample_weights"])
        return tensor(indices), tensor(offsets), options

    def run(self, batches: Sequence[Any]) -> Any:
        with self.module.inference_mode():
            function = self.module.nn.functional.embedding_bag
            return self.call_all(function, self.weight, batches)

    def assert_result(self, batch: Batch, result: Any) -> None:
        super().assert_result(batch, self.to_array(result))


class Backward(Contender):
    """Base of the contenders for gradients, with the gradient of the output."""

    def __init__(self, workload: Workload, n_threads: int):
        super().__init__(workload, n_threads)
        # In memory of NumPy, as the layer above would leave it.
        self.grad_output: Any = np.empty((workload.n_bags, workload.dim), workload.dtype)
        fill_table(self.grad_output)

    def to_arrays(self, result: Any) -> list[NDArray[Any]]:
        """Return the gradients of a result as dense arrays."""
        raise NotImplementedError

    def assert_result(self, batch: Batch, result: Any) -> None:
        grad_output, gradients = np.asarray(self.grad_output), self.to_arrays(result)
        assert_gradients(self.workload, self.table, batch, grad_output, gradients)


class EmbagBackward(Backward, Embag):
    """`embedding_bag_backward`, with the `max_indices` of the forward pass as in training."""

    def convert(self, batch: Batch) -> Any:
        indices, offsets, options = super().convert(batch)
        options["mode"] = self.workload.mode
        options["sparse"] = self.workload.gradient == "sparse"
        if self.workload.gradient == "per_sample_weights":
            options["wrt"] = "per_sample_weights"
        if self.workload.mode == "max":
            _, options["max_indices"] = self.module.embedding_bag(
                indices, self.table, offsets, mode="max", return_max_indices=True
            )
        return indices, offsets, options

    def run(self, batches: Sequence[Any]) -> Any:
        backward, result = self.module.embedding_bag_backward, None
        for indices, offsets, options in batches:
            result = None  # frees the gradients before the next are made
            result = backward(self.grad_output, indices, self.table, offsets, **options)
        return result

    def to_arrays(self, result: Any) -> list[NDArray[Any]]:
        gradients = [gradient for gradient in result if gradient is not None]
        return [g if isinstance(g, np.ndarray) else g.to_dense() for g in gradients]


class TorchBackward(Backward, Torch):
    """torch's autograd, backward only: making the graphs is not timed.

    A sparse gradient is coalesced, so that each row occurs once, as in embag.
    """

    def __init__(self, workload: Workload, n_threads: int):
        super().__init__(workload, n_threads)
        self.grad_output = self.module.from_numpy(self.grad_output).clone()  # in torch's memory
        self.coalesces = workload.gradient == "sparse"

    def convert(self, batch: Batch) -> Any:
        """Return the output, and the tensors whose gradients are wanted."""
        indices, offsets, options = super().convert(batch)
        table, inputs = self.weight.detach(), []
        if self.workload.gradient != "per_sample_weights":
            inputs.append(table.requires_grad_())
        if "per_sample_weights" in options:
            inputs.append(options["per_sample_weights"].requires_grad_())
        options["mode"] = self.workload.mode
        options["sparse"] = self.workload.gradient == "sparse"
        output = self.module.nn.functional.embedding_bag(indices, table, offsets, **options)
        return output, inputs

    def run(self, batches: Sequence[Any]) -> Any:
        grad, result = self.module.autograd.grad, None
        for output, inputs in batches:
            result = None  # frees the gradients before the next are made
            result = grad(output, inputs, self.grad_output, retain_graph=True)
            if self.coalesces:
                result = (result[0].coalesce(), *result[1:])
        return result

    def to_arrays(self, result: Any) -> list[NDArray[Any]]:
        return [gradient.to_dense().numpy() for gradient in result]


class TorchUncoalesced(TorchBackward):
    """torch's sparse gradient as autograd returns it, with an entry for each id."""

    def __init__(self, workload: Workload, n_threads: int):
        super().__init__(workload, n_threads)
        self.coalesces = False

    @classmethod
    def unsuited(cls, workload: Workload, n_threads: int) -> str | None:
        return None if workload.gradient == "sparse" else "sparse gradients only"


class Step(Backward):
    """Base of the contenders for steps, which change the table."""

    def check(self, batch: Batch) -> None:
        """Check a step from a table of zeros, where no rounding hides the gradient."""
        self.table[...] = 0
        self.run([self.convert(batch)])
        gradient, grad_output = self.table / -LEARNING_RATE, np.asarray(self.grad_output)
        assert_gradients(self.workload, self.table, batch, grad_output, [gradient])


class EmbagStep(Step, EmbagBackward):
    """`SparseRows.add_to`."""

    def convert(self, batch: Batch) -> Any:
        return EmbagBackward.run(self, [super().convert(batch)]).weight

    def run(self, batches: Sequence[Any]) -> None:
        for gradient in batches:
            gradient.add_to(self.table, -LEARNING_RATE)


class TorchStep(Step, TorchBackward):
    """`add_` of a coalesced sparse tensor."""

    def convert(self, batch: Batch) -> Any:
        return TorchBackward.run(self, [super().convert(batch)])[0]

    def run(self, batches: Sequence[Any]) -> None:
        for gradient in batches:
            self.weight.add_(gradient, alpha=-LEARNING_RATE)


class TorchQuantized(Torch):
    """torch's operators for quantized tables, made by its `embedding_bag_*_prepack`."""

    NAMES: ClassVar = {8: "byte", 4: "4bit", 2: "2bit"}

    def make_table(self, seed: int) -> tuple[Any, Any]:
        floats, bits = self.make_floats(seed), self.workload.bits
        packed = self.operator("prepack")(self.module.from_numpy(floats))
        return packed, _fused_rows(packed.numpy(), bits, floats)

    def operator(self, name: str) -> Any:
        operators = self.module.ops.quantized
        return getattr(operators, f"embedding_bag_{self.NAMES[self.workload.bits]}_{name}")

    def run(self, batches: Sequence[Any]) -> Any:
        function, packed, result = self.operator("rowwise_offsets"), self.weight, None
        with self.module.inference_mode():
            for indices, offsets, _ in batches:
                result = function(packed, indices, offsets)
        return result


class Collection(Contender):
    """Base of the contenders for many tables: `weight` and `table` have an entry for each."""

    def make_table(self, seed: int) -> tuple[Any, Any]:
        make_table = super().make_table
        tables = [make_table(seed + t) for t in range(self.workload.n_tables)]
        return tuple(zip(*tables, strict=True))

    def convert(self, batch: Batch) -> Any:
        """Return the concatenated ids, and the offsets with the end of the last bag."""
        return batch.indices, np.append(batch.offsets, len(batch.indices))

    def assert_result(self, batch: Batch, result: Any) -> None:
        assert_collection(self.workload, self.table, batch, np.asarray(result))


class EmbagCollection(Collection, Embag):
    """`EmbeddingBagCollection`."""

    def __init__(self, workload: Workload, n_threads: int):
        super().__init__(workload, n_threads)
        names = [f"table {t}" for t in range(workload.n_tables)]
        self.function = self.module.EmbeddingBagCollection(
            dict(zip(names, self.weight, strict=True)),
            [self.module.Feature(name, name) for name in names],
        )

    def run(self, batches: Sequence[Any]) -> Any:
        function, result = self.function, None
        for indices, offsets in batches:
            result = function(indices, offsets)
        return result


class TorchCollection(Collection, Torch):
    """A loop of `embedding_bag`, then `cat`. Splitting the ids by table is not timed."""

    @classmethod
    def unsuited(cls, workload: Workload, n_threads: int) -> str | None:
        if workload.is_quantized:
            return "tables of floats only"
        return super().unsuited(workload, n_threads)

    def convert(self, batch: Batch) -> Any:
        tensor = self.module.from_numpy
        parts = split_batch(self.workload, batch)
        return [tensor(part.indices) for part in parts], tensor(parts[0].offsets)

    def run(self, batches: Sequence[Any]) -> Any:
        function, cat = self.module.nn.functional.embedding_bag, self.module.cat
        tables, result = self.weight, None
        with self.module.inference_mode():
            for parts, offsets in batches:
                pooled = [
                    function(indices, table, offsets, mode="sum")
                    for indices, table in zip(parts, tables, strict=True)
                ]
                result = cat(pooled, 1)
        return result


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


class Quantize(Contender):
    """Base of the contenders for quantizing. Each result is freed before the next is made."""

    def make_table(self, seed: int) -> tuple[Any, Any]:
        floats = self.make_floats(seed)
        return floats, floats

    def count_rows(self, batch: Batch) -> int:
        return self.workload.n_rows

    def assert_result(self, batch: Batch, result: Any) -> None:
        _fused_rows(np.asarray(result), self.workload.bits, self.table)


class EmbagQuantize(Quantize, Embag):
    """`quantize`."""

    def run(self, batches: Sequence[Any]) -> Any:
        function, bits, result = self.module.quantize, self.workload.bits, None
        for _ in batches:
            result = None
            result = function(self.weight, bits)
        return result.packed


class TorchQuantize(Quantize, TorchQuantized):
    """torch's `prepack`."""

    def run(self, batches: Sequence[Any]) -> Any:
        function, table = self.operator("prepack"), self.module.from_numpy(self.weight)
        result = None
        for _ in batches:
            result = None
            result = function(table)
        return result


class PlainSum(Contender):
    """Base of the contenders that only compute sums."""

    @classmethod
    def unsuited(cls, workload: Workload, n_threads: int) -> str | None:
        if n_threads > 1:
            return "one thread only"
        if workload.mode != "sum" or workload.weighted or workload.padding_idx is not None:
            return "plain sums only"
        if workload.dtype not in ("float32", "float64"):
            return "float32 and float64 only"
        return None


class Numba(PlainSum):
    """The obvious three loops, compiled."""

    package = "numba"

    def __init__(self, workload: Workload, n_threads: int):
        super().__init__(workload, n_threads)

        @self.module.njit
        def embedding_bag(indices, table, offsets):
            result = np.zeros((len(offsets), table.shape[1]), table.dtype)
            for b in range(len(offsets)):
                stop = offsets[b + 1] if b + 1 < len(offsets) else len(indices)
                for k in range(offsets[b], stop):
                    for d in range(table.shape[1]):
                        result[b, d] += table[indices[k], d]
            return result

        self.function = embedding_bag

    def run(self, batches: Sequence[Batch]) -> Any:
        function, table, result = self.function, self.table, None
        for batch in batches:
            result = function(batch.indices, table, batch.offsets)
        return result


class Scipy(PlainSum):
    """A CSR matrix of ones times the table. Making the matrix from its parts is timed."""

    package = "scipy"

    def convert(self, batch: Batch) -> Any:
        ones = np.ones(len(batch.indices), self.workload.dtype)
        return ones, batch.indices, np.append(batch.offsets, len(batch.indices))

    def run(self, batches: Sequence[Any]) -> Any:
        csr_array, table, result = self.module.sparse.csr_array, self.table, None
        shape = self.workload.n_bags, self.workload.n_rows
        for ones, indices, bounds in batches:
            result = csr_array((ones, indices, bounds), shape=shape) @ table
        return result


class Matrix(Contender):
    """Base of the contenders for sparse matrices, which are CSR arrays of SciPy."""

    def convert(self, batch: Batch) -> Any:
        sparse = importlib.import_module("scipy.sparse")
        parts = batch.sample_weights, batch.indices, np.append(batch.offsets, len(batch.indices))
        return sparse.csr_array(parts, shape=(self.workload.n_bags, self.workload.n_rows))


class ScipyMatrix(Matrix):
    """`X @ W`."""

    package = "scipy"

    def run(self, batches: Sequence[Any]) -> Any:
        table, result = self.table, None
        for matrix in batches:
            result = matrix @ table
        return result


class EmbagMatrix(Matrix, Embag):
    """`embedding_bag(X, W)`: the entries of X are the weights of a sum."""

    @classmethod
    def unsuited(cls, workload: Workload, n_threads: int) -> str | None:
        return Scipy.missing()

    def run(self, batches: Sequence[Any]) -> Any:
        function, table, result = self.module.embedding_bag, self.table, None
        for matrix in batches:
            result = function(matrix, table, mode="sum")
        return result


class EmbagNumpyMatrix(EmbagMatrix, EmbagNumpy):
    """The same with a table that NumPy allocated."""


class Numpy(PlainSum):
    """`np.add.reduceat` of the gathered rows, which does not support empty bags."""

    package = "numpy"

    @classmethod
    def unsuited(cls, workload: Workload, n_threads: int) -> str | None:
        if workload.ragged:
            return "no empty bags"
        return super().unsuited(workload, n_threads)

    def run(self, batches: Sequence[Batch]) -> Any:
        table, result = self.table, None
        for batch in batches:
            result = np.add.reduceat(table[batch.indices], batch.offsets)
        return result


class Limit(Contender):
    """`gather_limit.c`, with the best prefetch strategy that it finds on this machine."""

    package = "embag"
    LEVELS = (1, 2)  # the cache to prefetch into
    # The number of rows per burst, and the number of rows ahead.
    STRATEGIES = ((1, 8), (1, 16), (1, 24), (1, 32), (1, 64), (8, 8), (8, 16), (8, 32), (8, 64))
    STRATEGIES += ((16, 16), (16, 32), (32, 32), (32, 64), (64, 64), (64, 128), (128, 128))

    def __init__(self, workload: Workload, n_threads: int):
        super().__init__(workload, n_threads)
        self.function = _compile(Path(__file__).with_name("gather_limit.c")).gather
        self.function.restype = ctypes.c_uint64
        self.function.argtypes = [
            *(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64),
            *(ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64),
        ]
        starts, stops = self._lines(np.arange(workload.n_rows))
        self.n_lines = int((stops - starts).max())
        self.strategy = (0, 0, 0)  # level, ahead, burst

    @classmethod
    def missing(cls) -> str | None:
        if shutil.which(_compiler()) is None:
            return f"no C compiler: {_compiler()}"
        return super().missing()

    @classmethod
    def unsuited(cls, workload: Workload, n_threads: int) -> str | None:
        return "one thread only" if n_threads > 1 else None

    def make_table(self, seed: int) -> tuple[Any, Any]:
        """Make one table of as many bytes as all tables of the workload."""
        n_bytes = self.workload.n_tables * self.workload.n_rows * self.workload.row_bytes
        table = self.module.aligned_empty(-(-n_bytes // 64) * 8, np.float64)  # whole lines
        fill_table(table, seed)
        return table, table

    def convert(self, batch: Batch) -> Any:
        first_rows = np.arange(self.workload.n_tables) * self.workload.n_rows
        n_indices = len(batch.indices) // self.workload.n_tables  # of each
        return batch.indices + first_rows.repeat(n_indices)

    def tune(self, batches: Sequence[Any]) -> None:
        """Find the best strategy: try all of them once, then the best five in turn."""
        strategies = [
            (level, ahead, burst) for level in self.LEVELS for burst, ahead in self.STRATEGIES
        ]
        strategies.append((0, 0, 0))
        strategies = sorted(strategies, key=lambda strategy: self._seconds(strategy, batches))[:5]
        seconds = {strategy: [] for strategy in strategies}
        for _ in range(5):
            for strategy in strategies:
                seconds[strategy].append(self._seconds(strategy, batches))
        self.strategy = min(strategies, key=lambda strategy: statistics.median(seconds[strategy]))
        level, ahead, burst = self.strategy
        self.note = "no prefetch"
        if level:
            self.note = f"prefetched into L{level}, {ahead} rows ahead, bursts of {burst}"

    def _seconds(self, strategy: tuple[int, int, int], batches: Sequence[Any]) -> float:
        self.strategy = strategy
        start = time.perf_counter()
        self.run(batches)
        return time.perf_counter() - start

    def run(self, batches: Sequence[Any]) -> int:
        table, row = self.table.ctypes.data, (self.workload.row_bytes, self.n_lines)
        result = 0
        for indices in batches:
            result = self.function(table, indices.ctypes.data, len(indices), *row, *self.strategy)
        return result

    def _lines(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the first cache line of each row, and the one after its last."""
        n_bytes = self.workload.row_bytes
        return np.stack([rows * n_bytes // 64, ((rows + 1) * n_bytes + 63) // 64])

    def check(self, batch: Batch) -> None:
        """Compare the sum of the first words of all lines, for each strategy."""
        first_words = self.table.view(np.uint64)[::8]
        rows = self.convert(batch)
        starts, stops = self._lines(rows)
        lines = np.minimum(starts[:, None] + np.arange(self.n_lines), stops[:, None] - 1)
        expected = int(first_words[lines].sum(dtype=np.uint64))
        for level in (0, *self.LEVELS):
            for burst, ahead in self.STRATEGIES:
                self.strategy = level, ahead, burst
                assert self.run([rows]) == expected, self.strategy


def _fused_rows(packed: NDArray[np.uint8], bits: int, floats: NDArray[np.float32]) -> QuantizedRows:
    """Return quantized rows in which scale and bias follow the entries."""
    n_codes = floats.shape[1] * bits // 8
    rows = QuantizedRows(packed[:, :n_codes], packed[:, n_codes:], bits)
    rows.assert_stands_for(floats[:N_CHECKED])
    return rows


def _compiler() -> str:
    return os.environ.get("CC", "cc")


def _compile(source: Path) -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "library.so")
        command = [_compiler(), "-O3", "-shared", "-fPIC", "-o", str(library), str(source)]
        subprocess.run(command, check=True)
        return ctypes.CDLL(str(library))


# The contenders by name, for each kind of workload.
CONTENDERS: dict[str, dict[str, type[Contender]]] = {
    "forward": {
        "torch": Torch,
        "embag": Embag,
        "embag-numpy": EmbagNumpy,
        "limit": Limit,
        "numba": Numba,
        "scipy": Scipy,
        "numpy": Numpy,
    },
    "backward": {
        "torch": TorchBackward,
        "torch-uncoalesced": TorchUncoalesced,
        "embag": EmbagBackward,
    },
    "step": {
        "torch": TorchStep,
        "embag": EmbagStep,
    },
    "quantized": {
        "torch": TorchQuantized,
        "embag": Embag,
        "limit": Limit,
    },
    "collection": {
        "fbgemm": Fbgemm,
        "torch": TorchCollection,
        "embag": EmbagCollection,
        "limit": Limit,
    },
    "quantize": {
        "torch": TorchQuantize,
        "embag": EmbagQuantize,
    },
    "matrix": {
        "scipy": ScipyMatrix,
        "embag": EmbagMatrix,
        "embag-numpy": EmbagNumpyMatrix,
        "limit": Limit,
    },
}
# By name alone, for properties that do not depend on the workload.
ALL = {name: contender for kind in CONTENDERS.values() for name, contender in kind.items()}
