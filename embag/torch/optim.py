"""`SparseAdam` and `Adagrad`: optimizers of torch that step with the kernels of embag.

Each is a subclass of torch's class, from which it has everything but `step`: groups, states, the
state dict and hooks. The optimizers of `embag.optim` do the steps, on the memory of the parameters
and states as they are at each step.

    optimizer = embag.torch.optim.SparseAdam(model.parameters())

Tested in tests/bridges/test_optimizers_in_torch.py.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.optim.adagrad import adagrad

from embag import optim
from embag._arguments import describe, raise_for_change
from embag._optimizer import step_together
from embag._process import threads
from embag.sparse_rows import SparseRows
from embag.torch._tensors import as_array, check, num_threads

__all__ = ["Adagrad", "SparseAdam"]

_DTYPES = frozenset({torch.float32, torch.float64})


class SparseAdam(torch.optim.SparseAdam):
    """``torch.optim.SparseAdam``, computed with embag.

    Parameters
    ----------
    params : iterable of Tensor, of dict or of (str, Tensor)
        The parameters, or groups of them: float32 or float64, 2-D with adjacent columns, on the
        CPU, such as the ``weight`` of ``torch.nn.EmbeddingBag(..., sparse=True)``.
    lr : float or Tensor, optional
        The learning rate, greater than 0.
    betas : (float, float), optional
        Each at least 0 and less than 1.
    eps : float, optional
        A small number, greater than 0.
    maximize : bool, optional
        If True, step along the gradient, not against it.

    See Also
    --------
    embag.optim.Adam : The formula.

    Notes
    -----
    State dicts are those of ``torch.optim.SparseAdam``, and load in both directions. Gradients
    need not be coalesced: the rows of one place are added first, in order. A step is made with at
    most ``torch.get_num_threads()`` threads. All gradients are checked before anything
    changes.

    Examples
    --------
    >>> import torch
    >>> import embag.torch
    >>> bags = torch.nn.EmbeddingBag(4, 2, mode="sum", sparse=True, _weight=torch.zeros(4, 2))
    >>> optimizer = embag.torch.optim.SparseAdam(bags.parameters(), lr=0.5)
    >>> bags(torch.tensor([[1, 3]])).sum().backward()
    >>> optimizer.step()
    >>> bags.weight.detach()
    tensor([[ 0.0000,  0.0000],
            [-0.5000, -0.5000],
            [ 0.0000,  0.0000],
            [-0.5000, -0.5000]])
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make a step: change the rows that occur in the gradients.

        Parameters
        ----------
        closure : callable, optional
            Computes the loss and the gradients again, and returns the loss.

        Returns
        -------
        object
            What `closure` returned, or None.

        Raises
        ------
        RuntimeError
            If a gradient is dense.
        TypeError, ValueError
            If a parameter or a gradient is not as described above.
        """
        loss = _call(closure)
        steps = []
        for group in self.param_groups:
            for parameter in group["params"]:
                grad = parameter.grad
                if grad is None:
                    continue
                if not grad.is_sparse:
                    raise RuntimeError(
                        "SparseAdam does not support dense gradients, please consider Adam instead"
                    )
                steps.append((group, parameter, _rows_of(parameter, grad, group["maximize"])))
        for _, parameter, _ in steps:
            state = self.state[parameter]
            if not state:
                state["step"] = 0
                for name in ("exp_avg", "exp_avg_sq"):
                    state[name] = torch.zeros_like(parameter)
        _step(
            [
                (optim.Adam, parameter, rows, self.state[parameter], group, ("eps", "betas"))
                for group, parameter, rows in steps
            ]
        )
        return loss


class Adagrad(torch.optim.Adagrad):
    """``torch.optim.Adagrad``, computed with embag where a gradient is sparse.

    Parameters
    ----------
    params : iterable of Tensor, of dict or of (str, Tensor)
        The parameters, or groups of them. Those with sparse gradients are float32 or float64, 2-D
        with adjacent columns, on the CPU.
    lr : float or Tensor, optional
        The learning rate, at least 0.
    lr_decay : float, optional
        Step t has ``lr / (1 + (t - 1) * lr_decay)``.
    weight_decay : float, optional
        An L2 penalty. It must be 0 for parameters with sparse gradients.
    initial_accumulator_value : float, optional
        What every sum of squares begins with.
    eps : float, optional
        A small number, at least 0.
    foreach : bool, optional
        Concerns dense gradients: see torch's class.
    maximize : bool, optional
        If True, step along the gradient, not against it.
    differentiable : bool, optional
        Must be False: sparse steps are not differentiable.
    fused : bool, optional
        Must be None or False: torch's fused steps take no sparse gradients.

    Raises
    ------
    ValueError
        If `differentiable` or `fused` is True, or a number is out of range.

    See Also
    --------
    embag.optim.Adagrad : The formula.

    Notes
    -----
    State dicts are those of ``torch.optim.Adagrad``, and load in both directions. Dense gradients
    are left to torch. For sparse ones see `SparseAdam`.

    Examples
    --------
    >>> import torch
    >>> import embag.torch
    >>> bags = torch.nn.EmbeddingBag(4, 2, mode="sum", sparse=True, _weight=torch.zeros(4, 2))
    >>> model = torch.nn.Sequential(bags, torch.nn.Linear(2, 1))
    >>> optimizer = embag.torch.optim.Adagrad(model.parameters(), lr=0.5)
    >>> model(torch.tensor([[1, 3]])).sum().backward()
    >>> optimizer.step()
    >>> bags.weight.detach().abs()
    tensor([[0.0000, 0.0000],
            [0.5000, 0.5000],
            [0.0000, 0.0000],
            [0.5000, 0.5000]])
    """

    def __init__(
        self,
        params: Any,
        lr: float | torch.Tensor = 1e-2,
        lr_decay: float = 0,
        weight_decay: float = 0,
        initial_accumulator_value: float = 0,
        eps: float = 1e-10,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        for name, value in (("differentiable", differentiable), ("fused", fused)):
            if value:
                raise ValueError(
                    f"{name} must be False: it takes no sparse gradients, got {describe(value)}"
                )
        super().__init__(
            params,
            lr,
            lr_decay,
            weight_decay,
            initial_accumulator_value,
            eps,
            foreach,
            maximize=maximize,
            fused=fused,
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make a step: change the rows that occur in sparse gradients, and all of dense ones.

        Parameters
        ----------
        closure : callable, optional
            Computes the loss and the gradients again, and returns the loss.

        Returns
        -------
        object
            What `closure` returned, or None.

        Raises
        ------
        RuntimeError
            If a gradient is sparse and there is weight decay.
        TypeError, ValueError
            If a parameter with a sparse gradient, or that gradient, is not as described above.
        """
        loss = _call(closure)
        steps = []
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            sparse = [p for p in parameters if p.grad.is_sparse]
            if sparse and group["weight_decay"] != 0:
                raise RuntimeError("weight_decay option is not compatible with sparse gradients")
            rows = [_rows_of(p, p.grad, group["maximize"]) for p in sparse]
            dense = [p for p in parameters if not p.grad.is_sparse]
            steps.append((group, sparse, rows, dense))
        for group, sparse, _, _ in steps:
            self._init_group(dict(group, params=sparse), [], [], [], [])
        options = "eps", "lr_decay"
        _step(
            [
                (optim.Adagrad, parameter, gradient, self.state[parameter], group, options)
                for group, sparse, rows, _ in steps
                for parameter, gradient in zip(sparse, rows, strict=True)
            ]
        )
        for group, _, _, dense in steps:
            self._step_dense(dict(group, params=dense))
        return loss

    def _step_dense(self, group: dict[str, Any]) -> None:
        """Make a step of torch, by the function that its class calls."""
        parameters: list[torch.Tensor] = []
        grads: list[torch.Tensor] = []
        sums: list[torch.Tensor] = []
        steps: list[torch.Tensor] = []
        _, has_complex = self._init_group(group, parameters, grads, sums, steps)
        names = ("foreach", "lr", "weight_decay", "lr_decay", "eps", "maximize")
        options = {name: group[name] for name in names}
        adagrad(parameters, grads, sums, steps, has_complex=has_complex, **options)


