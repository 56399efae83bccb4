"""Vectors are those of the libraries that made the folders, on real text and real tokenizers.

Each library is tested if it is installed. `RECORDED` has what they gave for the small model of
tests/support/static_models.py (model2vec 0.10.0, sentence-transformers 6.2.0).
"""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tokenizers")

from static_models import TEXTS, save_model2vec, save_sentence_transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from embag.text import StaticModel

# The first two entries of the vectors of TEXTS[:5], by tests/scripts/record_static_models.py.
RECORDED = {
    "model2vec": [
        [-0.2555563, 0.3561357],
        [0.5730731, 0.0596322],
        [0.0, 0.0],
        [0.0, 0.0],
        [-0.8100782, -0.1678343],
    ],
    "sentence-transformers": [
        [0.0123376, 0.3902920],
        [0.5730731, 0.0596322],
        [0.0, 0.0],
        [0.1346347, -0.1414608],
        [0.1496250, 0.1425139],
    ],
}


def passages():
    from pydoc_data.topics import topics  # noqa: PLC0415

    texts = [text for name in sorted(topics) for text in re.split(r"\n\s*\n", topics[name])]
    odd = ["", " ", "日本語 ☃ ☃☃ é \x00", "a", "word " * 700, "中" * 2000]
    return [text for text in texts if len(text) > 70][:150] + odd


def word_pieces(texts):
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]"]
    trainer = trainers.WordPieceTrainer(
        vocab_size=1000, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(texts[:100], trainer)
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A", None, [("[CLS]", 2)])
    tokenizer.enable_padding()
    return tokenizer


def byte_pairs(texts):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=1000, show_progress=False)
    tokenizer.train_from_iterator(texts[:100], trainer)
    return tokenizer


def unigrams(texts):
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=1000, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
    )
    tokenizer.train_from_iterator(texts[:100], trainer)
    return tokenizer


PASSAGES = passages()


@pytest.fixture(scope="module", params=[word_pieces, byte_pairs, unigrams])
def tokenizer(request):
    return request.param(PASSAGES)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8])
@pytest.mark.parametrize(("mapped", "weighted"), list(itertools.product([False, True], repeat=2)))
def test_model2vec(dtype, mapped, weighted, tokenizer, tmp_path):
    model2vec = pytest.importorskip("model2vec")
    rng = np.random.default_rng(0)
    n_tokens = tokenizer.get_vocab_size()
    n_rows = 100 if mapped else n_tokens
    vectors = (rng.standard_normal((n_rows, 33)) * 30).astype(dtype)
    parts = {
        "weights": rng.random(n_tokens).astype(np.float32) if weighted else None,
        "token_mapping": rng.integers(0, n_rows, n_tokens) if mapped else None,
    }
    for options in ({}, {"normalize": True, "max_length": None}, {"max_length": 20}):
        made = model2vec.StaticModel(vectors, tokenizer, **parts, **options)
        made.save_pretrained(tmp_path)
        expected = made.encode(PASSAGES).astype(np.float64)
        found = StaticModel.from_folder(tmp_path).encode(PASSAGES)
        # It rounds the vectors of float16 models to float16, before and after normalizing.
        share = 2e-3 if dtype == np.float16 else 1e-6
        largest = 1 if made.normalize else np.abs(vectors.astype(np.float64)).max()
        np.testing.assert_allclose(found, expected, rtol=0, atol=share * largest)


@pytest.mark.parametrize("normalizes", [False, True])
@pytest.mark.parametrize("direction", [None, "right", "left"])
def test_sentence_transformers(normalizes, direction, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    library = pytest.importorskip("sentence_transformers")
    from sentence_transformers.base.modules import Normalize  # noqa: PLC0415
    from sentence_transformers.sentence_transformer.modules import (  # noqa: PLC0415
        StaticEmbedding,
    )

    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((tokenizer.get_vocab_size(), 33)).astype(np.float32)
    own = Tokenizer.from_str(tokenizer.to_str())
    if direction is not None:
        own.enable_truncation(9, direction=direction)
    static = [StaticEmbedding(own, embedding_weights=vectors)]
    static += [Normalize()] * normalizes
    for options in ({}, {"prompts": {"q": "query: "}, "default_prompt_name": "q"}):
        made = library.SentenceTransformer(modules=static, device="cpu", **options)
        made.save_pretrained(str(tmp_path), create_model_card=False)
        model = StaticModel.from_folder(tmp_path)
        expected = made.encode(PASSAGES)
        np.testing.assert_allclose(model.encode(PASSAGES), expected, rtol=0, atol=1e-6)
        narrow = StaticModel.from_folder(tmp_path, dim=8)
        for normalize in (None, True):
            expected = made.encode(PASSAGES, truncate_dim=8, normalize_embeddings=bool(normalize))
            found = narrow.encode(PASSAGES, normalize=normalize)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.demos
@pytest.mark.parametrize("dim", [None, 64])
def test_wordllama(dim):
    wordllama = pytest.importorskip("wordllama")
    from safetensors.numpy import load_file  # noqa: PLC0415

    folder = Path(wordllama.__file__).parent
    table = load_file(folder / "weights" / "l2_supercat_256.safetensors")["embedding.weight"]
    config = str(folder / "tokenizers" / "l2_supercat_tokenizer_config.json")
    made = wordllama.WordLlamaInference(table[:, :dim], Tokenizer.from_file(config))
    model = StaticModel.from_folder(folder, dim=dim)
    expected = made.embed(PASSAGES)
    np.testing.assert_allclose(model.encode(PASSAGES), expected, rtol=0, atol=1e-6)


def test_recorded_vectors(tmp_path):
    save_model2vec(tmp_path / "one", {"normalize": True, "max_length": 3})
    save_sentence_transformers(tmp_path / "two", normalizes=True)
    for name, library in (("one", "model2vec"), ("two", "sentence-transformers")):
        model = StaticModel.from_folder(tmp_path / name)
        assert model.library == library
        found = model.encode(TEXTS[:5])[:, :2]
        np.testing.assert_allclose(found, RECORDED[library], rtol=0, atol=1e-6)
