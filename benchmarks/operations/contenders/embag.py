"""embag. It chooses how to prefetch while it runs, so calls are repeated before they are timed."""

import importlib.util
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.operations.contenders.base import (
    LEARNING_RATE,
    Backward,
    Collection,
    EmbeddingBag,
    Gather,
    Matrix,
    Quantize,
    Step,
    Update,
    fused_rows,
)
from benchmarks.operations.contenders.search import Search
from benchmarks.operations.steps import BETAS, OPTIMIZER_EPS
from benchmarks.operations.steps import LEARNING_RATE as TRAINING_RATE
from benchmarks.operations.workloads import Batch, Workload, numpy_dtype

FEWEST_PASSES, MOST_SECONDS = 2, 20.0  # of calls until the choice is settled


class Embag(EmbeddingBag):
    """embag with a table in memory of `aligned_empty`, or a quantized one."""

    package = "embag"

    def make_table(self, seed: int) -> tuple[Any, Any]:
        if not self.workload.is_quantized:
            return super().make_table(seed)
        floats, bits = self.make_floats(seed), self.workload.bits
        quantized = self.module.quantize(floats, bits)
        return quantized, fused_rows(quantized.packed, bits, floats)

    def allocate(self, shape: tuple[int, int]) -> NDArray[Any]:
        return self.module.aligned_empty(shape, numpy_dtype(self.workload.dtype))

    def settle(self, calls: Sequence[Any]) -> None:
        """Repeat the calls until no strategy is being tried; the note has those chosen."""
        strategies = importlib.import_module("embag._kernels.strategies")
        stop, n_passes, choices = time.monotonic() + MOST_SECONDS, 0, []
        while n_passes < FEWEST_PASSES or any(choice.state == "trying" for choice in choices):
            self.run(calls)
            n_passes += 1
            choices = strategies.choices()
            if time.monotonic() > stop:
                break
        self.note = ", ".join(
            choice.strategy + (" (still trying)" if choice.state == "trying" else "")
            for choice in choices
            if choice.state != "default"
        )

    def run(self, batches: Sequence[Any]) -> Any:
        return self.call_all(self.module.embedding_bag, self.weight, batches)


class EmbagNumpy(Embag):
    """embag with a table that NumPy allocated."""

    def allocate(self, shape: tuple[int, int]) -> NDArray[Any]:
        return np.empty(shape, numpy_dtype(self.workload.dtype))


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


class EmbagStep(Step, EmbagBackward):
    """`SparseRows.add_to`."""

    def convert(self, batch: Batch) -> Any:
        return EmbagBackward.run(self, [super().convert(batch)]).weight

    def run(self, batches: Sequence[Any]) -> None:
        for gradient in batches:
            gradient.add_to(self.table, -LEARNING_RATE)


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


class EmbagUpdate(Update, Embag):
    """`Optimizer.update`."""

    def __init__(self, workload: Workload, n_threads: int):
        super().__init__(workload, n_threads)
        self.optimizer = self.make_optimizer(self.table)

    def make_optimizer(self, table: NDArray[Any]) -> Any:
        optim, eps = self.module.optim, {"eps": OPTIMIZER_EPS}
        kind, options = {
            "sgd": (optim.SGD, {}),
            "adagrad": (optim.Adagrad, eps),
            "row-wise-adagrad": (optim.RowWiseAdagrad, eps),
            "adam": (optim.Adam, eps | {"betas": BETAS}),
        }[self.workload.optimizer]
        return kind(table, TRAINING_RATE, **options)

    def run(self, batches: Sequence[Any]) -> Any:
        update, grad_output = self.optimizer.update, self.grad_output
        for indices, offsets, _ in batches:
            update(grad_output, indices, offsets, mode="sum")


class EmbagOneThread(EmbagUpdate):
    """The same on one thread, beside contenders with more."""

    def set_threads(self, n_threads: int) -> None:
        super().set_threads(1)


