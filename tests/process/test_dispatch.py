"""The choice of the level, `EMBAG_ISA`, and `show_config`."""

import pytest
from processes import run_python

import embag
from embag._kernels import dispatch

BUILT = ["baseline", "v3", "v4"]


def test_the_best_built_and_supported_level_is_chosen():
    assert dispatch.choose_level(None, BUILT, ["baseline", "v3"]) == "v3"
    assert dispatch.choose_level("", BUILT, BUILT) == "v4"
    assert dispatch.choose_level(None, ["baseline"], BUILT) == "baseline"
    assert dispatch.choose_level("baseline", BUILT, BUILT) == "baseline"


@pytest.mark.parametrize(
    ("wanted", "built", "supported", "message"),
    [
        ("v9", BUILT, BUILT, "EMBAG_ISA must be one of baseline, v3, v4, got 'v9'"),
        (
            "v4",
            ["baseline", "v3"],
            BUILT,
            "EMBAG_ISA must be a level that is built (baseline, v3), got 'v4'",
        ),
        (
            "v4",
            BUILT,
            ["baseline", "v3"],
            "EMBAG_ISA must be a level that this processor runs (baseline, v3), got 'v4'",
        ),
    ],
)
def test_a_level_that_cannot_be_used(wanted, built, supported, message):
    with pytest.raises(RuntimeError) as caught:
        dispatch.choose_level(wanted, built, supported)
    assert str(caught.value) == message


def test_the_environment_variable(level):
    code = "import embag; print(embag.show_config('dicts')['levels']['in use'])"
    assert run_python("-c", code, EMBAG_ISA=level).stdout.strip() == level
    failed = run_python("-c", code, check=False, EMBAG_ISA="v9")
    assert "RuntimeError: EMBAG_ISA must be one of" in failed.stderr


def test_a_level_that_fails_to_import_is_an_error(monkeypatch):
    monkeypatch.setitem(dispatch._LEVELS, "v3", ("_core_missing", 3))
    with pytest.raises(ImportError):
        dispatch.load_level("v3")


def test_show_config(capsys):
    config = embag.show_config(mode="dicts")
    assert config["version"] == embag.__version__
    assert config["levels"]["in use"] == dispatch.level_in_use
    assert config["threads"]["count"] == embag.get_num_threads()
    assert embag.show_config() is None
    printed = capsys.readouterr().out
    assert f"embag {embag.__version__}" in printed
    assert f"in use: {dispatch.level_in_use}" in printed
    assert config["threads"]["decided by"] in printed
    assert config["compiler"] in printed
    with pytest.raises(ValueError, match=r"^mode must be 'stdout' or 'dicts', got 'json'$"):
        embag.show_config("json")


def test_importing_embag_imports_only_numpy():
    code = "import sys, embag; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = set(run_python("-c", code).stdout.split())
    optional = {"torch", "scipy", "pandas", "rich", "safetensors", "tokenizers", "wordllama"}
    assert "numpy" in loaded
    assert not loaded & optional
