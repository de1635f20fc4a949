"""A diagnosis as CSV and as an HTML page: one file, no network, light and dark; its pictures are drawn by its own script.

Names of tensors are untrusted: jinja2 escapes them, the script only ever sets text, the data are JSON in which `<` is
escaped, and the page's content security policy lets no other script than this one run and nothing be fetched.
"""

from __future__ import annotations

import base64
import hashlib
import math
from importlib.resources import files
from typing import Any

from markupsafe import Markup

from deltamend.diagnosis.groups import grouped
from deltamend.diagnosis.records import Bulk, Diagnosis, MatrixDiagnosis
from deltamend.diagnosis.verdict import RULES, rule_of
from deltamend.report.csv_output import csv_text
from deltamend.report.page_templates import page_template

_DIGITS = 5


def diagnosis_csv(diagnosis: Diagnosis) -> str:
    """One line for each matrix."""
    rows = diagnosis.table()
    return csv_text(list(rows[0]), rows)


def render_diagnosis_page(diagnosis: Diagnosis) -> str:
    """The verdict, a layer × module heat map, the spectrum of the matrix that is clicked, and a table to sort and filter."""
    script = (files("deltamend.report") / "templates" / "diagnosis.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    data = {
        "csv": diagnosis_csv(diagnosis),
        "matrices": [_matrix(matrix) for matrix in diagnosis.matrices],
        "verdicts": [rule.verdict for rule in RULES],
    }
    return page_template("diagnosis.html.j2").render(
        diagnosis=diagnosis,
        rule=rule_of(diagnosis.verdict),
        rules=[rule for rule in RULES if diagnosis.verdicts[rule.verdict]],
        kinds=grouped(diagnosis.matrices, lambda matrix: matrix.kind),
        head=COLUMNS,
        rows=[table_row(matrix) for matrix in diagnosis.matrices],
        data=data,
        script=Markup(script),  # noqa: S704 - our own file, not text from a model
        digest=digest,
        percent=percent,
        number=number,
    )


COLUMNS = (
    "matrix",
    "verdict",
    "shape",
    "rank",
    "energy",
    "KS",
    "p",
    "shuffled",
    "rounding",
    "zeros",
    "lost",
    "‖Δ‖/‖W‖",
)
"""The columns of the page's table."""


def table_row(matrix: MatrixDiagnosis) -> list[tuple[str, float | str]]:
    """One matrix as text and as what it is sorted by, in the order of `COLUMNS`."""
    flat = matrix.row()
    rank = None if flat["rank"] is None else flat["rank"] / min(matrix.shape)
    cells: list[tuple[str, float | str]] = [
        (matrix.name, matrix.name),
        (matrix.verdict, matrix.verdict),
        (f"{matrix.shape[0]}×{matrix.shape[1]}", matrix.size),
        ("–" if rank is None else f"{flat['rank']}/{min(matrix.shape)}", _sortable(rank)),
    ]
    texts = {"energy": percent, "ks": number, "ks_p": number, "shuffled_ks": number, "rounding_share": percent}
    texts |= {"zeros": percent, "lost_in_cast": percent, "relative_norm": number}
    return cells + [(text(flat[key]), _sortable(flat[key])) for key, text in texts.items()]


def percent(share: float | None) -> str:
    """A share as text."""
    return "–" if share is None else f"{100 * share:.1f} %"


def number(value: float | None) -> str:
    """A number as text, to three digits."""
    return "–" if value is None else f"{value:.3g}"


def _sortable(value: float | None) -> float:
    return -1.0 if value is None else value


def _matrix(matrix: MatrixDiagnosis) -> dict[str, Any]:
    """What the script needs of one matrix."""
    spectrum, bulk, controls, entries = matrix.spectrum, matrix.bulk, matrix.controls, matrix.entries
    found: dict[str, Any] = _short(matrix.row())
    return found | {
        "reasons": matrix.reasons,
        "ranks": None if spectrum is None else spectrum.ranks,
        "histogram": None if spectrum is None else _short(spectrum.histogram.model_dump()),
        "bulk": None if bulk is None else _bulk(bulk),
        "control_shape": None if controls is None else controls.shape,
        "row_quantiles": None if entries is None else _short(entries.rows.quantiles),
        "column_quantiles": None if entries is None else _short(entries.columns.quantiles),
    }


def _bulk(bulk: Bulk) -> dict[str, Any]:
    """The law and the quantiles, for drawing."""
    return {"size": bulk.size, "edges": _short(bulk.edges), "quantiles": _short(bulk.quantiles)}


def _short(value: Any) -> Any:
    """The same with fewer digits, and None for what JSON has no number for."""
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_short(item) for item in value]
    return value
