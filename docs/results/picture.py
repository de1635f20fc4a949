"""The picture of README: healing against retention over the confirmation cells of the ground.

python docs/results/picture.py docs/results/ground/results/tables/equal_retention.csv docs/results/picture.svg
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")

from matplotlib import pyplot as plt

NAMES = {
    "mixed-1-short": "--method auto",
    "training-1": "auto --keep examples",
    "update-0.3": "auto, without running FINETUNED",
    "dg-hard": "DG-Hard",
    "ties": "TIES",
    "fapm": "FAPM",
    "lines": "LiNeS",
    "null-space-0.001": "null-space",
}
"""Repairs of the study, and what a reader knows them by."""
BELOW = ("update-0.3", "null-space-0.001")
"""Repairs whose label stands below their point, where another is in the way."""
OURS = "#7c3aed"
OTHERS = "#1d4ed8"


def means(rows: Iterable[Mapping[str, str]]) -> dict[str, tuple[float, float]]:
    """Mean retention and healing over the confirmation cells of every repair that is done in all of them."""
    found: dict[str, dict[str, float]] = {}
    cells: dict[str, int] = {}
    for row in rows:
        if row["group"] == "confirmation" and row["figure"] in ("healing", "retention"):
            found.setdefault(row["repair"], {})[row["figure"]] = float(row["value"])
            cells[row["repair"]] = int(row["cells"])
    whole = [name for name, both in found.items() if len(both) == 2 and cells[name] == max(cells.values())]
    return {name: (found[name]["retention"], found[name]["healing"]) for name in whole}


def draw(points: Mapping[str, tuple[float, float]], path: Path) -> None:
    """Write the picture."""
    mpl.rcParams.update(
        {"svg.hashsalt": "deltamend", "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
    )
    figure, axes = plt.subplots(figsize=(7.4, 3.9), layout="constrained")
    curve = sorted([*(at for name, at in points.items() if name.startswith("wise-ft-")), (0.0, 1.0), (1.0, 0.0)])
    axes.plot(*zip(*curve, strict=True), "o-", color="#8a8f98", markersize=4, label="WiSE-FT, from BASE to FINETUNED")
    axes.plot(1.0, 1.0, "*", color="#15803d", markersize=13, label="all kept and all healed", clip_on=False)
    for name, label in NAMES.items():
        if name not in points:
            continue
        colour = OURS if "auto" in label else OTHERS
        axes.plot(*points[name], "o", color=colour, markersize=7 if label == "--method auto" else 5, clip_on=False)
        axes.annotate(
            label,
            points[name],
            (7, -13 if name in BELOW else 4),
            textcoords="offset points",
            color=colour,
            fontsize=9,
            fontweight="bold" if label == "--method auto" else None,
        )
    axes.set_xlim(-0.03, 1.25)
    axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    axes.set_ylim(-0.08, 1.12)
    axes.set_xlabel("share kept of what was learnt")
    axes.set_ylabel("share healed of what was lost")
    axes.legend(frameon=False, loc="lower left")
    figure.savefig(path, metadata={"Date": None, "Creator": None}, facecolor="white")


if __name__ == "__main__":
    with Path(sys.argv[1]).open(encoding="utf-8", newline="") as table:
        draw(means(csv.DictReader(table)), Path(sys.argv[2]))
