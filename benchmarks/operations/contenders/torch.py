"""torch."""

from collections.abc import Sequence
from typing import Any, ClassVar

from numpy.typing import NDArray

from benchmarks.operations.contenders.base import (
    LEARNING_RATE,
    Backward,
    Collection,
    EmbeddingBag,
    Gather,
    Quantize,
    Step,
    Update,
    fused_rows,
)
from benchmarks.operations.steps import BETAS, OPTIMIZER_EPS
from benchmarks.operations.steps import LEARNING_RATE as TRAINING_RATE
from benchmarks.operations.workloads import Batch, Workload, fill_table, numpy_dtype, split_batch


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


class TorchStep(Step, TorchBackward):
    """`add_` of a coalesced sparse tensor."""

    def convert(self, batch: Batch) -> Any:
        return TorchBackward.run(self, [super().convert(batch)])[0]

    def run(self, batches: Sequence[Any]) -> None:
        for gradient in batches:
            self.weight.add_(gradient, alpha=-LEARNING_RATE)


class TorchUpdate(Update, TorchBackward):
    """autograd with sparse gradients, and an optimizer. Making the graphs is not timed."""

    @classmethod
    def unsuited(cls, workload: Workload, n_threads: int) -> str | None:
        return "no row-wise Adagrad" if workload.optimizer == "row-wise-adagrad" else None

    def __init__(self, workload: Workload, n_threads: int):
        super().__init__(workload, n_threads)
        optim, parameters = self.module.optim, [self.weight.requires_grad_()]
        kind, options = {
            "sgd": (optim.SGD, {}),
            "adagrad": (optim.Adagrad, {"eps": OPTIMIZER_EPS}),
            "adam": (optim.SparseAdam, {"betas": BETAS, "eps": OPTIMIZER_EPS}),
        }[workload.optimizer]
        self.optimizer = kind(parameters, lr=TRAINING_RATE, **options)
        self.module.sparse.check_sparse_tensor_invariants.disable()  # the default, said aloud

    def convert(self, batch: Batch) -> Any:
        indices, offsets, _ = Torch.convert(self, batch)
        function = self.module.nn.functional.embedding_bag
        return function(indices, self.weight, offsets, mode="sum", sparse=True)

    def run(self, batches: Sequence[Any]) -> None:
        optimizer = self.optimizer
        for output in batches:
            output.backward(self.grad_output, retain_graph=True)
            optimizer.step()
            optimizer.zero_grad()


class TorchQuantized(Torch):
    """torch's operators for quantized tables, made by its `embedding_bag_*_prepack`."""

    NAMES: ClassVar = {8: "byte", 4: "4bit", 2: "2bit"}

    def make_table(self, seed: int) -> tuple[Any, Any]:
        floats, bits = self.make_floats(seed), self.workload.bits
        packed = self.operator("prepack")(self.module.from_numpy(floats))
        return packed, fused_rows(packed.numpy(), bits, floats)

    def operator(self, name: str) -> Any:
        operators = self.module.ops.quantized
        return getattr(operators, f"embedding_bag_{self.NAMES[self.workload.bits]}_{name}")

    def run(self, batches: Sequence[Any]) -> Any:
        function, packed, result = self.operator("rowwise_offsets"), self.weight, None
        with self.module.inference_mode():
            for indices, offsets, _ in batches:
                result = function(packed, indices, offsets)
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
        return [(tensor(part.indices), tensor(part.offsets)) for part in parts]

    def run(self, batches: Sequence[Any]) -> Any:
        function, cat = self.module.nn.functional.embedding_bag, self.module.cat
        tables, result = self.weight, None
        with self.module.inference_mode():
            for parts in batches:
                pooled = [
                    function(indices, table, offsets, mode="sum")
                    for (indices, offsets), table in zip(parts, tables, strict=True)
                ]
                result = cat(pooled, 1)
        return result


class TorchGather(Gather, Torch):
    """`torch.nn.functional.embedding`."""

    @classmethod
    def unsuited(cls, workload: Workload, n_threads: int) -> str | None:
        if workload.is_quantized:
            return "tables of floats only"
        return super().unsuited(workload, n_threads)

    def convert(self, batch: Batch) -> Any:
        return self.module.from_numpy(batch.indices)

    def run(self, batches: Sequence[Any]) -> Any:
        function, weight, result = self.module.nn.functional.embedding, self.weight, None
        with self.module.inference_mode():
            for ids in batches:
                result = function(ids, weight)
        return result

    def assert_result(self, batch: Batch, result: Any) -> None:
        super().assert_result(batch, self.to_array(result))


class TorchGatherOut(TorchGather):
    """`torch.index_select` with `out`: `embedding` has none."""

    def run(self, batches: Sequence[Any]) -> Any:
        function, weight = self.module.index_select, self.weight
        with self.module.inference_mode():
            out = self.module.empty(self.workload.n_bags, self.workload.dim, dtype=weight.dtype)
            for ids in batches:
                function(weight, 0, ids, out=out)
        return out


class TorchQuantize(Quantize, TorchQuantized):
    """torch's `prepack`."""

    def run(self, batches: Sequence[Any]) -> Any:
        function, table = self.operator("prepack"), self.module.from_numpy(self.weight)
        result = None
        for _ in batches:
            result = None
            result = function(table)
        return result
