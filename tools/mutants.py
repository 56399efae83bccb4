"""Plant faults, and see whether tests find them: make mutants.

    python -m tools.mutants --count 240 --jobs 2
    python -m tools.mutants --only 17        # one of them, with the output of the tests

A mutant is a line of the kernels or of `_call.py` with one fault: a bound that is off by one, an
operator replaced, a check dropped, a flag lost, a tail too short. All are compiled into one copy of
the package, in build/mutants; the variable EMBAG_MUTANT selects one. The core tests then have to
fail, by a failure, a signal, or a test that never ends.

Which lines get which fault is drawn by a fixed seed, from all lines that change a result. What
only changes the speed (prefetching, timing) is left out. Mutants that no test can find, because
they compute the same, are listed with the reason in tools/equal_mutants.txt, and are not run. The
exit status is 1 if another one survives.
"""

import argparse
import collections
import concurrent.futures
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build" / "mutants"
EQUAL = Path(__file__).with_name("equal_mutants.txt")

KERNELS = (
    *("bags", "encodings", "modes", "arrays", "arithmetic", "renorm", "jobs", "entries"),
    *("blocks", "forward", "mapping", "calls", "lists", "gather", "collection", "grouping"),
    *("backward", "optimizers", "steps", "quantize"),
)
FILES = (*(f"embag/_kernels/{name}.pxi" for name in KERNELS), "embag/_call.py")
# Functions, and lines, that change only how fast a result is there.
SPEED = re.compile(
    r"fetch|touch|TOUCHES|paged|pieces|timed|strateg|straddles|near\b|choice|ahead|burst|note_ones|"
    r"begin_|end_piece|budget|in_flight|slices_of|is_large|is_long|has_large|shares_of|part_of_job|REGION|"
    r"embag_now|widest|hugepage|task\.first|"
    r"_ft is"  # a type: it is no condition when the kernels run
)

# The tests most likely to find a fault in a file run first.
FIRST = {
    "_call": ["lookups/test_errors.py", "lookups/test_out.py", "lookups/test_skipped_ids.py"],
    "backward": ["gradients/test_gradients.py", "gradients/test_gradients_of_reductions.py"],
    "collection": ["collection"],
    "gather": ["lookups/test_embedding.py"],
    "grouping": ["gradients/test_grouping.py"],
    "lists": ["collection", "columns/test_ragged_inputs.py"],
    "mapping": ["tables/test_remapped_tables.py"],
    "optimizers": ["gradients/test_optimizers.py"],
    "quantize": ["tables/test_quantizing.py"],
    "renorm": ["lookups/test_max_norm.py"],
    "steps": ["gradients/test_optimizers.py", "gradients/test_optimizers_of_low_precision.py"],
}
TESTS = [
    *("lookups", "gradients", "tables", "collection", "columns"),
    *("process/test_kernel_arguments.py", "process/test_failing_allocations.py"),
]
SECONDS = 120  # after which a test counts as one that never ends
CPU_SECONDS = 400  # of a process, after which it does: all tests take less than a third


class Mutant(NamedTuple):
    file: str
    line: int  # from 1 on
    above: str  # the line above
    before: str
    after: str

    def __str__(self):
        return f"{self.file} | {self.above} | {self.before} | {self.after}"


def main():
    parser = argparse.ArgumentParser(prog="python -m tools.mutants")
    parser.add_argument("--count", type=int, default=240)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--only", type=int, help="run one, and print the output of its tests")
    options = parser.parse_args()
    mutants = draw(options.count, options.seed)
    mutants = build(mutants)
    if options.only is not None:
        mutant = mutants[options.only - 1] if options.only else None
        print(mutant)
        command = command_of(options.only, mutant, capture=False)
        return subprocess.run(**command, check=False).returncode
    outcome, seconds, output = run(0)
    if outcome != "survived":
        raise SystemExit(f"the tests {outcome} without a fault:\n{output}")
    print(f"{len(mutants)} mutants; all tests take {seconds:.0f} s", flush=True)
    equal = {line for line in EQUAL.read_text().splitlines() if line and not line.startswith("#")}
    numbered = {i: mutant for i, mutant in enumerate(mutants, 1) if str(mutant) not in equal}
    ends = collections.Counter({"equal": len(mutants) - len(numbered)})
    survivors = []
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        futures = {pool.submit(run, i, mutant): (i, mutant) for i, mutant in numbered.items()}
        for n_done, future in enumerate(concurrent.futures.as_completed(futures), 1):
            i, mutant = futures[future]
            outcome, seconds, output = future.result()
            ends[outcome] += 1
            if outcome == "survived":
                survivors.append(mutant)
            found_by = re.findall(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)[:1]
            print(f"{n_done:4} {outcome:9} {seconds:4.0f} s  {i}: {mutant}", *found_by, flush=True)
    print(", ".join(f"{n} {end}" for end, n in sorted(ends.items())))
    for mutant in survivors:
        print(f"{mutant.file}:{mutant.line}: survived: {mutant.before}  ->  {mutant.after}")
    return 1 if survivors else 0


