"""From a model of torch: `to_collection` for a service without torch, `replace_embeddings` inside.

Tested in tests/bridges/test_conversion.py.
"""

import fnmatch
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias, cast

import numpy as np
import torch

from embag._arguments import describe
from embag.collection import EmbeddingBagCollection, Feature
from embag.functional import embedding_bag
from embag.memory import aligned_copy
from embag.quantized import QuantizationError, QuantizedTable, quantize
from embag.torch._layers import EmbeddingBag
from embag.torch._tensors import as_array, as_tensor, check_table, num_threads

Bits: TypeAlias = Literal[2, 4, 8, "float16"] | None
_Rules: TypeAlias = Mapping[str, Bits] | None

_BITS = (None, 8, 4, 2, "float16")


class ConvertedTable(NamedTuple):
    """A table of a `ConversionReport`."""

    shape: tuple[int, int]
    n_bytes: int
    n_bytes_before: int
    error: QuantizationError | None  # of quantizing; None if the entries are as they were


class ConversionReport(NamedTuple):
    """What `to_collection` has converted, and what not. Print it.

    Attributes
    ----------
    tables : dict of str to ConvertedTable
        By name: the shape, the bytes before and after, and the error of quantizing.
    notes : dict of str to str
        By the path of a module: an option of it that the collection does not have.
    left : list of str
        The paths of other modules with parameters, such as dense layers.
    """

    tables: dict[str, ConvertedTable]
    notes: dict[str, str]
    left: list[str]

    def __repr__(self) -> str:
        lines = [f"{len(self.tables)} tables:"]
        for name, (shape, n_bytes, n_bytes_before, error) in self.tables.items():
            line = f"    {name}: {shape[0]} rows of {shape[1]}, {n_bytes} bytes"
            if n_bytes != n_bytes_before:
                line += f" instead of {n_bytes_before}"
            if error is not None:
                line += f", largest error {error.max_abs:.2g}, mean cosine {error.cosine:.6f}"
            lines.append(line)
        lines += [f"{path}: {note}" for path, note in self.notes.items()]
        lines.append(f"left: {', '.join(self.left) or 'nothing'}")
        return "\n".join(lines)


class Converted(NamedTuple):
    """The result of `to_collection`: a collection, and a report."""

    collection: EmbeddingBagCollection
    report: ConversionReport


class _Found(NamedTuple):
    """A lookup of a model."""

    path: str  # of the module
    feature: str
    table: str  # a name
    key: Any  # of the memory of the table: modules may share it
    weight: Any  # a tensor, or a QuantizedTable
    mode: Any
    padding_idx: int | None


