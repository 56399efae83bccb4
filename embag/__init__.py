"""Embedding bags for NumPy.

An embedding bag gathers rows of a table and reduces them per bag: with `offsets` that
cut `input` into bags, row b of the result is the sum, mean or maximum of the rows that
bag b names. Every table lookup of a recommender is this operation, and so is the
average of word vectors.

    embag.embedding_bag(input, weight, offsets, mode="sum")

`embedding_bag_backward` is its gradient, by the table and by the weights of the rows.

A call passes through these files, and never back:

    functional.py    the function and its documentation
    backward.py      the same for the gradients
    _arguments.py    checks the arguments; every error message
    _threads.py      how many threads this much work is worth; runs kernels with several
    _dispatch.py     which instruction-set level this processor runs
    _core.pyx        the kernels, compiled once for each level; its parts are *.pxi

Around it: `EmbeddingBag` (layers.py) is the layer, `SparseRows` (sparse_rows.py) a
gradient that holds only the rows in use, embag.torch (torch.py, not imported here) the
same for torch's tensors. _grouping.py groups the positions of a batch by row, which is
what the gradients are made with.

Ragged columns (Arrow's lists, whatever library they are of; scipy's CSR matrices; awkward,
torch, TensorFlow; lists of lists) are read piece by piece, without a copy where they can be:
_containers.py, _ragged.py for the pieces, _arrow.pyx for Arrow's C structs. `to_arrow`
(arrow.py) makes a column of a result, `empty_bags` (ragged.py) tells which rows of it are of
no ids. embag.polars and
embag.pandas (not imported here) are the same as methods of columns.

For serving: `quantize` makes a `QuantizedTable` of 8, 4 or 2 bits an entry, or takes the
bytes of torch's and FBGEMM's (quantized.py; _encodings.py has what all kinds of tables are
to the kernels). `EmbeddingBagCollection` looks up many features in many tables by one call
(collection.py).

Beside it: `aligned_copy` and `aligned_empty` (memory.py) place tables so that lookups
are fastest, `save_table` and `load_table` (tables.py; _table_files.py has the formats)
keep them in files, mapped or copied, `set_num_threads`, `get_num_threads` and
`with num_threads(n)` bound the threads, `show_config` (_config.py) tells how embag was built
and how it runs here. _cgroups.py reads what a container leaves. `_reference.py` is the
definition in plain loops, which the tests hold the kernels to. `embag`
or `python -m embag` is the command line (cli/).

The semantics are those of `torch.nn.functional.embedding_bag`; where they differ, and
why, is in docs/semantics.md.
"""

from embag._config import show_config
from embag._threads import get_num_threads, num_threads, set_num_threads
from embag._version import __version__
from embag.arrow import to_arrow
from embag.backward import EmbeddingBagGrads, embedding_bag_backward
from embag.collection import EmbeddingBagCollection, Feature
from embag.functional import embedding_bag
from embag.layers import EmbeddingBag
from embag.memory import aligned_copy, aligned_empty
from embag.quantized import QuantizationError, QuantizedTable, quantize
from embag.ragged import empty_bags
from embag.sparse_rows import SparseRows
from embag.tables import load_table, save_table

__all__ = [
    "EmbeddingBag",
    "EmbeddingBagCollection",
    "EmbeddingBagGrads",
    "Feature",
    "QuantizationError",
    "QuantizedTable",
    "SparseRows",
    "__version__",
    "aligned_copy",
    "aligned_empty",
    "embedding_bag",
    "embedding_bag_backward",
    "empty_bags",
    "get_num_threads",
    "load_table",
    "num_threads",
    "quantize",
    "save_table",
    "set_num_threads",
    "show_config",
    "to_arrow",
]
