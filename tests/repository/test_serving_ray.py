"""The service over sharded tables: every score is right, whatever is replaced or killed."""

from pathlib import Path

import pytest
from processes import run_python

DEMO = Path(__file__).parents[2] / "examples" / "serving_ray" / "demo.py"


@pytest.mark.ray
def test_the_demo():
    pytest.importorskip("ray.serve")
    process = run_python(DEMO, "--rows", 300, "--requests", 60, "--port", 8137, timeout=120)
    lines = process.stdout.splitlines()
    assert any(line.startswith("Plan: 26 tables on 3 shards") for line in lines)
    for part in (
        "1 connections",
        "8 connections",
        "after a table was replaced",
        "while an actor was killed",
        "while a node was killed",
    ):
        assert any(
            line.startswith(f"{part}: 60 requests, all scores right; p50 ") for line in lines
        )
    assert "trained 3 steps of Adagrad, saved, trained on, and restored them" in lines