def to_collection(
    module: torch.nn.Module,
    bits: Bits = None,
    rules: _Rules = None,
    *,
    invalid: Literal["raise", "skip"] = "raise",
) -> Converted:
    """Return the embeddings of a model as a collection, for a service without torch.

    Parameters
    ----------
    module : torch.nn.Module
        The model, or an embedding layer. Its tables are copied.
    bits : {8, 4, 2, "float16"}, optional
        How to store the entries of floating-point tables; by default as they are.
    rules : mapping of str to {8, 4, 2, "float16", None}, optional
        Other bits for some tables, by path of the module: a pattern such as ``"items.*"``. The
        first that matches counts.
    invalid : {"raise", "skip"}, optional
        What the collection does with ids out of range.

    Returns
    -------
    collection : EmbeddingBagCollection
        A feature for each layer, by its path in the model, such as "towers.item". A
        ``torch.nn.EmbeddingBag`` (also a quantized one, and `EmbeddingBag` of embag) keeps its mode
        and `padding_idx`. A ``torch.nn.Embedding`` has mode "none". An `EmbeddingBagCollection`
        of TorchRec has a feature for each of its feature names. Layers that share a weight share a
        table.
    report : ConversionReport
        The tables, what quantizing has changed, and what was left.

    Raises
    ------
    TypeError
        If an argument or a weight has the wrong kind.
    ValueError
        If an option is unknown, the model has no embeddings, or a weight is not in memory (a meta
        tensor), cannot be quantized, or is needed under two names.

    See Also
    --------
    embag.EmbeddingBagCollection.save : Save the collection for the service.
    replace_embeddings : Use embag inside the model.

    Examples
    --------
    >>> import torch
    >>> import embag.torch
    >>> model = torch.nn.ModuleDict(
    ...     {"item": torch.nn.EmbeddingBag(100, 16), "user": torch.nn.Embedding(10, 8)}
    ... )
    >>> ebc, report = embag.torch.to_collection(model, bits=8)
    >>> out, rows = ebc({"item": [[1, 2], [3, 4]], "user": [5, 6]})
    >>> out.shape, rows["user"].shape
    ((2, 16), (2, 8))
    """
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {describe(module)}")
    _check_bits(bits, "bits")
    if rules is not None and not isinstance(rules, Mapping):
        raise TypeError(f"rules must be a mapping, got {describe(rules)}")
    for pattern, chosen in (rules or {}).items():
        if not isinstance(pattern, str):
            raise TypeError(
                f"rules must have patterns of type str as keys, got {describe(pattern)}"
            )
        _check_bits(chosen, f"rules[{pattern!r}]")
    found = list(_find(module))
    if not found:
        raise ValueError("module must have embeddings, got none")
    names: dict[Any, str] = {}
    tables: dict[str, Any] = {}
    converted: dict[str, ConvertedTable] = {}
    features: list[Feature] = []
    for one in found:
        if one.key not in names:
            chosen = _bits_of(one.path, bits, rules)
            names[one.key] = one.table
            tables[one.table], converted[one.table] = _convert(one, chosen)
        features.append(Feature(one.feature, names[one.key], one.mode, one.padding_idx))
    collection = EmbeddingBagCollection(tables, features, invalid=invalid)
    return Converted(collection, ConversionReport(converted, _notes(module), _left(module)))


def replace_embeddings(
    module: torch.nn.Module, bits: Bits = None, rules: _Rules = None
) -> torch.nn.Module:
    """Replace the ``torch.nn.EmbeddingBag`` layers of a model by embag's.

    Parameters
    ----------
    module : torch.nn.Module
        The model, which is changed.
    bits, rules : optional
        As in `to_collection`. Layers with bits are for inference: a `QuantizedEmbeddingBag` each.
        Without bits, the new layers have the same parameters, and the state dict stays as it is.

    Returns
    -------
    torch.nn.Module
        The model; the new layer, if `module` is an ``EmbeddingBag`` itself.

    Raises
    ------
    TypeError, ValueError
        As in `to_collection`. No layer has been replaced then.

    Examples
    --------
    >>> import torch
    >>> import embag.torch
    >>> model = torch.nn.Sequential(torch.nn.EmbeddingBag(100, 16), torch.nn.Linear(16, 1))
    >>> model = embag.torch.replace_embeddings(model)
    >>> model[0]
    EmbeddingBag(100, 16, mode='mean')
    """
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {describe(module)}")
    _check_bits(bits, "bits")
    new: dict[int, torch.nn.Module] = {}
    for path, layer in module.named_modules():
        if type(layer) in (torch.nn.EmbeddingBag, EmbeddingBag):
            new[id(layer)] = _replacement(path, layer, _bits_of(path, bits, rules))
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if id(child) in new:
                setattr(parent, name, new[id(child)])
    return new.get(id(module), module)


