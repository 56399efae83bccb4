"""Product vectors: a truncated SVD of the basket-product matrix with tf-idf weights.

A basket has products as a text has words, so the weights are those of latent semantic analysis
(tf-idf): log2(1 + quantity) times the idf of the product. The decomposition of the matrix,
X idf = U S V', gives two tables:

    inputs = idf V sqrt(S)      pooled over a history, they give the vector of a household
    outputs = V sqrt(S) / idf   their dot product with that vector is the score of a product

The scores are a smoothed version of X itself: the factors idf and 1 / idf cancel, and only
decide what the smoothing preserves.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.linalg import svds


class Vectors(NamedTuple):
    """A row for each product; the first columns are the vectors of fewer dimensions."""

    inputs: NDArray[np.float32]  # (n_products, n_dims)
    outputs: NDArray[np.float32]  # (n_products, n_dims)


def product_vectors(before, catalogue, n_dims):
    """Factorize the baskets before the cut."""
    baskets, number = np.unique(before.basket, return_inverse=True)
    idf = np.log(len(baskets) / catalogue.baskets.to_numpy())
    row = before.row.to_numpy()
    entries = np.log2(1 + before.quantity.to_numpy()) * idf[row]
    matrix = csr_array((entries, (number, row)), (len(baskets), len(catalogue)))
    # A fixed start, as scipy's default is random. The smallest singular value comes first.
    start = np.ones(min(matrix.shape))
    _, singular, right = svds(matrix, n_dims, v0=start, return_singular_vectors="vh")
    factors = (right * np.sqrt(singular / singular[-1])[:, np.newaxis])[::-1].T
    idf = (idf / idf.mean())[:, np.newaxis]
    return Vectors(
        inputs=np.ascontiguousarray(factors * idf, np.float32),
        outputs=np.ascontiguousarray(factors / idf, np.float32),
    )
