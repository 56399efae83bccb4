"""Sentence search with a real static embedding model, for ``embag demo``.

The model is a table of token vectors and a tokenizer, both files of the `wordllama` package.
The text is Python's language reference (`pydoc_data.topics`). A passage is a bag of token ids,
and its vector is the mean of their rows. The passages nearest to a query are those whose
vectors have the largest cosine with the vector of the query.

The vectors are checked against WordLlama's own before anything is timed. Both ways of pooling
are timed on the same tokens, already in arrays, so neither time includes the tokenizer.

The extra `demo` is imported only inside functions, so the help of the command line works
without it. Nothing is downloaded.

Tested in tests/cli/.
"""

import platform
import re
import time
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from embag._process.threads import get_num_threads
from embag.functional import embedding_bag
from embag.memory import aligned_copy

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from tokenizers import Tokenizer

DEFAULT_QUERY = "how do I catch an exception"
INSTALL_COMMAND = "pip install 'embag-cpu[demo]'"
_EXTRA = ("wordllama", "safetensors", "tokenizers", "rich")

_TABLE_FILE = "weights/l2_supercat_256.safetensors"
_TOKENIZER_FILE = "tokenizers/l2_supercat_tokenizer_config.json"

# The reference has lines of about 70 characters. Shorter paragraphs are headings, lead-ins and
# bits of code.
_MIN_PASSAGE_CHARACTERS = 70
_PRINTED_LINES = 8

# The default batch of `WordLlamaInference.embed`: the texts that it pads to one length.
_WORDLLAMA_BATCH = 64
_WORDLLAMA_RUNS = 5
_EMBAG_RUNS = 50


class DemoError(Exception):
    """The demo cannot run, or found a wrong result. The message is for the user."""


class Passage(NamedTuple):
    """A paragraph of the language reference, and its topic."""

    topic: str
    text: str


class Bags(NamedTuple):
    """Bags of token ids, concatenated: shapes (n_indices,) and (n_bags,)."""

    ids: NDArray[np.int32]
    offsets: NDArray[np.int32]

    @property
    def lengths(self) -> NDArray[np.int32]:
        """The number of tokens of each bag."""
        return np.diff(self.offsets, append=np.int32(self.ids.size))


class Model(NamedTuple):
    """The token table, the tokenizer, and a `WordLlamaInference` made of both."""

    table: NDArray[np.float32]
    tokenizer: "Tokenizer"
    wordllama: Any


class Agreement(NamedTuple):
    """The largest difference between two sets of vectors, and the range of their bounds."""

    largest_difference: float
    smallest_bound: float
    largest_bound: float


class Timing(NamedTuple):
    """Seconds for pooling all passages, and the number of positions that WordLlama reads."""

    wordllama: float
    embag: float
    embag_one_thread: float
    n_padded: int


def run(query: str, n_nearest: int) -> None:
    """Check, time and search; print the figures and the passages nearest to a query.

    Parameters
    ----------
    query : str
        The text to search for.
    n_nearest : int
        The number of passages to print, at least 1.

    Raises
    ------
    DemoError
        If the extra is not installed or has another version, or if the vectors differ from
        WordLlama's by more than rounding.
    """
    _import_extra()
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    with _progress() as progress:
        _step(progress, "Reading the model")
        model = load_model()
        passages = language_reference()
        texts = [passage.text for passage in passages]

        _step(progress, "Tokenising the passages")
        bags = make_bags(model.tokenizer, texts)
        vectors = pool(bags, model.table)

        expected = wordllama_vectors(model.wordllama, texts, progress)
        agreement = check_agreement(vectors, expected, bags, model.table)
        timing = time_pooling(model, bags, expected, progress)

    _print_figures(console, model, bags, agreement, timing)
    query_vector = pool(make_bags(model.tokenizer, [query]), model.table)[0]
    _print_nearest(console, query, nearest(query_vector, vectors, passages, n_nearest))


