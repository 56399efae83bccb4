"""What targets of files share."""

import numpy as np

import embag

from ..file_cases import folder
from ..lookup_cases import MOST
from ..table_cases import check_quantized


def write(name, data):
    """Write a file and return its path."""
    path = folder() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # an existing map keeps the old file
    path.write_bytes(data)
    return path


def attempt(path, function, *arguments, **options):
    """Return the result of a call and "loaded", or None and how the file is refused."""
    try:
        return function(*arguments, **options), "loaded"
    except ValueError as error:
        message = str(error)
        assert str(path) in message, f"the error does not name the file: {error!r}"
        # Others' messages, which follow, vary with their versions.
        rule = message.replace(f"{folder()}/", "").partition(", got")[0]
        return None, f"refused: {rule}"


def join(ends):
    """Return the different ends of several calls as one text."""
    return "; ".join(dict.fromkeys(ends))


def read_all_rows(table):
    """Look up all rows of a table, unless it is too large."""
    n_rows, dim = table.shape
    if isinstance(table, embag.QuantizedTable) and table.scales is None:
        check_quantized(table)
    if max(n_rows, dim) > MOST:
        return
    ids = np.arange(n_rows) + getattr(table, "first_id", 0)
    # The map of a RemappedTable may leave out ids.
    for mode in ("sum", "max"):
        result = embag.embedding_bag(ids[:, None], table, mode=mode, invalid="skip")
        assert result.shape == (n_rows, dim)
