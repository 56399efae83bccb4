"""Report which branches of the kernels tests have taken: make coverage.

    python -m tools.kernel_coverage build/coverage-objects --page docs/testing.md

The folder holds what a build with EMBAG_COVERAGE=1 and runs of its modules have written, for
`gcov`. Cython's C says by comments which line of a .pxi file it stands for. A branch here is one
that such a line itself makes: an `if`, a loop, a part of an `and` or `or`, a `min`. Those that
Cython adds, for errors, arguments and reference counts, are not counted. A branch of a function
with several specializations, or of several levels, counts as taken if one of them takes it.

Branches that no test can take are listed with the reason in tools/untaken_branches.txt: file, line
above, line, and `condition.way` of each branch. The exit status is 1 if another one is not taken.
"""

import argparse
import collections
import functools
import itertools
import json
import re
import subprocess
from pathlib import Path

from benchmarks.operations.table import insert

ROOT = Path(__file__).parents[1]
UNTAKEN = Path(__file__).with_name("untaken_branches.txt")

MARK = re.compile(r'\s*/\* "(embag/[^"]+)":(\d+)$')
# What Cython writes for a condition of its source, and what it adds beside.
CONDITION = re.compile(r"\s*(\} else )?(if|for|while|switch) \(|.* \? ")
ADDED = re.compile(
    r"likely\(|__PYX_ERR|__Pyx_|__pyx_nargs|CYTHON_|Py_None\)\) \{|_save|Py_BEGIN|\(index=0;|"
    r"#pragma|if \(__pyx_t_\d+ > 0\)$"  # of `prange`
)
# What a statement with a condition has; others take tuples apart, or are functions' heads.
BRANCHES = re.compile(r"\b(if|elif|else|while|for|and|or|not|min|max)\b|[=<] .* [=<]")


def main():
    parser = argparse.ArgumentParser(prog="python -m tools.kernel_coverage")
    parser.add_argument("objects", type=Path)
    parser.add_argument("--page", type=Path, help="a page to write the table to")
    options = parser.parse_args()
    modules = {data.stem: branches_of(data) for data in sorted(options.objects.rglob("*.gcda"))}
    if not modules:
        raise SystemExit(f"no .gcda files in {options.objects}: the modules have not run")
    listed = {line for line in UNTAKEN.read_text().splitlines() if line and line[0] != "#"}
    total = sum(modules.values(), collections.Counter())
    total.update(dict.fromkeys(itertools.chain(*modules.values()), 0))
    untaken = untaken_of(total)
    table = table_of(modules, total)
    print(table)
    if options.page:
        options.page.write_text(insert(options.page.read_text(), "coverage", table))
    for line in sorted(listed.difference(untaken)):
        print(f"listed, but taken or gone: {line}")
    unlisted = [line for line in untaken if line not in listed]
    for line in unlisted:
        print(f"not taken, and not listed: {line}: {', '.join(untaken[line])}")
    return 1 if unlisted else 0


def untaken_of(counts):
    """Return the lines of the list, with numbers of lines, for branches that were not taken."""
    numbers = collections.defaultdict(list)
    for (file, line, number, way), n in sorted(counts.items()):
        if n == 0:
            numbers[file, line].append(f"{number + 1}.{way + 1}")
    untaken = collections.defaultdict(list)
    for (file, line), found in numbers.items():
        above, text = (each.strip() for each in source_of(file)[line - 2 : line])
        untaken[f"{file} | {above} | {text} | {' '.join(found)}"].append(str(line))
    return untaken


@functools.cache
def source_of(file):
    return (ROOT / file).read_text().splitlines()


@functools.cache
def statements_of(file):
    """Return, for each line of a file, the statement that it is a part of; "" for heads."""
    statements, first, depth, quoted = [], 0, 0, False
    for number, text in enumerate(source_of(file)):
        quoted ^= text.count('"""') % 2 == 1
        code = re.sub(r'"[^"]*"', '""', text).partition("#")[0].rstrip()
        if not quoted:
            depth += sum(map(code.count, "([{")) - sum(map(code.count, ")]}"))
        statements.append(code)
        if depth == 0:
            whole = " ".join(statements[first:]).strip()
            is_head = re.match(r"(def|cpdef|cdef class|except)\b|cdef [\w. *]+\(.*:$", whole)
            statements[first:] = ["" if is_head else whole] * (number + 1 - first)
            first = number + 1
    return statements


def marks_of(path):
    """Return the text of each line of a C file, and the (file, line) that it stands for."""
    lines = path.read_text(errors="replace").splitlines()
    marks, mark = [], None
    for text in lines:
        found = MARK.match(text)
        if found:
            mark = found[1], int(found[2])
        elif text == "}":
            mark = None
        marks.append(mark)
    return lines, marks


def branches_of(data):
    """Return how often each branch of a module was taken.

    The keys are (file, line, number of the condition in that line, way).
    """
    output = subprocess.run(
        ["gcov", "--json-format", "--stdout", "--branch-probabilities", data.name],
        cwd=data.parent,
        check=True,
        capture_output=True,
    ).stdout
    counts = collections.Counter()
    for file in json.loads(output)["files"]:
        if file["file"].endswith(".h"):
            add_branches_of_header(file, counts)
        elif file["file"].endswith(".c"):
            add_branches_of_module(file, counts)
    return counts


def add_branches_of_header(file, counts):
    name = re.sub(r".*?(embag/)", r"\1", file["file"])
    if not name.startswith("embag/"):
        return
    for line in file["lines"]:
        for way, branch in enumerate(line["branches"]):
            counts[name, line["line_number"], 0, way] += branch["count"]


def add_branches_of_module(file, counts):
    lines, marks = marks_of(ROOT / file["file"])
    n_conditions = collections.Counter()
    for line in sorted(file["lines"], key=lambda line: line["line_number"]):
        mark, text = marks[line["line_number"] - 1], lines[line["line_number"] - 1]
        if mark is None or not line["branches"]:
            continue
        statement = statements_of(mark[0])[mark[1] - 1]
        instance = line.get("function_name", "")
        is_condition = BRANCHES.search(statement) and CONDITION.match(text)
        # The last is the module, as it is imported.
        if ADDED.search(text) or not is_condition or "__pyx_pymod_exec" in instance:
            continue
        number = n_conditions[instance, mark]
        n_conditions[instance, mark] += 1
        for way, branch in enumerate(line["branches"]):
            counts[(*mark, number, way)] += branch["count"]


def table_of(modules, total):
    """Return a table of the branches taken, for each file and level."""
    rows = [
        "| File | branches | not taken | baseline | v3 | v4 | all levels |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    levels = [modules.get(name, {}) for name in ("_core", "_core_v3", "_core_v4")]
    for file in [*sorted({file for file, *_ in total}), None]:
        taken = [
            [n > 0 for key, n in counts.items() if file in {None, key[0]}]
            for counts in (*levels, total)
        ]
        shares = (f"{100 * sum(each) / len(each):.1f} %" if each else "" for each in taken)
        n, n_taken = len(taken[-1]), sum(taken[-1])
        rows.append(f"| {file or 'All'} | {n} | {n - n_taken} | " + " | ".join(shares) + " |")
    return "\n".join(rows)


if __name__ == "__main__":
    raise SystemExit(main())
