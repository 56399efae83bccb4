"""Checksums of .safetensors files: `verify=True` finds any changed byte."""

import numpy as np
import pytest

import embag

ROWS = np.random.default_rng(0).standard_normal((20, 6)).astype(np.float32)
TABLES = {
    "floats": ROWS,
    "quantized": embag.quantize(ROWS),
    "remapped": embag.RemappedTable(ROWS, index_map=[3, -1, 5], scales=[1, 2, 3]),
    "empty": ROWS[:0],
}


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
@pytest.mark.parametrize("memory", ["map", "copy"])
def test_a_changed_byte_is_found(table, memory, tmp_path):
    path = tmp_path / "table.safetensors"
    embag.save_table(path, table)
    loaded = embag.load_table(path, memory, verify=True)
    ids = np.arange(min(len(table), 3))
    np.testing.assert_array_equal(embag.embedding(ids, loaded), embag.embedding(ids, table))
    content = path.read_bytes()
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=r"table\.safetensors: "):
            embag.load_table(path, memory, verify=True)


def test_a_file_that_is_quantized_while_it_is_written(tmp_path):
    path = tmp_path / "table.safetensors"
    embag.save_table(path, ROWS, bits=4)
    assert embag.load_table(path, verify=True).bits == 4
    embag.save_table(path, ROWS[:0], bits=4)
    assert len(embag.load_table(path, verify=True)) == 0


def damage(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGED = "bytes must have the checksum [0-9a-f]{8}, got [0-9a-f]{8}: the file is damaged"


def test_checkpoints(tmp_path):
    path = tmp_path / "training.safetensors"
    embag.save_checkpoint(path, {"item": embag.optim.Adagrad(ROWS.copy())}, metadata={"epoch": 1})
    items, metadata = embag.load_checkpoint(path, return_metadata=True, verify=True)
    assert metadata == {"epoch": 1}
    np.testing.assert_array_equal(items["item"].table, ROWS)
    damage(path)
    embag.load_checkpoint(path)
    with pytest.raises(ValueError, match=DAMAGED):
        embag.load_checkpoint(path, verify=True)


def test_collections(tmp_path):
    ebc = embag.EmbeddingBagCollection({"items": ROWS}, [embag.Feature("bought", "items")])
    ebc.save(tmp_path)
    embag.EmbeddingBagCollection.load(tmp_path, verify=True)
    damage(next(tmp_path.glob("items-*")))
    embag.EmbeddingBagCollection.load(tmp_path)
    with pytest.raises(ValueError, match=DAMAGED):
        embag.EmbeddingBagCollection.load(tmp_path, verify=True)


def test_files_without_a_checksum(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "table.safetensors"
    safetensors.save_file({"weight": ROWS}, path)
    embag.load_table(path)
    with pytest.raises(ValueError, match="file must have a checksum to be verified, got none"):
        embag.load_table(path, verify=True)
    embag.save_table(tmp_path / "table.npy", ROWS)
    with pytest.raises(ValueError, match=r"verify must be False for a \.npy file"):
        embag.load_table(tmp_path / "table.npy", verify=True)
    with pytest.raises(TypeError, match="verify must be"):
        embag.load_table(path, verify=1)


def test_other_libraries_read_the_file(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    embag.save_table(tmp_path / "table.safetensors", ROWS)
    loaded = safetensors.load_file(tmp_path / "table.safetensors")
    np.testing.assert_array_equal(loaded["weight"], ROWS)
