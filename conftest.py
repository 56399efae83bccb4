"""What of embag/ can be collected."""

import importlib.util

# By module, what it takes to import it and to run its examples.
NEEDS = {
    "embag/torch.py": ["torch"],
    "embag/polars.py": ["polars", "nanoarrow"],
    "embag/pandas.py": ["pandas", "pyarrow", "nanoarrow"],
}

collect_ignore = [
    module for module, needs in NEEDS.items() if not all(map(importlib.util.find_spec, needs))
]
