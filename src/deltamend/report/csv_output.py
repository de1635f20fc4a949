"""Rows as CSV, safe to open in a spreadsheet."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence


def csv_text(head: Sequence[str], rows: Iterable[Mapping[str, object]]) -> str:
    """A line for each row; nothing where a value is None."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(head), lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {key: cell_text(value) if isinstance(value, str) else value for key, value in row.items()} for row in rows
    )
    return out.getvalue()


def cell_text(text: str) -> str:
    """Text that a spreadsheet does not take for a formula, without the returns that end a row before Python 3.13 quotes them."""
    text = text.replace("\r", " ")
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\n")) else text
