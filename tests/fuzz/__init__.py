"""A fuzzer over all that `embag` exports: any call returns the right result or raises as told.

    values.py      what an argument may be: any object, any array, any layout
    calls.py       sound calls of each public name, and what is right of their results
    case.py        spoil a call, make it, and look at what it did
    __main__.py    many cases in child processes: counts, crashes, hangs, replay
    from_bytes.py  the same cases and raw files, led by coverage (atheris)

A case is made of bytes by hypothesis (`fuzz_one_input`), so a seed and a number name it, and
a file of a failed one can be run again. In `make test` a few thousand run
(tests/test_fuzz.py), `make fuzz` runs as many as one likes.

A new public name, or a new argument of an old one, goes into calls.py.
"""
