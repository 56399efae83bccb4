"""What of embag/ can be collected."""

from importlib.util import find_spec

# By module or folder, what it takes to import it and to run its examples.
NEEDS = {
    "embag/cli": ["click", "rich", "pyarrow"],
    "embag/torch.py": ["torch"],
    "embag/polars.py": ["polars", "nanoarrow"],
    "embag/pandas.py": ["pandas", "pyarrow", "nanoarrow"],
}

collect_ignore = [part for part, needs in NEEDS.items() if not all(map(find_spec, needs))]
