"""Static embedding models: the vectors of the libraries that made the folders."""

import json

import numpy as np
import pytest

pytest.importorskip("tokenizers")
pytest.importorskip("safetensors")

from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from embag.text import StaticModel

WORDS = ["[UNK]", "blue", "green", "sky", "grass", "the", "is", "sun"]
VECTORS = np.random.default_rng(0).standard_normal((len(WORDS), 6)).astype(np.float32)
TEXTS = ["the sky is blue", "grass", "", "unknown words", "the unknown sun", "sun " * 600]


def tokenizer():
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


def save(folder, tensors, config=None, modules=None, inner="."):
    place = folder / inner
    place.mkdir(exist_ok=True, parents=True)
    save_file(tensors, place / "model.safetensors")
    tokenizer().save(str(place / "tokenizer.json"))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    if modules is not None:
        (folder / "modules.json").write_text(json.dumps(modules))


def tokens_of(text, keep_unknown, max_length=None):
    ids = [WORDS.index(word) if word in WORDS else 0 for word in text.split()][:max_length]
    return [i for i in ids if keep_unknown or i != 0]


def expected(vectors, keep_unknown=False, max_length=None, normalize=False):
    """Return the mean of the vectors of tokens, in float64."""
    found = np.zeros((len(TEXTS), vectors.shape[1]))
    median = int(np.median([len(word) for word in WORDS]))
    for i, text in enumerate(TEXTS):
        cut = text if max_length is None else text[: max_length * median]  # as model2vec does
        ids = tokens_of(cut, keep_unknown, max_length)
        if ids:
            found[i] = vectors[ids].astype(np.float64).mean(axis=0)
        if normalize and ids:
            found[i] /= np.linalg.norm(found[i])
    return found


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8])
@pytest.mark.parametrize("memory", ["map", "copy"])
def test_model2vec(dtype, memory, tmp_path):
    vectors = (VECTORS * 20).astype(dtype)
    save(tmp_path, {"embeddings": vectors}, {"normalize": False, "max_length": 512})
    model = StaticModel.from_folder(tmp_path, memory)
    assert (model.library, model.max_length, model.normalize) == ("model2vec", 512, False)
    assert repr(model) == "StaticModel(8 tokens, dim=6, made by model2vec)"
    np.testing.assert_allclose(model.encode(TEXTS), expected(vectors), rtol=1e-5, atol=1e-5)
    one = model.encode(TEXTS[0])
    assert one.shape == (6,)
    np.testing.assert_array_equal(one, model.encode(TEXTS)[0])
    np.testing.assert_array_equal(model.encode(TEXTS, batch_size=2), model.encode(TEXTS))


def test_mapped_and_weighted_tokens(tmp_path):
    mapping = np.array([0, 1, 1, 2, 2, 0, 0, 1], np.int32)
    weights = np.linspace(0.1, 2, 8)
    vectors = VECTORS[:3][mapping] * weights[:, None]
    save(tmp_path, {"embeddings": VECTORS[:3], "mapping": mapping, "weights": weights})
    found = StaticModel.from_folder(tmp_path).encode(TEXTS)
    np.testing.assert_allclose(found, expected(vectors, max_length=512), rtol=1e-5, atol=1e-6)
    save(tmp_path, {"embeddings": VECTORS, "weights": weights.astype(np.float32)})
    found = StaticModel.from_folder(tmp_path).encode(TEXTS)
    vectors = VECTORS * weights[:, None]
    np.testing.assert_allclose(found, expected(vectors, max_length=512), rtol=1e-5, atol=1e-6)


