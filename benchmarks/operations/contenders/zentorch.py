"""zentorch, AMD's plugin for torch. Its operators are called directly, as its compiler would."""

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.operations.contenders.torch import (
    Torch,
    TorchCollection,
    TorchGather,
    TorchQuantized,
)
from benchmarks.operations.workloads import Workload

BITS = 4  # of its quantized rows, which have the bytes of torch's


class Zentorch(Torch):
    """`zentorch_embedding_bag`, on a tensor that torch allocated."""

    MODES: ClassVar = {"sum": 0, "mean": 1, "max": 2}

    def __init__(self, workload: Workload, n_threads: int):
        importlib.import_module("zentorch")  # registers its operators with torch
        super().__init__(workload, n_threads)
        self.operators = self.module.ops.zentorch

    @classmethod
    def missing(cls) -> str | None:
        for package in ("torch", "zentorch"):
            if importlib.util.find_spec(package) is None:
                return f"{package} is not installed"
        return None

    @classmethod
    def unsuited(cls, workload: Workload, n_threads: int) -> str | None:
        if workload.dtype == "float64":
            return "no float64"
        if workload.dtype == "float16" and not _has_float16():
            return "float16 needs AVX512-FP16"
        if workload.padding_idx is not None:
            return "ignores padding_idx"
        return super().unsuited(workload, n_threads)

    def run(self, batches: Sequence[Any]) -> Any:
        function, weight, result = self.operators.zentorch_embedding_bag, self.weight, None
        mode = self.MODES[self.workload.mode]
        with self.module.inference_mode():
            for indices, offsets, options in batches:
                weights = options.get("per_sample_weights")
                result = function(weight, indices, offsets, False, mode, False, weights)
        return result


class ZentorchQuantized(Zentorch, TorchQuantized):
    """`zentorch_quant_embedding_bag`, on the rows that torch's `prepack` makes."""

    @classmethod
    def unsuited(cls, workload: Workload, n_threads: int) -> str | None:
        return None if workload.bits == BITS else "rows of 4 bits only"

    def make_table(self, seed: int) -> tuple[Any, Any]:
        packed, table = TorchQuantized.make_table(self, seed)
        return packed.view(self.module.int32), table

    def run(self, batches: Sequence[Any]) -> Any:
        function, weight = self.operators.zentorch_quant_embedding_bag, self.weight
        dtype, result = self.module.float32, None
        with self.module.inference_mode():
            for indices, offsets, _ in batches:
                result = function(weight, indices, offsets, BITS, dtype)
        return result


class ZentorchGather(TorchGather, Zentorch):
    """`zentorch_embedding`."""

    def run(self, batches: Sequence[Any]) -> Any:
        function, weight, result = self.operators.zentorch_embedding, self.weight, None
        with self.module.inference_mode():
            for ids in batches:
                result = function(weight, ids)
        return result


class ZentorchCollection(Zentorch, TorchCollection):
    """`zentorch_horizontal_embedding_bag_group`, then `cat`."""

    @classmethod
    def unsuited(cls, workload: Workload, n_threads: int) -> str | None:
        return TorchCollection.unsuited(workload, n_threads)

    def convert(self, batch: Any) -> Any:
        indices, offsets = zip(*super().convert(batch), strict=True)
        return list(indices), list(offsets)

    def run(self, batches: Sequence[Any]) -> Any:
        function, cat = self.operators.zentorch_horizontal_embedding_bag_group, self.module.cat
        tables, n, result = list(self.weight), len(self.weight), None
        zeros, nothing, no_padding = [0] * n, [None] * n, [-1] * n
        with self.module.inference_mode():
            for indices, offsets in batches:
                pooled = function(
                    *(tables, indices, offsets, zeros, zeros, zeros, nothing, zeros, no_padding)
                )
                result = cat(pooled, 1)
        return result


def _has_float16() -> bool:
    path = Path("/proc/cpuinfo")
    return path.exists() and "avx512_fp16" in path.read_text()
