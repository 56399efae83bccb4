"""`QuantizedEmbeddingBag` and `QuantizedEmbedding`: layers of a table of few bits, for inference.

`replace_embeddings` turns layers of torch into these. The rows are a buffer of bytes, so copies,
pickles and state dicts need nothing else.

Tested in tests/bridges/test_replacing_layers.py.
"""

from typing import Any

import torch

from embag import functional
from embag._types import Invalid
from embag.embedding import embedding
from embag.quantized import QuantizedTable
from embag.torch._tensors import FACTORS, INTEGERS, as_array, as_tensor, check, num_threads


class QuantizedEmbedding(torch.nn.Module):
    """A ``torch.nn.Embedding`` whose rows have 8, 4 or 2 bits an entry.

    Made by `replace_embeddings`.
    """

    packed: torch.Tensor  # a buffer: the rows of `table`
    bits: int
    num_embeddings: int
    embedding_dim: int
    padding_idx: int | None
    dtype: torch.dtype  # of the weight that was replaced, and of results

    def set_table(self, table: QuantizedTable, packed: torch.Tensor, dtype: torch.dtype) -> None:
        """Take a table with layout "fused", in the memory of `packed`."""
        self.register_buffer("packed", packed)
        self.bits, self.dtype = table.bits, dtype

    @property
    def table(self) -> QuantizedTable:
        """The table, in the memory of the buffer `packed`."""
        check(self.packed, "packed", frozenset({torch.uint8}), "uint8")
        return QuantizedTable.from_packed(as_array(self.packed), self.bits, self.embedding_dim)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the row of each id.

        Parameters
        ----------
        input : Tensor of int
            The ids, of any shape.

        Returns
        -------
        Tensor, shape ``input.shape + (embedding_dim,)``
            The rows, without a gradient.
        """
        return _call(self._look_up, input)

    def _look_up(self, input: torch.Tensor) -> torch.Tensor:
        check(input, "input", INTEGERS, "integers")
        return self._finish(embedding(as_array(input), self.table, num_threads=num_threads()))

    def _finish(self, result: Any) -> torch.Tensor:
        return as_tensor(result).to(self.dtype)

    def extra_repr(self) -> str:
        """Return the options for the repr."""
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}, bits={self.bits}"


class QuantizedEmbeddingBag(QuantizedEmbedding):
    """A ``torch.nn.EmbeddingBag`` whose rows have 8, 4 or 2 bits an entry.

    Made by `replace_embeddings`.
    """

    mode: str
    include_last_offset: bool
    default_idx: int | None
    invalid: Invalid
    normalize: bool

    def forward(
        self,
        input: torch.Tensor,
        offsets: torch.Tensor | None = None,
        per_sample_weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Gather rows and reduce them per bag.

        Parameters
        ----------
        input, offsets, per_sample_weights : Tensor
            As in `embag.torch.embedding_bag`. The weights have no gradient.

        Returns
        -------
        Tensor, shape (n_bags, embedding_dim)
            The reduced bags, without a gradient.
        """
        return _call(self._pool, input, offsets, per_sample_weights)

    def _pool(
        self,
        input: torch.Tensor,
        offsets: torch.Tensor | None,
        per_sample_weights: torch.Tensor | None,
    ) -> torch.Tensor:
        check(input, "input", INTEGERS, "integers")
        if offsets is not None:
            check(offsets, "offsets", INTEGERS, "integers")
        if per_sample_weights is not None:
            check(per_sample_weights, "per_sample_weights", FACTORS, "real numbers")
            if per_sample_weights.requires_grad and torch.is_grad_enabled():
                raise ValueError(
                    "per_sample_weights must not require a gradient for a quantized layer, "
                    "got requires_grad=True"
                )
        mode: Any = self.mode
        result = functional.embedding_bag(
            as_array(input),
            self.table,
            as_array(offsets),
            mode=mode,
            per_sample_weights=as_array(per_sample_weights, torch.float32),
            include_last_offset=self.include_last_offset,
            padding_idx=self.padding_idx,
            default_idx=self.default_idx,
            invalid=self.invalid,
            normalize=self.normalize,
            num_threads=num_threads(),
        )
        return self._finish(result)

    def extra_repr(self) -> str:
        """Return the options for the repr."""
        return f"{super().extra_repr()}, mode={self.mode!r}"


def _call(function: Any, *arguments: Any) -> torch.Tensor:
    if torch.compiler.is_compiling():
        # A decorator would import the compiler, which takes a second, in every program.
        function = torch.compiler.disable(function)
    result: torch.Tensor = function(*arguments)
    return result
