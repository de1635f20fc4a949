"""The figures of a diagnosis against plain numpy in float64, which shares no code with deltamend.

    deltamend diagnose BASE FINETUNED --json found.json --values
    python -m benchmarks.diagnosis.against_numpy BASE FINETUNED found.json [--layers 0,14,29] [--out FILE]

The reference takes a full SVD, integrates the Marchenko–Pastur law numerically, computes distances from their
definitions and rounding errors from the exponents of the weights, and rounds the repaired weights with torch. For each
figure, the largest difference over the matrices is printed and appended to
benchmarks/results/diagnosis/against_numpy.md.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from scipy.integrate import cumulative_simpson
from scipy.stats import kurtosis

from benchmarks.shared.arguments import script_parser
from benchmarks.shared.paths import RESULTS

Array = npt.NDArray[np.float64]
STEPS = 400_001


def law_of_noise(beta: float) -> tuple[Array, Array]:
    """Singular values and their distribution function, by quadrature over the angle between the edges; scale 1."""
    angle = np.linspace(0.0, np.pi, STEPS)
    eigenvalue = 1.0 + beta - 2.0 * np.sqrt(beta) * np.cos(angle)
    density = 2.0 / np.pi * np.sin(angle) ** 2 / np.maximum(eigenvalue, 1e-300)
    if beta == 1.0:
        density[0] = 2.0 / np.pi
    mass = cumulative_simpson(density, x=angle, initial=0.0)
    return np.sqrt(eigenvalue), mass / mass[-1]


def threshold(beta: float, median: float) -> float:
    """Gavish and Donoho's, for unknown noise."""
    values, mass = law_of_noise(beta)
    factor = np.sqrt(2.0 * (beta + 1.0) + 8.0 * beta / (beta + 1.0 + np.sqrt(beta**2 + 14.0 * beta + 1.0)))
    return float(factor * median / np.interp(0.5, mass, values))


def spread(matrix: Array) -> tuple[float, float]:
    """Correlation of neighbouring rows, and the variation of row variances beyond chance."""
    variances = np.mean(matrix**2, axis=1)
    chance = (np.mean(matrix**4) - np.mean(matrix**2) ** 2) / matrix.shape[1]
    variation = np.sqrt(max(0.0, np.var(variances, ddof=1) - chance)) / np.mean(matrix**2)
    return float(np.sum(matrix[1:] * matrix[:-1]) / np.sum(matrix[1:] ** 2)), float(variation)


def figures(base: torch.Tensor, finetuned: torch.Tensor) -> dict[str, float]:
    """Everything that is compared, for one matrix."""
    w, delta = base.double().numpy(), (finetuned.double() - base.double()).numpy()
    m, n = sorted(delta.shape)
    left, values, right = np.linalg.svd(delta, full_matrices=False)
    tau = threshold(m / n, float(np.median(values)))
    rank = int(np.sum(values > tau))
    below = np.sort(values[rank:])
    grid, mass = law_of_noise((m - rank) / (n - rank))
    scale = float(np.median(below)) / float(np.interp(0.5, mass, grid))
    f = np.interp(below / scale, grid, mass)
    count = below.size
    upper, lower = np.arange(1, count + 1) / count, np.arange(count) / count
    clipped = np.clip(f, 0.25 / count, 1.0 - 0.25 / count)
    weights = 2.0 * np.arange(1, count + 1) - 1.0
    star = (left[:, :rank] * values[:rank]) @ right[:rank]
    written = (base.float() + torch.from_numpy(star).float()).to(finetuned.dtype).double().numpy()
    bits = {torch.bfloat16: 7, torch.float32: 23}[finetuned.dtype]
    stored = finetuned.double().numpy()
    exponent = np.floor(np.log2(np.maximum(np.abs(stored), 2.0**-126)))
    ulp = np.exp2(exponent - bits)
    share = np.mean(np.where(np.abs(stored) == np.exp2(exponent), ulp**2 / 16.0, ulp**2 / 12.0))
    noise = (
        float(np.median(values)) / float(np.interp(0.5, law_of_noise(m / n)[1], law_of_noise(m / n)[0])) / np.sqrt(n)
    )
    row, column = spread(delta), spread(delta.T)
    return {
        "largest": values[0], "median": float(np.median(values)), "threshold": tau, "rank": rank,
        "energy": float(np.sum(values[:rank] ** 2) / np.sum(values**2)), "stable_rank": float(np.sum(values**2) / values[0] ** 2),
        "edge_low": scale * float(grid[0]), "edge_high": scale * float(grid[-1]),
        "ks": float(max(np.max(upper - f), np.max(f - lower))),
        "ad": float(-count - np.mean(weights * (np.log(clipped) + np.log1p(-clipped[::-1])))),
        "zeros": float(np.mean(delta == 0.0)), "rounding_share": float(share / noise**2),
        "lost_in_cast": float(np.linalg.norm(written - w - star) / np.linalg.norm(star)),
        "relative_norm": float(np.linalg.norm(delta) / np.linalg.norm(w)),
        "kurtosis": float(kurtosis(delta - delta.mean(), axis=None)),
        "rows_correlation": row[0], "columns_correlation": column[0], "rows_variation": row[1], "columns_variation": column[1],
    }  # fmt: skip