def _call(closure: Callable[[], Any] | None) -> Any:
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def _rows_of(parameter: torch.Tensor, grad: torch.Tensor, negated: bool) -> SparseRows:
    """Return a sparse gradient, with the rows of one place added."""
    check(parameter, "a parameter with a sparse gradient", _DTYPES, "float32 or float64")
    if parameter.dim() != 2 or grad.sparse_dim() != 1:
        raise ValueError(
            "a sparse gradient must be of a 2-D parameter, with one sparse dimension, "
            f"got {grad.sparse_dim()} of {parameter.dim()}"
        )
    make = SparseRows if grad.is_coalesced() else SparseRows.from_pairs
    n_rows, dim = grad.shape
    with threads.num_threads(num_threads()):
        rows = make(as_array(grad._indices()[0]), as_array(grad._values()), (n_rows, dim))
    return -1.0 * rows if negated else rows


def _step(parts: list[tuple[Any, ...]]) -> None:
    """Make a step on the memory of parameters and their states; check all of them before."""
    steps = []
    for kind, parameter, rows, state, group, names in parts:
        table = as_array(parameter, in_place=True)
        options = {name: group[name] for name in names}
        # Of no rows, so that it allocates no states.
        stepper = kind(np.empty((0, table.shape[1]), table.dtype), float(group["lr"]), **options)
        states = {name: as_array(state[name], in_place=True) for name in stepper.states}
        stepper._hold(table, states, int(state["step"]))
        steps.append((stepper, rows))
    if not step_together(steps, num_threads()):
        raise_for_change()
    for _, parameter, _, state, _, _ in parts:
        state["step"] += 1
        for tensor in (parameter, *(value for name, value in state.items() if name != "step")):
            torch.autograd.graph.increment_version(tensor)
