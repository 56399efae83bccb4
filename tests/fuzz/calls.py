"""What draws cases of each public name; tests/test_fuzz.py sees that none is missing."""

from . import of_collections, of_columns, of_files, of_lookups, of_tables
from .case import perhaps_spoiled

# The name, what draws its cases, how often they come, and arguments that they may lack.
_CALLS = [
    ("embedding_bag", of_lookups.forward_cases, 10,
     ["offsets", "max_norm", "norm_type", "scale_grad_by_freq", "sparse", "per_sample_weights",
      "include_last_offset", "padding_idx", "out", "return_max_indices", "out_dtype", "invalid",
      "return_n_invalid", "unknown"]),
    ("embedding_bag", of_columns.column_cases, 6,
     ["offsets", "lengths", "max_norm", "norm_type", "per_sample_weights", "include_last_offset",
      "padding_idx", "out", "return_max_indices", "out_dtype", "invalid", "return_n_invalid"]),
    ("embedding_bag", of_columns.lengths_cases, 2,
     ["offsets", "max_norm", "per_sample_weights", "include_last_offset", "invalid"]),
    ("embedding_bag_backward", of_lookups.backward_cases, 7,
     ["per_sample_weights", "include_last_offset", "padding_idx", "max_indices", "wrt"]),
    ("EmbeddingBagGrads", of_lookups.grads_cases, 1, []),
    ("EmbeddingBag", of_lookups.layer_cases, 4,
     ["max_norm", "norm_type", "padding_idx", "mode", "out", "per_sample_weights"]),
    ("EmbeddingBagCollection", of_collections.collection_cases, 8,
     ["per_sample_weights", "include_last_offset", "out", "offsets"]),
    ("Feature", of_collections.feature_cases, 1, []),
    ("QuantizationError", of_tables.quantization_error_cases, 1, []),
    ("QuantizedTable", of_tables.from_packed_cases, 3, []),
    ("QuantizedTable", of_tables.dequantize_cases, 2, []),
    ("QuantizedTable", of_tables.error_cases, 1, []),
    ("quantized.row_bytes", of_tables.row_bytes_cases, 1, []),
    ("SparseRows", of_tables.sparse_rows_cases, 4, ["alpha"]),
    ("aligned_copy", of_tables.aligned_copy_cases, 2, []),
    ("aligned_empty", of_tables.aligned_empty_cases, 2, []),
    ("empty_bags", of_columns.empty_bags_cases, 2,
     ["offsets", "lengths", "include_last_offset", "unknown"]),
    ("get_num_threads", of_tables.get_num_threads_cases, 1, []),
    ("load_table", of_files.load_cases, 5, ["name"]),
    ("num_threads", of_tables.num_threads_cases, 1, []),
    ("quantize", of_tables.quantize_cases, 4, ["out", "progress"]),
    ("save_table", of_files.save_cases, 3, ["bits", "name", "progress"]),
    ("set_num_threads", of_tables.set_num_threads_cases, 1, []),
    ("to_arrow", of_columns.to_arrow_cases, 1, ["mask", "unknown"]),
    ("show_config", of_tables.show_config_cases, 1, []),
]  # fmt: skip

COVERED = {name for name, *_ in _CALLS}
_OFTEN = [(draw, others) for _, draw, often, others in _CALLS for _ in range(often)]


def case(rng):
    """Return a case of any public name, sound or spoiled."""
    draw, others = rng.choice(_OFTEN)
    return perhaps_spoiled(rng, draw(rng), others)
