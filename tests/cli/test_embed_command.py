"""`embag embed`: texts to vectors, file to file."""

import gzip
import json
import sys

import numpy as np
import pytest
from command_line import pa, read, run, vectors

pytest.importorskip("tokenizers")

import pyarrow.parquet as pq
from static_models import TEXTS as ENCODED
from static_models import save_model2vec, save_sentence_transformers, save_tensors

import embag
from embag.text import StaticModel

TEXTS = [*ENCODED, None, "NA", "1999-01-01 00:00:00", "7"]


@pytest.fixture
def model(tmp_path):
    save_model2vec(tmp_path / "model", {"normalize": True})
    return tmp_path / "model"


def save(path, texts=TEXTS, dtype=None):
    """Write texts and their numbers to a file of this suffix."""
    table = pa.table({"id": range(len(texts)), "text": pa.array(texts, dtype or pa.string())})
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=3)
    elif path.suffix in {".arrow", ".arrows"}:
        opened = pa.ipc.new_file if path.suffix == ".arrow" else pa.ipc.new_stream
        with opened(path, table.schema) as writer:
            writer.write_table(table)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    else:
        quoted = ["" if text is None else f'"{text}"' for text in texts]
        rows = [f"{i},{text}\n" for i, text in enumerate(quoted)]
        data = "".join(["id,text\n", *rows]).encode()
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def embed(capsys, source, model, target, *options, column="text"):
    """Run `embag embed`; return the summary."""
    arguments = ["--column", column, "--model", model, "--out", target, "--json", *options]
    printed = run(capsys, "embed", source, *arguments)
    assert printed.err == ""
    return json.loads(printed.out)


def expected_vectors(model, texts=TEXTS, **options):
    return StaticModel.from_folder(model).encode([text or "" for text in texts], **options)


@pytest.mark.parametrize("name", ["in.parquet", "in.arrow", "in.arrows", "in.jsonl", "in.csv.gz"])
@pytest.mark.parametrize("out", ["out.parquet", "out.arrow", "out.npy"])
def test_formats(name, out, model, tmp_path, capsys):
    source, target = save(tmp_path / name), tmp_path / out
    keep = [] if out.endswith(".npy") else ["--keep", "id"]
    summary = embed(capsys, source, model, target, *keep)
    assert (summary["rows"], summary["dim"], summary["dtype"]) == (len(TEXTS), 6, "float32")
    assert (summary["library"], summary["null_vectors"]) == ("model2vec", 0)
    expected, n_tokens = expected_vectors(model, return_n_valid=True)
    assert summary["tokens"] == n_tokens.sum()
    if out.endswith(".npy"):
        np.testing.assert_array_equal(np.load(target), expected)
        return
    table = read(target)
    assert table.column_names == ["id", "text_vector"]
    assert table["id"].to_pylist() == list(range(len(TEXTS)))
    np.testing.assert_array_equal(vectors(table["text_vector"]), expected)


@pytest.mark.parametrize(
    "dtype", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]
)
def test_kinds_of_text(dtype, model, tmp_path, capsys):
    source = save(tmp_path / "in.arrow", dtype=dtype)
    embed(capsys, source, model, tmp_path / "out.arrow")
    found = vectors(read(tmp_path / "out.arrow")["text_vector"])
    np.testing.assert_array_equal(found, expected_vectors(model))


@pytest.mark.parametrize("name", ["in.csv", "in.jsonl"])
def test_texts_that_look_like_other_types(name, tmp_path, capsys):
    """Numbers, times and "null" are texts, and so is a column whose first texts are null."""
    save_sentence_transformers(tmp_path / "model")  # unknown tokens count
    for texts in (["2001-01-01", "2002-02-02"], [None, "null"], [None, None]):
        source = save(tmp_path / name, texts)
        summary = embed(capsys, source, tmp_path / "model", tmp_path / "out.npy")
        expected = expected_vectors(tmp_path / "model", texts)
        np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), expected)
        assert (summary["tokens"] == 0) == (not any(texts))


@pytest.mark.parametrize("out", ["out.parquet", "out.arrow"])
def test_null_vectors(out, model, tmp_path, capsys):
    source = save(tmp_path / "in.parquet")
    summary = embed(capsys, source, model, tmp_path / out, "--null-empty")
    expected, n_tokens = expected_vectors(model, return_n_valid=True)
    found = read(tmp_path / out)["text_vector"].to_pylist()
    assert [row is None for row in found] == (n_tokens == 0).tolist()
    assert summary["null_vectors"] == (n_tokens == 0).sum() > 1
    for row, vector in zip(found, expected, strict=True):
        assert row is None or row == vector.tolist()


def test_options(model, tmp_path, capsys):
    source = save(tmp_path / "in.csv")
    options = ["--name", "v", "--max-length", "2", "--no-normalize", "--dim", "3"]
    embed(capsys, source, model, tmp_path / "o.parquet", *options, "--dtype", "float16")
    narrow = StaticModel.from_folder(model, dim=3)
    expected = narrow.encode(
        [text or "" for text in TEXTS], max_length=2, normalize=False, out_dtype=np.float16
    )
    np.testing.assert_array_equal(vectors(read(tmp_path / "o.parquet")["v"]), expected)


