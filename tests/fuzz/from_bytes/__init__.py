"""Targets: each makes calls from bytes, and checks how they end.

    cases         the bytes choose a case of calls.py
    tables        a file, for `load_table`, and a lookup of all rows
    checkpoints   a file, for `load_checkpoint`, and a step of each optimizer
    collections   an index and a file of a table, for `EmbeddingBagCollection.load`
    models        the files of a folder, for `StaticModel.from_folder`
    commands      a file of ids, for `embag pool` and `embag info`
    packed        rows of a `QuantizedTable`, and ids and offsets of a lookup

A target is the function `run` of its module. It returns how the bytes ended, and raises for
anything that is not documented. It needs no atheris, so each input of `corpus/` means the same
in the tests, for atheris and on OSS-Fuzz.

    __main__.py   run inputs: those of the corpus, or files such as a crash that atheris wrote
    guided.py     find new inputs by coverage (make fuzz-coverage)
    atheris_driver.py   one target under atheris
    choices.py    bytes as the choices of a random generator
    files.py      what targets of files share
"""

import importlib
import tempfile
from importlib.util import find_spec
from pathlib import Path

# The packages that each target needs.
TARGETS = {
    "cases": ["ml_dtypes", "scipy"],
    "tables": ["ml_dtypes"],
    "checkpoints": ["ml_dtypes"],
    "collections": ["ml_dtypes"],
    "models": ["ml_dtypes", "tokenizers"],
    "commands": ["click", "ml_dtypes", "pyarrow", "rich"],
    "packed": ["ml_dtypes"],
}
CORPUS = Path(__file__).parents[1] / "corpus"


def load(name):
    """Return the function of a target."""
    return importlib.import_module(f".{name}", __name__).run


def prepare(name, folder):
    """Prepare the process for a target, which writes its files to this folder."""
    from ..child import MEMORY, prepare_process  # noqa: PLC0415  # it imports embag

    tempfile.tempdir = folder
    # pyarrow's threads reserve 2 GB of addresses, and each damaged .gz file makes pyarrow 26 leak
    # 4 MB of them.
    prepare_process(eager=False, memory=-1 if name == "commands" else MEMORY)


def missing_packages(name):
    return [package for package in TARGETS[name] if find_spec(package) is None]
