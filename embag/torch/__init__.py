"""`embag.torch`: embedding bags for tensors, with autograd, and optimizers of their tables.

A CPU tensor and an array can share memory, so this package is only glue: it passes the arrays of
tensors to embag, and returns the results as tensors. Tables, results and gradients are not copied.

    _tensors.py             tensors as arrays, and back
    _lookups.py             `embedding_bag`: which of the next two modules a call takes
    _computation.py         lookups and gradients, computed by embag
    _operators.py           operators of torch, for compilers, export and fake tensors
    _quantized_lookups.py   the same choice for quantized rows
    _errors.py              errors that are RuntimeErrors as well
    _layers.py              `EmbeddingBag`, the module; its table may have an optimizer
    optim.py                `SparseAdam` and `Adagrad`, torch's optimizers for sparse gradients

From models of torch:

    _conversion.py         `to_collection`: the embeddings of a model as a collection
    _replacement.py        `replace_embeddings`: embag's layers inside a model
    _layers_of_models.py   the embedding layers of a model
    _tables_of_layers.py   their rows as tables, quantized or not
    _quantized_layers.py   layers of few bits, for inference
    _report.py             what became of a model's embeddings

Importing `embag` does not import torch. Importing this package does.

Tested in tests/bridges/.
"""

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError("embag.torch needs torch: pip install 'embag-cpu[torch]'") from error

from embag.torch import optim
from embag.torch._conversion import to_collection
from embag.torch._layers import EmbeddingBag
from embag.torch._lookups import embedding_bag
from embag.torch._replacement import replace_embeddings
from embag.torch._report import ConversionReport, ConvertedTable

__all__ = [
    "ConversionReport",
    "ConvertedTable",
    "EmbeddingBag",
    "embedding_bag",
    "optim",
    "replace_embeddings",
    "to_collection",
]