def test_threads(model, tmp_path, capsys, monkeypatch, clean_thread_settings):
    monkeypatch.delenv("RAYON_NUM_THREADS", raising=False)
    monkeypatch.setenv("RAYON_NUM_THREADS", "")  # undone after the test
    source = save(tmp_path / "in.parquet")
    summary = embed(capsys, source, model, tmp_path / "o.npy", "--threads", "1")
    assert summary["threads"] == embag.get_num_threads() == 1
    np.testing.assert_array_equal(np.load(tmp_path / "o.npy"), expected_vectors(model))


def test_many_chunks(model, tmp_path, capsys, monkeypatch):
    """Chunks are written in the order of the file."""
    monkeypatch.setattr("embag.cli._sources._CHUNK_BYTES", 1000)
    texts = [f"{'sky ' * (i % 7)}{'grass ' * (i % 3)}" for i in range(500)]
    source = save(tmp_path / "in.parquet", texts)
    embed(capsys, source, model, tmp_path / "o.parquet", "--keep", "id")
    table = read(tmp_path / "o.parquet")
    assert table["id"].to_pylist() == list(range(500))
    np.testing.assert_array_equal(vectors(table["text_vector"]), expected_vectors(model, texts))


def test_the_summary_for_readers(model, tmp_path, capsys):
    source, target = save(tmp_path / "in.parquet"), tmp_path / "o.parquet"
    arguments = ["--column", "text", "--model", model, "--out", target, "--null-empty"]
    lines = run(capsys, "embed", source, *arguments).out.splitlines()
    assert lines[0].startswith(f"{len(TEXTS)} rows, 427 tokens -> {target}, ")
    assert "rows/s; at the same time: reading " in lines[1]
    assert lines[-1] == "6 vectors are null: their texts have no token that counts"


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--column", "id"], 1, "in.parquet: column 'id' must be text, got int64"),
        (["--column", "txt"], 1, "in.parquet: there is no column 'txt'; did you mean 'text'?"),
        (["--keep", "nothing"], 1, "in.parquet: there is no column 'nothing'"),
        (["--dim", "9"], 1, "model: dim must be at most 6 for this model, got 9"),
        (["--model", "missing"], 1, "missing: no such folder; nothing is downloaded"),
        (["--out", "o.txt"], 1, "o.txt: name must end in .parquet"),
        (["--keep", "text_vector"], 2, "must differ; see --name"),
        (["--max-length", "0"], 2, "0 is not in the range"),
        (["--out", "o.npy", "--keep", "id"], 2, "OUT is a .npy file, of vectors alone"),
        (["--out", "o.npy", "--null-empty"], 2, "OUT is a .npy file, of vectors alone"),
    ],
)
def test_errors(options, status, message, model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "in.parquet")
    before = sorted(tmp_path.iterdir())
    arguments = ["--column", "text", "--model", "model", "--out", "o.parquet", *options]
    printed = run(capsys, "embed", "in.parquet", *arguments, status=status)
    assert message in " ".join(printed.err.split())
    assert sorted(tmp_path.iterdir()) == before


def test_a_file_of_ids(model, tmp_path, capsys):
    np.save(tmp_path / "in.npy", np.zeros((2, 2), int))
    arguments = ["--column", "text", "--model", model, "--out", tmp_path / "o.parquet"]
    printed = run(capsys, "embed", tmp_path / "in.npy", *arguments, status=2)
    assert "IN must have a column of texts, got a .npy file" in " ".join(printed.err.split())


def test_failures_while_encoding(model, tmp_path, capsys):
    """A tokenizer that fails, in its Rust code; and a model with a table that is too small."""
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"] = {"type": "FixedLength", "length": 0}
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    source, target = save(tmp_path / "in.parquet"), tmp_path / "o.parquet"
    arguments = ["--column", "text", "--model", model, "--out", target]
    printed = run(capsys, "embed", source, *arguments, status=1).err.splitlines()[-1]
    assert printed.startswith(f"embag embed: error: {source}: column 'text', from row 0 on: ")
    assert "tokenizer must encode texts[0:" in printed
    save_tensors(model / "model.safetensors", embeddings=np.ones((2, 2), np.float32))
    printed = run(capsys, "embed", source, *arguments, status=1).err
    assert f"{model}: table must have a row for each of the 8 tokens, got 2 rows" in printed
    assert not target.exists()


def test_a_missing_extra_is_named(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    monkeypatch.delitem(sys.modules, "embag.text")
    arguments = ["--column", "text", "--model", model, "--out", tmp_path / "o.parquet"]
    printed = run(capsys, "embed", save(tmp_path / "in.parquet"), *arguments, status=1).err
    assert "embag.text needs tokenizers: pip install 'embag-cpu[text]'" in printed
