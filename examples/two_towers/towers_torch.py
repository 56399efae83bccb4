"""The same model with torch: autograd, and torch's optimizer with sparse gradients.

The layer is `torch.nn.EmbeddingBag` or `embag.torch.EmbeddingBag`. torch's means take no weights,
so both layers sum, with weights that have been divided by their sum.
"""

import numpy as np
import torch

torch.sparse.check_sparse_tensor_invariants.disable()  # the default; unsaid, torch warns


class Towers(torch.nn.Module):
    """The towers of towers.py, with a layer and torch's optimizer."""

    def __init__(self, tables, lr, layer):
        super().__init__()
        inputs, outputs = (torch.tensor(table) for table in tables)
        self.users = layer.from_pretrained(inputs, freeze=False, mode="sum", sparse=True)
        self.items = torch.nn.Embedding.from_pretrained(outputs, freeze=False, sparse=True)
        self._optimizer = torch.optim.Adagrad(self.parameters(), lr=lr)

    def forward(self, batch):
        """Return the loss of a batch."""
        lengths = np.diff(np.append(batch.offsets, len(batch.ids)))
        totals = np.add.reduceat(batch.weights, batch.offsets)
        weights = torch.from_numpy(batch.weights / np.repeat(totals, lengths))
        ids = torch.from_numpy(batch.ids.astype(np.int64))  # of the dtype of the offsets
        offsets = torch.from_numpy(batch.offsets)
        candidates = torch.from_numpy(batch.candidates)
        log_chances = torch.from_numpy(batch.log_chances)
        shares = torch.from_numpy(batch.shares)

        users = self.users(ids, offsets, per_sample_weights=weights)
        items = self.items(candidates)
        logits = users @ items[:, :-1].T + (items[:, -1] - log_chances)
        log_likelihoods = torch.log_softmax(logits, dim=1)[batch.targets]
        return -(shares @ log_likelihoods) / len(users)

    def step(self, batch):
        """Train with a batch; return its loss."""
        self._optimizer.zero_grad()
        loss = self(batch)
        loss.backward()
        self._optimizer.step()
        return loss.item()
