"""Train with NumPy alone: predict the topic of a passage of the language reference.

The vector of a passage is the weighted mean of its token vectors, and a linear classifier
predicts the topic from it. The classifier is first trained alone, on the given vectors. Then the
token vectors and a weight for each token are trained as well, with the gradients that
`embag.embedding_bag_backward` returns.

    python examples/train_numpy.py
"""

import time

import numpy as np
import passages

import embag


def softmax(logits):
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)


def vectors_of(split, table, token_weights):
    factors = token_weights[split.ids] * split.shares
    return embag.embedding_bag(
        split.ids, table, split.offsets, mode="sum", per_sample_weights=factors
    )


def train(split, table, token_weights, classifier, n_steps, rate=1.0, token_rate=0.0):
    """Train by gradient descent, in place."""
    ids, offsets = split.ids, split.offsets
    targets = np.eye(classifier.shape[1], dtype=np.float32)[split.topics]
    for _ in range(n_steps):
        factors = token_weights[ids] * split.shares
        vectors = embag.embedding_bag(ids, table, offsets, mode="sum", per_sample_weights=factors)
        grad_logits = (softmax(vectors @ classifier) - targets) / len(targets)
        grads = embag.embedding_bag_backward(
            grad_logits @ classifier.T, ids, table, offsets,
            mode="sum", per_sample_weights=factors, sparse=True,
        )  # fmt: skip
        classifier -= rate * vectors.T @ grad_logits
        grads.weight.add_to(table, -token_rate)
        token_weights -= token_rate * np.bincount(
            ids, grads.per_sample_weights * split.shares, len(table)
        ).astype(np.float32)


def accuracy(split, table, token_weights, classifier):
    logits = vectors_of(split, table, token_weights) @ classifier
    return np.mean(logits.argmax(axis=1) == split.topics)


def main(n_steps=100):
    data = passages.load()
    print(f"{len(data.train.topics)} passages of {len(data.topics)} topics to train with, ", end="")
    print(f"{len(data.test.topics)} to test with; the commonest topic alone would get ", end="")
    print(f"{np.bincount(data.test.topics).max() / len(data.test.topics):.0%} right")
    results = {}
    for name, token_rate in (("vectors as they come", 0.0), ("tokens trained", 50.0)):
        table = embag.aligned_copy(data.table)
        token_weights = np.ones(len(table), np.float32)
        classifier = np.zeros((table.shape[1], len(data.topics)), np.float32)
        start = time.perf_counter()
        train(data.train, table, token_weights, classifier, n_steps, token_rate=token_rate)
        seconds = time.perf_counter() - start
        results[name] = accuracy(data.test, table, token_weights, classifier)
        print(f"{name}: {results[name]:.1%} of the test passages right, ", end="")
        print(f"{n_steps} steps in {seconds:.1f} s")
    heaviest = np.argsort(-token_weights)[:12]
    print("heaviest tokens:", ", ".join(data.tokens[i].strip("\u2581") for i in heaviest))
    return results


if __name__ == "__main__":
    main()
