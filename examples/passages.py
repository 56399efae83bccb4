"""The data of the examples: passages of the Python language reference, by topic.

The token vectors and the tokenizer are those of the `wordllama` package, and the text is part of
the standard library. `pip install 'embag-cpu[demo]'` installs all of it; nothing is downloaded.
"""

from collections import Counter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from embag.cli import _sentence_search as demo

N_TOPICS = 12


class Split(NamedTuple):
    """Passages: their tokens as bags, and the numbers of their topics."""

    ids: NDArray[np.int32]
    offsets: NDArray[np.int32]
    topics: NDArray[np.int64]

    @property
    def shares(self) -> NDArray[np.float32]:
        """For each token, one over the number of tokens in its passage."""
        lengths = np.diff(self.offsets, append=len(self.ids))
        return np.repeat(1 / lengths, lengths).astype(np.float32)


class Passages(NamedTuple):
    """Three quarters of the passages to train with, a quarter to test with, and the model."""

    train: Split
    test: Split
    table: NDArray[np.float32]  # (n_tokens, dim)
    tokens: list[str]
    topics: list[str]


def load() -> Passages:
    """Read the passages of the N_TOPICS largest topics, each passage once."""
    model = demo.load_model()
    topic_of = {passage.text: passage.topic for passage in demo.language_reference()}
    topics = [topic for topic, _ in Counter(topic_of.values()).most_common(N_TOPICS)]
    texts = [text for text, topic in topic_of.items() if topic in topics]

    def split(chosen: NDArray[np.int64]) -> Split:
        bags = demo.make_bags(model.tokenizer, [texts[i] for i in chosen])
        labels = np.array([topics.index(topic_of[texts[i]]) for i in chosen])
        return Split(bags.ids, bags.offsets, labels)

    order = np.random.default_rng(0).permutation(len(texts))
    n_train = len(texts) * 3 // 4
    tokens = [model.tokenizer.id_to_token(i) for i in range(len(model.table))]
    return Passages(split(order[:n_train]), split(order[n_train:]), model.table, tokens, topics)
