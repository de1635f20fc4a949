"""The picture of README: the demo's measurements as dots with 95% intervals.

python docs/demo/picture.py demo-output/smollm2/measurements.json docs/demo/picture.svg
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")

from matplotlib import pyplot as plt

MEASURES = {
    "target": "new task:\nsums",
    "chat": "answers\nin words",
    "knowledge": "common\nknowledge",
    "completion": "sentence\ncompletion",
}
COLOURS = {
    "Base": "#8a8f98",
    "Fine-tuned": "#c2410c",
    "DG-Hard": "#1d4ed8",
    "WiSE-FT 0.5": "#15803d",
    "two-sided": "#7c3aed",
}


def draw(record: dict[str, Any], path: Path) -> None:
    """Write the picture of one record."""
    mpl.rcParams.update(
        {"svg.hashsalt": "deltamend", "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
    )
    figure, axes = plt.subplots(figsize=(8.2, 3.1), layout="constrained")
    names = list(record["models"])
    for offset, name in enumerate(names):
        estimates = [record["models"][name]["estimates"][measure] for measure in MEASURES]
        places = [place + 0.15 * (offset - (len(names) - 1) / 2) for place in range(len(MEASURES))]
        values = [100 * estimate["value"] for estimate in estimates]
        below = [100 * (estimate["value"] - estimate["low"]) for estimate in estimates]
        above = [100 * (estimate["high"] - estimate["value"]) for estimate in estimates]
        axes.errorbar(
            places,
            values,
            yerr=[below, above],
            fmt="o",
            capsize=3,
            color=COLOURS.get(name),
            label=name.lower() if offset < 2 else name,
        )
    axes.set_xticks(range(len(MEASURES)), list(MEASURES.values()))
    axes.set_ylim(-4, 104)
    axes.set_ylabel("% right, 95% interval")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, metadata={"Date": None, "Creator": None}, facecolor="white")


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
