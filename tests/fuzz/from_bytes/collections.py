"""A folder for `EmbeddingBagCollection.load`: an index, a zero byte, and the file of a table.

The index may name that file, table.safetensors, and a sound one, sound.npy.
"""

import functools
import shutil

import numpy as np

import embag

from ..file_cases import folder
from .files import attempt, join, read_all_rows, write

SOUND = np.arange(12, dtype=np.float32).reshape(4, 3)


@functools.cache
def sound_collection():
    return embag.EmbeddingBagCollection({"t": SOUND}, [embag.Feature("f", "t")])


def run(data):
    index, _, table = data.partition(b"\0")
    place = folder() / "collection"
    shutil.rmtree(place, ignore_errors=True)
    write("collection/embag-collection.json", index)
    write("collection/table.safetensors", table)
    embag.save_table(place / "sound.npy", SOUND)
    ends = []
    for options in ({}, {"memory": "copy"}, {"verify": True}):
        try:
            ebc, end = attempt(place, embag.EmbeddingBagCollection.load, place, **options)
        except (FileNotFoundError, IsADirectoryError) as error:  # as the index may name any file
            assert str(place) in str(error)
            ebc, end = None, type(error).__name__
        if ebc is not None:
            look_up(ebc)
        ends.append(end)
    # A save deletes the files of the save before, but none that the index names falsely.
    sound_collection().save(place)
    assert (place / "table.safetensors").read_bytes() == table
    assert (place / "sound.npy").exists()
    return join(ends)


def look_up(ebc):
    """Look up nothing, and two ids of each table."""
    for table in ebc.tables.values():
        read_all_rows(table)
    if ebc.dim > 10**4:
        return
    for n_ids in (0, 2):
        values = {
            feature.name: first_ids(ebc.tables[feature.table], n_ids) for feature in ebc.features
        }
        try:
            ebc(values)
        except IndexError:  # a table without rows, or an id without a row
            assert n_ids > 0


def first_ids(table, n):
    return np.full((1, n), getattr(table, "first_id", 0))
