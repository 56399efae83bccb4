"""The recipe for jax, as it stands in docs/recipes.md, gives jax's own results."""

import re
from pathlib import Path

import numpy as np
import pytest

jax = pytest.importorskip("jax")

RECIPES = Path(__file__).parents[2] / "docs" / "recipes.md"


def test_the_recipe():
    if not RECIPES.exists():
        pytest.skip("a copy of the tests, without the repository")
    (code,) = re.findall(r"```python\n(import jax, jax.*?)```", RECIPES.read_text(), re.S)
    found = {}
    exec(code, found)
    table = jax.numpy.arange(24.0).reshape(6, 4) / 7
    ids = jax.numpy.array([[1, 2, 2], [0, 5, 1]])

    def loss(pool, table):
        return (pool(ids, table) ** 2).sum()

    def plain(ids, table):
        return table[ids].sum(axis=1)

    for pool in (found["embedding_bag"], jax.jit(found["embedding_bag"])):
        np.testing.assert_allclose(pool(ids, table), plain(ids, table), rtol=1e-6)
        grad = jax.jit(jax.grad(lambda table, pool=pool: loss(pool, table)))(table)
        expected = jax.grad(lambda table: loss(plain, table))(table)
        np.testing.assert_allclose(grad, expected, rtol=1e-5)
