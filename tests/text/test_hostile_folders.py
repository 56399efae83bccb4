"""Folders that are no models, or malicious ones: an error that names the file, and no crash."""

import json
import os
import random

import numpy as np
import pytest

pytest.importorskip("tokenizers")

from processes import run_python
from static_models import (
    TEXTS,
    VECTORS,
    make_tokenizer,
    save_model2vec,
    save_sentence_transformers,
    save_tensors,
    save_wordllama,
)

from embag.text import StaticModel

INT32 = np.zeros(8, np.int32)


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def tensors(**arrays):
    return lambda folder: save_tensors(folder / "model.safetensors", **arrays)


def config(name, **entries):
    return write(name, json.dumps(entries).encode())


def cut(name, n_bytes):
    return lambda folder: os.truncate(folder / name, os.path.getsize(folder / name) - n_bytes)


def tokenizer(**parts):
    described = json.loads(make_tokenizer().to_str()) | parts
    return write("tokenizer.json", json.dumps(described).encode())


CONFIG = "config.json"
TENSORS = "model.safetensors"
TOKENIZER = "tokenizer.json"


@pytest.mark.parametrize(
    ("change", "name", "message"),
    [
        (write(TENSORS, b""), TENSORS, "file must have a header"),
        (write(TENSORS, b"\xff" * 100), TENSORS, "header's length must be"),
        (cut(TENSORS, 1), TENSORS, "bytes of tensors after its header"),
        (tensors(other=VECTORS), TENSORS, "must have the tensor 'embedding.weight' or 'embed"),
        (tensors(embeddings=VECTORS[0]), TENSORS, "must be [n_rows, dim], got [6]"),
        (tensors(embeddings=VECTORS[:, :0]), TENSORS, "an array with columns, got shape (8, 0)"),
        (tensors(embeddings=INT32[:, None]), TENSORS, "dtype of 'embeddings' must be F16"),
        (tensors(embeddings=VECTORS[:7]), "", "a row for each of the 8 tokens, got 7 rows"),
        (tensors(embeddings=VECTORS[:0]), "", "a row for each of the 8 tokens, got 0 rows"),
        (
            tensors(embeddings=VECTORS, mapping=INT32 + 8),
            TENSORS,
            "mapping must hold rows of a table of 8 rows, got mapping[0] = 8",
        ),
        (tensors(embeddings=VECTORS, mapping=INT32 - 1), TENSORS, "got mapping[0] = -1"),
        (
            tensors(embeddings=VECTORS, mapping=np.full(8, 2**64 - 1, np.uint64)),
            TENSORS,
            "got mapping[0] = 18446744073709551615",
        ),
        (tensors(embeddings=VECTORS, mapping=VECTORS[:, 0]), TENSORS, "1-D integers, got float32"),
        (tensors(embeddings=VECTORS, mapping=INT32[None]), TENSORS, "int32 of shape (1, 8)"),
        (tensors(embeddings=VECTORS, mapping=INT32[:5]), "", "of the 8 tokens, got 5 rows"),
        (tensors(embeddings=VECTORS, weights=VECTORS[:5, 0]), TENSORS, "weights must be 8 floats"),
        (tensors(embeddings=VECTORS, weights=VECTORS[:, :1]), TENSORS, "of shape (8, 1)"),
        (tensors(embeddings=VECTORS, weights=INT32), TENSORS, "got int32 of shape (8,)"),
        (write(CONFIG, b"{"), CONFIG, "file must be JSON"),
        (write(CONFIG, b"\xff"), CONFIG, "file must be JSON"),
        (write(CONFIG, b"[" * 100_000), CONFIG, "file must be JSON"),
        (write(CONFIG, b"9" * 10_000), CONFIG, "file must be JSON"),
        (write(CONFIG, b" " * (1 << 20) + b"{}"), CONFIG, "must have at most 1048576 bytes"),
        (write(CONFIG, b"[]"), CONFIG, "JSON must be an object, got list"),
        (config(CONFIG, max_length=-1), CONFIG, "max_length must be a count or null, got -1"),
        (config(CONFIG, max_length=True), CONFIG, "max_length must be a count or null, got True"),
        (config(CONFIG, normalize=3), CONFIG, "normalize must be true or false, got 3"),
        (write(TOKENIZER, b"{}"), TOKENIZER, "file must be a tokenizer, got an error"),
        (write(TOKENIZER, b"[" * 100_000), TOKENIZER, "file must be a tokenizer, got an error"),
        (
            tokenizer(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
            TOKENIZER,  # a panic
            "file must be a tokenizer, got an error: Precompiled",
        ),
        (
            tokenizer(added_tokens=[
                {"id": 8, "content": "new", "single_word": False, "lstrip": False,
                 "rstrip": False, "normalized": False, "special": False}
            ]),
            "",
            "a row for each of the 9 tokens, got 8 rows",
        ),
        (
            tokenizer(model={"type": "WordLevel", "vocab": {"a": 2**32 - 1}, "unk_token": "a"}),
            "",
            "a row for each of the 4294967296 tokens, got 8 rows",
        ),
    ],
)  # fmt: skip
def test_model2vec(change, name, message, tmp_path):
    save_model2vec(tmp_path, {})
    change(tmp_path)
    with pytest.raises(ValueError, match=r".") as caught:
        StaticModel.from_folder(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / name))
    assert message in str(caught.value)


