"""How far each format rounds: the table behind the note that a quantised model is opened with."""

from __future__ import annotations

ROUNDING_FLOORS: dict[str, float] = {
    "nf4": 0.092, "fp4": 0.122, "int2": 0.50, "int3": 0.22, "int4": 0.10, "int8": 0.0087,
    "fp8 (e4m3)": 0.027, "fp8 (e5m2)": 0.053, "MXFP4": 0.115, "NVFP4": 0.095,
}  # fmt: skip
"""The root mean square of the rounding error over that of the weights, for normally distributed weights, by packing.

Measured by `python -m benchmarks.correctness.rounding_floors`, with each format's usual block, group or row.
"""