def load_model() -> Model:
    """Read the table and the tokenizer from the installed `wordllama` package.

    `WordLlama.load()` cannot be used: it looks for the tokenizer in a folder that does not
    exist, and then on the network.

    Returns
    -------
    Model
        The table is float32, of shape (n_rows, dim), converted once from float16.

    Raises
    ------
    DemoError
        If the package does not have the files.
    """
    import wordllama
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    folder = Path(wordllama.__file__).parent
    for name in (_TABLE_FILE, _TOKENIZER_FILE):
        if not (folder / name).is_file():
            raise DemoError(
                f"wordllama {wordllama.__version__} is installed without {name}; "
                f"{INSTALL_COMMAND} installs the version that has it"
            )
    stored = load_file(folder / _TABLE_FILE)["embedding.weight"]
    tokenizer_file = str(folder / _TOKENIZER_FILE)
    # Two tokenizers, as WordLlamaInference enables padding in its own.
    tokenizer = Tokenizer.from_file(tokenizer_file)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return Model(
        table=aligned_copy(stored.astype(np.float32)),
        tokenizer=tokenizer,
        wordllama=wordllama.WordLlamaInference(stored, Tokenizer.from_file(tokenizer_file)),
    )


def language_reference() -> list[Passage]:
    """Return the passages of the language reference of the running Python.

    A section may be part of several topics. Shorter topics come first: they are narrower, and
    so better names for the section.
    """
    from pydoc_data.topics import topics

    narrow_first = sorted(topics.items(), key=lambda item: (len(item[1]), item[0]))
    return [
        Passage(topic, passage) for topic, text in narrow_first for passage in split_passages(text)
    ]


def split_passages(text: str) -> list[str]:
    """Split a text at blank lines and drop paragraphs shorter than a line.

    Parameters
    ----------
    text : str
        The text of a topic.

    Returns
    -------
    list of str
        The paragraphs, with their indentation, without blank lines around them.
    """
    paragraphs = re.split(r"\n(?:[^\S\n]*\n)+", text.strip("\n"))
    return [
        paragraph.rstrip()
        for paragraph in paragraphs
        if len(paragraph.strip()) >= _MIN_PASSAGE_CHARACTERS
    ]


def make_bags(tokenizer: "Tokenizer", texts: Sequence[str]) -> Bags:
    """Tokenize texts as WordLlama does, without special tokens and truncation; do not pad."""
    encodings = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    tokens = [encoding.ids for encoding in encodings]
    ends = np.cumsum([len(ids) for ids in tokens], dtype=np.int32)
    return Bags(
        ids=np.array([row for ids in tokens for row in ids], np.int32),
        offsets=np.concatenate([np.zeros(1, np.int32), ends[:-1]]),
    )


def pool(
    bags: Bags, table: NDArray[np.float32], num_threads: int | None = None
) -> NDArray[np.float32]:
    """Return the mean of each bag's rows, shape (n_bags, dim)."""
    return embedding_bag(bags.ids, table, bags.offsets, mode="mean", num_threads=num_threads)


def wordllama_vectors(
    wordllama: Any, texts: list[str], progress: "Progress"
) -> NDArray[np.float32]:
    """Return WordLlama's own vectors of texts, shape (n_bags, dim).

    To show progress, `embed` is called for each of the batches that it would form itself.
    """
    starts = range(0, len(texts), _WORDLLAMA_BATCH)
    vectors = [
        wordllama.embed(texts[start : start + _WORDLLAMA_BATCH])
        for start in _track(progress, "WordLlama's own vectors", starts)
    ]
    return np.concatenate(vectors)


