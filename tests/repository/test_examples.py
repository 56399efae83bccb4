"""The examples give the results that they describe, and the documents quote them."""

import importlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from processes import run_python

from embag.cli import _sentence_search as demo

ROOT = Path(__file__).parents[2]


@pytest.fixture
def example(monkeypatch):
    """Import an example by name, if its data is installed."""
    try:
        demo._import_extra()
    except demo.DemoError as error:
        pytest.skip(str(error))
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    yield importlib.import_module
    for name in ("passages", "train_numpy", "train_torch"):
        sys.modules.pop(name, None)


GALLERY = (ROOT / "docs" / "gallery.md").read_text("utf-8")


def assert_in_gallery(output):
    """Check that the gallery has the lines of an output, but for times and small differences."""
    number = r"\d+(?:\.\d+)?"
    shown = {re.sub(number, "#", line): line for line in GALLERY.splitlines()}
    for line in output.splitlines():
        if line.startswith("heaviest tokens: "):
            assert "heaviest tokens: " in GALLERY
            continue
        quoted = shown[re.sub(number, "#", line)]
        ours, theirs = (list(map(float, re.findall(f"({number})%", one))) for one in (line, quoted))
        assert ours == pytest.approx(theirs, abs=3)


@pytest.mark.demos
def test_passages_are_split_without_overlap(example):
    data = example("passages").load()
    assert len(data.topics) == 12
    assert len(data.train.topics) == 3 * (len(data.train.topics) + len(data.test.topics)) // 4
    for split in (data.train, data.test):
        assert len(split.offsets) == len(split.topics)
        assert len(split.shares) == len(split.ids)
        bags = np.add.reduceat(split.shares, split.offsets)
        np.testing.assert_allclose(bags, 1, rtol=1e-5)


@pytest.mark.demos
def test_trained_tokens_separate_topics_better(example, capsys):
    results = example("train_numpy").main()
    assert results["tokens trained"] > results["vectors as they come"] + 0.05
    assert_in_gallery(capsys.readouterr().out)


@pytest.mark.torch
@pytest.mark.demos
def test_torch_trains_to_the_same_losses(example, capsys):
    pytest.importorskip("torch")
    results = example("train_torch").main()
    torch_losses, torch_right = results["torch"]
    losses, right = results["embag"]
    np.testing.assert_allclose(losses, torch_losses, rtol=1e-4)
    assert right == pytest.approx(torch_right, abs=0.01)
    assert losses[-1] < losses[0]
    assert_in_gallery(capsys.readouterr().out)


@pytest.mark.demos
@pytest.mark.usefixtures("example")
def test_the_gallery_quotes_the_demo():
    (command, _, *passage), = [
        block.splitlines()
        for block in re.findall(r"^```console\n(.*?)^```", GALLERY, re.MULTILINE | re.DOTALL)
        if "embag demo" in block
    ]  # fmt: skip
    query = command.partition('"')[2].rstrip('"')
    printed = run_python("-m", "embag", "demo", query).stdout
    assert " ".join(" ".join(passage).split()) in " ".join(printed.split())


def test_the_document_quotes_the_loop():
    parts = (ROOT / "docs" / "training.md").read_text().split("```python\n")[1:]
    blocks = [part.partition("```")[0] for part in parts]
    (loop,) = [block for block in blocks if "for _ in range(n_steps)" in block]
    assert loop in (ROOT / "examples" / "train_numpy.py").read_text()
