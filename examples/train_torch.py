"""Train with torch: the same model with the `EmbeddingBag` of torch and of embag.

The rest of the network is torch's. Both are trained in the same way, with sparse gradients, and
must reach the same losses.

    python examples/train_torch.py
"""

import time

import passages
import torch

import embag.torch


class Classifier(torch.nn.Module):
    def __init__(self, bag, n_topics):
        super().__init__()
        self.bag = bag
        self.linear = torch.nn.Linear(bag.embedding_dim, n_topics)

    def forward(self, ids, offsets):
        return self.linear(self.bag(ids, offsets))


def train(model, split, n_steps):
    """Return the loss of each step."""
    ids, offsets, topics = (torch.from_numpy(array) for array in split)
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0)
    losses = []
    for _ in range(n_steps):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(ids, offsets), topics)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def main(n_steps=50):
    data = passages.load()
    results = {}
    for name, layer in (("torch", torch.nn.EmbeddingBag), ("embag", embag.torch.EmbeddingBag)):
        torch.manual_seed(0)
        bag = layer.from_pretrained(torch.tensor(data.table), freeze=False, sparse=True)
        model = Classifier(bag, len(data.topics))
        start = time.perf_counter()
        losses = train(model, data.train, n_steps)
        seconds = time.perf_counter() - start
        with torch.inference_mode():
            ids, offsets, topics = (torch.from_numpy(array) for array in data.test)
            right = (model(ids, offsets).argmax(dim=1) == topics).float().mean().item()
        print(f"{name}: loss {losses[0]:.3f} to {losses[-1]:.4f}, {right:.1%} of the test ", end="")
        print(f"passages right, {n_steps} steps in {seconds:.1f} s")
        results[name] = losses, right
    return results


if __name__ == "__main__":
    main()
