"""`StaticModel`: vectors of texts from folders of static embedding models.

A static embedding model is a table with a vector for each token, and a tokenizer. The vector of a
text is the mean of the vectors of its tokens, so texts are bags:

    _files/static_models.py    reads the folders of three libraries
    tokenizers                 turns a batch of texts into ids, in parallel
    embedding_bag              pools the ids, which are neither padded nor copied

`import embag` does not import this module, which needs the extra `text`.

Tested in tests/text/.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterable, Mapping, Set
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from embag import _arguments
from embag._arguments import describe
from embag._files.static_models import Library, ModelFiles, read_model, read_tokenizer
from embag.functional import embedding_bag
from embag.remapped import RemappedTable

try:
    import tokenizers
except ImportError as error:
    raise ImportError("embag.text needs tokenizers: pip install 'embag-cpu[text]'") from error

__all__ = ["StaticModel"]

_MOST_TOKENS = 2**31  # ids are int32


class StaticModel:
    """A static embedding model: a table of token vectors, and a tokenizer.

    `from_folder` makes one. `encode` may be called by several threads at a time.

    Attributes
    ----------
    library : {"model2vec", "sentence-transformers", "wordllama"}
        The library that made the folder.
    table : ndarray or RemappedTable, shape (n_tokens, dim)
        The vectors of the tokens. A RemappedTable has a row and a weight for each token.
    tokenizer : tokenizers.Tokenizer
        The tokenizer, without padding and truncation.
    dim : int
        The entries of a vector.
    normalize : bool
        Whether the vectors of texts are divided by their norms.
    max_length : int or None
        How many tokens of a text count; None for all of them.
    prompt : str
        What is put in front of each text, as sentence-transformers does for a model with a default
        prompt. It may be changed.

    See Also
    --------
    embedding_bag : The lookup behind `encode`.

    Examples
    --------
    A small model, as model2vec saves one:

    >>> import tempfile
    >>> import numpy as np
    >>> import embag
    >>> from embag.text import StaticModel
    >>> from tokenizers import Tokenizer, models, pre_tokenizers
    >>> words = Tokenizer(models.WordLevel({"[UNK]": 0, "blue": 1, "sky": 2}, unk_token="[UNK]"))
    >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
    >>> vectors = np.array([[9, 9], [1, 0], [0, 4]], np.float32)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     words.save(f"{folder}/tokenizer.json")
    ...     embag.save_table(f"{folder}/model.safetensors", vectors, name="embeddings")
    ...     model = StaticModel.from_folder(folder)
    >>> model
    StaticModel(3 tokens, dim=2, made by model2vec)
    >>> model.encode(["blue sky", "a blue violin", ""])
    array([[0.5, 2. ],
           [1. , 0. ],
           [0. , 0. ]], dtype=float32)
    >>> model.encode("blue sky", normalize=True).round(2)
    array([0.24, 0.97], dtype=float32)
    """

    library: Library
    table: NDArray[Any] | RemappedTable
    tokenizer: tokenizers.Tokenizer
    dim: int
    normalize: bool
    max_length: int | None
    prompt: str

    def __init__(self, files: ModelFiles, tokenizer: tokenizers.Tokenizer, dim: int) -> None:
        self.library = files.library
        self.tokenizer = tokenizer
        self.dim = dim
        self.normalize = files.normalize
        self.max_length = files.max_length
        self.prompt = files.prompt
        self.table = _cut_vectors(files.table, dim)
        self._uncut_table = files.table
        tokens = tokenizer.get_vocab()
        n_tokens = max(tokens.values(), default=-1) + 1
        n_rows = len(files.table)
        has_stand_in = self.library == "wordllama" and n_rows > 0 and n_tokens <= _MOST_TOKENS
        if n_tokens > n_rows and not has_stand_in:
            raise ValueError(
                f"table must have a row for each of the {n_tokens} tokens, got {n_rows} rows"
            )
        self._invalid: Any = n_rows - 1 if has_stand_in else "raise"
        self._unknown: int | None = None
        self._token_characters = 1
        if self.library == "model2vec":
            self._unknown = _find_unknown_token(tokenizer)
            self._token_characters = int(np.median([len(token) for token in tokens] or [1]))
        self._keeps_last_tokens = False
        truncation = tokenizer.truncation
        if truncation is not None and self.library == "sentence-transformers":
            self.max_length = truncation["max_length"]
            self._keeps_last_tokens = truncation["direction"] == "left"
        tokenizer.no_truncation()
        tokenizer.no_padding()

    @classmethod
    def from_folder(
        cls,
        path: str | os.PathLike[str],
        memory: Literal["map", "copy"] = "map",
        *,
        dim: int | None = None,
    ) -> StaticModel:
        """Load a model from a folder of model2vec, sentence-transformers or WordLlama.

        Parameters
        ----------
        path : str or path-like
            A folder that ``save_pretrained`` of ``model2vec.StaticModel`` or of a
            ``SentenceTransformer`` with a ``StaticEmbedding`` wrote, or the folder of the package
            ``wordllama``. Nothing is downloaded.
        memory : {"map", "copy"}, optional
            "map": the vectors stay in their file, and processes share them. "copy": they are
            read into memory. See `load_table`.
        dim : int, optional
            Take only the first entries of each vector, for models that were trained for it.

        Returns
        -------
        StaticModel
            The model.

        Raises
        ------
        TypeError
            If an argument has the wrong kind.
        ValueError
            If the folder is of another kind, if a file is malformed, if files do not fit one
            another, or if `dim` is larger than the vectors.
        OSError
            If a file cannot be read, such as FileNotFoundError.

        See Also
        --------
        load_table : Load a table without a tokenizer.

        Notes
        -----
        The folder may come from an untrusted source. No code in it is run. A malicious tokenizer
        can still take very long, as its regular expressions can.
        """
        if dim is not None:
            dim = _arguments.as_count(dim, "dim")
        target = _arguments.as_path(path, "path")
        files = read_model(Path(target), memory, dim)
        n_columns = files.table.shape[1]
        if dim is not None and dim > n_columns:
            raise ValueError(f"dim must be at most {n_columns} for this model, got {dim}")
        tokenizer = _load_tokenizer(files.tokenizer)
        with _arguments.prefix_errors(target):
            return cls(files, tokenizer, min(dim or files.dim or n_columns, n_columns))

    def encode(
        self,
        texts: str | Iterable[str],
        *,
        batch_size: int = 1024,
        max_length: int | Literal["model"] | None = "model",
        normalize: bool | None = None,
        out_dtype: DTypeLike | None = None,
        progress: Callable[[int, int], object] | None = None,
        num_threads: int | None = None,
        return_n_valid: bool = False,
    ) -> Any:
        """Return the vectors of texts.

        Parameters
        ----------
        texts : str or iterable of str
            The texts: a list, an array, a column of pandas, polars or Arrow; or one text.
        batch_size : int, optional
            How many texts are tokenized and pooled at a time.
        max_length : int or None, optional
            How many tokens of a text count, instead of `max_length` of the model; None for all.
        normalize : bool, optional
            Whether vectors are divided by their norms, instead of `normalize` of the model.
        out_dtype : dtype, optional
            The dtype of the vectors: that of the sums, by default, or float16. See
            `embedding_bag`.
        progress : callable, optional
            Called as ``progress(n_done, n_texts)`` after each batch.
        num_threads : int, optional
            The largest number of threads for pooling, instead of `get_num_threads`. Tokenizing
            has threads of its own (environment variables ``RAYON_NUM_THREADS`` and
            ``TOKENIZERS_PARALLELISM``).
        return_n_valid : bool, optional
            Also return how many tokens of each text count.

        Returns
        -------
        vectors : ndarray of float32, shape (n_texts, dim)
            The means of the vectors of tokens: zeros for a text without tokens. For a table of
            float64, of float64. For one text, of shape (dim,).
        n_valid : ndarray of int64, shape (n_texts,)
            Only with `return_n_valid`; for one text, an int.

        Raises
        ------
        TypeError
            If an argument or a text has the wrong kind.
        ValueError
            If an option is out of range, a text has surrogates, or the tokenizer fails.

        Notes
        -----
        The vectors are those of the library that made the folder, up to rounding, with its habits:

        - model2vec removes unknown tokens. It cuts a text to `max_length` times the median length
          of a token, in characters, and then to `max_length` tokens, unknown ones included.
        - sentence-transformers keeps unknown tokens. If the tokenizer truncates, so does
          `max_length` of the model. With `dim`, vectors are cut after they are normalized, unless
          `normalize` is given.
        - WordLlama keeps unknown tokens, and takes the last row for tokens behind the table.

        Sums are float32, and so are the vectors, also of tables of float16; model2vec and
        sentence-transformers round those to float16.
        """
        batch_size = _arguments.as_count(batch_size, "batch_size")
        if isinstance(max_length, str):
            if max_length != "model":
                raise ValueError(f"max_length must be a count, None or 'model', got {max_length!r}")
            max_length = self.max_length
        elif max_length is not None:
            max_length = _arguments.as_count(max_length, "max_length")
        table, normalized = self.table, self.normalize
        if normalize is None and self.normalize and self.library == "sentence-transformers":
            table = self._uncut_table
        elif normalize is not None:
            _arguments.check_flags(normalize=normalize)
            normalized = normalize
        _arguments.check_flags(return_n_valid=return_n_valid)
        given = [texts] if isinstance(texts, str) else _as_list(texts)
        vectors: NDArray[Any] = np.empty((0, self.dim))
        n_valid = np.empty(len(given), np.int64)
        for start in range(0, max(1, len(given)), batch_size):  # once for no texts, as a check
            batch = slice(start, start + batch_size)
            ids, offsets = self._tokenize(given[batch], start, max_length)
            out = vectors[batch] if start > 0 and table is self.table else None
            found = embedding_bag(
                ids,
                table,
                offsets,
                mode="mean",
                include_last_offset=True,
                padding_idx=self._unknown,
                num_threads=num_threads,
                out=out,
                out_dtype=out_dtype,
                invalid=self._invalid,
                return_n_valid=return_n_valid,
                normalize=normalized,
            )
            pooled = found[0] if return_n_valid else found
            if start == 0:
                vectors = np.empty((len(given), self.dim), pooled.dtype)
            if out is None:
                vectors[batch] = pooled[:, : self.dim]
            if return_n_valid:
                n_valid[batch] = found[1]
            if progress is not None:
                progress(min(batch.stop, len(given)), len(given))
        if isinstance(texts, str):
            return (vectors[0], int(n_valid[0])) if return_n_valid else vectors[0]
        return (vectors, n_valid) if return_n_valid else vectors

    def _tokenize(
        self, texts: list[str], start: int, max_length: int | None
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Return the ids of the tokens of texts, end to end, and their offsets.

        `start` is the number of the first text, for messages.
        """
        if self.prompt:
            texts = [self.prompt + text for text in texts]
        if max_length is not None and self.library == "model2vec":
            n_characters = max_length * self._token_characters
            texts = [text[:n_characters] for text in texts]
        try:
            encodings = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        except TypeError:
            i = _find_surrogate(texts)
            raise ValueError(f"texts[{start + i}] must be valid text, got a surrogate") from None
        except BaseException as error:
            _raise_if_of_tokenizers(
                error, f"tokenizer must encode texts[{start}:{start + len(texts)}]"
            )
            raise
        # One list of ids at a time: many at once would start the garbage collector.
        tokens: Iterable[list[int]] = (encoding.ids for encoding in encodings)
        lengths = [len(encoding) for encoding in encodings]
        if max_length is not None and max(lengths, default=0) > max_length:
            lengths = [min(length, max_length) for length in lengths]
            last = self._keeps_last_tokens
            tokens = (one[-max_length:] if last else one[:max_length] for one in tokens)
        offsets = np.fromiter(itertools.accumulate(lengths, initial=0), np.int64, len(lengths) + 1)
        ids = np.fromiter(itertools.chain.from_iterable(tokens), np.int32, int(offsets[-1]))
        return ids, offsets

    def __repr__(self) -> str:
        return f"StaticModel({len(self.table)} tokens, dim={self.dim}, made by {self.library})"


