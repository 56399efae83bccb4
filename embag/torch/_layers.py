"""`EmbeddingBag`: the module of torch, computed with embag, and with an optimizer of its own.

An optimizer of `embag.optim` holds the table as an array. That array is a view of `weight`, so
it must not outlive a move of `weight`: `_update` and `forward` compare the two, and what torch
does to a module on purpose (`_apply`, assigning a state dict, unpickling) makes a new one.

Tested in tests/bridges/test_torch_bridge.py and test_fused_layer.py.
"""

from collections.abc import Callable, Mapping
from typing import Any, NoReturn, cast

import numpy as np
import torch

from embag._arguments import describe
from embag._types import Invalid
from embag.optim import Optimizer
from embag.torch._lookups import look_up
from embag.torch._tensors import AnyArray, as_array, check_table

MakeOptimizer = Callable[[AnyArray], Optimizer]


class EmbeddingBag(torch.nn.EmbeddingBag):
    """A ``torch.nn.EmbeddingBag`` that computes with embag.

    The constructor, `from_pretrained`, the parameters and the state dict are those of torch. Both
    have one more keyword, `optimizer`.

    Parameters
    ----------
    optimizer : callable, optional
        Makes an optimizer of `embag.optim` for a table, such as
        ``functools.partial(embag.optim.Adagrad, lr=0.05)``. The backward pass of a lookup then
        makes a step of it, and `weight` has no gradient.

    Attributes
    ----------
    default_idx, invalid, normalize
        As in `embag.torch.embedding_bag`. Set them after construction:
        ``bags.invalid = "skip"``.
    optimizer : embag.optim.Optimizer or None
        The optimizer, whose table is `weight`, in the same memory. Set ``bags.optimizer.lr`` to
        change its learning rate.

    Raises
    ------
    TypeError
        If `optimizer` is not callable or returns something else, or does not take the dtype of
        `weight`.
    ValueError
        If there is an `optimizer` and `weight` is not on the CPU, or is to be frozen.

    See Also
    --------
    embedding_bag : The function that it calls.
    embag.torch.optim : Optimizers of torch for the sparse gradients of layers.

    Notes
    -----
    With an optimizer, ``weight.requires_grad`` is False. Optimizers of torch leave `weight` alone,
    and ``clip_grad_norm_`` and ``GradScaler`` do not see its gradient.

    Each backward pass through a lookup makes one step: a second one with ``retain_graph`` makes
    another, and so does ``torch.autograd.grad``. Two lookups of one layer in one graph make two
    steps, one after the other. The gradient of `per_sample_weights`, and any gradient with
    `normalize`, needs the values of `weight`: torch raises a RuntimeError if an earlier step has
    changed them. A checkpointed lookup is computed again in the backward pass, from `weight` as it
    is then. `max_norm` scales rows in the forward pass, as without an optimizer. `sparse` makes no
    difference. Under ``no_grad`` and in inference mode there are no steps.

    The state dict also has the states of the optimizer, as tensors: ``optimizer.step``,
    ``optimizer.sum`` and so on, but not its options, such as `lr`. A layer without an optimizer,
    such as torch's, loads it with ``strict=False``. A layer with an optimizer loads a state dict
    of torch's layer in the same way, and keeps its states.

    Copies and pickles have an optimizer of their own, made by the same callable, with the same
    states and `lr`. A pickle needs a callable that can be pickled. ``bags.double()`` and the like
    convert the states, too. If `weight` is given other memory in another way
    (``weight.data = ...``), the next call raises a RuntimeError.

    Examples
    --------
    >>> import torch
    >>> import embag.torch
    >>> bags = embag.torch.EmbeddingBag(10, 3, mode="sum")
    >>> bags(torch.tensor([[1, 2], [3, 4]])).shape
    torch.Size([2, 3])

    A layer that makes steps of Adagrad:

    >>> from functools import partial
    >>> bags = embag.torch.EmbeddingBag.from_pretrained(
    ...     torch.zeros(10, 3),
    ...     freeze=False,
    ...     mode="sum",
    ...     optimizer=partial(embag.optim.Adagrad, lr=0.5),
    ... )
    >>> bags(torch.tensor([[1, 2], [3, 2]])).sum().backward()
    >>> bags.weight[2]
    tensor([-0.5000, -0.5000, -0.5000])
    >>> bags.optimizer
    Adagrad(table of 10 rows, dim=3, float32, lr=0.5, 1 steps)
    """

    default_idx: int | None = None
    invalid: Invalid = "raise"
    normalize: bool = False
    _make_optimizer: MakeOptimizer | None = None
    _optimizer: Optimizer | None = None

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        mode: str = "mean",
        sparse: bool = False,
        _weight: torch.Tensor | None = None,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        device: Any = None,
        dtype: Any = None,
        *,
        optimizer: MakeOptimizer | None = None,
    ) -> None:
        super().__init__(
            num_embeddings,
            embedding_dim,
            max_norm,
            norm_type,
            scale_grad_by_freq,
            mode,
            sparse,
            _weight,
            include_last_offset,
            padding_idx,
            device,
            dtype,
        )
        if optimizer is not None:
            self._optimize(optimizer)

    @classmethod
    def from_pretrained(
        cls,
        embeddings: torch.Tensor,
        freeze: bool = True,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        mode: str = "mean",
        sparse: bool = False,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        *,
        optimizer: MakeOptimizer | None = None,
    ) -> "EmbeddingBag":
        """Return a layer whose table is a tensor, which is not copied.

        Parameters
        ----------
        embeddings : Tensor of float32, float64, float16 or bfloat16, shape (n_rows, dim)
            The table.
        freeze : bool, optional
            If True, the table is not trained. It must be False with an `optimizer`.
        max_norm, norm_type, scale_grad_by_freq, mode, sparse, include_last_offset, padding_idx
            As in ``torch.nn.EmbeddingBag.from_pretrained``.
        optimizer : callable, optional
            As in the constructor.

        Returns
        -------
        EmbeddingBag
            The layer.
        """
        if optimizer is not None and freeze:
            raise ValueError(f"freeze must be False with an optimizer, got {describe(freeze)}")
        like_torch = super().from_pretrained(
            embeddings,
            freeze,
            max_norm,
            norm_type,
            scale_grad_by_freq,
            mode,
            sparse,
            include_last_offset,
            padding_idx,
        )
        bags = cast(EmbeddingBag, like_torch)  # made by `cls`
        if optimizer is not None:
            bags._optimize(optimizer)
        return bags

    @property
    def optimizer(self) -> Optimizer | None:
        """The optimizer of the table, or None."""
        return self._optimizer

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
        Tensor, shape (n_bags, embedding_dim)
            The reduced bags.
        """
        update = None
        if self._optimizer is not None:
            if not torch.compiler.is_compiling():  # else `_update` checks it
                self._check_table()
            update = self._update
        return look_up(
            input,
            self.weight,
            offsets,
            self.max_norm,
            self.norm_type,
            self.scale_grad_by_freq,
            self.mode,
            self.sparse,
            per_sample_weights,
            self.include_last_offset,
            self.padding_idx,
            self.default_idx,
            self.invalid,
            self.normalize,
            update=update,
        )

    def __prepare_scriptable__(self) -> NoReturn:
        raise TypeError(
            "embag.torch.EmbeddingBag must not be compiled with torch.jit.script: "
            "use torch.export or torch.compile"
        )

    def extra_repr(self) -> str:
        """Return the options for the repr: those of torch, and those of embag that are set."""
        parts = [super().extra_repr()]
        for name in ("default_idx", "invalid", "normalize"):
            value = getattr(self, name)
            if value != getattr(EmbeddingBag, name):
                parts.append(f"{name}={value!r}")
        if self._optimizer is not None:
            parts.append(f"optimizer={type(self._optimizer).__name__}")
        return ", ".join(parts)

    def _optimize(self, make: MakeOptimizer) -> None:
        """Make an optimizer for the table, as it is now."""
        if not callable(make):
            raise TypeError(
                "optimizer must be a callable that makes an optimizer of embag.optim, "
                f"got {describe(make)}"
            )
        check_table(self.weight)
        table = as_array(self.weight, in_place=True)
        optimizer: Any = make(table)
        if not isinstance(optimizer, Optimizer) or optimizer.table is not table:
            raise TypeError(
                "optimizer must return an optimizer of embag.optim for its argument, "
                f"got {describe(optimizer)}"
            )
        self.weight.requires_grad_(False)
        self._make_optimizer, self._optimizer = make, optimizer

    def _table_has_moved(self) -> bool:
        assert self._optimizer is not None
        return _place(as_array(self.weight, in_place=True)) != _place(
            cast(AnyArray, self._optimizer.table)
        )

    def _check_table(self) -> None:
        check_table(self.weight)
        if self._table_has_moved():
            raise RuntimeError(
                "weight must stay in the memory that its optimizer was made for, "
                "got other memory: make a new layer with from_pretrained"
            )

    def _update(self, *lookup: Any, **options: Any) -> AnyArray | None:
        """Make a step of the optimizer: `Optimizer.update`."""
        self._check_table()
        assert self._optimizer is not None
        of_weights = self._optimizer.update(*lookup, **options)
        torch.autograd.graph.increment_version(self.weight)
        return of_weights

    # Conversions, copies and state dicts

    def _states(self) -> dict[str, Any]:
        """Return the number of steps and the states, which are not copied."""
        assert self._optimizer is not None
        return {"step": self._optimizer.n_steps, **self._optimizer.states}

    def _make_anew(self, lr: float, states: Mapping[str, Any]) -> None:
        """Make an optimizer for the table as it is now, with the states of another."""
        assert self._make_optimizer is not None
        self._optimize(self._make_optimizer)
        optimizer = self._optimizer
        assert optimizer is not None
        optimizer.lr = lr
        new = {name: np.asarray(states[name], old.dtype) for name, old in optimizer.states.items()}
        optimizer.load_state_dict({"step": states["step"], **new})

    def _follow_table(self) -> None:
        """Make a new optimizer if torch has moved or converted the table, unless off the CPU."""
        if self._optimizer is not None and self.weight.is_cpu and self._table_has_moved():
            self._make_anew(self._optimizer.lr, self._states())

    def _apply(self, fn: Any, recurse: bool = True) -> "EmbeddingBag":
        super()._apply(fn, recurse)
        self._follow_table()
        return self

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        if self._optimizer is not None:
            state["_optimizer"] = self._optimizer.lr, self._states()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        optimizer = state.get("_optimizer")
        super().__setstate__(dict(state, _optimizer=None))
        if optimizer is not None:
            self._make_anew(*optimizer)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._optimizer is not None:
            for name, value in self._states().items():
                destination[f"{prefix}optimizer.{name}"] = torch.as_tensor(value)

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        super()._load_from_state_dict(
            state_dict,
            prefix,
            local_metadata,
            strict,
            missing_keys,
            unexpected_keys,
            error_msgs,
        )
        if self._optimizer is None:
            return
        self._follow_table()
        keys = {f"{prefix}optimizer.{name}": name for name in self._states()}
        unexpected_keys[:] = [key for key in unexpected_keys if key not in keys]
        found = {name: state_dict[key] for key, name in keys.items() if key in state_dict}
        if len(found) < len(keys):
            if strict:
                missing_keys.extend(key for key in keys if key not in state_dict)
            return
        try:
            self._optimizer.load_state_dict(
                {name: as_array(torch.as_tensor(value)) for name, value in found.items()}
            )
        except (TypeError, ValueError, RuntimeError) as error:
            error_msgs.append(f"the states of {prefix}optimizer cannot be loaded: {error}")


def _place(array: AnyArray) -> tuple[Any, ...]:
    """Return where in memory an array is, and how it is read."""
    return array.__array_interface__["data"][0], array.dtype, array.shape, array.strides
