"""`embag.sklearn`: embedding bags as a transformer of scikit-learn.

Importing `embag` does not import scikit-learn. Importing this module does.

Tested in tests/bridges/test_sklearn.py.
"""

from __future__ import annotations

import copy
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

try:
    import scipy.sparse
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError("embag.sklearn needs scikit-learn: pip install 'embag-cpu[sklearn]'") from (
        error
    )

from embag import _encodings
from embag._columns import readers
from embag._types import Invalid, Mode, Table
from embag.functional import embedding_bag
from embag.tables import load_table

__all__ = ["EmbeddingBagTransformer"]

_FITTED = {"_loaded", "_n_features_out", "n_features_in_", "feature_names_in_"}


class EmbeddingBagTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Pool rows of a table per sample: word vectors of texts, items of users.

    Parameters
    ----------
    table : path, ndarray, QuantizedTable or RemappedTable
        The table: row i is the vector of token i. A file (.npy or .safetensors) is mapped, and a
        pickle of the pipeline has its path only: an absolute one if it is loaded elsewhere.
    mode : {"mean", "sum", "sqrtn", "max", "min"}, default="mean"
        How the rows of a sample are reduced.
    padding_idx, invalid, default_idx, normalize, num_threads : optional
        As in `embag.embedding_bag`.

    Attributes
    ----------
    n_features_in_ : int
        The columns of a matrix that `fit` has seen; 1 for lists.

    See Also
    --------
    embag.embedding_bag : The rules.

    Notes
    -----
    A matrix, such as that of a ``CountVectorizer`` or a ``TfidfVectorizer``, has a row for each
    sample and a column for each token. Its entries are weights: "sum" gives ``X @ table``, "mean"
    divides by the sum of the weights, and "max" takes the tokens whose entry is not 0. It may have
    fewer columns than the table has rows.

    Its columns must be in the order of the rows: pass the words of the table as ``vocabulary`` to a
    vectorizer, which would make one of its own otherwise.

    Other input has the ids of tokens: a list of lists or arrays of integers, a list column of
    Arrow, polars or pandas, a column of integers (one id a sample), or a frame with one such
    column. A 2-D array is a matrix even if its entries are integers, and so are lists of floats.

    Clones, as grid search makes them, share the table.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.feature_extraction.text import CountVectorizer
    >>> from sklearn.pipeline import make_pipeline
    >>> from embag.sklearn import EmbeddingBagTransformer
    >>> vectors = np.array([[1, 0], [0, 1], [5, 5]], np.float32)  # of "blue", "green" and "sky"
    >>> counts = CountVectorizer(vocabulary=["blue", "green", "sky"])
    >>> pipeline = make_pipeline(counts, EmbeddingBagTransformer(vectors))
    >>> pipeline.fit_transform(["blue sky", "green", "green green sky"])
    array([[3.       , 2.5      ],
           [0.       , 1.       ],
           [1.6666666, 2.3333333]], dtype=float32)
    """

    def __init__(
        self,
        table: str | os.PathLike[str] | Table,
        *,
        mode: Mode = "mean",
        padding_idx: int | None = None,
        invalid: Invalid = "raise",
        default_idx: int | None = None,
        normalize: bool = False,
        num_threads: int | None = None,
    ) -> None:
        self.table = table
        self.mode = mode
        self.padding_idx = padding_idx
        self.invalid = invalid
        self.default_idx = default_idx
        self.normalize = normalize
        self.num_threads = num_threads

    def fit(self, X: Any, y: Any = None) -> EmbeddingBagTransformer:
        """Check the table and the options; nothing is learned.

        Parameters
        ----------
        X : matrix of shape (n_samples, n_tokens), or lists of ids
            The samples.
        y : ignored
            For pipelines.

        Returns
        -------
        EmbeddingBagTransformer
            The transformer itself.

        Raises
        ------
        TypeError, ValueError
            If the table, an option or `X` is wrong.
        OSError
            If the file of the table cannot be read.
        """
        self._loaded: tuple[Any, Any] | None = None
        self._n_features_out = _encodings.as_table(self._load(), "table").dim
        self._pool(np.zeros((0, 1), np.int64))  # raises for an invalid option
        self._read(X, reset=True)
        return self

    def transform(self, X: Any) -> NDArray[Any]:
        """Pool the rows of each sample.

        Parameters
        ----------
        X : matrix of shape (n_samples, n_tokens), or lists of ids
            The samples.

        Returns
        -------
        ndarray of shape (n_samples, dim)
            The vectors: float32, or float64 for a float64 table.

        Raises
        ------
        TypeError, ValueError, IndexError
            As in `embag.embedding_bag`.
        """
        check_is_fitted(self, "_n_features_out")
        return self._pool(self._read(X, reset=False))

    def _load(self) -> Any:
        """Return the table, mapped if it is a file."""
        if not isinstance(self.table, (str, os.PathLike)):
            return self.table
        path, table = getattr(self, "_loaded", None) or (None, None)
        if path != self.table:
            table = load_table(self.table)
            self._loaded = self.table, table
        return table

    def __sklearn_clone__(self) -> EmbeddingBagTransformer:
        twin = copy.deepcopy(self, {id(self.table): self.table})  # the default copies the table
        for name in vars(twin).keys() & _FITTED:
            delattr(twin, name)
        return twin

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        return {**state, "_loaded": None} if "_loaded" in state else state

    def _read(self, X: Any, reset: bool) -> Any:
        """Return the samples as `embedding_bag` takes them."""
        lists = _as_lists(X)
        if lists is not None:
            if reset:
                self.n_features_in_ = 1
            elif self.n_features_in_ != 1:
                raise ValueError(f"X must be a matrix, as in fit, got {type(X).__name__}")
            return lists
        dtypes = (np.float64, np.float32)
        X = validate_data(self, X, accept_sparse="csr", dtype=dtypes, reset=reset)
        matrix = scipy.sparse.csr_array(X)
        matrix.check_format()
        n_rows = len(self._load())
        if matrix.shape[1] > n_rows:
            raise ValueError(
                f"X must have at most one column for each row of the table, {n_rows}, "
                f"got {matrix.shape[1]}"
            )
        if not matrix.has_canonical_format or matrix.count_nonzero() < matrix.nnz:
            # Each token once, and none of weight 0: maxima ignore weights.
            matrix = matrix.copy()
            matrix.sum_duplicates()
            matrix.eliminate_zeros()
        shape = matrix.shape[0], n_rows
        return scipy.sparse.csr_array((matrix.data, matrix.indices, matrix.indptr), shape)

    def _pool(self, bags: Any) -> NDArray[Any]:
        table = self._load()
        dim = _encodings.as_table(table, "table").dim
        if dim != self._n_features_out:
            raise ValueError(
                f"table must have {self._n_features_out} columns, as in fit, got {dim}"
            )
        pooled: NDArray[Any] = embedding_bag(
            bags,
            table,
            mode=self.mode,
            padding_idx=self.padding_idx,
            invalid=self.invalid,
            default_idx=self.default_idx,
            normalize=self.normalize,
            num_threads=self.num_threads,
        )
        return pooled

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = []
        return tags


def _as_lists(X: Any) -> Any:
    """Return lists of ids as `embedding_bag` takes them; None for a matrix. Types decide.

    A column of integers has one id for each sample.
    """
    if scipy.sparse.issparse(X) or (getattr(X, "ndim", 1) != 1 and X.shape[1] != 1):
        return None
    if isinstance(X, (list, tuple)):
        if not X:
            return np.zeros((0, 1), np.int64)
        # Lists of floats are the rows of a matrix; lists, arrays and series of integers are ids.
        first = next((row for row in X if not isinstance(row, (list, tuple)) or row), ())
        is_list = isinstance(first, (list, tuple))
        return None if is_list and isinstance(next(iter(first), 0), (float, np.floating)) else X
    if isinstance(X, np.ndarray) and X.ndim == 2:
        return None
    return readers.as_column(X, "X", flat=not isinstance(X, np.ndarray))
