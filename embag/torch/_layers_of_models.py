"""`find_layers`: the embedding layers of a model, and why others cannot be converted.

Layers of torch, of embag, torch's quantized ones, and TorchRec's collections. torch.ao and
torchrec are not imported here: a model that has their modules has imported them.

Tested in tests/bridges/test_models_as_collections.py and test_torchrec.py.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from embag.quantized import QuantizedTable
from embag.torch._layers import EmbeddingBag
from embag.torch._quantized_layers import QuantizedEmbedding, QuantizedEmbeddingBag
from embag.torch._tensors import TABLES, as_array

_FORWARDS = {
    torch.nn.EmbeddingBag.forward,
    torch.nn.Embedding.forward,
    EmbeddingBag.forward,
    QuantizedEmbedding.forward,
    QuantizedEmbeddingBag.forward,
}


class Layer(NamedTuple):
    """An embedding layer of a model."""

    path: str
    module: torch.nn.Module
    names: tuple[str, ...]  # of its features
    rows: torch.Tensor | QuantizedTable
    key: Any  # the same for layers that share rows

    @property
    def mode(self) -> str:
        """The mode of its features."""
        if not hasattr(self.module, "include_last_offset"):
            return "none"
        if _is_quantized_by_torch(self.module):
            return "sum"  # whatever its attribute is
        mode: str = self.module.mode
        return mode

    @property
    def norm(self) -> tuple[float, float] | None:
        """The largest norm of a row in lookups, and its p."""
        return None if isinstance(self.rows, QuantizedTable) else _norm(self.module)


def find_layers(model: torch.nn.Module) -> tuple[list[Layer], dict[str, str]]:
    """Return the layers that can be converted, and why others cannot, by path."""
    layers: list[Layer] = []
    left: dict[str, str] = {}
    done: list[str] = []  # the prefixes of paths in a collection
    for path, module in model.named_modules(remove_duplicate=False):
        if any(path.startswith(prefix) for prefix in done):
            continue
        name = path or "embedding"
        try:
            tables = _tables_of_torchrec(module)
            if tables is not None:
                done.append(f"{path}." if path else "")
                for inner, bag, names in tables:
                    inner_path = f"{path}.{inner}" if path else inner
                    try:
                        layers.append(_as_layer(inner_path, bag, names))
                    except _LeftError as error:
                        left[inner_path] = str(error)
            elif _is_embedding(module):
                layers.append(_as_layer(name, module, (name,)))
        except _LeftError as error:
            left[name] = str(error)
    return layers, left


class _LeftError(Exception):
    """The reason why a module cannot be converted."""


def _as_layer(path: str, module: Any, names: tuple[str, ...]) -> Layer:
    forward = getattr(type(module), "forward", None)
    if _is_quantized_by_torch(module):
        return Layer(path, module, names, _unpack(module), id(module))
    if forward not in _FORWARDS or "forward" in vars(module):
        raise _LeftError(f"its class {type(module).__name__} has a forward of its own")
    if isinstance(module, QuantizedEmbedding):
        return Layer(path, module, names, module.table, _place(module.packed))
    weight = module.weight
    reason = _why_not_a_table(weight)
    if reason:
        raise _LeftError(reason)
    # Lookups with different norms scale the shared rows differently.
    return Layer(path, module, names, weight, (_place(weight), _norm(module)))


def _norm(module: Any) -> tuple[float, float] | None:
    return None if module.max_norm is None else (module.max_norm, module.norm_type)


def _place(tensor: torch.Tensor) -> Any:
    """Return what tensors that share their memory have in common."""
    if tensor.numel() == 0:
        return id(tensor)
    return tensor.data_ptr(), tensor.device, tensor.dtype, tensor.shape, tensor.stride()


def _why_not_a_table(weight: Any) -> str | None:
    """Return why a weight cannot be a table, or None if it can."""
    if torch.nn.parameter.is_lazy(weight):
        return "its weight is not initialized"
    if type(weight) not in (torch.Tensor, torch.nn.Parameter):
        return f"its weight is a {type(weight).__name__}"
    if weight.is_meta:
        return "its weight is on the meta device, without values"
    if weight.layout is not torch.strided or weight.dim() != 2:
        return f"its weight is {weight.dim()}-D with layout {weight.layout}"
    if weight.dtype not in TABLES:
        return f"its weight is {weight.dtype}"
    return None


def _is_embedding(module: torch.nn.Module) -> bool:
    kinds = (torch.nn.EmbeddingBag, torch.nn.Embedding, QuantizedEmbedding)
    if isinstance(module, kinds) or _is_quantized_by_torch(module):
        return True
    if getattr(module, "original_name", None) in {"EmbeddingBag", "Embedding"}:
        raise _LeftError("it is a module of TorchScript")
    kind = type(module)
    if kind.__module__.startswith("torchrec.") and "Embedding" in kind.__name__:
        has_layers = any(isinstance(child, kinds) for child in module.modules())
        if not has_layers:  # they would be found by themselves
            raise _LeftError(f"it is a {kind.__name__} of {kind.__module__}")
    return False


# --- torch.ao -----------------------------------------------------------------


def _is_quantized_by_torch(module: torch.nn.Module) -> bool:
    found: Any = sys.modules.get("torch.ao.nn.quantized.modules.embedding_ops")
    return found is not None and type(module) in (found.Embedding, found.EmbeddingBag)


def _unpack(module: Any) -> QuantizedTable:
    """Return the table of a layer that torch has quantized."""
    if getattr(module, "pruned_weights", False):
        raise _LeftError("its rows are pruned")
    weight = module.weight()
    n_rows, dim = weight.shape
    bits = 8 if weight.dtype is torch.quint8 else 4
    integers = as_array(weight.int_repr())
    if integers.size * 8 != n_rows * dim * bits:
        raise _LeftError(f"its rows of {dim} entries of {bits} bits are no whole bytes")
    scales = as_array(weight.q_per_channel_scales(), torch.float32)
    zeros = as_array(weight.q_per_channel_zero_points(), torch.float32)
    ends = np.stack([scales, -zeros * scales], axis=1)
    ends = ends.astype(np.float32 if bits == 8 else np.float16)
    packed = np.concatenate([integers.reshape(n_rows, -1), ends.view(np.uint8)], axis=1)
    return QuantizedTable.from_packed(packed, bits, dim)


# --- TorchRec -----------------------------------------------------------------


def _tables_of_torchrec(module: Any) -> Iterator[tuple[str, Any, tuple[str, ...]]] | None:
    """Yield path, layer and features of each table of a collection; None for another module.

    A feature of several tables has the name "feature@table", as in TorchRec's results.
    """
    found: Any = sys.modules.get("torchrec.modules.embedding_modules")
    if found is None:
        return None
    if type(module) is found.EmbeddingBagCollection:
        configs, attribute = module.embedding_bag_configs(), "embedding_bags"
    elif type(module) is found.EmbeddingCollection:
        configs, attribute = module.embedding_configs(), "embeddings"
    else:
        return None
    n_tables = Counter(name for config in configs for name in config.feature_names)
    return (
        (
            f"{attribute}.{config.name}",
            getattr(module, attribute)[config.name],
            tuple(
                name if n_tables[name] == 1 else f"{name}@{config.name}"
                for name in config.feature_names
            ),
        )
        for config in configs
    )
