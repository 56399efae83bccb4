"""Rows of a `QuantizedTable`, and ids and offsets of a lookup."""

import numpy as np

import embag

from ..table_cases import check_quantized
from .choices import ByteChoices


def run(data):
    choices = ByteChoices(data)
    bits, layout = choices.choice([8, 4, 2, 3]), choices.choice(["fused", "tbe"])
    dim, n_bytes = choices.randint(-1, 300), choices.randint(0, 320)
    bits_of_ids = choices.choice([8, 64])
    n_ids, n_bags = choices.randint(0, 20), choices.randint(0, 6)
    ids = np.array([choices.getrandbits(bits_of_ids) for _ in range(n_ids)], "u8").view("i8")
    offsets = np.array([choices.getrandbits(8) for _ in range(n_bags)], "u1").view("i1")
    is_sound = choices.choice([True, False])
    mode = choices.choice(["sum", "mean", "sqrtn", "max", "min"])
    rows = np.frombuffer(choices.rest(4000), np.uint8)
    rows = rows[: len(rows) // max(1, n_bytes) * n_bytes].reshape(-1, n_bytes or 1)
    try:
        table = embag.QuantizedTable.from_packed(rows, bits, dim, layout)
    except ValueError:
        return "refused"
    check_quantized(table)
    if is_sound:
        ids = ids % max(1, len(table)) if len(table) else ids[:0]
        offsets = np.sort(np.append(0, offsets % (len(ids) + 1)))
    try:
        embag.embedding_bag(ids, table, offsets, mode=mode)
    except (ValueError, IndexError) as error:
        assert not is_sound
        return type(error).__name__
    return "looked up"
