"""`embag.torch`: embedding bags for tensors, with autograd, and optimizers of their tables.

A CPU tensor and an array can share memory, so this package is only glue: it passes the arrays of
tensors to embag, and returns the results as tensors. Tables, results and gradients are not copied.

    _tensors.py     tensors as arrays, and back
    _lookups.py     `embedding_bag`: which of the two below a call takes
    _computation.py lookups and gradients, computed by embag
    _operators.py   operators of torch, for compilers, export and fake tensors
    _errors.py      errors that are RuntimeErrors as well
    _layers.py      `EmbeddingBag`, the module, whose table may have an optimizer of `embag.optim`
    _conversion.py  `to_collection`, `replace_embeddings`: from a model of torch
    optim.py        `SparseAdam` and `Adagrad`, optimizers of torch for sparse gradients

Importing `embag` does not import torch. Importing this package does.

Tested in tests/bridges/.
"""

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError("embag.torch needs torch: pip install 'embag-cpu[torch]'") from error

from embag.torch import optim
from embag.torch._conversion import (
    ConversionReport,
    QuantizedEmbeddingBag,
    replace_embeddings,
    to_collection,
)
from embag.torch._layers import EmbeddingBag
from embag.torch._lookups import embedding_bag

__all__ = [
    "ConversionReport",
    "EmbeddingBag",
    "QuantizedEmbeddingBag",
    "embedding_bag",
    "optim",
    "replace_embeddings",
    "to_collection",
]
