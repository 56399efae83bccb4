"""Collect the doctests of the modules in embag/ whose dependencies are installed."""

from importlib.util import find_spec

# Packages that the import or the examples of a module or folder need.
NEEDS = {
    "embag/cli": ["click", "rich", "pyarrow"],
    "embag/torch": ["torch"],
    "embag/sklearn.py": ["sklearn"],
    "embag/text.py": ["tokenizers", "safetensors"],
    "embag/polars.py": ["polars", "nanoarrow"],
    "embag/pandas.py": ["pandas", "pyarrow", "nanoarrow"],
}

collect_ignore = [part for part, needs in NEEDS.items() if not all(map(find_spec, needs))]
