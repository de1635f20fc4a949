"""How far each quantised format rounds normally distributed weights: `ROUNDING_FLOORS`, and the table in the docs.

    python -m benchmarks.correctness.rounding_floors --out docs/measured/rounding-floors.md

For each format, weights of standard deviation 1 are rounded as its own library rounds them: blocks, groups or rows of the usual
length, each with the scale that its largest entry, or its least and largest entry, ask for.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from benchmarks.shared.arguments import script_parser
from deltamend.inputs.quantised_formats.codebooks import E2M1
from deltamend.inputs.quantised_formats.rounding_floors import ROUNDING_FLOORS

Array = np.ndarray[Any, np.dtype[Any]]

NF4 = np.array([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
])  # fmt: skip
FP4 = np.array([0.0, 0.0625, 8, 12, 4, 6, 2, 3]) / 12
SIZE = 1 << 22


def nearest(values: Array, table: Array) -> Array:
    """The nearest value of a sorted table."""
    found: Array = table[np.searchsorted((table[1:] + table[:-1]) / 2, values)]
    return found


def by_table(table: Array, block: int) -> Callable[[Array], Array]:
    """Round to a table times the largest magnitude of each block."""
    spread = np.unique(np.concatenate((table, -table))) if table.min() >= 0 else table

    def rounded(weights: Array) -> Array:
        blocks = weights.reshape(-1, block)
        scale = np.abs(blocks).max(axis=1, keepdims=True)
        return np.asarray(nearest(blocks / scale, spread / np.abs(spread).max()) * scale)

    return rounded


def integers(bits: int, group: int) -> Callable[[Array], Array]:
    """Round to evenly spaced codes between the least and the largest entry of each group, as GPTQ and AWQ do."""

    def rounded(weights: Array) -> Array:
        groups = weights.reshape(-1, group)
        low, high = groups.min(axis=1, keepdims=True), groups.max(axis=1, keepdims=True)
        scale = (high - low) / (2**bits - 1)
        zero = np.round(-low / scale)
        return np.asarray((np.clip(np.round(groups / scale) + zero, 0, 2**bits - 1) - zero) * scale)

    return rounded


def eight_bit_rows(length: int) -> Callable[[Array], Array]:
    """Round to 127 steps of the largest magnitude of each row, as LLM.int8 does."""

    def rounded(weights: Array) -> Array:
        rows = weights.reshape(-1, length)
        scale = np.abs(rows).max(axis=1, keepdims=True) / 127
        return np.asarray(np.round(rows / scale) * scale)

    return rounded


def floats(dtype: Any, largest: float, length: int) -> Callable[[Array], Array]:
    """Round to an 8-bit float, with a scale that maps the largest magnitude of each row to the largest float."""

    def rounded(weights: Array) -> Array:
        rows = weights.reshape(-1, length)
        scale = np.abs(rows).max(axis=1, keepdims=True) / largest
        return np.asarray((rows / scale).astype(np.float32).astype(dtype).astype(np.float64) * scale)

    return rounded


def micro(weights: Array) -> Array:
    """MXFP4: blocks of 32, whose scale is the power of two below the largest magnitude, over 4."""
    blocks = weights.reshape(-1, 32)
    scale = np.exp2(np.floor(np.log2(np.abs(blocks).max(axis=1, keepdims=True))) - 2)
    table = np.unique(np.concatenate((E2M1, -E2M1)))
    return np.asarray(nearest(np.clip(blocks / scale, -6, 6), table) * scale)


def nvidia(weights: Array) -> Array:
    """NVFP4: blocks of 16, with a scale in fp8 for the largest magnitude over 6."""
    blocks = weights.reshape(-1, 16)
    whole = 448 * 6 / np.abs(weights).max()
    wanted = np.abs(blocks).max(axis=1, keepdims=True) / 6 * whole
    scale = wanted.astype(np.float32).astype(ml_dtypes.float8_e4m3fn).astype(np.float64) / whole
    table = np.unique(np.concatenate((E2M1, -E2M1)))
    return np.asarray(nearest(np.clip(blocks / scale, -6, 6), table) * scale)


ROUNDINGS: dict[str, tuple[str, Callable[[Array], Array]]] = {
    "nf4": ("blocks of 64", by_table(NF4, 64)),
    "fp4": ("blocks of 64", by_table(FP4, 64)),
    "int2": ("groups of 128, least and largest entry", integers(2, 128)),
    "int3": ("groups of 128, least and largest entry", integers(3, 128)),
    "int4": ("groups of 128, least and largest entry", integers(4, 128)),
    "int8": ("rows of 4096, largest magnitude", eight_bit_rows(4096)),
    "fp8 (e4m3)": ("rows of 4096", floats(ml_dtypes.float8_e4m3fn, 448, 4096)),
    "fp8 (e5m2)": ("rows of 4096", floats(ml_dtypes.float8_e5m2, 57344, 4096)),
    "MXFP4": ("blocks of 32", micro),
    "NVFP4": ("blocks of 16", nvidia),
}


def measured() -> dict[str, float]:
    """The root mean square of the rounding error over that of the weights, for each packing."""
    weights = np.random.default_rng(0).standard_normal(SIZE)
    return {
        name: float(np.sqrt(np.mean((rounded(weights).reshape(-1) - weights) ** 2) / np.mean(weights**2)))
        for name, (_, rounded) in ROUNDINGS.items()
    }


def main() -> None:
    """Print the table, or write it."""
    parser = script_parser(__doc__)
    parser.add_argument("--out", type=Path)
    where = parser.parse_args().out
    found = measured()
    lines = [
        "# Rounding floors of the quantised formats",
        "",
        "    python -m benchmarks.correctness.rounding_floors --out docs/measured/rounding-floors.md",
        "",
        "The root mean square of the rounding error over that of the weights, for 4,194,304 normally distributed weights.",
        "",
        "| format | scales | rounding floor |",
        "|---|---|---|",
        *(f"| {name} | {ROUNDINGS[name][0]} | {floor:.4f} |" for name, floor in found.items()),
    ]
    text = "\n".join(lines) + "\n"
    if where is None:
        print(text)
    else:
        where.write_text(text, encoding="utf-8")
    for name, floor in found.items():
        if abs(ROUNDING_FLOORS[name] / floor - 1) > 0.05:
            raise SystemExit(f"ROUNDING_FLOORS has {ROUNDING_FLOORS[name]} for {name}, measured {floor:.4f}")


if __name__ == "__main__":
    main()
