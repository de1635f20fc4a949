"""A comparison as CSV and as an HTML page: one file, no script, no network, light and dark."""

from __future__ import annotations

from deltamend.choosing.compare_methods import Comparison, MethodComparison, TensorComparison
from deltamend.report.csv_output import csv_text
from deltamend.report.page_templates import page_template


def compare_csv(comparison: Comparison) -> str:
    """One line for each method and matrix."""
    return csv_text(list(TensorComparison.model_fields), (row.model_dump() for row in comparison.tensors))


def render_compare_page(comparison: Comparison) -> str:
    """Two tables: each method over all matrices, and the energy every method keeps of every matrix."""
    by_tensor: dict[str, list[TensorComparison]] = {}
    for row in comparison.tensors:
        by_tensor.setdefault(row.tensor, []).append(row)
    template = page_template("compare.html.j2")
    return template.render(
        comparison=comparison, head=COLUMNS, rows=[method_row(row) for row in comparison.methods], by_tensor=by_tensor
    )


COLUMNS = ("method", "energy", "changed", "rank", "to base", "to tuned", "s")


def method_row(row: MethodComparison) -> tuple[str, ...]:
    """One method as text, in the order of `COLUMNS`."""
    rank = "" if row.rank is None else percent(row.rank)
    norms = f"{row.to_base:.4g}", f"{row.to_finetuned:.4g}"
    return row.method, percent(row.energy), percent(row.density), rank, *norms, f"{row.seconds:.1f}"


def percent(share: float) -> str:
    """A share as text."""
    return f"{100 * share:.2f} %"
