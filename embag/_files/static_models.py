"""Folders of static embedding models: which files they have, and what the files say.

Three libraries make such folders, and each has its own names of files and tensors:

    model2vec               model.safetensors with the tensor `embeddings`, and perhaps `mapping`
                            and `weights`; config.json; tokenizer.json
    sentence-transformers   modules.json, which names the folder of model.safetensors, with the
                            tensor `embedding.weight`, and of tokenizer.json
    WordLlama               NAME_DIM.safetensors and NAME_tokenizer_config.json, in the folder, or
                            in its folders weights/ and tokenizers/

A folder may come from anywhere. `read_model` checks everything but the tokenizer, of which it
returns the path: the library of tokenizers parses it.

Tested in tests/text/.
"""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from embag._arguments import AnyArray, describe
from embag._files.errors import add_path_to_errors
from embag._files.headers import check_regular, place_array, read_tensors
from embag.remapped import RemappedTable
from embag.tables import list_tensors, load_table, open_file, read_tensor

Library = Literal["model2vec", "sentence-transformers", "wordllama"]
Memory = Literal["map", "copy"]

_DEFAULT_MAX_LENGTH = 512  # of model2vec, for a config.json without one
# Real files have some kilobytes, and at most some 40 MB.
_MOST_JSON = 1 << 20
_MOST_TOKENIZER = 1 << 28


class ModelFiles(NamedTuple):
    """What the files of a model say."""

    library: Library
    table: AnyArray | RemappedTable
    tokenizer: Path
    normalize: bool = False
    max_length: int | None = None
    dim: int | None = None  # the first entries of each vector
    prompt: str = ""  # in front of each text


def read_model(folder: Path, memory: Memory, dim: int | None) -> ModelFiles:
    """Read the folder of a model; `dim` selects one of several tables of WordLlama."""
    if not folder.is_dir():
        if folder.exists():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
        raise FileNotFoundError(errno.ENOENT, "no such folder; nothing is downloaded", str(folder))
    tensors = folder / "model.safetensors"
    if tensors.exists() and "embeddings" in list_tensors(str(tensors)):
        return _read_model2vec(folder, memory)
    if tensors.exists() or (folder / "modules.json").exists():
        return _read_sentence_transformers(folder, memory)
    for weights, tokenizers in ((folder, folder), (folder / "weights", folder / "tokenizers")):
        configs = sorted(tokenizers.glob("*_tokenizer_config.json"))
        if configs:
            return _read_wordllama(weights, configs, memory, dim)
    raise ValueError(
        f"{folder}: folder must be one of model2vec, sentence-transformers or WordLlama, "
        "got one without model.safetensors, modules.json and *_tokenizer_config.json"
    )


def _read_model2vec(folder: Path, memory: Memory) -> ModelFiles:
    path = folder / "config.json"
    config = _read_json(path, dict) if path.exists() else {}
    normalize = config.get("normalize", False)
    if type(normalize) is not bool:
        raise ValueError(f"{path}: normalize must be true or false, got {describe(normalize)}")
    return ModelFiles(
        "model2vec",
        _read_table(folder / "model.safetensors", "embeddings", memory),
        folder / "tokenizer.json",
        normalize,
        _as_count(path, "max_length", config.get("max_length", _DEFAULT_MAX_LENGTH)),
    )


def _read_sentence_transformers(folder: Path, memory: Memory) -> ModelFiles:
    place, normalize = folder, False
    path = folder / "modules.json"
    if path.exists():
        inner, normalize = _read_modules(path)
        place = folder / inner
    tensors = place / "model.safetensors"
    names = list_tensors(str(tensors))
    name = next((one for one in ("embedding.weight", "embeddings") if one in names), None)
    if name is None:
        raise ValueError(
            f"{tensors}: file must have the tensor 'embedding.weight' or 'embeddings', "
            f"got {', '.join(map(describe, list(names)[:5])) or 'none'}"
        )
    path = folder / "config_sentence_transformers.json"
    config = _read_json(path, dict) if path.exists() else {}
    prompts, default = config.get("prompts") or {}, config.get("default_prompt_name")
    prompt = prompts.get(default) if type(prompts) is dict and type(default) is str else None
    if type(prompt or "") is not str:
        raise ValueError(f"{path}: prompts must be strings, got {describe(prompt)}")
    return ModelFiles(
        "sentence-transformers",
        _read_table(tensors, name, memory),
        place / "tokenizer.json",
        normalize,
        dim=_as_count(path, "truncate_dim", config.get("truncate_dim")),
        prompt=prompt or "",
    )


