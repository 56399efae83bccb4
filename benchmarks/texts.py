"""Static embedding models beside model2vec: `python -m benchmarks.texts`, from the root.

10,000 passages of the documentation of Python's standard library, a tokenizer that is trained on
them (WordPiece, 30,000 tokens), and vectors of 256 random numbers, in a folder that model2vec
writes and both read. Figures are medians of rounds in which the ways take turns:

passages    `encode` of both, and the tokenizer alone
pooling     of the same tokens, which are already there: as lists for model2vec, as it keeps
            them; as arrays for embag
words       `encode` of 10,000 texts of one word, and the tokenizer alone
one word    `encode` of a single text of one word, 100 times

Results are compared first. It needs `pip install model2vec 'embag-cpu[text]'`. `--json FILE` writes
the figures.
"""

import argparse
import json
import pydoc
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from pydoc_data import topics
from typing import Any

import model2vec
import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

import embag
from benchmarks import machine
from embag.text import StaticModel

N_TEXTS, DIM, N_TOKENS = 10_000, 256, 30_000


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.texts", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--texts", type=int, default=N_TEXTS)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to FILE")
    arguments = parser.parse_args()
    results = machine.facts()
    passages = find_passages(arguments.texts)
    words = [word for passage in passages for word in passage.split()[:3]][: arguments.texts]
    with tempfile.TemporaryDirectory() as folder:
        theirs = make_model(passages)
        theirs.save_pretrained(folder)
        ours = StaticModel.from_folder(folder, "copy")
        np.testing.assert_allclose(ours.encode(passages), theirs.encode(passages), atol=1e-6)
        results["times"] = measure(ours, theirs, passages, words, arguments.rounds)
    times = results["times"]
    for name, seconds in times.items():
        print(f"{name}: {seconds * 1e3:.1f} ms")
    print(f"pooling: {times['pooling, model2vec'] / times['pooling, embag']:.1f} times as fast")
    print(f"words: {times['words, model2vec'] / times['words, embag']:.2f} times as fast")
    ratio = times["passages, embag"] / times["passages, tokenizer"]
    print(f"encode takes {ratio:.2f} of the time of the tokenizer alone")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


def find_passages(n: int) -> list[str]:
    """Return paragraphs of Python's language reference and of the docstrings of its library."""
    texts = list(topics.topics.values())
    for path in sorted(Path(pydoc.__file__).parent.glob("*.py")):
        texts += re.findall(r'"""(.*?)"""', path.read_text("utf-8", "replace"), re.DOTALL)
    found = [text.strip() for one in texts for text in re.split(r"\n\s*\n", one)]
    found = list(dict.fromkeys(text for text in found if len(text) > 70))
    return (found * (n // len(found) + 1))[:n]


def make_model(passages: list[str]) -> Any:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=N_TOKENS, special_tokens=["[PAD]", "[UNK]"], show_progress=False
    )
    tokenizer.train_from_iterator(passages, trainer)
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((tokenizer.get_vocab_size(), DIM), np.float32)
    return model2vec.StaticModel(vectors, tokenizer)


def measure(
    ours: Any, theirs: Any, passages: list[str], words: list[str], n_rounds: int
) -> dict[str, float]:
    ids = theirs.tokenize(passages)
    joined = np.concatenate([np.array(one, np.int64) for one in ids])
    offsets = np.cumsum([0, *map(len, ids)])
    tokenize = theirs.tokenize
    cut = [passages[i : i + 1024] for i in range(0, len(passages), 1024)]

    def pool_theirs() -> Any:
        theirs.tokenize = lambda sentences: ids
        try:
            return theirs._encode_batch(passages, False)
        finally:
            theirs.tokenize = tokenize

    def pool_ours() -> Any:
        return embag.embedding_bag(joined, ours.table, offsets, include_last_offset=True)

    np.testing.assert_allclose(pool_ours(), pool_theirs(), atol=1e-6)
    ways: dict[str, Callable[[], Any]] = {
        "passages, embag": lambda: ours.encode(passages),
        "passages, tokenizer": lambda: [
            ours.tokenizer.encode_batch_fast(texts, add_special_tokens=False) for texts in cut
        ],
        "passages, model2vec": lambda: theirs.encode(passages, use_multiprocessing=False),
        "pooling, embag": pool_ours,
        "pooling, model2vec": pool_theirs,
        "words, embag": lambda: ours.encode(words),
        "words, tokenizer": lambda: ours.tokenizer.encode_batch_fast(
            words, add_special_tokens=False
        ),
        "words, model2vec": lambda: theirs.encode(words, use_multiprocessing=False),
        "one word, embag": lambda: [ours.encode("sky") for _ in range(100)],
        "one word, model2vec": lambda: [theirs.encode("sky") for _ in range(100)],
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(n_rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) for name, found in seconds.items()}


if __name__ == "__main__":
    main()
