"""Write embag/_core.pyi from the signatures of the compiled module: `python -m tools.stubs`.

All compiled levels have the same signatures. tests/repository/test_stubs.py checks that the file
is up to date.
"""

import inspect
import re
import textwrap
from pathlib import Path
from typing import Any

from embag import _core

PATH = Path(__file__).parents[1] / "embag" / "_core.pyi"

# Python types by the types in Cython's signatures. A parameter without a type is Any.
TYPES = {
    "int": "int",
    "Py_ssize_t": "int",
    "double": "float",
    "bool": "bool",
    "ndarray": "NDArray[Any]",
    "tuple": "tuple[Any, ...]",
    "dict": "dict[Any, Any]",
    "bytes": "bytes",
}
HEAD = '''"""The kernels, as `_kernels/dispatch.py` loads them. Made by tools/stubs.py."""

from typing import Any

from numpy.typing import NDArray

'''


def stub(name: str, function: Any, first: str = "") -> str:
    """Return the stub of a function; `first` is the first parameter of a method."""
    signature = function.__doc__.splitlines()[0]
    match = re.fullmatch(rf"(?:\w+\.)?{name}\((.*)\)(?: -> (\w+))?", signature)
    assert match, signature
    parameters = [first] if first else []
    for parameter in filter(None, match[1].split(", ")):
        if parameter == first:
            continue
        declared, equals, default = parameter.partition("=")
        *type_, parameter_name = declared.split()
        kind = TYPES[type_[0]] if type_ else "Any"
        parameters.append(f"{parameter_name}: {kind}{' = ' if equals else ''}{default}")
    result = f") -> {match[2] or 'Any'}: ..."
    line = f"def {name}({', '.join(parameters)}{result}"
    if len(line) <= 96:
        return line
    return "\n".join([f"def {name}(", *(f"    {parameter}," for parameter in parameters), result])


def stubs() -> str:
    """Return the text of the file."""
    constants, functions, classes = [], [], []
    for name, value in sorted(vars(_core).items()):
        if name.startswith("_") or inspect.ismodule(value):
            continue
        if isinstance(value, type):
            classes += ["", f"class {name}:"]
            classes.append("    def __init__(self, *arguments: Any) -> None: ...")
            for method, function in sorted(vars(value).items()):
                if method.startswith("_"):
                    continue
                if callable(function):
                    classes.append(textwrap.indent(stub(method, function, "self"), "    "))
                else:
                    classes.append(f"    {method}: int")
        elif callable(value):
            functions.append(stub(name, value))
        else:
            constants.append(f"{name}: {type_of(value)}")
    return HEAD + "\n".join([*constants, "", *functions, *classes]) + "\n"


def type_of(value: Any) -> str:
    """Return the annotation of a constant."""
    return "dict[Any, int]" if isinstance(value, dict) else type(value).__name__


if __name__ == "__main__":
    PATH.write_text(stubs())