RELATIVE = ("largest", "median", "threshold", "stable_rank", "edge_high", "rounding_share", "relative_norm", "ad")


def found_figures(matrix: dict[str, Any]) -> dict[str, float]:
    """The same from the JSON of a diagnosis."""
    spectrum, bulk, entries = matrix["spectrum"], matrix["bulk"], matrix["entries"]
    rows, columns = entries["rows"], entries["columns"]
    names = ("largest", "median", "threshold", "rank", "energy", "stable_rank")
    return {
        **{name: spectrum[name] for name in names},
        "edge_low": bulk["edges"][0], "edge_high": bulk["edges"][1], "ks": bulk["ks"], "ad": bulk["ad"],
        "zeros": entries["zeros"], "rounding_share": matrix["rounding"]["share"], "lost_in_cast": matrix["rounding"]["lost"],
        "relative_norm": matrix["base"]["relative_norm"], "kurtosis": entries["kurtosis"],
        "rows_correlation": rows["correlation"], "columns_correlation": columns["correlation"],
        "rows_variation": rows["variation"], "columns_variation": columns["variation"],
    }  # fmt: skip


def main() -> None:
    """Compare, and write one table."""
    parser = script_parser(__doc__)
    parser.add_argument("base", type=Path, help="folder of the base model")
    parser.add_argument("finetuned", type=Path, help="folder of the fine-tuned model")
    parser.add_argument("found", type=Path, help="what `deltamend diagnose --json` wrote")
    parser.add_argument(
        "--layers", default="0,14,29", help="layers whose matrices are checked, besides those outside layers"
    )
    parser.add_argument(
        "--out", type=Path, default=RESULTS / "diagnosis" / "against_numpy.md", help="Markdown file to append to"
    )
    arguments = parser.parse_args()
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (arguments.base, arguments.finetuned))
    layers = {int(layer) for layer in arguments.layers.split(",")}
    diagnosis = json.loads(arguments.found.read_text())
    worst: dict[str, tuple[float, str]] = {}
    checked = [matrix for matrix in diagnosis["matrices"] if matrix["layer"] is None or matrix["layer"] in layers]
    for matrix in checked:
        expected = figures(ours[matrix["name"]], theirs[matrix["name"]])
        for key, value in found_figures(matrix).items():
            difference = abs(value - expected[key]) / (abs(expected[key]) if key in RELATIVE else 1.0)
            if key not in worst or difference > worst[key][0]:
                worst[key] = (difference, matrix["name"])
    lines = [
        f"## {arguments.finetuned.name}, {len(checked)} matrices of layers {arguments.layers} and outside layers",
        "",
        "| figure | largest difference | | in |",
        "|---|---|---|---|",
        *(
            f"| {key} | {value:.1e} | {'relative' if key in RELATIVE else 'absolute'} | {re.sub('[|`]', '', name)} |"
            for key, (value, name) in worst.items()
        ),
    ]
    text = arguments.out.read_text() if arguments.out.exists() else "# Diagnoses against plain numpy\n"
    arguments.out.write_text(text + "\n" + "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
