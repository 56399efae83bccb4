"""Other formats of tables: recognized by content, so that an error can say how to convert them.

embag does not read them, because NumPy and other packages do.

Tested in tests/tables/test_other_formats.py.
"""

import os
import re
import zipfile
from collections.abc import Callable

_HEAD = 1 << 16  # bytes that are read
_NUMBER = rb"[+-]?[0-9][0-9.eE+-]*"
_FASTTEXT = (793712314).to_bytes(4, "little")
_SAVE = "save it by `embag.save_table('table.npy', table)`"


def explain(path: str) -> str:
    """Return how to convert a file of another format, as the end of a sentence; "" if unknown."""
    if not os.path.isfile(path):  # reading a pipe might block forever
        return ""
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return ""
    return next((hint for hint in (read(head, path) for read in _FORMATS) if hint), "")


def _explain_suffix(head: bytes, path: str) -> str:
    suffix = ".npy" if head.startswith(b"\x93NUMPY") else ""
    if re.match(rb'.{3}\0{5}\{\s*"', head, re.DOTALL):
        suffix = ".safetensors"
    return suffix and f", which has the content of a {suffix} file: rename it to end in {suffix}"


def _explain_npz(head: bytes, path: str) -> str:
    if not head.startswith(b"PK\x03\x04"):
        return ""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [name for name in archive.namelist() if name.endswith(".npy")]
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        members = []
    if not members:
        return ""
    names = [repr(name.removesuffix(".npy")[:40]) for name in members[:5]]
    listed = ", ".join([*names, *["..."][: len(members) > 5]])
    return (
        f", an .npz archive of {listed}: "
        f"read one of them by `table = np.load(path)[{names[0]}]`, and {_SAVE}"
    )


def _explain_gguf(head: bytes, path: str) -> str:
    if not head.startswith(b"GGUF"):
        return ""
    return (
        ", a GGUF file: read a tensor with the package gguf, by `t = {t.name: t for t in "
        "gguf.GGUFReader(path).tensors}['token_embd.weight']` and "
        f"`table = gguf.dequantize(t.data, t.tensor_type)`, and {_SAVE}"
    )


def _explain_fasttext(head: bytes, path: str) -> str:
    if not head.startswith(_FASTTEXT):
        return ""
    return (
        ", a fastText model: read it with the package gensim, by "
        f"`table = gensim.models.fasttext.load_facebook_vectors(path).vectors`, and {_SAVE}"
    )


def _explain_words(head: bytes, path: str) -> str:
    """Recognize the word vectors of word2vec, fastText and GloVe."""
    options = None
    sizes = re.match(rb"([0-9]{1,18}) ([0-9]{1,18})\r?\n(?=\S)", head)
    first = re.match(rb"\S+((?: %b)+) *\r?\n" % _NUMBER, head[sizes.end() if sizes else 0 :])
    n_numbers = len(first[1].split()) if first else 0
    if sizes is None:
        if n_numbers >= 10:  # fewer might be any table of text
            options = ", no_header=True"
    elif n_numbers == int(sizes[2]) > 0:
        options = ""
    elif os.path.getsize(path) > int(sizes[1]) * int(sizes[2]) * 4 > 0:
        options = ", binary=True"
    if options is None:
        return ""
    return (
        ", a file of word vectors: read it with the package gensim, by "
        f"`table = gensim.models.KeyedVectors.load_word2vec_format(path{options}).vectors`, "
        f"and {_SAVE}"
    )


_FORMATS: list[Callable[[bytes, str], str]] = [
    _explain_suffix,
    _explain_npz,
    _explain_gguf,
    _explain_fasttext,
    _explain_words,
]
