"""The demo: its command line, its output, its errors and its parts.

Most parts need only NumPy. The tests marked `demos` run the whole demo with the real model,
which the extra `demo` installs.
"""

from importlib.util import find_spec

import numpy as np
import pytest
from processes import SCRIPTS, run_python

from embag import __version__, cli
from embag.cli import _sentence_search as demo

INSTALL = "pip install 'embag-cpu[demo]'"
EXTRA = ["wordllama", "safetensors", "tokenizers", "rich"]
needs_click = pytest.mark.skipif(not find_spec("click"), reason="click is not installed")
LONG = "An exception is raised at the point where an error is detected, and it may be handled."


def one_line(text: str) -> str:
    return " ".join(text.split())


def bags_of(*lists: list[int]) -> demo.Bags:
    starts = np.cumsum([0, *map(len, lists)])[:-1]
    return demo.Bags(np.concatenate(lists).astype(np.int32), starts.astype(np.int32))


def need_extra() -> None:
    for package in ["click", *EXTRA]:
        pytest.importorskip(package)


# The command line


@needs_click
def test_module_help_names_the_demo():
    finished = run_python("-m", "embag", "--help")
    assert finished.returncode == 0
    assert "demo" in finished.stdout
    assert finished.stderr == ""


@needs_click
def test_the_help_of_the_demo(capsys):
    assert cli.main(["demo", "--help"]) == 0
    text = one_line(capsys.readouterr().out)
    for words in ("QUERY", "--top N", demo.DEFAULT_QUERY, "WordLlama", INSTALL, "exit status"):
        assert words in text


@needs_click
def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"embag {__version__}\n"


@needs_click
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "COMMAND"),
        (["search"], "No such command 'search'"),
        (["demo", "--top", "0"], "0 is not in the range"),
        (["demo", "--top", "few"], "'few' is not a valid integer"),
        (["demo", "  "], "must not be empty"),
        (["demo", "\udcff"], "not valid text"),
        (["demo", "two", "queries"], "unexpected extra argument (queries)"),
    ],
)
def test_a_wrong_command_line_has_status_2(arguments, message, capsys):
    assert cli.main(arguments) == 2
    assert message in capsys.readouterr().err


@needs_click
@pytest.mark.parametrize("package", EXTRA)
def test_a_missing_extra_has_status_1_and_names_the_extra(package, monkeypatch, capsys):
    def without(name):
        if name == package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(demo, "import_module", without)
    assert cli.main(["demo"]) == 1
    printed = capsys.readouterr()
    assert INSTALL in printed.err
    assert package in printed.err
    assert printed.out == ""


@needs_click
def test_a_missing_extra_prints_no_traceback():
    command = [SCRIPTS / "run_without_package.py", "wordllama", "demo"]
    finished = run_python(*command, check=False)
    assert finished.returncode == 1
    assert finished.stdout == ""
    assert len(finished.stderr.splitlines()) == 1
    assert INSTALL in finished.stderr


@needs_click
def test_an_extra_without_its_own_dependency_is_not_reported_missing(monkeypatch):
    def broken(name):
        raise ModuleNotFoundError("No module named 'requests'", name="requests")

    monkeypatch.setattr(demo, "import_module", broken)
    with pytest.raises(ModuleNotFoundError, match="requests"):
        cli.main(["demo"])


@needs_click
def test_a_failed_check_has_status_1(monkeypatch, capsys):
    def fail(query, n_nearest):
        raise demo.DemoError("passage 3 differs")

    monkeypatch.setattr(demo, "run", fail)
    assert cli.main(["demo"]) == 1
    assert capsys.readouterr().err == "embag demo: error: passage 3 differs\n"


def test_importing_embag_does_not_import_the_extra():
    code = f"import sys, embag, embag.cli; print(set({EXTRA}) & set(sys.modules))"
    finished = run_python("-c", code)
    assert finished.stdout == "set()\n"


# Passages


@pytest.mark.parametrize(
    ("text", "passages"),
    [
        ("", []),
        ("\n\n\n", []),
        ("Exceptions\n**********\n", []),
        (LONG, [LONG]),
        (f"\n\n{LONG}\n\n", [LONG]),
        (f"Exceptions\n**********\n\n{LONG}\n", [LONG]),
        (f"{LONG}\n{LONG}", [f"{LONG}\n{LONG}"]),
        (f"{LONG}\n\n{LONG}x", [LONG, f"{LONG}x"]),
        (f"{LONG}\n \t\n\n  \n{LONG}x", [LONG, f"{LONG}x"]),
        (f"{LONG}\n\n   {LONG}x  ", [LONG, f"   {LONG}x"]),
        ("x" * 69, []),
        ("x" * 70, ["x" * 70]),
        ("   " + "x" * 69 + "   ", []),
    ],
)
def test_split_passages(text, passages):
    assert demo.split_passages(text) == passages


