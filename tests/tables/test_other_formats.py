"""Tables in other formats: the error names the format and how to convert it, and that works."""

import os
import re
import struct
import zipfile

import numpy as np
import pytest

import embag

TABLE = np.random.default_rng(0).standard_normal((4, 12)).astype(np.float32)
WORDS = ["the", "of", "été", "x"]


def write_npz(path):
    np.savez(path, weight=TABLE, bias=TABLE[0])


def write_npy(path):
    with open(path, "wb") as file:
        np.save(file, TABLE)


def write_safetensors(path):
    embag.save_table(f"{path}.safetensors", TABLE)
    os.rename(f"{path}.safetensors", path)


def as_text(end):
    lines = [f"{word} {' '.join(map(repr, row.tolist()))}{end}" for word, row in zip(WORDS, TABLE)]  # noqa: B905
    return "\n".join([*lines, ""]).encode()


def write_text(path):
    path.write_bytes(b"4 12\n" + as_text(""))


def write_fasttext_text(path):
    path.write_bytes(b"4 12\n" + as_text(" "))  # fastText ends lines with a space


def write_glove(path):
    path.write_bytes(as_text(""))


def write_binary(path):
    rows = [f"{w} ".encode() + row.tobytes() for w, row in zip(WORDS, TABLE, strict=True)]
    path.write_bytes(b"4 12\n" + b"".join(rows))


def write_gguf(path):
    """Write a file of one tensor of float32, as the format defines it."""

    def text(value):
        return struct.pack("<Q", len(value)) + value.encode()

    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 1)
    head += text("general.architecture") + struct.pack("<I", 8) + text("none")
    head += text("token_embd.weight") + struct.pack("<I", 2) + struct.pack("<QQ", *TABLE.T.shape)
    head += struct.pack("<IQ", 0, 0)
    path.write_bytes(head + b"\0" * (-len(head) % 32) + TABLE.tobytes())


def write_fasttext_model(path):
    path.write_bytes((793712314).to_bytes(4, "little") + b"\0" * 100)


WRITERS = {
    "model.npz": (write_npz, r", an \.npz archive of 'weight', 'bias': read one of them by `table"),
    "blob": (write_npy, r", which has the content of a \.npy file: rename it to end in \.npy$"),
    "model": (
        write_safetensors,
        r", which has the content of a \.safetensors file: rename it to end in \.safetensors$",
    ),
    "words.vec": (write_text, r", a file of word vectors: .*_format\(path\)\.vectors`"),
    "wiki.vec": (write_fasttext_text, r", a file of word vectors: .*_format\(path\)\.vectors`"),
    "glove.txt": (write_glove, r", a file of word vectors: .*\(path, no_header=True\)"),
    "words.bin": (write_binary, r", a file of word vectors: .*\(path, binary=True\)"),
    "model.gguf": (write_gguf, r", a GGUF file: read a tensor with the package gguf, by `t = "),
    "cc.en.bin": (write_fasttext_model, r", a fastText model: read it with the package gensim"),
}


def load_error(path):
    with pytest.raises(
        ValueError, match=r"^path must end in \.npy or \.safetensors, got "
    ) as error:
        embag.load_table(path)
    return str(error.value)


@pytest.mark.parametrize("name", WRITERS)
def test_the_error_names_the_format(name, tmp_path):
    write, message = WRITERS[name]
    write(tmp_path / name)
    assert re.search(rf"got '.*{re.escape(name)}'{message}", load_error(tmp_path / name))


# gensim leaves a file open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", sorted(set(WRITERS) - {"blob", "model", "cc.en.bin"}))
def test_the_lines_of_the_error_convert_the_file(name, tmp_path, monkeypatch):
    WRITERS[name][0](tmp_path / name)
    lines = re.findall(r"`(.*?)`", load_error(tmp_path / name))
    names = {"np": np, "embag": embag, "path": str(tmp_path / name)}
    for package in ("gensim", "gguf"):
        if any(package in line for line in lines):
            names[package] = pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    for line in lines:
        exec(line, names)
    np.testing.assert_allclose(embag.load_table("table.npy"), TABLE, rtol=1e-6)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"GGU",
        b"PK\x03\x04" + b"\0" * 100,
        b"1 2\n",
        b"4 12\nthe 1 2\n",
        b"0 0\nx",
        b"a b c\n1 2 3\n",
        b"\xff" * 100,
    ],
)
def test_other_content_is_not_explained(content, tmp_path):
    (tmp_path / "t.bin").write_bytes(content)
    assert load_error(tmp_path / "t.bin").endswith("t.bin'")


def test_archives_without_arrays_pipes_and_folders_are_not_explained(tmp_path):
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        archive.writestr("data.pkl", "")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("model.pt", "folder", "pipe", "missing"):
        assert load_error(tmp_path / name).endswith(f"{name}'")
