"""Product vectors: a truncated SVD of the basket-product matrix, weighted as texts are.

A basket is to its products what a text is to its words, so the weights are those of latent
semantic analysis (tf-idf): log2(1 + quantity) times the product's idf. With the matrix
X idf = U S V', two tables come of it:

    inputs = idf V sqrt(S)      pooled over a history, they give a household's vector
    outputs = V sqrt(S) / idf   those near it are the products to recommend

so that the score of a product is that of X itself, smoothed: the idf only says what the
smoothing is to attend to.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.linalg import svds


class Vectors(NamedTuple):
    """A row for each product. The first columns are the vectors of fewer dimensions."""

    inputs: NDArray[np.float32]  # (n_products, n_dims)
    outputs: NDArray[np.float32]  # (n_products, n_dims)


def product_vectors(before, catalogue, n_dims):
    """Factorise the baskets before the cut."""
    baskets, number = np.unique(before.basket, return_inverse=True)
    idf = np.log(len(baskets) / catalogue.baskets.to_numpy())
    row = before.row.to_numpy()
    entries = np.log2(1 + before.quantity.to_numpy()) * idf[row]
    matrix = csr_array((entries, (number, row)), (len(baskets), len(catalogue)))
    # scipy begins at random where it is given no start. The least singular value comes first.
    start = np.ones(min(matrix.shape))
    _, singular, right = svds(matrix, n_dims, v0=start, return_singular_vectors="vh")
    factors = (right * np.sqrt(singular / singular[-1])[:, np.newaxis])[::-1].T
    idf = (idf / idf.mean())[:, np.newaxis]
    return Vectors(
        inputs=np.ascontiguousarray(factors * idf, np.float32),
        outputs=np.ascontiguousarray(factors / idf, np.float32),
    )
