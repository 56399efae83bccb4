"""A small static embedding model, written to folders as three libraries write theirs."""

import json

import numpy as np
import pytest

import embag
from embag._files.headers import tensors_header

tokenizers = pytest.importorskip("tokenizers")

WORDS = ["[UNK]", "blue", "green", "sky", "grass", "the", "is", "sun"]
VECTORS = np.random.default_rng(0).standard_normal((len(WORDS), 6)).astype(np.float32)
TEXTS = [
    "the sky is blue",
    "grass",
    "",
    "unknown words",
    "the unknown sun",
    "sun " * 600 + "grass",
    "the grass is green " * 9,
]


def make_tokenizer(words=WORDS, unknown="[UNK]"):
    vocabulary = {word: i for i, word in enumerate(words)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=unknown))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.enable_padding()
    return made


def save_tensors(path, **tensors):
    """Write a .safetensors file; a name may have dots."""
    with open(path, "wb") as file:
        file.write(tensors_header(tensors, {}))
        for array in tensors.values():
            file.write(np.ascontiguousarray(array).tobytes())


def save_model2vec(folder, config=None, tokenizer=None, **tensors):
    folder.mkdir(exist_ok=True)
    save_tensors(folder / "model.safetensors", **(tensors or {"embeddings": VECTORS}))
    (tokenizer or make_tokenizer()).save(str(folder / "tokenizer.json"))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))


def save_sentence_transformers(
    folder, path="", normalizes=False, config=None, tokenizer=None, vectors=VECTORS
):
    (folder / path).mkdir(exist_ok=True, parents=True)
    save_tensors(folder / path / "model.safetensors", **{"embedding.weight": vectors})
    (tokenizer or make_tokenizer()).save(str(folder / path / "tokenizer.json"))
    modules = [("sentence_transformers.models.StaticEmbedding", path)]
    modules += [("sentence_transformers.base.modules.normalize.Normalize", "1")] * normalizes
    listed = [{"name": str(i), "type": kind, "path": at} for i, (kind, at) in enumerate(modules)]
    (folder / "modules.json").write_text(json.dumps(listed))
    if config is not None:
        (folder / "config_sentence_transformers.json").write_text(json.dumps(config))


def save_wordllama(folder, vectors=VECTORS, name="l2", widths=(6,), inner=True):
    weights, configs = (folder / "weights", folder / "tokenizers") if inner else (folder, folder)
    for place in {weights, configs}:
        place.mkdir(exist_ok=True, parents=True)
    for width in widths:
        embag.save_table(
            weights / f"{name}_{width}.safetensors", vectors[:, :width], name="embedding.weight"
        )
    make_tokenizer().save(str(configs / f"{name}_tokenizer_config.json"))


def expected_vectors(vectors, texts, *, skips_unknown, max_length=None, normalize=False):
    """Return the means of the vectors of tokens, in float64, by the definition."""
    expected = np.zeros((len(texts), vectors.shape[1]))
    for b, text in enumerate(texts):
        ids = [WORDS.index(word) if word in WORDS else 0 for word in text.split()][:max_length]
        ids = [i for i in ids if i != 0 or not skips_unknown]
        if ids:
            expected[b] = vectors[ids].astype(np.float64).mean(axis=0)
        if normalize and ids:
            expected[b] /= np.linalg.norm(expected[b])
    return expected
