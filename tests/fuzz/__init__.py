"""A fuzzer of all that `embag` exports: any call returns a right result or a documented error.

    values.py             values of arguments: any object, any array, any layout
    lookup_cases.py       sound calls, and checks of their results: lookups, gradients, layers
    segment_cases.py      the same in long format
    ragged_cases.py       the same for ragged inputs
    collection_cases.py   the same for EmbeddingBagCollection
    table_cases.py        the same for quantized tables, sparse rows, memory, settings
    file_cases.py         the same for files
    calls.py              the list of all functions that draw cases
    checked_call.py       corrupt a call, make it, and check it
    child.py              many cases in one process
    __main__.py           many processes: counts, crashes, hangs, replay
    from_bytes/           targets, which make the same cases, or files, from bytes
    corpus/               inputs of the targets, found by coverage

A case is drawn from a `random.Random`, so a seed and a number identify it. Hypothesis provides
such generators too (`st.randoms`), with which it shrinks a failing case. from_bytes/ has one that
takes its choices from bytes, which atheris varies by coverage. Most cases come from Python's own
generator, which is ten times as fast. `make test` runs a few thousand (test_fuzz.py) and the
corpus (test_corpus.py), `make fuzz` as many as requested.

A new argument goes into the sound calls of its function, a new public name also into calls.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
