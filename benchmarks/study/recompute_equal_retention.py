"""The primary measure of a study computed a second time, from the raw scores, in plain numpy and without this package.

    python -m benchmarks.study.recompute_equal_retention studies/ground.yaml docs/results/ground

It reads the records (OUT/cells, OUT/bases) as JSON and the study's file as YAML, computes healing, retention and the height above
the WiSE-FT curve of every repair in every cell, and the means over targets, and prints how far the figures of
OUT/results/results.json are from these. The definition is that of docs/study.md; nothing is imported from deltamend.
"""

from __future__ import annotations

import json
import lzma
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from benchmarks.shared.arguments import script_parser

Array = npt.NDArray[np.float64]
AGREES = 1e-6


def read(path: Path) -> Any:
    """A packed record."""
    return json.loads(lzma.decompress(path.read_bytes()))


def means(evaluation: Any, task: str) -> tuple[float, Array]:
    """Mean score of a task, and its scores in the order of the items' ids."""
    scores = {item["id"]: item["score"] for item in evaluation["tasks"][task]["items"]}
    ordered = np.array([float(scores[name]) for name in sorted(scores)])
    return float(ordered.mean()), ordered


def benchmarks_of(study: Any, model: Any) -> list[str]:
    """Names of the held-out benchmarks of a model."""
    exam = study["exam"]
    sources = [exam["general"], *exam.get("more_general", [])]
    suffixes = [f"_{one['name']}" if one.get("name") else "" for one in sources]
    names = [f"own_answers{suffix}" for suffix in suffixes]
    names += [f"form{suffix}" for suffix, one in zip(suffixes, sources, strict=True) if one.get("form", True)]
    names += [one["name"] for one in (*exam.get("given_answers", []), *exam.get("tasks", []), *model.get("tasks", []))]
    return names


def slopes(x: Array, y: Array) -> Array:
    """Derivatives of the monotone cubic through (x, y), after Fritsch and Butland, ends by the three-point formula."""
    h, d = np.diff(x), np.diff(y) / np.diff(x)
    found = np.zeros_like(y)
    for i in range(1, len(x) - 1):
        if d[i - 1] * d[i] > 0:
            left, right = 2 * h[i] + h[i - 1], h[i] + 2 * h[i - 1]
            found[i] = (left + right) / (left / d[i - 1] + right / d[i])
    for end, (h0, h1, d0, d1) in ((0, (h[0], h[1], d[0], d[1])), (-1, (h[-1], h[-2], d[-1], d[-2]))):
        slope = ((2 * h0 + h1) * d0 - h0 * d1) / (h0 + h1)
        if np.sign(slope) != np.sign(d0):
            slope = 0.0
        elif np.sign(d0) != np.sign(d1) and abs(slope) > 3 * abs(d0):
            slope = 3 * d0
        found[end] = slope
    return found


def cubic(x: Array, y: Array, at: Array) -> Array:
    """The monotone cubic through (x, y), read at `at`."""
    place = np.clip(np.searchsorted(x, at, side="right") - 1, 0, len(x) - 2)
    m, h = slopes(x, y), np.diff(x)[place]
    t = (at - x[place]) / h
    return np.asarray(
        (1 + 2 * t) * (1 - t) ** 2 * y[place]
        + t * (1 - t) ** 2 * h * m[place]
        + t**2 * (3 - 2 * t) * y[place + 1]
        + t**2 * (t - 1) * h * m[place + 1]
    )


def height(retained: Array, healed: Array, at: float) -> float:
    """The most healing of a point of the curve, straight between its points, that retains at least `at`."""
    best = [float(h) for r, h in zip(retained, healed, strict=True) if r >= at]
    for i in range(len(retained) - 1):
        low, high = retained[i], retained[i + 1]
        if (low >= at) != (high >= at):
            best.append(float(healed[i] + (at - low) / (high - low) * (healed[i + 1] - healed[i])))
    return max(best) if best else float(healed[int(np.argmax(retained))])