def _read_modules(path: Path) -> tuple[str, bool]:
    """Return the folder of the StaticEmbedding, and whether a Normalize follows it."""
    modules = _read_json(path, list)
    if not all(
        type(module) is dict and type(module.get("type")) is str and type(module.get("path")) is str
        for module in modules
    ):
        raise ValueError(f"{path}: modules must have a type and a path, got others")
    kinds = [module["type"].rpartition(".")[2] for module in modules]
    if kinds not in (["StaticEmbedding"], ["StaticEmbedding", "Normalize"]):
        raise ValueError(
            f"{path}: modules must be a StaticEmbedding, and perhaps a Normalize, "
            f"got {', '.join(kinds) or 'none':.100}"
        )
    inner = Path(modules[0]["path"])
    if inner.is_absolute() or ".." in inner.parts:
        raise ValueError(f"{path}: path must be in the folder, got {describe(str(inner))}")
    return str(inner), len(kinds) == 2


def _read_wordllama(
    folder: Path, configs: list[Path], memory: Memory, dim: int | None
) -> ModelFiles:
    names = [path.name.removesuffix("_tokenizer_config.json") for path in configs]
    if len(names) > 1:
        raise ValueError(
            f"{folder}: folder must be of one model of WordLlama, got {', '.join(names):.100}"
        )
    tables = {
        int(found[1]): path
        for path in folder.glob("*.safetensors")
        if (found := re.fullmatch(re.escape(names[0]) + "_([0-9]{1,9})", path.stem))
    }
    # The narrowest table that has enough columns, as the others take more memory.
    wide_enough = sorted(width for width in tables if width >= (dim or 0))
    if not wide_enough or (dim is None and len(tables) > 1):
        widths = ", ".join(map(str, sorted(tables))) or "none"
        rule = "dim must be given for tables of several widths" if dim is None else "dim must fit"
        raise ValueError(
            f"{folder}: {rule if tables else f'folder must have {names[0]}_DIM.safetensors'}, "
            f"got {widths}"
        )
    path = tables[wide_enough[0]]
    tensors = list_tensors(str(path))
    name = next((one for one in ("embedding.weight", "embeddings") if one in tensors), None)
    return ModelFiles("wordllama", _read_table(path, name, memory), configs[0], dim=dim)


def _read_table(path: Path, name: str | None, memory: Memory) -> AnyArray | RemappedTable:
    """Return the table of the vectors of tokens, with their mapping and weights, if any."""
    rows = load_table(path, memory, name=name)
    if type(rows) is not np.ndarray or rows.shape[1] == 0:
        seen = f"shape {rows.shape}" if type(rows) is np.ndarray else f"a {type(rows).__name__}"
        raise ValueError(f"{path}: {name} must be an array with columns, got {seen}")
    mapping, weights = _read_array(path, "mapping"), _read_array(path, "weights")
    if mapping is None and weights is None:
        return rows
    n_rows = n_tokens = len(rows)
    if mapping is not None:
        if mapping.ndim != 1 or mapping.dtype.kind not in "iu":
            raise ValueError(
                f"{path}: mapping must be 1-D integers, got {mapping.dtype} of shape "
                f"{mapping.shape}"
            )
        invalid = (mapping < 0) | (mapping >= n_rows)
        if invalid.any():
            i = int(invalid.argmax())
            raise ValueError(
                f"{path}: mapping must hold rows of a table of {n_rows} rows, "
                f"got mapping[{i}] = {mapping[i]}"
            )
        n_tokens = len(mapping)
    if weights is not None and (weights.shape != (n_tokens,) or weights.dtype.kind != "f"):
        raise ValueError(
            f"{path}: weights must be {n_tokens} floats, one for each token, got "
            f"{weights.dtype} of shape {weights.shape}"
        )
    return RemappedTable(rows, mapping, weights)


def _read_array(path: Path, name: str) -> AnyArray | None:
    """Return a tensor of any shape, or None if the file has none of this name."""
    with open_file(path) as (file, n_bytes, _):
        start, tensors, _ = read_tensors(file, n_bytes)
        if name not in tensors:
            return None
        place = place_array(name, tensors[name], start)
        array = np.empty(place.shape, place.dtype)
        read_tensor(array, file, place.start)
        return array


def read_tokenizer(path: Path) -> bytes:
    """Return the content of a tokenizer's file, for the library of tokenizers."""
    return _read_bytes(path, _MOST_TOKENIZER)


def _read_json(path: Path, kind: type[dict[str, Any]] | type[list[Any]]) -> Any:
    data = _read_bytes(path, _MOST_JSON)
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: file must be JSON, got {error!s:.100}") from error
    if type(found) is not kind:
        name = "an object" if kind is dict else "an array"
        raise ValueError(f"{path}: JSON must be {name}, got {describe(found)}")
    return found


def _read_bytes(path: Path, most: int) -> bytes:
    check_regular(str(path))
    with add_path_to_errors(str(path)), open(path, "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"{path}: file must have at most {most} bytes, got more")
    return data


def _as_count(path: Path, name: str, value: Any) -> int | None:
    if value is not None and (type(value) is not int or value < 1):
        raise ValueError(f"{path}: {name} must be a count or null, got {describe(value)}")
    return value