# --- Faults -------------------------------------------------------------------

# (what is replaced, by what), each at one place of a line
FAULTS = [
    (r"(?<![<>=!-])<(?![<=>])(?=\s)", "<="),
    (r"<=", "<"),
    (r"(?<![<>=!-])\s>(?![>=])", " >="),
    (r">=", ">"),
    (r"==", "!="),
    (r"!=", "=="),
    (r"(?<=[\w)\]]) \+ (?=[\w(<])", " - "),
    (r"(?<=[\w)\]]) - (?=[\w(<])", " + "),
    (r"(?<=[\w)\]]) \+ 1\b", ""),
    (r"(?<=[\w)\]]) - 1\b", ""),
    (r"(?<=[\w)\]]) \* (?=[\w(<])", " + "),
    (r"\band\b", "or"),
    (r"\bor\b", "and"),
    (r"\bnot ", ""),
    (r"\bmin\(", "max("),
    (r"\bmax\(", "min("),
    (r"\bTrue\b", "False"),
    (r"\bFalse\b", "True"),
    (r"<< ", ">> "),
    (r"(?<!<)>> ", "<< "),
]


def draw(count, seed):
    """Return mutants, drawn from all that there are, at most one for each line."""
    candidates = [
        mutants
        for file in FILES
        for line, above, text in lines_with_code(file)
        if (mutants := mutants_of(file, line, above, text))
    ]
    rng = random.Random(seed)
    drawn = [rng.choice(mutants) for mutants in rng.sample(candidates, min(count, len(candidates)))]
    return sorted(drawn, key=lambda mutant: (mutant.file, mutant.line))


def lines_with_code(file):
    """Return (number, line above, line) of lines in functions that a fault can be planted in."""
    inside, function, documented, lines = False, "", False, []
    above = code = ""
    for number, text in enumerate((ROOT / file).read_text().splitlines(), 1):
        head = re.match(r"\s*(?:async )?(?:def|cdef|cpdef)\b.*?(\w+)\(", text)
        if head:
            inside, function = True, head[1]
        elif text and not text[0].isspace() and not text.startswith(")"):
            inside = False
        quotes = text.count('"""')
        in_docstring = documented or quotes > 0
        documented ^= quotes % 2 == 1
        above, code = code, re.split(r"\s+#", text)[0].strip()
        if (
            inside
            and not head
            and not in_docstring
            and code
            and not code.startswith("#")
            and code.count("(") == code.count(")")
            and code.count("[") == code.count("]")
            and not SPEED.search(code)
            and not SPEED.search(function)
        ):
            lines.append((number, above, code))
    return lines


STATEMENT = [
    re.compile(r"(?P<head>(?:if|elif|while) )(?P<part>[^:]+)(?P<tail>:)$"),
    re.compile(r"(?P<head>for \w+ in range\((?:[^,()]+, )?)(?P<part>[^,()]+)(?P<tail>\):)$"),
    re.compile(r"(?P<head>return )(?P<part>[^:]+)(?P<tail>)$"),
    re.compile(
        r"(?P<head>(?:[\w.]+(?:\[[^=]+\])?) [-+*]?= )(?P<part>[^=:]+|[^:]+(?:==|<=|>=)[^:]+)"
        r"(?P<tail>)$"
    ),
]


def split_statement(code):
    """Return what stands before the part of a line that can be changed, the part, and the rest.

    None for a line without one.
    """
    matches = (pattern.match(code) for pattern in STATEMENT)
    found = next(filter(None, matches), None)
    return found and (found["head"], found["part"], found["tail"])


def mutants_of(file, line, above, code):
    """Return the mutants of a line."""
    found = split_statement(code)
    if found is None:
        return []
    head, part, tail = found
    if any(word in part for word in ('"', "lambda", "NULL", "for ", "{")):
        return []
    changed = []
    for what, instead in FAULTS:
        changed += [
            part[: place.start()] + instead + part[place.end() :]
            for place in re.finditer(what, part)
        ]
    if head.startswith(("if ", "elif ")):
        changed.append("False")
    if head.startswith("for "):
        changed += [f"({part}) - 1", f"({part}) + 1"]
    if head.endswith("+= "):
        changed.append("0")
    return [
        Mutant(file, line, above, code, head + each + tail)
        for each in dict.fromkeys(changed)
        if each != part
    ]


def planted(text, mutant, number):
    """Return a line that has the fault if EMBAG_MUTANT is its number."""
    head, part, tail = split_statement(mutant.before)
    after = mutant.after[len(head) : len(mutant.after) - len(tail)]
    indent = text[: len(text) - len(text.lstrip())]
    return f"{indent}{head}(({after}) if MUTANT == {number} else ({part})){tail}"


