"""Static embedding models beside model2vec: `python -m benchmarks.texts`, from the root.

10,000 different passages of the documentation of Python's standard library, a tokenizer that is
trained on them (WordPiece, 30,000 tokens), and vectors of 256 random numbers, in a folder that
model2vec writes and both read:

passages        `encode` of both, and the tokenizer alone
pooling         of the same tokens, which are already there: as lists for model2vec, as it keeps
                them; as arrays for embag
words           `encode` of 10,000 texts of one word, and the tokenizer alone
pooling words   the same tokens, pooled
one word        `encode` of a single text of one word, 100 times

Results are compared first. The ways take turns. A time is the median over the rounds, a ratio the
median of the ratios in a round. It needs `pip install model2vec 'embag-cpu[text]'`. `--json FILE`
writes the figures.
"""

import argparse
import json
import re
import statistics
import sysconfig
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
ROWS = {
    "passages": "`encode` of 10,000 passages",
    "pooling": "pooling alone",
    "words": "`encode` of 10,000 texts of one word",
    "pooling words": "pooling alone",
    "one word": "`encode` of one word, 100 times",
}


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
        np.testing.assert_allclose(
            ours.encode(passages), theirs.encode(passages), rtol=0, atol=1e-6
        )
        results["times"] = measure(ours, theirs, passages, words, arguments.rounds)
    print(table(results["times"]))
    load = results["machine"]["load"]
    print(f"\n{results['machine']['name']}, {results['machine']['cores']} cores, load {load:.1f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


def table(times: dict[str, list[float]]) -> str:
    """Return the table of docs/benchmarks.md."""
    lines = ["| | embag, ms | model2vec, ms | times as fast | of the tokenizer alone |"]
    lines.append("|---|--:|--:|--:|--:|")
    for row, title in ROWS.items():
        embag_, model2vec_ = (times[f"{row}, {name}"] for name in ("embag", "model2vec"))
        faster = median_ratio(model2vec_, embag_)
        tokenizer = times.get(f"{row}, tokenizer")
        share = "" if tokenizer is None else f"{median_ratio(embag_, tokenizer):.2f}"
        ms = [f"{statistics.median(seconds) * 1e3:.1f}" for seconds in (embag_, model2vec_)]
        lines.append(f"| {title} | {ms[0]} | {ms[1]} | {faster:.1f} | {share} |")
    return "\n".join(lines)


def median_ratio(seconds: list[float], others: list[float]) -> float:
    """Return the median of the ratios in each round."""
    return statistics.median(a / b for a, b in zip(seconds, others, strict=True))


def find_passages(n: int) -> list[str]:
    """Return paragraphs of Python's language reference and of the docstrings of its library.

    Files are read, and no module is imported: some open windows or browsers.
    """
    texts = list(topics.topics.values())
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if not {"site-packages", "test", "tests"} & set(path.parts):
            source = path.read_text("utf-8", "replace")
            texts += re.findall(r'"""(.*?)"""', source, re.DOTALL)
    found = [text.strip() for one in texts for text in re.split(r"\n\s*\n", one)]
    passages = list(dict.fromkeys(text for text in found if len(text) > 50))
    if len(passages) < n:
        raise SystemExit(f"the documentation of this Python has {len(passages)} passages only")
    return passages[:n]


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
) -> dict[str, list[float]]:
    """Return the seconds of each way in each round."""
    ways: dict[str, Callable[[], Any]] = {}
    for row, texts in (("passages", passages), ("words", words)):
        ways |= ways_to_encode(row, ours, theirs, texts)
    for row, texts in (("pooling", passages), ("pooling words", words)):
        ways |= ways_to_pool(row, ours, theirs, texts)
    ways["one word, embag"] = lambda: [ours.encode("sky") for _ in range(100)]
    ways["one word, model2vec"] = lambda: [theirs.encode("sky") for _ in range(100)]
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(n_rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ways_to_encode(row: str, ours: Any, theirs: Any, texts: list[str]) -> dict[str, Any]:
    batches = [texts[i : i + 1024] for i in range(0, len(texts), 1024)]  # as both make them

    def tokenize() -> None:
        for batch in batches:
            ours.tokenizer.encode_batch_fast(batch, add_special_tokens=False)

    return {
        f"{row}, embag": lambda: ours.encode(texts),
        f"{row}, tokenizer": tokenize,
        f"{row}, model2vec": lambda: theirs.encode(texts),
    }


def ways_to_pool(row: str, ours: Any, theirs: Any, texts: list[str]) -> dict[str, Any]:
    tokens = theirs.tokenize(texts)
    ids = np.concatenate([np.array(one, np.int32) for one in tokens])
    offsets = np.cumsum([0, *map(len, tokens)])
    tokenize = theirs.tokenize

    def pool_theirs() -> Any:
        theirs.tokenize = lambda sentences: tokens
        try:
            return theirs._encode_batch(texts, normalize=False)
        finally:
            theirs.tokenize = tokenize

    def pool_ours() -> Any:
        return embag.embedding_bag(ids, ours.table, offsets, include_last_offset=True)

    np.testing.assert_allclose(pool_ours(), pool_theirs(), rtol=0, atol=1e-6)
    return {f"{row}, embag": pool_ours, f"{row}, model2vec": pool_theirs}


if __name__ == "__main__":
    main()