def modules(*kinds, **more):
    return write(
        "modules.json", json.dumps([{"type": k, "path": "", **more} for k in kinds]).encode()
    )


SETTINGS = "config_sentence_transformers.json"


@pytest.mark.parametrize(
    ("change", "name", "message"),
    [
        (write("modules.json", b"{}"), "modules.json", "JSON must be an array, got dict"),
        (write("modules.json", b"[3]"), "modules.json", "must have a type and a path"),
        (modules(), "modules.json", "a StaticEmbedding, and perhaps a Normalize, got none"),
        (modules("a.Transformer", "a.Pooling"), "modules.json", "got Transformer, Pooling"),
        (modules("a.StaticEmbedding", "a.Dense"), "modules.json", "got StaticEmbedding, Dense"),
        (modules("StaticEmbedding", path="../x"), "modules.json", "must be in the folder"),
        (modules("StaticEmbedding", path="/etc"), "modules.json", "must be in the folder"),
        (config(SETTINGS, truncate_dim=0), SETTINGS, "truncate_dim must be a count or null, got 0"),
        (
            config(SETTINGS, prompts={"q": 3}, default_prompt_name="q"),
            SETTINGS,
            "prompts must be strings, got 3",
        ),
    ],
)  # fmt: skip
def test_sentence_transformers(change, name, message, tmp_path):
    save_sentence_transformers(tmp_path)
    change(tmp_path)
    with pytest.raises(ValueError, match=r".") as caught:
        StaticModel.from_folder(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / name))
    assert message in str(caught.value)


def test_wordllama(tmp_path):
    save_wordllama(tmp_path, name="l2")
    save_wordllama(tmp_path, name="l3")
    with pytest.raises(ValueError, match="must be of one model of WordLlama, got l2, l3"):
        StaticModel.from_folder(tmp_path)
    (tmp_path / "tokenizers" / "l3_tokenizer_config.json").unlink()
    (tmp_path / "weights" / "l2_6.safetensors").unlink()
    with pytest.raises(ValueError, match=r"folder must have l2_DIM\.safetensors, got none"):
        StaticModel.from_folder(tmp_path)