# --- Builds and runs ----------------------------------------------------------


def build(mutants):
    """Build a copy of the package with all mutants; return those that compile."""
    while True:
        write_copy(mutants)
        bad = compile_copy()
        if not bad:
            return mutants
        n_before = len(mutants)
        mutants = [mutant for mutant in mutants if (Path(mutant.file).name, mutant.line) not in bad]
        print(f"{n_before - len(mutants)} mutants do not compile", flush=True)
        if len(mutants) == n_before:
            raise SystemExit(f"the copy does not compile: {bad}")


def write_copy(mutants):
    shutil.rmtree(FOLDER, ignore_errors=True)
    shutil.copytree(
        ROOT / "embag", FOLDER / "embag", ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, FOLDER)
    for number, mutant in enumerate(mutants, 1):
        path = FOLDER / mutant.file
        lines = path.read_text().splitlines(keepends=True)
        text = lines[mutant.line - 1].rstrip("\n")
        lines[mutant.line - 1] = planted(text, mutant, number) + "\n"
        path.write_text("".join(lines))
    core = FOLDER / "embag" / "_core.pyx"
    core.write_text(
        core.read_text().replace(
            'include "_kernels/bags.pxi"',
            "import os\ncdef int MUTANT = int(os.environ.get('EMBAG_MUTANT', '0'))\n\n"
            'include "_kernels/bags.pxi"',
            1,
        )
    )
    call = FOLDER / "embag" / "_call.py"
    call.write_text(
        re.sub(
            r"\nimport ",
            "\nimport os\nMUTANT = int(os.environ.get('EMBAG_MUTANT', '0'))\nimport ",
            call.read_text(),
            count=1,
        )
    )


# The installation in place would find the levels that the copy does not have.
ALONE = """import sys

sys.meta_path[:] = [
    finder for finder in sys.meta_path if not finder.__module__.startswith("__editable__")
]
"""


def compile_copy():
    """Compile the kernels for any processor; return the (name of a file, line) of errors."""
    # Not optimized, which takes long with so many conditions; and no other level.
    compiler = FOLDER / "cc"
    compiler.write_text('#!/bin/bash\n[[ "$*" == *-march=* ]] && exit 1\nexec cc "${@/#-O2/-O0}"\n')
    compiler.chmod(0o755)
    command = [sys.executable, "setup.py", "-q", "build", "--build-lib", "lib"]
    done = subprocess.run(
        command,
        cwd=FOLDER,
        env={**os.environ, "CC": str(compiler), "LDSHARED": f"{compiler} -shared"},
        capture_output=True,
        text=True,
        check=False,
    )
    output = done.stdout + done.stderr
    if done.returncode == 0:
        (FOLDER / "lib" / "sitecustomize.py").write_text(ALONE)
    found = re.findall(r"^(\S+\.(?:pxi|pyx)):(\d+):", output, re.MULTILINE)
    if done.returncode and not found:
        raise SystemExit(output)
    return {(Path(file).name, int(line)) for file, line in found} if done.returncode else set()


def command_of(number, mutant, *, capture):
    """Return the arguments of `subprocess.run` for the tests with a fault, or with none."""
    first = FIRST.get(Path(mutant.file).stem, []) if mutant else []
    tests = [f"tests/{name}" for name in dict.fromkeys([*first, *TESTS])]
    return {
        "args": [
            sys.executable,
            "-P",
            "-m",
            "pytest",
            "-x",
            "-q",
            "-p",
            "no:cacheprovider",
            "-m",
            "not slow and not thorough",
            "-o",
            f"faulthandler_timeout={SECONDS}",
            "-o",
            "faulthandler_exit_on_timeout=true",
            *tests,
        ],
        "cwd": ROOT,
        "env": {
            **os.environ,
            "PYTHONPATH": str(FOLDER / "lib"),
            "EMBAG_MUTANT": str(number),
            "EMBAG_ISA": "baseline",
            "EMBAG_TEST_LEVELS": "best",
            "OMP_WAIT_POLICY": "passive",
        },
        "capture_output": capture,
        # Of children, too, whose parent ends without them.
        "preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS)),
    }


def run(number, mutant=None):
    """Run the tests with a fault; return how that ended, the seconds, and the output."""
    began = time.monotonic()
    done = subprocess.run(**command_of(number, mutant, capture=True), text=True, check=False)
    if "Timeout (" in done.stderr or done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        outcome = "endless"
    elif done.returncode:
        outcome = "crashed" if done.returncode < 0 else "failed"
    else:
        outcome = "survived"
    return outcome, time.monotonic() - began, done.stdout


if __name__ == "__main__":
    sys.exit(main())