def check_agreement(
    vectors: NDArray[np.float32],
    expected: NDArray[np.float32],
    bags: Bags,
    table: NDArray[np.float32],
) -> Agreement:
    """Compare two ways of computing the means of the same bags.

    Parameters
    ----------
    vectors, expected : ndarray of float32, shape (n_bags, dim)
        The means.
    bags : Bags
        The bags; none is empty.
    table : ndarray of float32, shape (n_rows, dim)
        The table.

    Returns
    -------
    Agreement
        The largest difference, and the range of the bounds.

    Raises
    ------
    DemoError
        If an entry differs by more than rounding, or is NaN.

    Notes
    -----
    The bound follows from the arithmetic. A mean of n values takes n - 1 additions, in any
    order, and a division. With u = eps / 2, its error is at most n u / (1 - n u) times the mean
    of the magnitudes (Higham, Accuracy and Stability of Numerical Algorithms, section 4.2). Two
    such means differ by at most twice that. The mean of the magnitudes is at most the mean of
    the largest magnitudes of the rows.
    """
    largest_in_row = np.abs(table).max(axis=1).astype(np.float64)
    magnitudes = np.add.reduceat(largest_in_row[bags.ids], bags.offsets) / bags.lengths
    rounding = bags.lengths * (np.finfo(np.float32).eps / 2)
    # The term for underflow also avoids a bound of 0 for a bag of zero rows.
    bounds = 2 * rounding / (1 - rounding) * magnitudes + np.finfo(np.float32).tiny

    differences = np.abs(vectors.astype(np.float64) - expected).max(axis=1)
    shares = differences / bounds
    worst = int(np.argmax(shares))  # a NaN, if there is one
    if not shares[worst] <= 1:
        raise DemoError(
            f"passage {worst}, of {bags.lengths[worst]} tokens, differs from WordLlama's vector "
            f"by {differences[worst]:.2g}; rounding explains {bounds[worst]:.2g} at most"
        )
    return Agreement(float(differences.max()), float(bounds.min()), float(bounds.max()))


def time_pooling(
    model: Model, bags: Bags, expected: NDArray[np.float32], progress: "Progress"
) -> Timing:
    """Time the pooling of WordLlama and of embag, both from token ids in arrays.

    The pooling of WordLlama is the gather and the `avg_pool` of its `embed`, on the same padded
    batches. It is first checked to give the vectors of `embed`, bit for bit.

    Returns
    -------
    Timing
        The best of several runs each, including the allocation of the result.

    Raises
    ------
    DemoError
        If the pooling to be timed does not give the vectors of `embed`.
    """
    batches = pad_batches(bags)
    embedding, avg_pool = model.wordllama.embedding, model.wordllama.avg_pool

    def wordllama_pooling() -> list[NDArray[np.float32]]:
        return [avg_pool(embedding[ids], mask) for ids, mask in batches]

    _step(progress, "Timing WordLlama's pooling")
    if not np.array_equal(np.concatenate(wordllama_pooling()), expected):
        raise DemoError("the pooling to be timed does not give the vectors of WordLlama's embed")
    wordllama_seconds = best_seconds(
        wordllama_pooling, _track(progress, "Timing WordLlama's pooling", range(_WORDLLAMA_RUNS))
    )
    _step(progress, "Timing embag's pooling")
    return Timing(
        wordllama=wordllama_seconds,
        embag=best_seconds(lambda: pool(bags, model.table), range(_EMBAG_RUNS)),
        embag_one_thread=best_seconds(
            lambda: pool(bags, model.table, num_threads=1), range(_EMBAG_RUNS)
        ),
        n_padded=sum(ids.size for ids, _ in batches),
    )


def pad_batches(bags: Bags) -> list[tuple[NDArray[np.int32], NDArray[np.float32]]]:
    """Arrange bags as WordLlama does: in batches of 64, padded with row 0 to the longest bag.

    Returns
    -------
    list of (ids, mask)
        Both of shape (batch, longest); the mask is 1 for tokens and 0 for padding.
    """
    batches = []
    lengths = bags.lengths
    for start in range(0, lengths.size, _WORDLLAMA_BATCH):
        in_batch = lengths[start : start + _WORDLLAMA_BATCH]
        is_token = np.arange(in_batch.max()) < in_batch[:, np.newaxis]
        ids = np.zeros(is_token.shape, np.int32)
        first = bags.offsets[start]
        ids[is_token] = bags.ids[first : first + in_batch.sum()]
        batches.append((ids, is_token.astype(np.float32)))
    return batches


