"""A folder for `StaticModel.from_folder`.

The first byte chooses the library. The bytes after it, up to zero bytes, are the file with its
options and tokenizer.json; all others are the .safetensors file. An empty part is a sound one.
"""

import functools
import json
import shutil

import numpy as np
import tokenizers

from embag._files.headers import tensors_header
from embag.text import StaticModel

from ..file_cases import folder
from .files import attempt, write

WORDS = ["[UNK]", "blue", "green", "sky", "the", "is"]
TEXTS = ["the sky is blue", "", "unknown words", "sky " * 40, "ü\n\t"]
# By library: the file with its options, a sound one, and the file of the vectors.
LAYOUTS = [
    ("config.json", b"{}", "model.safetensors"),
    ("modules.json", b'[{"type": "StaticEmbedding", "path": ""}]', "model.safetensors"),
    ("config_sentence_transformers.json", b"{}", "model.safetensors"),
    ("config.json", b"{}", "l2_4.safetensors"),
]


@functools.cache
def sound_tokenizer():
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return json.dumps(json.loads(made.to_str())).encode()


@functools.cache
def sound_vectors():
    vectors = np.arange(24, dtype=np.float32).reshape(6, 4)
    return tensors_header({"embedding.weight": vectors}, {}) + vectors.tobytes()


def run(data):
    options_file, sound_options, vectors_file = LAYOUTS[data[0] % 4 if data else 0]
    options, _, others = data[1:].partition(b"\0")
    tokenizer, _, vectors = others.partition(b"\0")
    place = folder() / "model"
    shutil.rmtree(place, ignore_errors=True)
    write(f"model/{options_file}", options or sound_options)
    write(f"model/{vectors_file}", vectors or sound_vectors())
    for name in ("tokenizer.json", "l2_tokenizer_config.json"):
        write(f"model/{name}", tokenizer or sound_tokenizer())
    try:
        model, end = attempt(place, StaticModel.from_folder, place)
    except FileNotFoundError as error:  # of the folder that modules.json names
        assert str(place) in str(error)
        return "FileNotFoundError"
    if model is None:
        return end
    try:
        vectors = model.encode(TEXTS)
    except ValueError as error:
        assert "tokenizer must encode" in str(error), error
        return "loaded; no tokens"
    except IndexError as error:
        assert "out of range" in str(error)
        return "loaded; no row"
    assert vectors.shape == (len(TEXTS), model.dim)
    return end
