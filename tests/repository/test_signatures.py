"""Signatures of public functions fit a screen in `help`, and their annotations resolve."""

import importlib
import inspect
import typing

import pytest

import embag
from embag import quantized
from embag._kernels.dispatch import kernels
from embag._modes import MODES, ModeName

A_SCREEN = 900  # characters


def members(value, name):
    """Yield the names and functions of a function, or of a class: its constructor and methods."""
    yield name, value
    for key, member in vars(value).items() if inspect.isclass(value) else ():
        function = getattr(member, "fget", getattr(member, "__func__", member))
        if inspect.isfunction(function) and (key == "__call__" or key[0] != "_"):
            yield f"{name}.{key}", function


def functions(module, names):
    values = {name: getattr(module, name) for name in names}
    return {
        key: function
        for name, value in values.items()
        if callable(value)
        if not (inspect.isclass(value) and issubclass(value, Exception))
        for key, function in members(value, name)
    }


PUBLIC = functions(embag, embag.__all__) | functions(quantized, ["row_bytes"])


def check(name, function):
    signature = str(inspect.signature(function))
    assert len(signature) <= A_SCREEN, name
    assert "ForwardRef" not in signature, name
    typing.get_type_hints(function)
    assert inspect.getdoc(function), name


def test_functions_are_found():
    assert {
        "embedding_bag",
        "embedding_bag_backward",
        "quantize",
        "save_table",
        "row_bytes",
        "EmbeddingBag.forward",
        "EmbeddingBagCollection.__call__",
        "EmbeddingBagCollection.tables",
        "QuantizedTable.from_packed",
    } <= set(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_signature(name):
    check(name, PUBLIC[name])


@pytest.mark.parametrize("name", ["torch", "polars", "pandas"])
def test_signatures_of_a_bridge(name):
    try:
        bridge = importlib.import_module(f"embag.{name}")
    except ImportError:
        pytest.skip(f"embag.{name} needs an extra")
    for key, function in functions(bridge, bridge.__all__).items():
        check(key, function)


def test_the_type_of_modes_names_them_all():
    assert set(typing.get_args(ModeName)) == set(MODES) == set(kernels.MODE_CODES)
