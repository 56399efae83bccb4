"""Embedding bags for NumPy.

An embedding bag gathers rows of a table and reduces them per bag. `input` holds ids,
`offsets` cut it into bags, and row b of the result is the sum, mean or maximum of the rows
whose ids are in bag b. Recommenders look up their tables this way, and word vectors are
averaged this way.

    embag.embedding_bag(input, weight, offsets, mode="sum")

A lookup passes through these files, top to bottom:

    functional.py          `embedding_bag`: documentation, and a choice between two ways
    _kernels/calls.pxi     the common lookup: one compiled function checks and computes it
    _call.py               any other lookup: arguments become a `Call`, which is run

    _arguments.py          checks of single arguments, with every error message
    _bags.py               the bags of a call: ids, offsets, weights
    _modes.py              the table of modes (sum, mean, max, ...)
    _encodings.py          the table of encodings (how rows are stored)
    _entries.py            the ids of a lookup that count, as arrays
    _performance.py        `PerformanceWarning`: a lookup copies its table
    _types.py              the types that public signatures name

The rest of the public API:

    backward.py            `embedding_bag_backward`: the gradients (_grouping.py groups ids)
    sparse_rows.py         `SparseRows`: a gradient that holds only the rows in use
    optim.py               `optim.Adagrad` and others: steps that change the rows in use
                           (_optimizer.py has what they share, _terms.py the gradients)
    embedding.py           `embedding`, `embedding_backward`: rows without bags
    segments.py            `segment_reduce`: reduce the rows of an array per segment
    layers.py              `EmbeddingBag`: a table with the options of its lookups
    collection.py          `EmbeddingBagCollection`: many tables and features in one call
                           (_collection_gradients.py has its gradients,
                           _collection_files.py saves and loads it)
    quantized.py           `quantize`, `QuantizedTable`: tables of 8, 4 or 2 bits an entry
    remapped.py            `RemappedTable`: a table with a map from ids to rows
    memory.py              `aligned_empty`, `aligned_copy`: memory that is fast to gather from
    tables.py              `save_table`, `load_table`: tables in files, mapped or copied
    checkpoints.py         `save_checkpoint`, `load_checkpoint`: optimizers in a file
    ragged.py, arrow.py    `empty_bags`; `to_arrow`: the result as an Arrow column
    tuning.py              `tune`: choose how a table's rows are prefetched, ahead of requests
    _config.py             `show_config`: how embag was built and how it runs here

`embag.torch`, `embag.polars`, `embag.pandas`, `embag.sklearn` and `embag.ray` connect embag to
these libraries, `embag.text` to models of word vectors. They are not imported here. The folders:

    _kernels/              the kernels (_core.pyx includes them), the choice of a level and of
                           prefetch strategies
    _columns/              readers of ragged inputs, and of columns as tables
    _files/                headers of table files, atomic replacement
    _process/              threads: how many, teams, forks, limits of containers
    cli/                   the command line, `embag` or `python -m embag`

The semantics are those of `torch.nn.functional.embedding_bag`. docs/semantics.md lists the
differences, with reasons.
"""

from embag import optim
from embag._config import show_config
from embag._performance import PerformanceWarning
from embag._process.threads import get_num_threads, num_threads, set_num_threads
from embag._version import __version__
from embag.arrow import to_arrow
from embag.backward import EmbeddingBagGrads, embedding_bag_backward
from embag.checkpoints import load_checkpoint, save_checkpoint
from embag.collection import EmbeddingBagCollection, Feature
from embag.embedding import embedding, embedding_backward
from embag.functional import embedding_bag
from embag.layers import EmbeddingBag
from embag.memory import aligned_copy, aligned_empty
from embag.quantized import QuantizationError, QuantizedTable, quantize
from embag.ragged import empty_bags
from embag.remapped import RemappedTable
from embag.segments import SegmentReduceGrads, segment_reduce, segment_reduce_backward
from embag.sparse_rows import SparseRows
from embag.tables import load_table, save_table
from embag.tuning import tune

__all__ = [
    "EmbeddingBag",
    "EmbeddingBagCollection",
    "EmbeddingBagGrads",
    "Feature",
    "PerformanceWarning",
    "QuantizationError",
    "QuantizedTable",
    "RemappedTable",
    "SegmentReduceGrads",
    "SparseRows",
    "__version__",
    "aligned_copy",
    "aligned_empty",
    "embedding",
    "embedding_backward",
    "embedding_bag",
    "embedding_bag_backward",
    "empty_bags",
    "get_num_threads",
    "load_checkpoint",
    "load_table",
    "num_threads",
    "optim",
    "quantize",
    "save_checkpoint",
    "save_table",
    "segment_reduce",
    "segment_reduce_backward",
    "set_num_threads",
    "show_config",
    "to_arrow",
    "tune",
]
