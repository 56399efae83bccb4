"""The examples give the results that they describe, and the documents quote them."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

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
    results = example("train_numpy").main(n_steps=40)
    assert results["tokens trained"] > results["vectors as they come"] + 0.05
    assert "heaviest tokens: " in capsys.readouterr().out


@pytest.mark.torch
@pytest.mark.demos
def test_torch_trains_to_the_same_losses(example, capsys):
    pytest.importorskip("torch")
    results = example("train_torch").main(n_steps=5)
    torch_losses, torch_right = results["torch"]
    losses, right = results["embag"]
    np.testing.assert_allclose(losses, torch_losses, rtol=1e-4)
    assert right == pytest.approx(torch_right, abs=0.01)
    assert losses[-1] < losses[0]
    assert "torch: loss" in capsys.readouterr().out


def test_the_document_quotes_the_loop():
    parts = (ROOT / "docs" / "training.md").read_text().split("```python\n")[1:]
    blocks = [part.partition("```")[0] for part in parts]
    (loop,) = [block for block in blocks if "for _ in range(n_steps)" in block]
    assert loop in (ROOT / "examples" / "train_numpy.py").read_text()
