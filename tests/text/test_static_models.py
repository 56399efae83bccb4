"""Static embedding models: the vectors follow from the definition and the libraries' habits."""

import pickle
import sys
import threading

import numpy as np
import pytest

pytest.importorskip("tokenizers")

from processes import run_python
from static_models import (
    TEXTS,
    VECTORS,
    expected_vectors,
    make_tokenizer,
    save_model2vec,
    save_sentence_transformers,
    save_wordllama,
)

import embag
from embag.text import StaticModel

MEDIAN = 3  # characters of a token
DEFAULT = 512  # max_length of model2vec


def check(found, vectors, texts=TEXTS, **habits):
    """Compare with the definition, up to the rounding of sums in float32."""
    assert found.dtype == np.float32
    difference = np.abs(found - expected_vectors(vectors, texts, **habits))
    n_tokens = np.array([[2 + len(text.split())] for text in texts])
    largest = np.abs(vectors.astype(np.float64)).max()
    assert (difference <= n_tokens * np.finfo(np.float32).eps * max(1, largest)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8])
@pytest.mark.parametrize("memory", ["map", "copy"])
def test_model2vec(dtype, memory, tmp_path):
    vectors = (VECTORS * 20).astype(dtype)
    save_model2vec(tmp_path, {"normalize": False, "max_length": None}, embeddings=vectors)
    model = StaticModel.from_folder(tmp_path, memory)
    assert (model.library, model.max_length, model.normalize) == ("model2vec", None, False)
    assert (model.dim, model.prompt) == (6, "")
    assert repr(model) == "StaticModel(8 tokens, dim=6, made by model2vec)"
    assert model.table.flags.writeable == (memory == "copy")
    check(model.encode(TEXTS), vectors, skips_unknown=True)


def test_texts_of_model2vec_are_cut_to_characters_and_then_to_tokens(tmp_path):
    save_model2vec(tmp_path)
    model = StaticModel.from_folder(tmp_path)
    assert model.max_length == DEFAULT
    for max_length in (1, 2, 3, DEFAULT):
        texts = [*TEXTS, "is is is is is", "unknown blue", "green" + " " * MEDIAN + "blue"]
        cut = [text[: max_length * MEDIAN] for text in texts]
        found = model.encode(texts, max_length=max_length)
        check(found, VECTORS, cut, skips_unknown=True, max_length=max_length)
    check(model.encode(TEXTS, max_length=None), VECTORS, skips_unknown=True)
    save_model2vec(tmp_path, {"max_length": 2})
    found = StaticModel.from_folder(str(tmp_path)).encode(TEXTS)
    np.testing.assert_array_equal(found, model.encode(TEXTS, max_length=2))


@pytest.mark.parametrize("dim", [None, 4])
def test_mapped_and_weighted_tokens(dim, tmp_path):
    mapping = np.array([0, 1, 1, 2, 2, 0, 0, 1], np.int32)
    weights = np.linspace(0.1, 2, 8)
    for tensors, vectors in (
        ({"mapping": mapping}, VECTORS[mapping]),
        ({"weights": weights}, VECTORS * weights[:, None]),
        ({"mapping": mapping, "weights": weights}, VECTORS[mapping] * weights[:, None]),
    ):
        save_model2vec(tmp_path, {"max_length": None}, embeddings=VECTORS, **tensors)
        model = StaticModel.from_folder(tmp_path, dim=dim)
        assert type(model.table) is embag.RemappedTable
        check(model.encode(TEXTS), vectors[:, :dim], skips_unknown=True)


def test_unknown_tokens_by_kind_of_tokenizer(tmp_path):
    """A Unigram model names them by id; a model of byte pairs may have none."""
    from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: PLC0415

    unigram = Tokenizer(models.Unigram([(word, -1.0) for word in ["a", "b", "?"]], unk_id=2))
    pairs = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    for tokenizer, expected in ((unigram, [[0.5], [0.5]]), (pairs, [[2], [2]])):
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        table = np.arange(3, dtype=np.float32)[:, None]
        save_model2vec(tmp_path, tokenizer=tokenizer, embeddings=table)
        found = StaticModel.from_folder(tmp_path).encode(["ab", "abz"])
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("path", ["", ".", "0_StaticEmbedding"])
@pytest.mark.parametrize("normalizes", [False, True])
def test_sentence_transformers(path, normalizes, tmp_path):
    save_sentence_transformers(tmp_path, path, normalizes)
    model = StaticModel.from_folder(tmp_path)
    assert (model.library, model.max_length) == ("sentence-transformers", None)
    assert model.normalize == normalizes
    check(model.encode(TEXTS), VECTORS, skips_unknown=False, normalize=normalizes)


