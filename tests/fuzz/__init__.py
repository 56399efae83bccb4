"""A fuzzer over all that `embag` exports: any call returns the right result or raises as told.

    values.py           what an argument may be: any object, any array, any layout
    of_lookups.py       sound calls, and what is right of their results: lookups, gradients
    of_collections.py   the same of EmbeddingBagCollection
    of_tables.py        the same of quantized tables, sparse rows, memory, settings
    of_files.py         the same of files
    calls.py            the list of them all
    case.py             spoil a call, make it, and look at what it did
    child.py            many cases in one process
    __main__.py         many processes: counts, crashes, hangs, replay
    from_bytes.py       the same cases and raw files, led by coverage (atheris)

A case is drawn from a `random.Random`, so a seed and a number name it. Hypothesis has such
generators too (`st.randoms`): with them it can make a failing case small, and atheris can
lead it. The many are drawn from Python's own, which is ten times as fast. In `make test` a
few thousand run (tests/test_fuzz.py), `make fuzz` runs as many as one likes.

A new argument goes into the sound calls of its function, a new public name into calls.py too.
"""
