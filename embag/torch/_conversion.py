"""`to_collection`: the embeddings of a model as an `EmbeddingBagCollection`.

Tested in tests/bridges/test_models_as_collections.py and test_torchrec.py.
"""

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any, Literal, TypeAlias

import torch

from embag._arguments import describe, prefix_errors
from embag._types import Table
from embag.collection import EmbeddingBagCollection, Feature
from embag.torch._layers_of_models import Layer, find_layers
from embag.torch._report import ConversionReport
from embag.torch._tables_of_layers import check_bits, convert_rows

Bits: TypeAlias = Literal[8, 4, 2, "float16"] | None


def to_collection(
    module: torch.nn.Module,
    bits: Bits = None,
    rules: Mapping[str, Bits] | Callable[[str], Bits] | None = None,
    *,
    invalid: Literal["raise", "skip"] = "raise",
) -> tuple[EmbeddingBagCollection, ConversionReport]:
    """Return the embeddings of a model as a collection.

    Parameters
    ----------
    module : torch.nn.Module
        The model. Its ``torch.nn.EmbeddingBag`` and ``torch.nn.Embedding`` are converted, those of
        embag, torch's quantized ones (``torch.ao.nn.quantized``), and the
        ``EmbeddingBagCollection`` and ``EmbeddingCollection`` of TorchRec.
    bits : {8, 4, 2, "float16", None}, optional
        The bits of an entry: see `embag.quantize`. None leaves tables of floats as they are.
        Tables that are quantized already stay as they are in any case.
    rules : mapping of str to bits, or callable, optional
        The bits of some tables, by their names. A mapping has names or patterns such as
        ``"user.*"`` as keys. The first that matches counts; where none does, `bits` counts. A
        callable takes the name of a table and returns its bits.
    invalid : {"raise", "skip"}, optional
        What the collection does with ids out of range.

    Returns
    -------
    collection : EmbeddingBagCollection
        A feature for each layer, with its mode and its `padding_idx`. Its name is the path of the
        layer in the model, such as "user.items", and "embedding" if the model is the layer itself.
        Features of TorchRec have TorchRec's names. Layers without bags are features of mode "none".
        Tables have the paths of their layers; layers that share a weight share a table, which has
        the path of the first.
    report : ConversionReport
        The tables with their bytes and errors, what was left as it is, and why.

    Raises
    ------
    TypeError
        If an argument has the wrong kind.
    ValueError
        If the model has no embeddings that can be converted, or two features of one name; if
        `bits` is unknown, or a table cannot be converted to it (see `embag.quantize`); if a key of
        `rules` matches no table.
    ImportError
        If a weight is of bfloat16 and ``ml_dtypes`` is not installed.

    See Also
    --------
    replace_embeddings : Use embag's layers inside a model of torch.
    embag.EmbeddingBagCollection.save : Save the collection, for a service without torch.

    Notes
    -----
    Without `bits`, tables share the memory of weights on the CPU, so the collection sees further
    training. Weights on other devices are copied. Results are float32.

    `max_norm`: the rows of the table are a copy, scaled as a lookup would scale them. `sparse` and
    `scale_grad_by_freq` concern training only. Hooks are not converted. The report has notes about
    `max_norm` and hooks.

    Examples
    --------
    >>> import torch
    >>> import embag.torch
    >>> model = torch.nn.ModuleDict(
    ...     {"user": torch.nn.EmbeddingBag(100, 8), "tags": torch.nn.EmbeddingBag(50, 4)}
    ... )
    >>> ebc, report = embag.torch.to_collection(model, bits=8, rules={"tags": None})
    >>> ebc({"user": [[1, 2]], "tags": [[3]]}).shape
    (1, 12)
    >>> [(table.name, table.after) for table in report.tables]
    [('user', '8 bits'), ('tags', 'float32')]
    """
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {describe(module)}")
    check_bits(bits, "bits", "float16")
    layers, left = find_layers(module)
    if not layers:
        reasons = "".join(f"; {path}: {reason}" for path, reason in left.items())
        raise ValueError(f"module must have embeddings that can be converted, got none{reasons}")
    features: dict[str, str] = {}
    for layer in layers:
        for name in layer.names:
            if name in features:
                raise ValueError(
                    f"features must have different names, got two of {name!r}, of "
                    f"{features[name]} and {layer.path}: convert these parts of the model by "
                    "themselves"
                )
            features[name] = layer.path
    sharing: dict[Any, list[Layer]] = {}
    for layer in layers:
        sharing.setdefault(layer.key, []).append(layer)
    bits_of = _apply_rules(rules, bits, [group[0].path for group in sharing.values()])
    tables: dict[str, Table] = {}
    lines = []
    for group in sharing.values():
        name = group[0].path
        with prefix_errors(f"table {name!r}"):
            rows = convert_rows(group[0], bits_of[name])
        tables[name] = rows.table
        lines.append(rows.report(name, tuple(one for layer in group for one in layer.names)))
    collection = EmbeddingBagCollection(
        tables,
        [
            _as_feature(name, sharing[layer.key][0].path, layer)
            for layer in layers
            for name in layer.names
        ],
        invalid=invalid,
    )
    return collection, ConversionReport(tuple(lines), left, _notes(layers))


def _as_feature(name: str, table: str, layer: Layer) -> Feature:
    mode: Any = layer.mode
    module: Any = layer.module
    invalid: Any = getattr(module, "invalid", "raise")
    return Feature(
        name,
        table,
        mode,
        getattr(module, "padding_idx", None),
        getattr(module, "default_idx", None),
        None if invalid == "raise" else invalid,
        getattr(module, "normalize", False),
    )


def _apply_rules(rules: Any, bits: Bits, names: list[str]) -> dict[str, Any]:
    """Return the bits of each table."""
    if rules is None:
        return dict.fromkeys(names, bits)
    if isinstance(rules, Mapping):
        for pattern, value in rules.items():
            if not isinstance(pattern, str):
                raise TypeError(f"rules must have keys of type str, got {describe(pattern)}")
            check_bits(value, f"rules[{pattern!r}]", "float16")
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ValueError(
                    f"rules must match tables, got {pattern!r}, which matches none of "
                    f"{', '.join(names[:10])}{', ...' * (len(names) > 10)}"
                )
        return {
            name: next((rules[key] for key in rules if fnmatchcase(name, key)), bits)
            for name in names
        }
    if not callable(rules):
        raise TypeError(f"rules must be a mapping or a callable, got {describe(rules)}")
    found = {name: rules(name) for name in names}
    for name, value in found.items():
        check_bits(value, f"rules({name!r})", "float16")
    return found


def _notes(layers: list[Layer]) -> dict[str, str]:
    notes = {}
    for layer in layers:
        module: Any = layer.module
        found = []
        if layer.norm is not None:
            found.append(f"its rows are a copy, scaled to max_norm={layer.norm[0]}")
        if module._forward_hooks or module._forward_pre_hooks:
            found.append("its forward hooks are not converted")
        if found:
            notes[layer.path] = "; ".join(found)
    return notes