@pytest.mark.parametrize("direction", ["right", "left"])
def test_a_tokenizer_of_sentence_transformers_that_truncates(direction, tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.enable_truncation(3, direction=direction)
    save_sentence_transformers(tmp_path, tokenizer=tokenizer)
    model = StaticModel.from_folder(tmp_path)
    assert model.max_length == 3
    for max_length in (1, 3):
        part = slice(-max_length, None) if direction == "left" else slice(max_length)
        cut = [" ".join(text.split()[part]) for text in TEXTS]
        options = {} if max_length == 3 else {"max_length": max_length}
        check(model.encode(TEXTS, **options), VECTORS, cut, skips_unknown=False)


def test_a_default_prompt_and_width(tmp_path):
    config = {"prompts": {"q": "sky ", "other": ""}, "default_prompt_name": "q", "truncate_dim": 4}
    save_sentence_transformers(tmp_path, normalizes=True, config=config)
    model = StaticModel.from_folder(tmp_path)
    assert (model.prompt, model.dim) == ("sky ", 4)
    prompted = ["sky " + text for text in TEXTS]
    # Vectors are cut after they are normalized, unless they are normalized by the call.
    expected = expected_vectors(VECTORS, prompted, skips_unknown=False, normalize=True)[:, :4]
    np.testing.assert_allclose(model.encode(TEXTS), expected, rtol=0, atol=1e-5)
    for normalize in (False, True):
        found = model.encode(TEXTS, normalize=normalize)
        check(found, VECTORS[:, :4], prompted, skips_unknown=False, normalize=normalize)
    model.prompt = ""
    found = model.encode(TEXTS, normalize=True)
    check(found, VECTORS[:, :4], skips_unknown=False, normalize=True)
    assert StaticModel.from_folder(tmp_path, dim=2).encode(TEXTS).shape == (len(TEXTS), 2)


@pytest.mark.parametrize("inner", [False, True])
def test_wordllama(inner, tmp_path):
    save_wordllama(tmp_path, VECTORS[:6], inner=inner)
    model = StaticModel.from_folder(tmp_path)
    assert (model.library, model.normalize, model.max_length) == ("wordllama", False, None)
    # It takes the last row for tokens behind the table.
    vectors = np.concatenate([VECTORS[:6], VECTORS[5:6], VECTORS[5:6]])
    check(model.encode(TEXTS), vectors, skips_unknown=False)


def test_tables_of_wordllama_of_several_widths(tmp_path):
    save_wordllama(tmp_path, widths=(2, 4, 6))
    for dim in (1, 2, 3, 4, 6):
        model = StaticModel.from_folder(tmp_path, dim=dim)
        assert model.dim == dim
        check(model.encode(TEXTS), VECTORS[:, :dim], skips_unknown=False)
    with pytest.raises(ValueError, match="dim must be given for tables of several widths, got 2, "):
        StaticModel.from_folder(tmp_path)
    with pytest.raises(ValueError, match="dim must fit, got 2, 4, 6"):
        StaticModel.from_folder(tmp_path, dim=7)


def test_batches_threads_and_lists_do_not_change_vectors(tmp_path):
    save_model2vec(tmp_path)
    model, calls = StaticModel.from_folder(tmp_path), []
    expected, n_valid = model.encode(TEXTS, return_n_valid=True)
    assert n_valid.tolist() == [4, 1, 0, 0, 2, 384, 36]
    assert n_valid.dtype == np.int64
    found = model.encode(TEXTS, batch_size=3, progress=lambda *call: calls.append(call))
    np.testing.assert_array_equal(found, expected)
    assert calls == [(3, 7), (6, 7), (7, 7)]
    np.testing.assert_array_equal(model.encode(TEXTS, num_threads=1), expected)
    for texts in (tuple(TEXTS), iter(TEXTS), np.array(TEXTS), np.array(TEXTS, object)):
        np.testing.assert_array_equal(model.encode(texts), expected)
    one, n_tokens = model.encode(TEXTS[0], return_n_valid=True)
    np.testing.assert_array_equal(one, expected[0])
    assert (n_tokens, type(n_tokens)) == (4, int)
    assert model.encode([]).shape == (0, 6)


def test_columns(tmp_path):
    save_model2vec(tmp_path)
    model = StaticModel.from_folder(tmp_path)
    expected = model.encode(TEXTS)
    pa = pytest.importorskip("pyarrow")
    for column in (pa.array(TEXTS), pa.chunked_array([TEXTS[:2], TEXTS[2:]])):
        np.testing.assert_array_equal(model.encode(column), expected)
    pd = pytest.importorskip("pandas")
    np.testing.assert_array_equal(model.encode(pd.Series(TEXTS, index=TEXTS)), expected)
    pl = pytest.importorskip("polars")
    np.testing.assert_array_equal(model.encode(pl.Series(TEXTS)), expected)


def test_dtypes(tmp_path):
    save_model2vec(tmp_path)
    model = StaticModel.from_folder(tmp_path)
    half = model.encode(TEXTS, out_dtype=np.float16)
    np.testing.assert_array_equal(half, model.encode(TEXTS).astype(np.float16))
    save_model2vec(tmp_path, embeddings=VECTORS.astype(np.float64))
    assert StaticModel.from_folder(tmp_path).encode(TEXTS).dtype == np.float64


def test_copies_and_threads(tmp_path):
    save_model2vec(tmp_path, {"normalize": True})
    model = StaticModel.from_folder(tmp_path)
    expected = model.encode(TEXTS)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).encode(TEXTS), expected)
    found = [None] * 8
    options = [{}, {"max_length": 1}] * 4

    def encode(i):
        found[i] = model.encode(TEXTS * 50, **options[i])

    threads = [threading.Thread(target=encode, args=(i,)) for i in range(len(found))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result, given in zip(found, options, strict=True):
        np.testing.assert_array_equal(result, model.encode(TEXTS * 50, **given))


def test_a_frame_is_refused(tmp_path):
    pd = pytest.importorskip("pandas")
    save_model2vec(tmp_path)
    model = StaticModel.from_folder(tmp_path)
    with pytest.raises(TypeError, match="texts must be one column of texts, got DataFrame"):
        model.encode(pd.DataFrame({"text": ["sky"]}))


@pytest.mark.parametrize(
    ("texts", "options", "kind", "message"),
    [
        (3, {}, TypeError, "texts must be a str or an iterable of str, got 3"),
        (b"sky", {}, TypeError, "texts must be a str or an iterable of str, got bytes"),
        ({"sky": 1}, {}, TypeError, "texts must be a str or an iterable of str, got dict"),
        ({"sky"}, {}, TypeError, "texts must be a str or an iterable of str, got set"),
        (["sky", None], {}, TypeError, "texts[1] must be a str, got None"),
        (["sky", b"sky"], {}, TypeError, "texts[1] must be a str, got bytes"),
        (["sky", ("a", "b")], {}, TypeError, "texts[1] must be a str, got tuple"),
        (["", "", "\udcff"], {}, ValueError, "texts[2] must be valid text, got a surrogate"),
        (["sky"], {"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        (["sky"], {"batch_size": 1.0}, TypeError, "batch_size must be an integer, got 1.0"),
        (["sky"], {"max_length": 0}, ValueError, "max_length must be at least 1, got 0"),
        (
            ["sky"],
            {"max_length": "all"},
            ValueError,
            "max_length must be a count, None or 'model', got 'all'",
        ),
        (["sky"], {"normalize": 2}, TypeError, "normalize must be a bool, got 2"),
        (["sky"], {"return_n_valid": 1}, TypeError, "return_n_valid must be a bool, got 1"),
        ([], {"num_threads": 0}, ValueError, "num_threads must be at least 1, got 0"),
    ],
)
def test_errors_of_encode(texts, options, kind, message, tmp_path):
    save_model2vec(tmp_path)
    with pytest.raises(kind) as caught:
        StaticModel.from_folder(tmp_path).encode(texts, **options)
    assert str(caught.value) == message


def test_importing_embag_does_not_import_the_tokenizer():
    run_python("-c", "import embag, sys; assert not {'embag.text', 'tokenizers'} & {*sys.modules}")


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    monkeypatch.delitem(sys.modules, "embag.text")
    with pytest.raises(ImportError, match=r"needs tokenizers: pip install 'embag-cpu\[text\]'"):
        import embag.text  # noqa: F401, PLC0415