def test_language_reference_has_passages_of_python():
    passages = demo.language_reference()
    assert len(passages) > 1000
    assert all(passage.text.strip() for passage in passages)
    assert any(passage.topic == "try" and "except" in passage.text for passage in passages)


# Parts of the check and the search


def test_pad_batches_lays_out_every_token_once():
    lists = [[b + 1] * (1 + b % 5) for b in range(100)]
    bags = bags_of(*lists)
    batches = demo.pad_batches(bags)
    assert [ids.shape for ids, _ in batches] == [(64, 5), (36, 5)]
    rows = [(ids, mask) for batch in batches for ids, mask in zip(*batch, strict=True)]
    for expected, (ids, mask) in zip(lists, rows, strict=True):
        n = len(expected)
        assert ids.tolist() == expected + [0] * (5 - n)
        assert mask.tolist() == [1] * n + [0] * (5 - n)


def test_the_check_accepts_rounding_and_returns_the_largest_difference():
    eps = float(np.finfo(np.float32).eps)
    table = np.array([[1, -2], [4, 2]], np.float32)
    bags = bags_of([0, 1], [1])
    exact = np.array([[2.5, 0], [4, 2]], np.float32)
    near = exact + np.array([[0, eps], [0, 0]], np.float32)
    agreement = demo.check_agreement(near, exact, bags, table)
    assert agreement.largest_difference == eps
    # n eps mean|x|: two tokens of at most 2 and 4, one token of 4.
    assert agreement.smallest_bound == pytest.approx(4 * eps, rel=1e-6)
    assert agreement.largest_bound == pytest.approx(6 * eps, rel=1e-6)


@pytest.mark.parametrize("error", [1e-5, -1e-5, np.inf, np.nan])
def test_the_check_refuses_differences_beyond_rounding(error):
    table = np.ones((2, 3), np.float32)
    bags = bags_of([0], [0, 1, 0], [1])
    expected = np.ones((3, 3), np.float32)
    vectors = expected.copy()
    vectors[1, 2] += error
    with pytest.raises(demo.DemoError, match="passage 1, of 3 tokens"):
        demo.check_agreement(vectors, expected, bags, table)


def test_the_nearest_passages_by_cosine_without_repetition():
    passages = [demo.Passage(f"topic {p}", text) for p, text in enumerate("abacd")]
    vectors = np.array([[9, 9], [1, 0.1], [9, 9], [0, 5], [-1, 0]], np.float32)
    query = np.array([2, 0], np.float32)
    found = demo.nearest(query, vectors, passages, 3)
    assert [passage.topic for _, passage in found] == ["topic 1", "topic 0", "topic 3"]
    assert [cosine for cosine, _ in found] == pytest.approx([1 / 1.01**0.5, 0.5**0.5, 0])
    assert len(demo.nearest(query, vectors, passages, 99)) == 4


# The whole demo


@pytest.mark.demos
def test_demo_finds_passages_on_exceptions(capsys):
    need_extra()
    assert cli.main(["demo"]) == 0
    printed = capsys.readouterr()
    text = one_line(printed.out)
    assert "largest difference from WordLlama's vectors" in text
    assert "within rounding" in text
    assert "times as fast" in text
    assert f"Nearest to: {demo.DEFAULT_QUERY}" in text
    assert printed.err == ""

    passages = printed.out.split(". cosine ")[1:]
    assert len(passages) == 3
    for passage in passages:
        assert "exception" in passage.lower()


@pytest.mark.demos
def test_wrong_vectors_fail_the_demo(monkeypatch, capsys):
    need_extra()
    pool = demo.pool

    def pool_with_an_error(bags, table, num_threads=None):
        vectors = pool(bags, table, num_threads)
        vectors[7, 3] += 0.001
        return vectors

    monkeypatch.setattr(demo, "pool", pool_with_an_error)
    assert cli.main(["demo"]) == 1
    printed = capsys.readouterr()
    assert "passage 7, of" in printed.err
    assert printed.out == ""
