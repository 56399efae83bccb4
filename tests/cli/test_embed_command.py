"""`embag embed`: texts to vectors, file to file."""

import json

import numpy as np
import pytest
from command_line import pa, read, run

pytest.importorskip("tokenizers")
pytest.importorskip("safetensors")

import pyarrow.parquet as pq
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from embag.text import StaticModel

TEXTS = ["blue sky", None, "", "green", "sky sky blue"]


def vectors(column, dim):
    """Return a column as an array; nulls are zeros. In Parquet, lists with nulls vary in size."""
    return np.array([[0] * dim if row is None else row for row in column.to_pylist()], np.float32)


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    made = Tokenizer(models.WordLevel({"[UNK]": 0, "blue": 1, "sky": 2}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(folder / "tokenizer.json"))
    table = np.arange(12, dtype=np.float32).reshape(3, 4)
    save_file({"embeddings": table}, folder / "model.safetensors")
    return folder


@pytest.fixture
def source(tmp_path):
    pq.write_table(pa.table({"id": range(5), "text": TEXTS}), tmp_path / "in.parquet")
    return tmp_path / "in.parquet"


@pytest.mark.parametrize("out", ["out.parquet", "out.arrow", "out.npy"])
def test_formats(out, source, model, tmp_path, capsys):
    arguments = ["--column", "text", "--model", model, "--out", tmp_path / out, "--json"]
    keep = [] if out.endswith(".npy") else ["--keep", "id"]
    printed = run(capsys, "embed", source, *arguments, *keep)
    summary = json.loads(printed.out)
    assert (summary["rows"], summary["dim"], summary["library"]) == (5, 4, "model2vec")
    expected = StaticModel.from_folder(model).encode([text or "" for text in TEXTS])
    if out.endswith(".npy"):
        np.testing.assert_array_equal(np.load(tmp_path / out), expected)
        return
    table = read(tmp_path / out)
    assert table.column_names == ["id", "text_vector"]
    assert table["text_vector"].is_null().to_pylist() == [False, True, False, False, False]
    np.testing.assert_array_equal(vectors(table["text_vector"], 4), expected)


def test_options_and_the_summary(tmp_path, model, capsys):
    (tmp_path / "in.csv").write_text("text\nblue sky\nsky\n")
    arguments = ["--column", "text", "--model", model, "--out", tmp_path / "o.parquet"]
    options = ["--name", "v", "--max-length", "1", "--normalize", "--dim", "3"]
    printed = run(capsys, "embed", tmp_path / "in.csv", *arguments, *options)
    assert printed.out.startswith(f"2 rows -> {tmp_path / 'o.parquet'}, ")
    expected = StaticModel.from_folder(model, dim=3).encode(
        ["blue sky", "sky"], max_length=1, normalize=True
    )
    np.testing.assert_array_equal(vectors(read(tmp_path / "o.parquet")["v"], 3), expected)


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--column", "id"], 1, "column 'id' must hold texts, got int64"),
        (["--column", "txt"], 1, "there is no column 'txt'; did you mean 'text'?"),
        (["--column", "text", "--dim", "9"], 1, "dim must be at most 4, got 9"),
        (["--column", "text", "--model", "missing"], 1, "path must be a folder"),
        (["--column", "text", "--keep", "text_vector"], 2, "must differ; see --name"),
        (["--column", "text", "--max-length", "0"], 2, "0 is not in the range"),
    ],
)
def test_errors(options, status, message, source, model, tmp_path, capsys):
    arguments = ["--model", model, "--out", tmp_path / "o.parquet", *options]
    printed = run(capsys, "embed", source, *arguments, status=status)
    assert message in " ".join(printed.err.split())
    assert not (tmp_path / "o.parquet").exists()
