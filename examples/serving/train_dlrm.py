"""Train a small DLRM with torch, and save it for a service without torch.

    python train_dlrm.py trained        # a minute; needs torch
    MODEL=trained OMP_NUM_THREADS=1 uvicorn app_dlrm:create --factory --no-access-log

The data are made up: users, and films with genres. A user likes a film if their hidden vectors
point in one direction.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

import embag
import embag.torch

SIZES = {"user": 500, "film": 300, "genres": 20, "watched": 300}
DIM = 16
BATCH = 256


class Dense(torch.nn.Module):
    """The dot products of all pairs of pooled rows, and a network on both."""

    def __init__(self):
        super().__init__()
        n_pairs = len(SIZES) * (len(SIZES) - 1) // 2
        self.network = torch.nn.Sequential(
            torch.nn.Linear(len(SIZES) * DIM + n_pairs, 64),
            torch.nn.ReLU(),
            torch.nn.Linear(64, 1),
        )

    def forward(self, pooled):
        vectors = pooled.reshape(-1, len(SIZES), DIM)
        products = vectors @ vectors.transpose(1, 2)
        first, second = torch.tril_indices(len(SIZES), len(SIZES), -1)
        return self.network(torch.cat([pooled, products[:, first, second]], dim=1))[:, 0]


class DLRM(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embeddings = torch.nn.ModuleDict(
            {name: torch.nn.EmbeddingBag(n_rows, DIM, mode="sum") for name, n_rows in SIZES.items()}
        )
        for layer in self.embeddings.values():
            torch.nn.init.normal_(layer.weight, std=0.1)
        self.embeddings["watched"].mode = "mean"
        self.embeddings["watched"].weight = self.embeddings["film"].weight  # one table
        self.dense = Dense()

    def forward(self, bags):
        """Return the scores of a batch: `bags` has a pair (ids, offsets) for each feature."""
        pooled = [layer(*bags[name]) for name, layer in self.embeddings.items()]
        return self.dense(torch.cat(pooled, dim=1))


def make_requests(n, seed=0):
    """Return random requests, lists of ids by feature, and whether the user likes the film."""
    rng = np.random.default_rng(seed)
    hidden = np.random.default_rng(99)
    users, films = (hidden.standard_normal((SIZES[name], 3)) for name in ("user", "film"))
    genres = [np.flatnonzero(row).tolist() for row in hidden.random((SIZES["film"], 20)) < 0.1]
    requests, labels = [], []
    for _ in range(n):
        user, film = int(rng.integers(len(users))), int(rng.integers(len(films)))
        watched = rng.integers(len(films), size=rng.integers(8)).tolist()
        requests.append(
            {"user": [user], "film": [film], "genres": genres[film], "watched": watched}
        )
        labels.append(float(users[user] @ films[film] > 0))
    return requests, np.array(labels, np.float32)


def as_bags(requests):
    """Return ids and offsets of each feature, as tensors."""
    bags = {}
    for name in SIZES:
        lists = [request[name] for request in requests]
        lengths = [len(ids) for ids in lists]
        ids = [id_ for ids in lists for id_ in ids]
        offsets = np.cumsum([0, *lengths])[:-1]
        bags[name] = torch.tensor(ids, dtype=torch.int64), torch.from_numpy(offsets)
    return bags


def train(n_requests=40_000, n_epochs=5):
    torch.manual_seed(0)
    model = DLRM()
    embag.torch.replace_embeddings(model)  # faster layers; the state dict stays the same
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    requests, labels = make_requests(n_requests)
    order = np.random.default_rng(0)
    for epoch in range(n_epochs):
        places = order.permutation(n_requests)
        losses = []
        for start in range(0, n_requests, BATCH):
            batch = places[start : start + BATCH]
            scores = model(as_bags([requests[i] for i in batch]))
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                scores, torch.from_numpy(labels[batch])
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        print(f"epoch {epoch + 1}: loss {np.mean(losses):.3f}")
    return model


def save(model, folder):
    """Save the embeddings, 8 bits an entry, and the weights of the network."""
    ebc, report = embag.torch.to_collection(model.embeddings, bits=8, invalid="skip")
    print(report)
    ebc.save(folder)
    state = model.dense.network.state_dict()
    np.savez(folder / "dense.npz", **{name: value.numpy() for name, value in state.items()})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    model = train()
    requests, labels = make_requests(5_000, seed=1)
    with torch.no_grad():
        right = ((model(as_bags(requests)) > 0).numpy() == labels).mean()
    print(f"{right:.1%} of new requests are classified correctly")
    save(model, folder)