class QuantizedEmbeddingBag(torch.nn.Module):
    """A layer with a quantized table, for inference. `replace_embeddings` makes it.

    Its state dict has the packed rows, in ``packed``. The call is that of ``EmbeddingBag``; the
    result is float32.
    """

    def __init__(self, table: QuantizedTable, layer: torch.nn.EmbeddingBag) -> None:
        super().__init__()
        self.register_buffer("packed", torch.from_numpy(table.packed))
        self.bits, self.dim = table.bits, table.dim
        self.mode, self.padding_idx = layer.mode, layer.padding_idx
        self.include_last_offset = layer.include_last_offset

    def forward(
        self,
        input: torch.Tensor,
        offsets: torch.Tensor | None = None,
        per_sample_weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Gather rows and reduce them per bag.

        Parameters
        ----------
        input, offsets, per_sample_weights : Tensor
            As in `embag.torch.embedding_bag`.

        Returns
        -------
        Tensor of float32, shape (n_bags, dim)
            The reduced bags.
        """
        packed = as_array(cast(torch.Tensor, self.packed))
        return as_tensor(
            embedding_bag(
                as_array(input),
                QuantizedTable.from_packed(packed, self.bits, self.dim),
                as_array(offsets),
                mode=cast(Any, self.mode),
                per_sample_weights=as_array(per_sample_weights),
                include_last_offset=self.include_last_offset,
                padding_idx=self.padding_idx,
                num_threads=num_threads(),
            )
        )

    def extra_repr(self) -> str:
        """Return the options for the repr."""
        n_rows = len(cast(torch.Tensor, self.packed))
        return f"{n_rows}, {self.dim}, bits={self.bits}, mode={self.mode!r}"


# --- What a model has -------------------------------------------------------------


def _find(module: torch.nn.Module) -> Iterator[_Found]:
    """Yield the lookups of a model."""
    inside: set[int] = set()  # layers of TorchRec's collections
    for path, layer in module.named_modules(remove_duplicate=True):
        name = path or "embedding"
        if id(layer) in inside:
            continue
        if hasattr(layer, "embedding_bag_configs") and hasattr(layer, "embedding_bags"):
            inside |= {id(one) for one in layer.modules()}
            yield from _find_in_torchrec(path, layer)
        elif isinstance(layer, torch.nn.EmbeddingBag):
            yield _of_layer(name, layer, layer.mode)
        elif isinstance(layer, torch.nn.Embedding):
            yield _of_layer(name, layer, "none")
        elif hasattr(layer, "_packed_params") and hasattr(layer, "embedding_dim"):
            is_bag = "Bag" in type(layer).__name__
            table = _unpack(layer)
            # torch's quantized layers have sums only.
            mode = "sum" if is_bag else "none"
            yield _Found(name, name, name, id(layer), table, mode, None)


def _of_layer(name: str, layer: Any, mode: str) -> _Found:
    weight = layer.weight
    key = (weight.data_ptr(), tuple(weight.shape)) if weight.numel() else id(weight)
    if weight.is_meta:
        raise ValueError(f"{name}.weight must be in memory, got a meta tensor")
    return _Found(name, name, name, key, weight, mode, layer.padding_idx)


def _find_in_torchrec(path: str, layer: Any) -> Iterator[_Found]:
    """Yield the lookups of an `EmbeddingBagCollection` of TorchRec."""
    for config in layer.embedding_bag_configs():
        weight = layer.embedding_bags[config.name].weight
        pooling = getattr(config.pooling, "name", str(config.pooling)).lower()
        where = f"{path}.{config.name}" if path else config.name
        for feature in config.feature_names:
            yield _of_layer(where, _WeightOnly(weight), pooling)._replace(feature=feature)


class _WeightOnly(NamedTuple):
    weight: torch.Tensor
    padding_idx: None = None


def _unpack(layer: Any) -> QuantizedTable:
    """Return the table of a quantized layer of torch."""
    weight = layer._packed_params._weight()
    bits = 8 if weight.dtype is torch.quint8 else 4
    scale = weight.q_per_channel_scales().to(torch.float32)
    # An entry q stands for scale * (q - zero_point).
    bias = (-weight.q_per_channel_zero_points().to(torch.float32)) * scale
    entries = weight.int_repr().numpy()
    if bits == 4:  # two entries a byte already, the first in the low half
        factors = torch.stack([scale, bias], 1).to(torch.float16).numpy().view(np.uint8)
        entries = entries.reshape(len(factors), -1)
    else:
        factors = torch.stack([scale, bias], 1).numpy().view(np.uint8)
    packed = np.ascontiguousarray(np.concatenate([entries, factors], axis=1))
    return QuantizedTable.from_packed(packed, bits, layer.embedding_dim)


def _notes(module: torch.nn.Module) -> dict[str, str]:
    notes = {}
    for path, layer in module.named_modules():
        if getattr(layer, "max_norm", None) is not None:
            notes[path] = f"max_norm={layer.max_norm} is not applied: rows are as they are now"
        if getattr(layer, "include_last_offset", False) is True:
            notes[path] = "include_last_offset=True: pass it to the call"
    return notes


def _left(module: torch.nn.Module) -> list[str]:
    """Return the paths of the innermost modules with other parameters."""
    return [
        path or type(layer).__name__
        for path, layer in module.named_modules()
        if list(layer.parameters(recurse=False))
        and not isinstance(layer, (torch.nn.Embedding, torch.nn.EmbeddingBag))
    ]


# --- Tables -----------------------------------------------------------------------


def _check_bits(bits: Any, name: str) -> None:
    if type(bits) is bool or bits not in _BITS:
        raise ValueError(f"{name} must be 8, 4, 2, 'float16' or None, got {describe(bits)}")


def _bits_of(path: str, bits: Bits, rules: _Rules) -> Bits:
    for pattern, chosen in (rules or {}).items():
        if fnmatch.fnmatchcase(path, pattern):
            return chosen
    return bits


def _convert(one: _Found, bits: Bits) -> tuple[Any, ConvertedTable]:
    """Return a table as `bits` says, and what that changed."""
    if isinstance(one.weight, QuantizedTable):
        n_bytes = one.weight.nbytes
        return one.weight, ConvertedTable(one.weight.shape, n_bytes, n_bytes, None)
    weight = one.weight.detach().cpu()
    check_table(weight, f"{one.path}.weight")
    rows = as_array(weight)
    shape: Any = rows.shape
    if bits is None:
        return aligned_copy(rows), ConvertedTable(shape, rows.nbytes, rows.nbytes, None)
    try:
        table = aligned_copy(rows.astype(np.float16)) if bits == "float16" else quantize(rows, bits)
    except ValueError as refusal:
        raise ValueError(f"{one.path}.weight: {refusal}") from None
    error = table.error(rows) if isinstance(table, QuantizedTable) else _rounding(rows, table)
    return table, ConvertedTable(shape, table.nbytes, rows.nbytes, error)


def _rounding(rows: Any, rounded: Any) -> QuantizationError:
    """Return the error of rounding to float16."""
    wide, other = rows.astype(np.float64), rounded.astype(np.float64)
    differences = np.abs(wide - other)
    norms = np.sqrt((wide**2).sum(1) * (other**2).sum(1))
    cosines = np.divide((wide * other).sum(1), norms, out=np.ones(len(wide)), where=norms > 0)
    return QuantizationError(
        float(differences.max(initial=0)),
        float(differences.mean()) if differences.size else 0.0,
        float(cosines.mean()) if len(cosines) else 1.0,
    )


def _replacement(path: str, layer: torch.nn.EmbeddingBag, bits: Bits) -> torch.nn.Module:
    """Return the layer of embag for a layer of torch."""
    name = path or "embedding"
    if bits in (None, "float16"):
        new = EmbeddingBag.__new__(EmbeddingBag)
        new.__dict__ = {**layer.__dict__, "_parameters": dict(layer._parameters)}
        if bits == "float16":
            weight = cast(torch.Tensor, layer.weight)
            new.weight = torch.nn.Parameter(weight.detach().to(torch.float16), False)
        return new
    found = _of_layer(name, layer, layer.mode)
    table, _ = _convert(found, bits)
    return QuantizedEmbeddingBag(table, layer)
