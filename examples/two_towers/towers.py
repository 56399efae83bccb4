"""The two towers, with NumPy and embag alone: the gradients are written by hand.

The user tower is the weighted mean of the input vectors of the products bought before. The item
tower is an output vector and a bias for each product. Their dot product, plus the bias, is the
score of the product. The loss is the cross-entropy between the basket and a softmax over the
candidates of the batch. As popular products are candidates more often, the logarithm of that
chance is subtracted from the scores (the logQ correction: Yi et al., "Sampling-bias-corrected
neural modeling for large corpus item recommendations", RecSys 2019; a part of the candidates is
uniform: Yang et al., "Mixed negative sampling for learning two-tower neural networks in
recommendations", WWW 2020).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

import embag

SCALE = 0.1  # of the initial values


class Tables(NamedTuple):
    """The parameters: a row for each product."""

    inputs: NDArray[np.float32]  # (n_products, n_dims)
    outputs: NDArray[np.float32]  # (n_products, n_dims + 1): the last column is the bias


def initial(popularity, n_dims, seed):
    """Return random vectors, and biases that make popular products likely."""
    rng = np.random.default_rng(seed)
    n_products = len(popularity)
    inputs = embag.aligned_empty((n_products, n_dims))
    outputs = embag.aligned_empty((n_products, n_dims + 1))
    inputs[:] = SCALE * rng.standard_normal(inputs.shape)
    outputs[:] = SCALE * rng.standard_normal(outputs.shape)
    outputs[:, -1] = np.log(n_products * popularity + 0.01)
    return Tables(inputs, outputs)


class Towers:
    """The tables, and an optimizer for each. A step changes the rows that occur in the batch."""

    def __init__(self, tables, lr):
        self.tables = Tables(*map(embag.aligned_copy, tables))
        self._of_inputs = embag.optim.Adagrad(self.tables.inputs, lr=lr)
        self._of_outputs = embag.optim.Adagrad(self.tables.outputs, lr=lr)

    def step(self, batch):
        """Train with a batch; return its loss."""
        loss, grad_users, grad_items = loss_and_gradients(self.tables, batch)
        self._of_inputs.update(
            grad_users, batch.ids, batch.offsets, mode="mean", per_sample_weights=batch.weights
        )
        self._of_outputs.step(
            embag.embedding_backward(grad_items, batch.candidates, self.tables.outputs, sparse=True)
        )
        return loss


def loss_and_gradients(tables, batch):
    """Return the loss, and its gradients by the vectors of the users and of the candidates."""
    users = embag.embedding_bag(
        batch.ids,
        tables.inputs,
        batch.offsets,
        mode="mean",
        per_sample_weights=batch.weights,
    )
    items = embag.embedding(batch.candidates, tables.outputs)
    vectors, biases = items[:, :-1], items[:, -1]
    logits = users @ vectors.T + (biases - batch.log_chances)
    logits -= logits.max(axis=1, keepdims=True)
    odds = np.exp(logits)
    totals = odds.sum(axis=1, keepdims=True)

    baskets, _ = batch.targets
    log_likelihoods = logits[batch.targets] - np.log(totals[baskets, 0])
    loss = -float(batch.shares @ log_likelihoods) / len(users)

    grad_logits = odds / totals
    grad_logits[batch.targets] -= batch.shares  # a target occurs once in a basket
    grad_logits /= len(users)
    grad_users = grad_logits @ vectors
    grad_items = np.column_stack([grad_logits.T @ users, grad_logits.sum(axis=0)])
    return loss, grad_users, grad_items
