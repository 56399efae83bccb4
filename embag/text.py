"""`embag.text`: vectors of texts from static embedding models, without their libraries.

A static model is a table with a vector for each token, and a tokenizer. The vector of a text is the
mean of the vectors of its tokens. Importing `embag` does not import the tokenizer's library.
Importing this module does.

Tested in tests/text/.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

try:
    import safetensors
    import tokenizers
except ImportError as error:
    raise ImportError(
        "embag.text needs tokenizers and safetensors: pip install 'embag-cpu[text]'"
    ) from error

from embag import _arguments
from embag._arguments import describe, prefix_errors
from embag._types import Table
from embag.functional import embedding_bag
from embag.remapped import RemappedTable
from embag.tables import load_table

__all__ = ["StaticModel"]

_DEFAULT_MAX_LENGTH = 512  # of model2vec, where config.json has none


class _Folder(NamedTuple):
    """The files of a model, and the habits of the library that made it."""

    library: Literal["model2vec", "sentence-transformers", "wordllama"]
    tensors: Path
    tensor: str  # the name of the table
    tokenizer: Path


class StaticModel:
    """A static embedding model: a table of token vectors, and a tokenizer.

    Make one with `from_folder`.

    Attributes
    ----------
    table : ndarray, RemappedTable
        The table, read by token.
    tokenizer : tokenizers.Tokenizer
        The tokenizer.
    library : str
        The library that made the folder: "model2vec", "sentence-transformers" or "wordllama".
    dim : int
        The entries of a vector.
    normalize : bool
        Whether vectors have norm 1, unless `encode` says otherwise.
    max_length : int or None
        The tokens of a text that count, unless `encode` says otherwise.

    Examples
    --------
    ::

        model = embag.text.StaticModel.from_folder("potion-base-8M")
        vectors = model.encode(["blue sky", "green grass"])
    """

    def __init__(
        self,
        table: Table,
        tokenizer: tokenizers.Tokenizer,
        *,
        library: Literal["model2vec", "sentence-transformers", "wordllama"] = "model2vec",
        normalize: bool = False,
        max_length: int | None = None,
    ) -> None:
        self.table = table
        self.tokenizer = tokenizer
        self.library = library
        self.normalize = normalize
        self.max_length = max_length
        self._unknown = _unknown_token(tokenizer) if library == "model2vec" else None
        tokens = tokenizer.get_vocab()
        self._median_characters = int(np.median([len(token) for token in tokens] or [1]))
        n_tokens = max(tokens.values(), default=-1) + 1
        if n_tokens > len(table) and library != "wordllama":  # which takes the last row for others
            raise ValueError(
                f"tokenizer must have at most one token for each of the table's {len(table)} rows, "
                f"got {n_tokens}"
            )

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
            A folder that ``model2vec.StaticModel.save_pretrained`` wrote (also with mapped
            vocabulary, weights, and vectors of float16 or int8), one of sentence-transformers with
            a ``StaticEmbedding``, or the folder of the package ``wordllama``. Nothing is
            downloaded.
        memory : {"map", "copy"}, optional
            Map the table, or copy it into memory.
        dim : int, optional
            Take the first entries of each vector only, for models that were trained so.

        Returns
        -------
        StaticModel
            The model.

        Raises
        ------
        TypeError
            If an argument has the wrong kind.
        ValueError
            If the folder is not a model, its files are malformed or do not fit each other, or
            `dim` is larger than the vectors.
        OSError
            If a file cannot be read.

        Notes
        -----
        The vectors are those of the library, but float32 throughout, and so are its habits with
        tokens: model2vec removes unknown tokens and takes the first `max_length` tokens (512, where
        ``config.json`` has none) of as many median token lengths of characters; the others keep
        unknown tokens and all of a text.
        """
        if dim is not None:
            dim = _arguments.as_count(dim, "dim")
        target = os.fspath(path) if isinstance(path, os.PathLike) else path
        if not isinstance(target, str):
            raise TypeError(f"path must be a str or an os.PathLike of one, got {describe(path)}")
        folder = _find_files(Path(target))
        with prefix_errors(str(folder.tensors)):
            table = _read_table(folder, memory, dim)
        with prefix_errors(str(folder.tokenizer)):
            tokenizer = _read_tokenizer(folder.tokenizer)
        normalize, max_length = _read_config(Path(target), folder)
        with prefix_errors(target):
            return cls(
                table,
                tokenizer,
                library=folder.library,
                normalize=normalize,
                max_length=max_length,
            )

    @property
    def dim(self) -> int:
        """The entries of a vector."""
        dim: int = self.table.shape[1]
        return dim

    def encode(
        self,
        texts: str | Iterable[str],
        *,
        batch_size: int = 1024,
        max_length: int | Literal["model"] | None = "model",
        normalize: bool | None = None,
        progress: Callable[[int, int], object] | None = None,
        num_threads: int | None = None,
    ) -> NDArray[np.float32]:
        """Return the vectors of texts.

        Parameters
        ----------
        texts : str or iterable of str
            The texts, or one text. A column of Arrow, polars or pandas is an iterable, too.
        batch_size : int, optional
            How many texts are tokenized at a time, by all threads of the tokenizer.
        max_length : int or None, optional
            The tokens of a text that count; None for all. By default as the model says.
        normalize : bool, optional
            If True, each vector is divided by its norm. By default as the model says.
        progress : callable, optional
            Called as ``progress(n_done, n_texts)`` after each batch.
        num_threads : int, optional
            The largest number of threads for pooling, instead of `embag.get_num_threads`.

        Returns
        -------
        ndarray of float32, shape (n_texts, dim)
            The vectors; of shape (dim,) for one text. A text without tokens gives zeros.

        Raises
        ------
        TypeError
            If an argument, or a text, has the wrong kind.
        ValueError
            If an option is out of range.
        """
        batch_size = _arguments.as_count(batch_size, "batch_size")
        if max_length == "model":
            max_length = self.max_length
        elif max_length is not None:
            max_length = _arguments.as_count(max_length, "max_length")
        normalize = self.normalize if normalize is None else normalize
        _arguments.check_flags(normalize=normalize)
        given = [texts] if isinstance(texts, str) else _as_list(texts)
        out = np.empty((len(given), self.dim), np.float32)
        for start in range(0, len(given), batch_size):
            batch = given[start : start + batch_size]
            ids, offsets = self._tokenize(batch, start, max_length)
            out[start : start + len(batch)] = embedding_bag(
                ids,
                self.table,
                offsets,
                mode="mean",
                include_last_offset=True,
                padding_idx=self._unknown,
                invalid=self._stand_in,
                normalize=normalize,
                num_threads=num_threads,
            )
            if progress is not None:
                progress(start + len(batch), len(given))
        return out[0] if isinstance(texts, str) else out

    @property
    def _stand_in(self) -> Any:
        """What an id beyond the table gives: WordLlama takes the last row."""
        return len(self.table) - 1 if self.library == "wordllama" and len(self.table) else "raise"

    def _tokenize(
        self, texts: list[str], start: int, max_length: int | None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the ids of the tokens of texts, end to end, and their offsets."""
        if max_length is not None and self.library == "model2vec":
            n_characters = max_length * self._median_characters
            texts = [text[:n_characters] for text in texts]
        try:
            encodings = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        except TypeError:
            for i, text in enumerate(texts):
                if not isinstance(text, str):
                    seen = describe(text)
                    raise TypeError(f"texts[{start + i}] must be a str, got {seen}") from None
            raise
        ids = [encoding.ids for encoding in encodings]
        if max_length is not None:
            ids = [one if len(one) <= max_length else one[:max_length] for one in ids]
        offsets = np.zeros(len(ids) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, ids), np.int64, len(ids)), out=offsets[1:])
        joined = itertools.chain.from_iterable(ids)
        return np.fromiter(joined, np.int64, int(offsets[-1])), offsets

    def __repr__(self) -> str:
        return f"StaticModel({len(self.table)} tokens, dim={self.dim}, of {self.library})"


def _as_list(texts: Any) -> list[Any]:
    if isinstance(texts, bytes):
        raise TypeError("texts must be a str or an iterable of str, got bytes")
    if hasattr(texts, "to_pylist"):  # of Arrow
        return list(texts.to_pylist())
    try:
        found = list(texts)
    except TypeError:
        raise TypeError(
            f"texts must be a str or an iterable of str, got {describe(texts)}"
        ) from None
    for i, text in enumerate(found):
        if not isinstance(text, str):
            raise TypeError(f"texts[{i}] must be a str, got {describe(text)}")
    return found


# --- Folders ----------------------------------------------------------------------


def _find_files(folder: Path) -> _Folder:
    """Return the files of a model, by the names that libraries give them."""
    for place in (folder, folder / "0_StaticEmbedding"):
        tensors, tokenizer = place / "model.safetensors", place / "tokenizer.json"
        if tensors.exists() and tokenizer.exists():
            names = _tensor_names(tensors)
            if "embeddings" in names:
                return _Folder("model2vec", tensors, "embeddings", tokenizer)
            if "embedding.weight" in names:
                return _Folder("sentence-transformers", tensors, "embedding.weight", tokenizer)
            raise ValueError(
                f"{tensors} must have the tensor 'embeddings' or 'embedding.weight', "
                f"got {', '.join(names) or 'none'}"
            )
    weights = sorted(folder.glob("weights/*.safetensors"))
    configs = sorted(folder.glob("tokenizers/*_tokenizer_config.json"))
    if weights and configs:
        return _Folder("wordllama", weights[0], "embedding.weight", configs[0])
    if not folder.is_dir():
        raise FileNotFoundError(f"path must be a folder, got {str(folder)!r}")
    raise ValueError(
        "path must be a folder of model2vec, sentence-transformers or WordLlama, with "
        f"model.safetensors and tokenizer.json, got {str(folder)!r}"
    )


def _tensor_names(path: Path) -> list[str]:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return list(file.keys())
    except OSError:
        raise
    except Exception as error:
        raise ValueError(f"{path} must be a .safetensors file, got {error}") from None


def _read_table(folder: _Folder, memory: Any, dim: int | None) -> Table:
    """Return the table of token vectors, with the mapping and the weights of tokens."""
    table: Any = load_table(folder.tensors, memory, name=folder.tensor)
    if dim is not None:
        if dim > table.shape[1]:
            raise ValueError(f"dim must be at most {table.shape[1]}, got {dim}")
        table = table[:, :dim]
    if folder.library != "model2vec":
        return table
    parts = dict(_read_arrays(folder.tensors, ("mapping", "weights")))
    if not parts:
        return table
    mapping, weights = parts.get("mapping"), parts.get("weights")
    if mapping is not None and mapping.dtype.kind not in "iu":
        raise ValueError(f"mapping must be integers, got {mapping.dtype}")
    if mapping is not None and len(table) and (mapping.min(initial=0) < 0):
        raise ValueError(f"mapping must hold rows of the table, got {mapping.min()}")
    with prefix_errors("mapping and weights"):
        return RemappedTable(table, mapping, weights)


def _read_arrays(path: Path, names: tuple[str, ...]) -> Iterator[tuple[str, NDArray[Any]]]:
    with safetensors.safe_open(path, framework="numpy") as file:
        for name in names:
            if name in file.keys():  # noqa: SIM118
                yield name, file.get_tensor(name)


def _read_tokenizer(path: Path) -> tokenizers.Tokenizer:
    """Return a tokenizer that neither pads nor truncates."""
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # which has no type of its own
        raise ValueError(f"file must be a tokenizer, got {error!s:.200}") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _read_config(folder: Path, files: _Folder) -> tuple[bool, int | None]:
    """Return whether vectors are normalized, and how many tokens count."""
    if files.library == "wordllama":
        return False, None
    if files.library == "sentence-transformers":
        modules = _read_json(folder / "modules.json", list)
        kinds = [one.get("type") for one in modules or [] if isinstance(one, dict)]
        return any(str(kind).endswith("Normalize") for kind in kinds), None
    config = _read_json(folder / "config.json", dict) or {}
    normalize = config.get("normalize", False)
    max_length = config.get("max_length", _DEFAULT_MAX_LENGTH)
    with prefix_errors(str(folder / "config.json")):
        if normalize not in (True, False, None):
            raise ValueError(f"normalize must be true or false, got {describe(normalize)}")
        if max_length is not None and (type(max_length) is not int or max_length < 1):
            raise ValueError(f"max_length must be a count or null, got {describe(max_length)}")
    return bool(normalize), max_length


def _read_json(path: Path, kind: type) -> Any:
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} must be JSON, got {error!s:.100}") from None
    if type(found) is not kind:
        raise ValueError(f"{path} must be a JSON {kind.__name__}, got {describe(found)}")
    return found


def _unknown_token(tokenizer: tokenizers.Tokenizer) -> int | None:
    """Return the id of the token for unknown words."""
    model = tokenizer.model
    if hasattr(model, "unk_token"):
        token = model.unk_token
        return None if token is None else tokenizer.token_to_id(token)
    unknown = json.loads(tokenizer.to_str())["model"].get("unk_id")
    return unknown if type(unknown) is int else None
