"""A service that scores with the model of train_dlrm.py, without torch.

    MODEL=trained OMP_NUM_THREADS=1 uvicorn app_dlrm:create --factory --workers 2

A new model is a new folder: start new workers on it.
"""

import os
from pathlib import Path

import numpy as np
from app import service

import embag


class Model:
    """The DLRM of train_dlrm.py: `pool` and `dense` are its forward pass."""

    def __init__(self, folder):
        self.ebc = embag.EmbeddingBagCollection.load(folder)
        self.n_features = len(self.ebc.features)
        with np.load(folder / "dense.npz") as arrays:
            self.weights = dict(arrays)

    @property
    def n_invalid(self):
        return self.ebc.n_invalid

    def pool(self, features):
        return self.ebc({name: [ids] for name, ids in features.items()})

    def dense(self, pooled):
        return self.scores(pooled).item()

    def scores(self, pooled):
        """Return the score of each row."""
        vectors = pooled.reshape(len(pooled), self.n_features, -1)
        products = vectors @ vectors.transpose(0, 2, 1)
        first, second = np.tril_indices(self.n_features, -1)
        x = np.concatenate([pooled, products[:, first, second]], axis=1)
        w = self.weights
        hidden = np.maximum(x @ w["0.weight"].T + w["0.bias"], 0)
        return (hidden @ w["2.weight"].T + w["2.bias"])[:, 0]


def create():
    return service(Model, Path(os.environ["MODEL"]), watches=False)