def test_other_folders_and_arguments(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder; nothing is downloaded"):
        StaticModel.from_folder("minishlab/potion-base-8M")
    with pytest.raises(ValueError, match="folder must be one of model2vec, sentence-transformers"):
        StaticModel.from_folder(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        StaticModel.from_folder(tmp_path / "file")
    with pytest.raises(TypeError, match=r"path must be a str or an os\.PathLike of one, got 3"):
        StaticModel.from_folder(3)
    save_model2vec(tmp_path)
    for dim, kind, message in (
        (7, ValueError, "dim must be at most 6 for this model, got 7"),
        (0, ValueError, "dim must be at least 1, got 0"),
        (2.0, TypeError, r"dim must be an integer, got 2\.0"),
    ):
        with pytest.raises(kind, match=message):
            StaticModel.from_folder(tmp_path, dim=dim)
    with pytest.raises(ValueError, match="memory must be 'map' or 'copy', got 'heap'"):
        StaticModel.from_folder(tmp_path, "heap")
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError):
        StaticModel.from_folder(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
@pytest.mark.parametrize("name", [TENSORS, CONFIG, TOKENIZER])
def test_links_pipes_and_devices(name, tmp_path):
    """Links are followed, as caches of models consist of them; pipes would never end."""
    folder = tmp_path / "model"
    save_model2vec(folder, {})
    expected = StaticModel.from_folder(folder).encode(TEXTS)
    path = folder / name
    path.rename(tmp_path / "blob")
    path.symlink_to(tmp_path / "blob")
    np.testing.assert_array_equal(StaticModel.from_folder(folder).encode(TEXTS), expected)
    for make in (
        lambda: os.mkfifo(path),
        lambda: path.symlink_to("/dev/zero"),
        lambda: path.symlink_to(path),
        path.mkdir,
    ):
        path.unlink()
        make()
        if name == CONFIG and path.is_symlink() and not path.exists():
            continue  # a folder without config.json is a model
        with pytest.raises((ValueError, OSError)):
            StaticModel.from_folder(folder)
        if path.is_dir():
            path.rmdir()
            path.touch()


@pytest.mark.parametrize(
    "parts",
    [
        {"pre_tokenizer": {"type": "FixedLength", "length": 0}},  # a panic
        {"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "b"}},
        {"model": {"type": "Unigram", "vocab": [], "unk_id": None}},
    ],
)
def test_tokenizers_that_fail(parts, tmp_path):
    save_model2vec(tmp_path)
    tokenizer(**parts)(tmp_path)
    model = StaticModel.from_folder(tmp_path)
    with pytest.raises(ValueError, match=r"tokenizer must encode texts\[2:4\], got an error: "):
        model.encode(["", "", "the sky", ""], batch_size=2)


def test_padding_of_a_tokenizer_is_ignored(tmp_path):
    save_model2vec(tmp_path)
    expected = StaticModel.from_folder(tmp_path).encode(TEXTS)
    padding = {
        "strategy": {"Fixed": 10**12}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 10**6, "pad_type_id": 0, "pad_token": "[PAD]",
    }  # fmt: skip
    tokenizer(padding=padding)(tmp_path)
    np.testing.assert_array_equal(StaticModel.from_folder(tmp_path).encode(TEXTS), expected)


def change_at_random(rng, folder):
    """Change some bytes of a file, or one value of a JSON file."""
    name = rng.choice([TENSORS, CONFIG, TOKENIZER])
    data = bytearray((folder / name).read_bytes())
    if name == TENSORS or rng.random() < 0.3:
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        if rng.random() < 0.2:
            del data[rng.randrange(len(data)) :]
        (folder / name).write_bytes(data)
        return
    described = json.loads(data)
    place = described
    while True:
        keys = list(place) if isinstance(place, dict) else range(len(place))
        key = rng.choice(keys)
        if not (isinstance(place[key], (dict, list)) and place[key]) or rng.random() < 0.2:
            break
        place = place[key]
    place[key] = rng.choice(
        [None, True, -1, 0, 7, 2**31, 2**32 - 1, 2**64, 1.5, "", "a", "\u0000", [], [[]], {}, "(("]
    )
    (folder / name).write_text(json.dumps(described))


def try_changes(folder, n):
    """Load and use models with random changes; anything but an error of the two kinds fails."""
    n_models = 0
    for seed in range(n):
        rng = random.Random(seed)
        save_model2vec(folder, {"max_length": 5, "normalize": True}, embeddings=VECTORS,
                       mapping=INT32 + 3, weights=VECTORS[:, 0])  # fmt: skip
        change_at_random(rng, folder)
        try:
            vectors = StaticModel.from_folder(folder).encode(TEXTS)
        except (ValueError, OSError, IndexError):
            continue
        assert vectors.shape == (len(TEXTS), VECTORS.shape[1])
        n_models += 1
    return n_models


def test_random_changes(tmp_path):
    """In a process of its own, as it might crash."""
    script = (
        "import sys, pathlib; sys.path[:0] = sys.argv[2:]; import test_hostile_folders as t; "
        "print(t.try_changes(pathlib.Path(sys.argv[1]), 200))"
    )
    here = os.path.dirname(__file__)
    paths = [here, os.path.join(here, "..", "support")]
    printed = run_python("-c", script, tmp_path / "model", *paths).stdout
    assert 0 < int(printed) < 200
