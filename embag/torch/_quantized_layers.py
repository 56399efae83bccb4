"""`QuantizedEmbeddingBag` and `QuantizedEmbedding`: layers of a table of few bits, for inference.

`replace_embeddings` turns layers of torch into these. The rows are a buffer of bytes, so copies,
pickles and state dicts need nothing else.

Tested in tests/bridges/test_replacing_layers.py.
"""

import torch

from embag._types import Invalid
from embag.quantized import QuantizedTable
from embag.torch._quantized_lookups import look_up_packed, look_up_rows
from embag.torch._tensors import as_array, check


class QuantizedEmbedding(torch.nn.Module):
    """A ``torch.nn.Embedding`` whose rows have 8, 4 or 2 bits an entry.

    Made by `replace_embeddings`.
    """

    packed: torch.Tensor  # a buffer: the rows of `table`
    bits: int
    num_embeddings: int
    embedding_dim: int
    padding_idx: int | None
    _like: torch.Tensor  # of the dtype of results: a buffer, so that `model.half()` changes it

    def set_table(self, table: QuantizedTable, packed: torch.Tensor, dtype: torch.dtype) -> None:
        """Take a table with layout "fused", in the memory of `packed`."""
        self.register_buffer("packed", packed)
        self.register_buffer("_like", torch.empty(0, dtype=dtype), persistent=False)
        self.bits = table.bits

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of results: at first, that of the weight that was replaced."""
        return self._like.dtype

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
        rows = look_up_rows(input, self.packed, self.bits, self.embedding_dim)
        return rows.to(self.dtype)

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
        result = look_up_packed(
            input,
            self.packed,
            self.bits,
            self.embedding_dim,
            offsets,
            self.mode,
            per_sample_weights,
            self.include_last_offset,
            self.padding_idx,
            self.default_idx,
            self.invalid,
            self.normalize,
        )
        return result.to(self.dtype)

    def extra_repr(self) -> str:
        """Return the options for the repr."""
        return f"{super().extra_repr()}, mode={self.mode!r}"