class EmbagTwoCalls(EmbagUpdate):
    """`embedding_bag_backward`, then `Optimizer.step`."""

    def run(self, batches: Sequence[Any]) -> Any:
        backward, step = self.module.embedding_bag_backward, self.optimizer.step
        grad_output, table, options = self.grad_output, self.table, {"mode": "sum", "sparse": True}
        for indices, offsets, _ in batches:
            step(backward(grad_output, indices, table, offsets, **options).weight)


class EmbagTrain(EmbagUpdate):
    """A lookup, then `Optimizer.update`."""

    def run(self, batches: Sequence[Any]) -> Any:
        function, update, result = self.module.embedding_bag, self.optimizer.update, None
        for indices, offsets, _ in batches:
            result = function(indices, self.table, offsets, mode="sum")
            update(self.grad_output, indices, offsets, mode="sum")
        return result


class EmbagTrainCollection(EmbagUpdate, EmbagCollection):
    """A call of an `EmbeddingBagCollection`, then its `update`."""

    def make_optimizer(self, tables: Sequence[NDArray[Any]]) -> Any:
        make = super().make_optimizer
        return {f"table {t}": make(table) for t, table in enumerate(tables)}

    def run(self, batches: Sequence[Any]) -> Any:
        function, optimizers, result = self.function, self.optimizer, None
        for indices, offsets in batches:
            result = function(indices, offsets)
            function.update(self.grad_output, indices, offsets, optimizers=optimizers)
        return result


class EmbagGather(Gather, Embag):
    """`embedding`, each result new."""

    def run(self, batches: Sequence[Any]) -> Any:
        function, weight, result = self.module.embedding, self.weight, None
        for ids in batches:
            result = function(ids, weight)
        return result


class EmbagGatherOut(EmbagGather):
    """`embedding` with `out`."""

    def __init__(self, workload: Workload, n_threads: int):
        super().__init__(workload, n_threads)
        self.out = np.empty((workload.n_bags, workload.dim), np.float32)

    def run(self, batches: Sequence[Any]) -> Any:
        function, weight, out = self.module.embedding, self.weight, self.out
        for ids in batches:
            function(ids, weight, out=out)
        return out


class EmbagQuantize(Quantize, Embag):
    """`quantize`."""

    def run(self, batches: Sequence[Any]) -> Any:
        function, bits, result = self.module.quantize, self.workload.bits, None
        for _ in batches:
            result = None
            result = function(self.weight, bits)
        return result.packed


class EmbagMatrix(Matrix, Embag):
    """`embedding_bag(X, W)`: the entries of X are the weights of a sum."""

    @classmethod
    def unsuited(cls, workload: Workload, n_threads: int) -> str | None:
        return None if importlib.util.find_spec("scipy") else "scipy is not installed"

    def run(self, batches: Sequence[Any]) -> Any:
        function, table, result = self.module.embedding_bag, self.table, None
        for matrix in batches:
            result = function(matrix, table, mode="sum")
        return result


class EmbagNumpyMatrix(EmbagMatrix, EmbagNumpy):
    """The same with a table that NumPy allocated."""


class Pinned(Search):
    """Base of embag with the fastest of its own strategies, pinned. It chooses nothing itself."""

    @property
    def strategies(self) -> list[Any]:
        return self._kernels.candidate_strategies()

    def use(self, strategy: Any) -> None:
        self._kernels.pin_strategy(strategy)

    @property
    def _kernels(self) -> Any:
        return importlib.import_module("embag._kernels.dispatch").kernels


class EmbagPinned(Pinned, Embag):
    pass


class EmbagPinnedCollection(Pinned, EmbagCollection):
    pass


class EmbagPinnedMatrix(Pinned, EmbagMatrix):
    pass


class EmbagPinnedGather(Pinned, EmbagGather):
    pass


class EmbagPinnedGatherOut(Pinned, EmbagGatherOut):
    pass
