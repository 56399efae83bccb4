"""Every program of the documents runs: the Python blocks that are no doctests.

The blocks of a section run in order and share their names. What a section takes for granted, such
as a trained model, is made here. A block that is part of a file in `examples/` counts as run,
because the tests run these.
"""

import re
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import embag

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("[a-z]*/*.md"), *ROOT.glob("examples/*/*.md")]
SOURCES = [path.read_text() for path in ROOT.glob("examples/**/*.py")]


def without_indent(text):
    return "\n".join(line.strip() for line in text.splitlines())


def is_quoted(block):
    return any(without_indent(block) in without_indent(source) for source in SOURCES)


def find_programs():
    """Yield each section that has programs: its page, its heading and its blocks."""
    for page in PAGES:
        for section in re.split(r"^#+ ", page.read_text("utf-8"), flags=re.MULTILINE):
            blocks = re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
            blocks = [block for block in blocks if ">>>" not in block and not is_quoted(block)]
            if blocks:
                yield str(page.relative_to(ROOT)), section.partition("\n")[0], blocks


def static_model(folder):
    from static_models import save_model2vec  # noqa: PLC0415

    save_model2vec(folder / "potion-base-8M")


def torch_model(folder):
    import torch  # noqa: PLC0415

    return {"embag": embag, "model": torch.nn.ModuleDict({"item": torch.nn.EmbeddingBag(9, 4)})}


def trained_service(folder):
    import onnxruntime  # noqa: PLC0415
    import torch  # noqa: PLC0415

    bags = {"user": torch.nn.EmbeddingBag(9, 32), "film": torch.nn.EmbeddingBag(9, 32)}
    dense = torch.nn.Sequential(torch.nn.Linear(64, 1)).eval()
    return {
        "embag": embag,
        "np": np,
        "torch": torch,
        "onnxruntime": onnxruntime,
        "model": SimpleNamespace(embeddings=torch.nn.ModuleDict(bags), dense=dense),
        "state": dense.state_dict(),
        "folder": folder,
        "features": {"user": [1], "film": [2, 3]},
    }


# What sections need: packages beside those that they import, and a function that makes files in
# the working directory and returns names.
GIVEN = {
    ("README.md", "Many tables in one call"): (["torch"], torch_model),
    ("docs/collections.md", "From a model of torch"): (["torch"], torch_model),
    ("docs/text.md", "Word vectors"): (["tokenizers", "safetensors"], static_model),
    ("docs/training.md", "With torch"): (["torch"], lambda folder: {"embag": embag}),
    ("examples/serving/README.md", "From torch to the service"): (
        ["torch", "onnx", "onnxscript", "onnxruntime"],
        trained_service,
    ),
}
ELSEWHERE = {"docs/scaling.md"}  # tests/sharding/test_under_ray.py


def cases():
    for page, heading, blocks in find_programs():
        if page not in ELSEWHERE:
            packages, _ = GIVEN.get((page, heading), ([], None))
            uses_torch = "torch" in packages or "import torch" in "".join(blocks)
            marks = [pytest.mark.torch] if uses_torch else []
            yield pytest.param(page, heading, blocks, marks=marks, id=f"{page}: {heading}")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of exporters
@pytest.mark.parametrize(("page", "heading", "blocks"), list(cases()))
def test_programs_run(page, heading, blocks, tmp_path, monkeypatch):
    packages, prepare = GIVEN.get((page, heading), ([], None))
    for package in [*packages, *re.findall(r"^(?:import|from) (\w+)", "".join(blocks), re.M)]:
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    names = (prepare and prepare(tmp_path)) or {}
    for block in blocks:
        exec(textwrap.dedent(block), names)


def test_what_is_given_is_used():
    found = {(page, heading) for page, heading, _ in find_programs()}
    assert set(GIVEN) <= found
    assert {page for page, _ in found} >= ELSEWHERE