def test_options(tmp_path):
    save(tmp_path, {"embeddings": VECTORS}, {"normalize": True, "max_length": 2})
    model = StaticModel.from_folder(tmp_path)
    for options, arguments in (
        ({"max_length": 2, "normalize": True}, {}),
        ({"max_length": 2}, {"normalize": False}),
        ({"normalize": True}, {"max_length": None}),
        ({"max_length": 1, "normalize": True}, {"max_length": 1}),
    ):
        found = model.encode(TEXTS, **arguments)
        np.testing.assert_allclose(found, expected(VECTORS, **options), rtol=1e-5, atol=1e-6)
    narrow = StaticModel.from_folder(tmp_path, dim=4)
    found = narrow.encode(TEXTS, normalize=False)
    np.testing.assert_allclose(found, expected(VECTORS[:, :4], max_length=2), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("inner", [".", "0_StaticEmbedding"])
@pytest.mark.parametrize("normalize", [False, True])
def test_sentence_transformers(inner, normalize, tmp_path):
    modules = [{"type": "sentence_transformers.models.StaticEmbedding"}]
    modules += [{"type": "sentence_transformers.models.Normalize"}] * normalize
    save(tmp_path, {"embedding.weight": VECTORS}, None, modules, inner)
    model = StaticModel.from_folder(str(tmp_path))
    assert (model.library, model.max_length) == ("sentence-transformers", None)
    found = model.encode(TEXTS)
    wanted = expected(VECTORS, keep_unknown=True, normalize=normalize)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_wordllama(tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "tokenizers").mkdir()
    save_file({"embedding.weight": VECTORS[:6]}, tmp_path / "weights" / "l2_256.safetensors")
    tokenizer().save(str(tmp_path / "tokenizers" / "l2_tokenizer_config.json"))
    model = StaticModel.from_folder(tmp_path)
    assert model.library == "wordllama"
    # It takes the last row for tokens beyond the table.
    vectors = np.concatenate([VECTORS[:6], VECTORS[5:6], VECTORS[5:6]])
    wanted = expected(vectors, keep_unknown=True)
    np.testing.assert_allclose(model.encode(TEXTS), wanted, rtol=1e-5, atol=1e-6)


def test_model2vec_itself(tmp_path):
    model2vec = pytest.importorskip("model2vec")
    rng = np.random.default_rng(1)
    for options in (
        {},
        {"normalize": True},
        {"max_length": 3},
        {"token_mapping": rng.integers(0, 8, 8), "weights": rng.random(8)},
    ):
        made = model2vec.StaticModel(VECTORS, tokenizer(), **options)
        made.save_pretrained(tmp_path)
        found = StaticModel.from_folder(tmp_path).encode(TEXTS)
        np.testing.assert_allclose(found, made.encode(TEXTS), rtol=0, atol=2e-6)


def test_progress_and_columns(tmp_path):
    save(tmp_path, {"embeddings": VECTORS})
    model, calls = StaticModel.from_folder(tmp_path), []
    model.encode(TEXTS, batch_size=4, progress=lambda *call: calls.append(call))
    assert calls == [(4, 6), (6, 6)]
    assert model.encode([]).shape == (0, 6)
    pa = pytest.importorskip("pyarrow")
    np.testing.assert_array_equal(model.encode(pa.array(TEXTS)), model.encode(TEXTS))
    np.testing.assert_array_equal(model.encode(iter(TEXTS)), model.encode(TEXTS))


@pytest.mark.parametrize(
    ("texts", "options", "kind", "message"),
    [
        (3, {}, TypeError, "texts must be a str or an iterable of str, got 3"),
        (b"sky", {}, TypeError, "texts must be a str or an iterable of str, got bytes"),
        (["sky", None], {}, TypeError, "texts[1] must be a str, got None"),
        (["sky"], {"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        (["sky"], {"max_length": 0}, ValueError, "max_length must be at least 1, got 0"),
        (["sky"], {"normalize": 2}, TypeError, None),
    ],
)
def test_errors_of_encode(texts, options, kind, message, tmp_path):
    save(tmp_path, {"embeddings": VECTORS})
    with pytest.raises(kind) as caught:
        StaticModel.from_folder(tmp_path).encode(texts, **options)
    assert message is None or str(caught.value) == message


def break_file(name, content):
    def change(folder):
        (folder / name).write_bytes(content)

    return change


def write_tensors(**tensors):
    return lambda folder: save_file(tensors, folder / "model.safetensors")


INT32 = np.zeros(8, np.int32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (break_file("model.safetensors", b""), "must be a .safetensors file"),
        (break_file("model.safetensors", b"\xff" * 100), "must be a .safetensors file"),
        (break_file("tokenizer.json", b"{}"), "file must be a tokenizer"),
        (break_file("tokenizer.json", b"[" * 100_000), "file must be a tokenizer"),
        (break_file("config.json", b"{"), "must be JSON"),
        (break_file("config.json", b"[]"), "must be a JSON dict, got list"),
        (break_file("config.json", b'{"max_length": -1}'), "max_length must be a count or null"),
        (break_file("config.json", b'{"normalize": 3}'), "normalize must be true or false, got 3"),
        (write_tensors(other=VECTORS), "must have the tensor 'embeddings'"),
        (write_tensors(embeddings=VECTORS[0]), "model.safetensors"),
        (write_tensors(embeddings=VECTORS[:7]), "at most one token for each of the table's 7 rows"),
        (write_tensors(embeddings=VECTORS, mapping=INT32 + 8), "mapping and weights: "),
        (write_tensors(embeddings=VECTORS, mapping=INT32 - 1), "mapping must hold rows"),
        (write_tensors(embeddings=VECTORS, mapping=VECTORS[:, 0]), "mapping must be integers"),
        (write_tensors(embeddings=VECTORS, mapping=INT32[:5]), "at most one token for each of"),
        (write_tensors(embeddings=VECTORS, weights=VECTORS[:5, 0]), "mapping and weights: scales"),
    ],
)
def test_folders_that_are_no_models(change, message, tmp_path):
    save(tmp_path, {"embeddings": VECTORS}, {})
    change(tmp_path)
    with pytest.raises(ValueError, match=r".") as caught:
        StaticModel.from_folder(tmp_path)
    assert message in str(caught.value)


def test_other_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="path must be a folder"):
        StaticModel.from_folder(tmp_path / "missing")
    with pytest.raises(ValueError, match="path must be a folder of model2vec"):
        StaticModel.from_folder(tmp_path)
    with pytest.raises(TypeError, match=r"path must be a str or an os\.PathLike of one, got 3"):
        StaticModel.from_folder(3)
    save(tmp_path, {"embeddings": VECTORS})
    with pytest.raises(ValueError, match="dim must be at most 6, got 7"):
        StaticModel.from_folder(tmp_path, dim=7)
