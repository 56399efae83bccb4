"""`replace_embeddings`: embag's layers inside a model of torch.

A layer stays the same object and gets another class, as torch does it for parametrizations. So
its parameter, its hooks, and references to it stay, and an optimizer goes on with it.

Tested in tests/bridges/test_replacing_layers.py.
"""

from typing import Any, Literal

import torch

from embag._arguments import describe, prefix_errors
from embag.quantized import QuantizedTable
from embag.torch._layers import EmbeddingBag
from embag.torch._layers_of_models import Layer, find_layers
from embag.torch._quantized_layers import QuantizedEmbedding, QuantizedEmbeddingBag
from embag.torch._report import ConversionReport, ConvertedTable
from embag.torch._tables_of_layers import check_bits, convert_rows


def replace_embeddings(
    model: torch.nn.Module, bits: Literal[8, 4, 2] | None = None
) -> ConversionReport:
    """Make the embedding layers of a model embag's, in place.

    Parameters
    ----------
    model : torch.nn.Module
        The model, which changes.
    bits : {8, 4, 2}, optional
        Without it, each ``torch.nn.EmbeddingBag`` becomes an `EmbeddingBag` with the same
        parameter, for inference or training. The state dict and its keys stay the same. With it,
        each ``torch.nn.EmbeddingBag`` and ``torch.nn.Embedding`` gets rows of this number of bits,
        for inference.

    Returns
    -------
    ConversionReport
        The tables with their bytes and errors, what was left as it is, and why.

    Raises
    ------
    TypeError
        If an argument has the wrong kind.
    ValueError
        If `bits` is unknown, or a table cannot be quantized to it (see `embag.quantize`). Nothing
        has changed then.

    See Also
    --------
    to_collection : Take the embeddings out of the model, for a service without torch.

    Notes
    -----
    A layer stays the same object, so optimizers, hooks and references to it stay valid. Only layers
    of torch's own classes on the CPU are replaced.

    With `bits`, the state dict has the buffer "packed" instead of "weight". To load it, apply
    `replace_embeddings` with the same `bits` to a new model first. The rows have no gradient; the
    rest of the model can be trained. Rows are scaled to `max_norm` before they are quantized.
    Layers that shared a weight share the buffer.

    Examples
    --------
    >>> import torch
    >>> import embag.torch
    >>> model = torch.nn.Sequential(torch.nn.EmbeddingBag(100, 8), torch.nn.Linear(8, 1))
    >>> report = embag.torch.replace_embeddings(model)
    >>> type(model[0])
    <class 'embag.torch._layers.EmbeddingBag'>
    >>> report = embag.torch.replace_embeddings(model, bits=8)
    >>> model[0]
    QuantizedEmbeddingBag(100, 8, bits=8, mode='mean')
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {describe(model)}")
    check_bits(bits, "bits")
    if bits is None:
        return _replace(model)
    return _quantize(model, bits)


def _replace(model: torch.nn.Module) -> ConversionReport:
    """Make bags embag's, with the same parameters."""
    layers, left = _find(model, {torch.nn.EmbeddingBag})
    for layer in layers:
        layer.module.__class__ = EmbeddingBag
    return ConversionReport(tuple(map(_unchanged, layers)), left, {})


def _unchanged(layer: Layer) -> ConvertedTable:
    rows: Any = layer.rows
    dtype = str(rows.dtype).removeprefix("torch.")
    sizes = dtype, dtype, rows.nbytes, rows.nbytes
    return ConvertedTable(layer.path, (layer.path,), tuple(rows.shape), *sizes, error=None)


def _quantize(model: torch.nn.Module, bits: int) -> ConversionReport:
    """Give layers rows of few bits."""
    layers, left = _find(model, {torch.nn.EmbeddingBag, torch.nn.Embedding, EmbeddingBag})
    sharing: dict[Any, list[Layer]] = {}
    for layer in layers:
        sharing.setdefault(layer.key, []).append(layer)
    converted = []
    for group in sharing.values():
        with prefix_errors(f"table {group[0].path!r}"):
            converted.append(convert_rows(group[0], bits))
    lines = []
    for group, rows in zip(sharing.values(), converted, strict=True):
        table: Any = rows.table
        packed = torch.from_numpy(table.packed)
        for layer in group:
            _set_table(layer.module, table, packed)
        lines.append(rows.report(group[0].path, tuple(layer.path for layer in group)))
    return ConversionReport(tuple(lines), left, {})


def _set_table(module: Any, table: QuantizedTable, packed: torch.Tensor) -> None:
    dtype = module.weight.dtype
    if isinstance(module, torch.nn.Embedding):
        module.__class__ = QuantizedEmbedding
    else:
        for name in ("default_idx", "invalid", "normalize"):
            setattr(module, name, getattr(module, name, getattr(EmbeddingBag, name)))
        module.__class__ = QuantizedEmbeddingBag
    del module.weight
    module.set_table(table, packed, dtype)


def _find(model: torch.nn.Module, classes: set[type]) -> tuple[list[Layer], dict[str, str]]:
    """Return the layers of some classes, each object once, and why others stay."""
    found, left = find_layers(model)
    layers: dict[int, Layer] = {}
    for layer in found:
        reason = _why_not_replaced(layer, classes)
        if reason is None:
            layers.setdefault(id(layer.module), layer)
        elif reason:
            left[layer.path] = reason
    return list(layers.values()), left


def _why_not_replaced(layer: Layer, classes: set[type]) -> str | None:
    """Return why a layer stays as it is, "" if it is embag's already; None if it is replaced."""
    module: Any = layer.module
    kind = type(module)
    if isinstance(module, QuantizedEmbedding):
        return "its rows are quantized already"
    if kind is EmbeddingBag and kind not in classes:
        return ""
    if kind is torch.nn.Embedding and kind not in classes:
        return "it has no bags: only its rows can be replaced, by bits=8, 4 or 2"
    if kind not in classes:
        return f"it is a {kind.__module__}.{kind.__name__}"
    if getattr(module, "optimizer", None) is not None:
        return "it has an optimizer"
    if not module.weight.is_cpu:
        return f"its weight is on {module.weight.device}"
    return None