def best_seconds(function: Callable[[], object], runs: Iterable[int]) -> float:
    """Call a function once for each of `runs`; return the minimum time of a call.

    The minimum, as in `timeit`: other programs can only add to the time.
    """
    seconds = []
    for _ in runs:
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def nearest(
    query: NDArray[np.float32],
    vectors: NDArray[np.float32],
    passages: Sequence[Passage],
    n_nearest: int,
) -> list[tuple[float, Passage]]:
    """Return the passages whose vectors have the largest cosines with that of a query.

    Parameters
    ----------
    query : ndarray of float32, shape (dim,)
        The vector of the query.
    vectors : ndarray of float32, shape (n_bags, dim)
        The vectors of the passages; none is zero.
    passages : sequence of Passage
        The passages.
    n_nearest : int
        The number of passages to return.

    Returns
    -------
    list of (float, Passage)
        Cosines and passages, the nearest first. A text that is part of several topics appears
        once, with the first of them.
    """
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(query)
    cosines = vectors @ query / lengths
    found: dict[str, tuple[float, Passage]] = {}
    for position in np.argsort(-cosines, kind="stable"):
        passage = passages[position]
        found.setdefault(passage.text, (float(cosines[position]), passage))
        if len(found) == n_nearest:
            break
    return list(found.values())


def _import_extra() -> None:
    """Import the packages of the extra; raise DemoError if one is missing."""
    try:
        for package in _EXTRA:
            import_module(package)
    except ModuleNotFoundError as error:
        if error.name not in _EXTRA:
            raise
        raise DemoError(
            f"the package {error.name} is not installed; install the extra: {INSTALL_COMMAND}"
        ) from None


def _progress() -> "Progress":
    """Return a progress bar on stderr, which is erased in the end; hidden if stderr is piped."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _step(progress: "Progress", description: str) -> None:
    """Show a step of unknown length, instead of the previous one."""
    for task in progress.task_ids:
        progress.remove_task(task)
    progress.add_task(description, total=None)


def _track(progress: "Progress", description: str, work: range) -> Iterable[int]:
    """Show the progress of a loop, instead of the previous step."""
    for task in progress.task_ids:
        progress.remove_task(task)
    return progress.track(work, description=description)


def _print_figures(
    console: "Console",
    model: Model,
    bags: Bags,
    agreement: Agreement,
    timing: Timing,
) -> None:
    from rich.table import Table

    n_rows, dim = model.table.shape
    n_threads = get_num_threads()
    gathered = bags.ids.size * dim * model.table.itemsize / 1e6
    figures = Table.grid(padding=(0, 2))
    figures.add_column(style="bold", no_wrap=True)
    figures.add_column()
    figures.add_row("Model", f"WordLlama l2_supercat: {n_rows:,} tokens, {dim} float32 each")
    figures.add_row(
        "Text",
        f"the language reference of Python {platform.python_version()}: {bags.offsets.size:,} "
        f"passages, {bags.ids.size:,} tokens, {gathered:.0f} MB of rows to pool",
    )
    figures.add_row(
        "Check",
        f"largest difference from WordLlama's vectors: {agreement.largest_difference:.2g}, within "
        f"rounding (which allows {agreement.smallest_bound:.1g} to {agreement.largest_bound:.1g}, "
        "by length)",
    )
    figures.add_row(
        "Pooling",
        f"WordLlama, NumPy: {timing.wordllama * 1e3:,.0f} ms (best of {_WORDLLAMA_RUNS}; "
        f"with its padding {timing.n_padded:,} positions)",
    )
    figures.add_row("", _embag_row(timing.embag, timing.wordllama, n_threads))
    if n_threads > 1:
        figures.add_row("", _embag_row(timing.embag_one_thread, timing.wordllama, 1))
    console.print(figures)


def _embag_row(seconds: float, wordllama_seconds: float, n_threads: int) -> str:
    threads = "1 thread" if n_threads == 1 else f"{n_threads} threads"
    return (
        f"embag, {threads}: {seconds * 1e3:.2f} ms (best of {_EMBAG_RUNS}), "
        f"{wordllama_seconds / seconds:,.0f} times as fast"
    )


def _print_nearest(console: "Console", query: str, found: Sequence[tuple[float, Passage]]) -> None:
    console.print(f"\nNearest to: {query}", style="bold", soft_wrap=True)
    for place, (cosine, passage) in enumerate(found, start=1):
        console.print(f"\n{place}. cosine {cosine:.3f}, topic {passage.topic}", style="bold")
        lines = passage.text.splitlines()
        for line in lines[:_PRINTED_LINES]:
            console.print(f"   {line}", soft_wrap=True)
        if len(lines) > _PRINTED_LINES:
            console.print(f"   ... ({len(lines) - _PRINTED_LINES} lines more)")
