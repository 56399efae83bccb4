"""The recipes of docs/recipes.md for torch and JAX: their results are those of the libraries."""

from pathlib import Path

import numpy as np
import pytest

PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"


def run_recipe(heading):
    """Run the code of a section, and return what it defines."""
    section = PAGE.read_text("utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    names = {}
    for block in section.split("```python\n")[1:]:
        exec(block.split("```")[0], names)
    return names


@pytest.mark.torch
def test_torch():
    torch = pytest.importorskip("torch")
    names = run_recipe("torch")
    expected = names["model"](torch.tensor([[1, 2], [3, 4]])).detach()
    assert torch.equal(names["result"], expected)
    assert names["table"].data_ptr() == names["model"].weight.data_ptr()


@pytest.fixture(scope="module")
def jax():
    return pytest.importorskip("jax")


@pytest.fixture(scope="module")
def recipe(jax):
    return run_recipe("JAX")


def of_jax(table, ids):
    return table[ids].mean(axis=1)


def cases(jax):
    keys = jax.random.split(jax.random.key(0), 2)
    table = jax.random.normal(keys[0], (50, 6))
    return table, jax.random.randint(keys[1], (8, 5), 0, 50)


@pytest.mark.parametrize("compiled", [False, True])
def test_values_and_gradients_of_jax(jax, recipe, compiled):
    wrap = jax.jit if compiled else lambda function: function
    table, ids = cases(jax)
    values = wrap(recipe["mean_of_rows"])(table, ids)
    np.testing.assert_allclose(values, of_jax(table, ids), rtol=1e-5, atol=1e-6)

    def gradient_of(function):
        return wrap(jax.value_and_grad(lambda table: (function(table, ids) ** 2).sum()))

    value, grad = gradient_of(recipe["mean_of_rows"])(table)
    expected, expected_grad = gradient_of(of_jax)(table)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(grad, expected_grad, rtol=1e-5, atol=1e-6)


def test_a_table_outside_of_jax(jax, recipe):
    _, ids = cases(jax)
    expected = of_jax(recipe["table"].dequantize(), ids)
    values = jax.jit(recipe["look_up"])(ids)
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6)
