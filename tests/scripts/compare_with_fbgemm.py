"""Compare the rows of packed tables with those of FBGEMM; exit with 77 if it is not installed."""

import sys

import numpy as np
import torch

import embag

try:
    from fbgemm_gpu.split_embedding_configs import SparseType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
    from fbgemm_gpu.split_table_batched_embeddings_ops_inference import (
        IntNBitTableBatchedEmbeddingBagsCodegen,
    )
except ImportError:
    sys.exit(77)

rng = np.random.default_rng(0)
for bits, kind in ((8, SparseType.INT8), (4, SparseType.INT4), (2, SparseType.INT2)):
    module = IntNBitTableBatchedEmbeddingBagsCodegen(
        [("table", 10, 20, kind, EmbeddingLocation.HOST)],
        device="cpu",
        output_dtype=SparseType.FP32,
    )
    module.fill_random_weights()
    packed = module.split_embedding_weights(split_scale_shifts=False)[0][0].numpy()
    packed[:, :4] = rng.standard_normal((10, 2)).astype(np.float16).view(np.uint8)
    bags = torch.arange(11, dtype=torch.int32)
    expected = module(bags[:10], bags).numpy()
    table = embag.QuantizedTable.from_packed(packed, bits, 20, "tbe")
    tolerance = np.finfo(np.float32).eps * np.abs(expected).max()
    np.testing.assert_allclose(table.dequantize(), expected, rtol=0, atol=tolerance)
    assert np.ptp(expected) > 1
