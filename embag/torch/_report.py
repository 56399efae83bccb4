"""`ConversionReport`: what became of the embeddings of a model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from embag.quantized import QuantizationError


class ConvertedTable(NamedTuple):
    """A table that was converted.

    Attributes
    ----------
    name : str
        The path of the module in the model; of the first one if several share the weight.
    features : tuple of str
        The features that look it up. From `replace_embeddings`: the paths of the layers.
    shape : tuple of int
        Its rows and columns.
    before, after : str
        How rows are stored, such as "float32" and "8 bits".
    bytes_before, bytes_after : int
        The bytes of the rows.
    error : QuantizationError or None
        The difference from the floats. None if the entries are the same.
    """

    name: str
    features: tuple[str, ...]
    shape: tuple[int, int]
    before: str
    after: str
    bytes_before: int
    bytes_after: int
    error: QuantizationError | None


@dataclass(frozen=True)
class ConversionReport:
    """What became of the embeddings of a model; ``print(report)`` shows it as a table.

    Attributes
    ----------
    tables : tuple of ConvertedTable
        The tables that were converted.
    left : mapping of str to str
        The modules with embeddings that were left as they are, by path, each with the reason.
    notes : mapping of str to str
        What to know about modules that were converted, by path.
    """

    tables: tuple[ConvertedTable, ...]
    left: Mapping[str, str]
    notes: Mapping[str, str]

    @property
    def bytes_before(self) -> int:
        """The bytes of all rows in the model."""
        return sum(table.bytes_before for table in self.tables)

    @property
    def bytes_after(self) -> int:
        """The bytes of all rows after the conversion."""
        return sum(table.bytes_after for table in self.tables)

    def __str__(self) -> str:
        lines = [("table", "rows", "dim", "before", "after", "MB", "MB after", "error", "cosine")]
        for table in self.tables:
            error = table.error
            lines.append(
                (
                    *(table.name, f"{table.shape[0]:,}", str(table.shape[1])),
                    *(table.before, table.after),
                    *(f"{table.bytes_before / 1e6:,.3f}", f"{table.bytes_after / 1e6:,.3f}"),
                    "" if error is None else f"{error.max_abs:.2g}",
                    "" if error is None else f"{error.cosine:.6f}",
                )
            )
        total = f"{self.bytes_before / 1e6:,.3f}", f"{self.bytes_after / 1e6:,.3f}"
        lines.append(("total", "", "", "", "", *total, "", ""))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = [
            "  ".join(
                cell.ljust(width) if i in {0, 3, 4} else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        text += [f"left: {path}: {reason}" for path, reason in self.left.items()]
        text += [f"note: {path}: {note}" for path, note in self.notes.items()]
        return "\n".join(text)
