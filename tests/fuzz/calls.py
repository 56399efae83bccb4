"""Which functions draw cases of each public name; test_fuzz.py checks that none is missing."""

from . import (
    collection_cases,
    file_cases,
    lookup_cases,
    optimizer_cases,
    ragged_cases,
    segment_cases,
    table_cases,
)
from .checked_call import maybe_corrupt

# The name, the function that draws cases, their frequency, and arguments that they may lack.
_CALLS = [
    ("embedding_bag", lookup_cases.forward_cases, 10,
     ["offsets", "max_norm", "norm_type", "scale_grad_by_freq", "sparse", "per_sample_weights",
      "include_last_offset", "padding_idx", "out", "return_max_indices", "out_dtype", "invalid",
      "return_n_invalid", "default_idx", "return_n_valid", "normalize", "unknown"]),
    ("embedding_bag", ragged_cases.ragged_lookup_cases, 6,
     ["offsets", "lengths", "max_norm", "norm_type", "per_sample_weights", "include_last_offset",
      "padding_idx", "out", "return_max_indices", "out_dtype", "invalid", "return_n_invalid"]),
    ("embedding_bag", ragged_cases.column_table_cases, 1, ["out", "max_norm"]),
    ("embedding_bag", ragged_cases.lengths_cases, 2,
     ["offsets", "max_norm", "per_sample_weights", "include_last_offset", "invalid"]),
    ("embedding_bag", segment_cases.segment_lookup_cases, 3,
     ["offsets", "lengths", "n_bags", "per_sample_weights", "include_last_offset", "out",
      "invalid"]),
    ("segment_reduce", segment_cases.segment_reduce_cases, 2, []),
    ("segment_reduce_backward", segment_cases.segment_reduce_cases, 1, []),
    ("embedding_bag_backward", lookup_cases.backward_cases, 7,
     ["per_sample_weights", "include_last_offset", "padding_idx", "max_indices", "wrt",
      "default_idx", "invalid", "normalize"]),
    ("embedding_bag_backward", ragged_cases.ragged_backward_cases, 4,
     ["offsets", "lengths", "per_sample_weights", "padding_idx", "max_indices", "wrt",
      "default_idx", "invalid", "normalize", "sparse"]),
    ("embedding", lookup_cases.embedding_cases, 3, ["out", "invalid", "max_norm"]),
    ("embedding_backward", lookup_cases.embedding_backward_cases, 2, ["invalid", "sparse"]),
    ("EmbeddingBagGrads", lookup_cases.grads_cases, 1, []),
    ("SegmentReduceGrads", lookup_cases.grads_cases, 1, []),
    ("EmbeddingBag", lookup_cases.layer_cases, 4,
     ["max_norm", "norm_type", "padding_idx", "mode", "out", "per_sample_weights"]),
    ("EmbeddingBagCollection", collection_cases.embedding_bag_collection_cases, 8,
     ["per_sample_weights", "include_last_offset", "out", "offsets"]),
    ("EmbeddingBagCollection", collection_cases.gradient_cases, 4,
     ["per_sample_weights", "include_last_offset", "offsets", "wrt"]),
    ("EmbeddingBagCollection", collection_cases.saving_cases, 2, []),
    ("Feature", collection_cases.feature_cases, 1, []),
    ("QuantizationError", table_cases.quantization_error_cases, 1, []),
    ("QuantizedTable", table_cases.from_packed_cases, 3, []),
    ("QuantizedTable", table_cases.symmetric_cases, 2, []),
    ("RemappedTable", table_cases.remapped_cases, 3, ["index_map", "scales", "first_id"]),
    ("QuantizedTable", table_cases.dequantize_cases, 2, []),
    ("QuantizedTable", table_cases.error_cases, 1, []),
    ("quantized.row_bytes", table_cases.row_bytes_cases, 1, []),
    ("SparseRows", table_cases.sparse_rows_cases, 4, ["alpha"]),
    ("SparseRows", table_cases.sparse_arithmetic_cases, 3, ["ord"]),
    ("aligned_copy", table_cases.aligned_copy_cases, 2, []),
    ("aligned_empty", table_cases.aligned_empty_cases, 2, []),
    ("empty_bags", ragged_cases.empty_bags_cases, 2,
     ["offsets", "lengths", "include_last_offset", "unknown"]),
    ("get_num_threads", table_cases.get_num_threads_cases, 1, []),
    ("load_checkpoint", file_cases.load_checkpoint_cases, 3, []),
    ("load_table", file_cases.load_cases, 5, ["name"]),
    ("num_threads", table_cases.num_threads_cases, 1, []),
    ("optim.Optimizer.update", optimizer_cases.optimizer_cases, 5,
     ["per_sample_weights", "padding_idx", "max_indices", "wrt", "default_idx", "invalid",
      "normalize", "unknown"]),
    ("quantize", table_cases.quantize_cases, 4, ["out", "progress"]),
    ("save_checkpoint", file_cases.save_checkpoint_cases, 2, ["metadata"]),
    ("save_table", file_cases.save_cases, 3, ["bits", "name", "progress"]),
    ("set_num_threads", table_cases.set_num_threads_cases, 1, []),
    ("to_arrow", ragged_cases.to_arrow_cases, 1, ["mask", "unknown"]),
    ("show_config", table_cases.show_config_cases, 1, []),
    ("tune", table_cases.tune_cases, 1, []),
]  # fmt: skip

COVERED = {name for name, *_ in _CALLS}
SOUND = [(name, draw) for name, draw, *_ in _CALLS]
_OFTEN = [(draw, others) for _, draw, often, others in _CALLS for _ in range(often)]


def case(rng):
    """Return a case of any public name, sound or corrupted."""
    draw, others = rng.choice(_OFTEN)
    return maybe_corrupt(rng, draw(rng), others)