def of_cell(study: Any, cell: Any, base: Any, model: Any, target: Any) -> dict[str, dict[str, float]]:
    """Repair to its figures."""
    evaluations = {name: one["evaluation"] for name, one in cell["models"].items()}
    tuned, evaluations["revert"], evaluations["none"] = (
        evaluations["finetuned"],
        base["evaluation"],
        evaluations["finetuned"],
    )
    rule = study["measure"]
    damaged = []
    for task in benchmarks_of(study, model):
        before, after = means(base["evaluation"], task)[1], means(tuned, task)[1]
        change = after - before
        error = np.sqrt(change.var() / (len(change) - 1))
        if -change.mean() > max(rule["standard_errors"] * error, rule["at_least"]):
            damaged.append(task)
    measured_by = "target_likelihood" if target.get("retention") == "likelihood" else "target"

    def retained(name: str) -> float:
        low, high = means(base["evaluation"], measured_by)[0], means(tuned, measured_by)[0]
        return (means(evaluations[name], measured_by)[0] - low) / (high - low)

    def healed(name: str) -> float:
        shares = []
        for task in damaged:
            low, high = means(tuned, task)[0], means(base["evaluation"], task)[0]
            shares.append((means(evaluations[name], task)[0] - low) / (high - low))
        return float(np.mean(shares)) if shares else float("nan")

    curve = [(0.0, "revert"), (1.0, "none")]
    curve += [
        (float(one["parameters"]["alpha"]), one["name"])
        for one in study["repairs"]
        if (one.get("family") or one["method"]) == rule["curve"] and one["name"] in evaluations
    ]
    curve.sort()
    alphas = np.array([alpha for alpha, _ in curve])
    straight = np.array([retained(name) for _, name in curve]), np.array([healed(name) for _, name in curve])
    fine = np.linspace(0.0, 1.0, 201)
    smooth = cubic(alphas, straight[0], fine), cubic(alphas, straight[1], fine)
    found = {}
    for name in evaluations:
        if name == "finetuned":
            continue
        figures = {"healing": healed(name), "retention": retained(name)}
        figures["above_straight"] = figures["healing"] - height(*straight, figures["retention"])
        figures["above_smooth"] = figures["healing"] - height(*smooth, figures["retention"])
        found[name] = figures
    return found


def recomputed(study: Any, out: Path, wanted: set[str]) -> Iterator[tuple[str, dict[str, dict[str, float]]]]:
    """The figures of every cell that the results have."""
    models = {one["name"]: one for one in study["models"]}
    targets = {one["name"]: one for one in study["targets"]}
    for path in sorted((out / "cells").glob("*.json.xz")):
        cell = read(path)
        if cell["cell"] not in wanted:
            continue
        model, target, *_ = cell["cell"].split("/")
        device = cell["models"]["finetuned"]["evaluation"].get("settings", {}).get("device", "cpu")
        kind = "" if device == "cpu" else "__" + "".join(letter for letter in device if letter.isalnum())
        base = out / "bases" / f"{model}__{target}{kind}.json.xz"
        if not base.exists():
            base = out / "bases" / f"{model}__{target}.json.xz"
        yield cell["cell"], of_cell(study, cell, read(base), models[model], targets[target])


def compare(study: Any, out: Path) -> tuple[int, float]:
    """How many figures were compared, and the largest difference."""
    printed = json.loads((out / "results" / "results.json").read_text(encoding="utf-8"))["equal_retention"]
    ours = dict(recomputed(study, out, {cell["cell"] for cell in printed["cells"]}))
    pairs = [
        (value, ours[cell["cell"]][name][figure])
        for cell in printed["cells"]
        for name, figures in cell["repairs"].items()
        for figure, value in figures.items()
        if figure in ("healing", "retention", "above_straight", "above_smooth")
    ]
    for of in printed["repairs"]:
        for figure in ("healing", "retention", "above_straight", "above_smooth"):
            if of[figure] is None:
                continue
            by_target: dict[str, list[float]] = {}
            for cell in printed["groups"][of["group"]]:
                if of["name"] in ours[cell]:
                    by_target.setdefault(cell.split("/")[1], []).append(ours[cell][of["name"]][figure])
            pairs.append((of[figure]["value"], float(np.mean([np.mean(own) for own in by_target.values()]))))
    differences = [abs(one - other) for one, other in pairs]
    return len(pairs), max(differences, default=float("nan"))


def main() -> int:
    """Compare, and say whether all agree."""
    parser = script_parser(__doc__)
    parser.add_argument("study", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--record", type=Path, help="Text file to write what is printed to.")
    given = parser.parse_args()
    count, largest = compare(yaml.safe_load(given.study.read_text(encoding="utf-8")), given.out)
    agrees = count > 0 and largest < AGREES
    text = f"{count} figures computed twice; the largest difference is {largest:.1e}, {'below' if agrees else 'NOT below'} {AGREES:g}\n"
    sys.stdout.write(text)
    if given.record is not None:
        given.record.write_text(text, encoding="utf-8")
    return 0 if agrees else 1


if __name__ == "__main__":
    raise SystemExit(main())
