"""model2vec's `StaticModel.encode` is a lookup of embag.

model2vec maps the ids of tokens to rows, multiplies each row by the weight of its token, takes
the mean over the number of tokens, and divides by the norm plus 1e-32. Tokens that the
vocabulary does not have are left out; a text without tokens is zeros. A `RemappedTable` with the
weights as scales does the same.
"""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

import embag

model2vec = pytest.importorskip("model2vec")
tokenizers = pytest.importorskip("tokenizers")

WORDS = ["[UNK]", "a", "bird", "sings", "in", "the", "old", "garden", "while", "it", "rains"]
UNKNOWN = 0
TEXTS = [
    "a bird sings in the old garden",
    "it rains",
    "the the the",
    "a violin sings",  # one unknown word
    "violins play",  # no known word
    "",
    "a bird sings while it rains in the old old garden " * 30,
]
N_ROWS, DIM = 6, 5


def tokenizer():
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    words = tokenizers.models.WordLevel(vocabulary, unk_token=WORDS[UNKNOWN])
    result = tokenizers.Tokenizer(words)
    result.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return result


def model(dtype=np.float32, mapped=True, weighted=True, **options):
    rng = np.random.default_rng(0)
    n_rows = N_ROWS if mapped else len(WORDS)
    vectors = rng.integers(-127, 128, (n_rows, DIM)).astype(dtype)
    if np.dtype(dtype).kind == "f":
        vectors = vectors / 100
    return model2vec.StaticModel(
        vectors.astype(dtype),
        tokenizer(),
        weights=rng.uniform(0.1, 2, len(WORDS)).astype(np.float32) if weighted else None,
        token_mapping=rng.integers(0, n_rows, len(WORDS)) if mapped else None,
        **options,
    )


def lookup(model, texts, unknown, **options):
    """Return what embag gives for the texts, and how many tokens of each are known."""
    encodings = model.tokenizer.encode_batch(texts, add_special_tokens=False)
    ids = np.concatenate([np.array(encoding.ids, int) for encoding in encodings])
    lengths = [len(encoding.ids) for encoding in encodings]
    index_map = model.token_mapping
    index_map = np.arange(len(model.tokens)) if index_map is None else index_map.copy()
    if unknown is not None:
        index_map[unknown] = -1
    return embag.embedding_bag(
        ids,
        embag.RemappedTable(model.embedding, index_map, model.weights),
        lengths=lengths,
        return_n_valid=True,
        **options,
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8])
@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_encode_is_a_normalized_mean(dtype, mapped, weighted):
    static = model(dtype, mapped, weighted, normalize=True)
    expected = static.encode(TEXTS)
    assert not expected[4:6].any()
    result, n_valid = lookup(static, TEXTS, UNKNOWN, mode="mean", normalize=True)
    # Its float16 results are rounded before and after they are normalized.
    atol = 1e-6 if dtype != np.float16 else 3 * np.finfo(np.float16).eps
    np.testing.assert_allclose(result, expected, rtol=0, atol=atol)
    assert n_valid.tolist()[:6] == [7, 2, 3, 2, 0, 0]


def test_without_normalization():
    static = model()
    result, _ = lookup(static, TEXTS, UNKNOWN, mode="mean")
    np.testing.assert_allclose(result, static.encode(TEXTS), rtol=0, atol=1e-6)


def test_long_texts_are_cut_to_characters_and_then_to_tokens():
    static = model(normalize=True, max_length=None)
    cut = [text[: 3 * static.median_token_length] for text in TEXTS]
    expected = static.encode(TEXTS, max_length=3)
    static.tokenizer.enable_truncation(3)  # unknown tokens count
    result, _ = lookup(static, cut, UNKNOWN, mode="mean", normalize=True)
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-6)


def test_a_published_model_of_int8_rows():
    """10,000 rows of 64 int8 entries, for 276,326 tokens with a row and a weight each."""
    package = importlib.util.find_spec("static_model")
    if package is None:
        pytest.skip("needs pip install tokenlearn-static-model")
    folder = Path(package.submodule_search_locations[0]) / "model"
    static = model2vec.StaticModel.from_pretrained(folder)
    assert static.embedding.dtype == np.int8
    assert static.embedding.shape == (10_000, 64)
    texts = [*TEXTS[:6], "Static embeddings are means of the vectors of tokens, e.g. 7 of them."]
    result, _ = lookup(static, texts, static.unk_token_id, mode="mean", normalize=True)
    np.testing.assert_allclose(result, static.encode(texts), rtol=0, atol=1e-6)