def _as_list(texts: Any) -> list[str]:
    """Return the texts of any iterable as a list, after checking each."""
    if hasattr(texts, "columns"):
        raise TypeError(f"texts must be one column of texts, got {describe(texts)}")
    kinds = (bytes, bytearray, memoryview, Mapping, Set)
    if isinstance(texts, kinds) or not isinstance(texts, Iterable):
        raise TypeError(f"texts must be a str or an iterable of str, got {describe(texts)}")
    to_list = getattr(texts, "to_pylist", None)  # Arrow's columns iterate over scalars
    given = list(texts) if to_list is None else to_list()
    for i, text in enumerate(given):
        if not isinstance(text, str):
            raise TypeError(f"texts[{i}] must be a str, got {describe(text)}")
    return given


def _find_surrogate(texts: list[str]) -> int:
    """Return the first text that has no UTF-8."""
    return next(i for i, text in enumerate(texts) if any("\ud800" <= c <= "\udfff" for c in text))


def _cut_vectors(table: Any, dim: int) -> Any:
    """Return a table with the first entries of each row, which are not copied."""
    if table.shape[1] == dim:
        return table
    if isinstance(table, RemappedTable):
        rows: Any = table.table
        return RemappedTable(rows[:, :dim], table.index_map, table.scales)
    return table[:, :dim]


def _load_tokenizer(path: Path) -> tokenizers.Tokenizer:
    data = read_tokenizer(path)
    try:
        return tokenizers.Tokenizer.from_buffer(data)
    except BaseException as error:
        _raise_if_of_tokenizers(error, f"{path}: file must be a tokenizer")
        raise


def _find_unknown_token(tokenizer: tokenizers.Tokenizer) -> int | None:
    """Return the id of the token for unknown words, as model2vec finds it."""
    if hasattr(tokenizer.model, "unk_token"):
        token = tokenizer.model.unk_token
        return None if token is None else tokenizer.token_to_id(token)
    unknown: int | None = json.loads(tokenizer.to_str())["model"].get("unk_id")  # of Unigram
    return unknown


def _raise_if_of_tokenizers(error: BaseException, rule: str) -> None:
    """Raise a ValueError for an error of the library of tokenizers.

    It raises plain Exceptions, and for a panic in its Rust code a PanicException, which is only a
    BaseException and cannot be imported.
    """
    if type(error) in (Exception, ValueError) or type(error).__name__ == "PanicException":
        raise ValueError(f"{rule}, got an error: {error!s:.200}") from error
