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
        self._loaded: Any = None
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
        if getattr(self, "_loaded", None) is None:
            self._loaded = load_table(self.table)
        return self._loaded

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
        if not _is_matrix(X):
            if reset:
                self.n_features_in_ = 1
            elif self.n_features_in_ != 1:
                raise ValueError(f"X must be a matrix, as in fit, got {type(X).__name__}")
            return _as_lists(X)
        dtypes = (np.float64, np.float32)
        X = validate_data(self, X, accept_sparse="csr", dtype=dtypes, reset=reset)
        matrix = scipy.sparse.csr_array(X)
        n_rows = len(self._load())
        if matrix.shape[1] > n_rows:
            raise ValueError(
                f"X must have at most one column for each row of the table, {n_rows}, "
                f"got {matrix.shape[1]}"
            )
        shape = matrix.shape[0], n_rows
        return scipy.sparse.csr_array((matrix.data, matrix.indices, matrix.indptr), shape)

    def _pool(self, bags: Any) -> NDArray[Any]:
        pooled: NDArray[Any] = embedding_bag(
            bags,
            self._load(),
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


def _is_matrix(X: Any) -> bool:
    """Return whether samples are rows of a matrix, not lists of ids. Types decide."""
    if scipy.sparse.issparse(X):
        return True
    if isinstance(X, (list, tuple)):
        # Lists of floats are the rows of a matrix; lists, arrays and series of integers are ids.
        first = next((row for row in X if not isinstance(row, (list, tuple)) or row), ())
        return isinstance(first, (list, tuple)) and isinstance(
            next(iter(first), None), (float, np.floating)
        )
    if hasattr(type(X), "__arrow_c_stream__") or hasattr(X, "columns"):
        return getattr(X, "ndim", 1) == 2 and X.shape[1] != 1
    array = np.asarray(X)
    is_lists = array.dtype == object and array.ndim == 1
    return not is_lists


def _as_lists(X: Any) -> Any:
    """Return lists of ids: the only column of a frame; of a column of integers, one id a list."""
    if hasattr(X, "columns") and getattr(X, "shape", (0, 0))[1:] == (1,):
        X = X[X.columns[0]] if hasattr(X, "iloc") else X.to_series()
    if isinstance(X, (list, tuple)) and not X:
        return np.zeros((0, 1), np.int64)
    if hasattr(X, "dtype") and getattr(X, "ndim", 1) == 1:
        ids = np.asarray(X)
        if ids.dtype.kind in "iu":
            return ids[:, np.newaxis]
    return X
