"""Codes of 4 bits that stand for the values of a small table, unpacked two at a time; codes of 8 bits that stand for powers of two."""

from __future__ import annotations

import numpy as np

from deltamend.checkpoint.checkpoint_folder import Array

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
"""The values of 4-bit floating point with 2 exponent bits, by code; OCP Microscaling Formats 1.0, table 4."""


_EXPONENT_BIAS = 127


def powers_of_two(codes: Array) -> Array:
    """The scales that exponents of 8 bits stand for, 2^(code − 127): OCP Microscaling Formats 1.0, E8M0.

    Args:
        codes: uint8, any shape; 255 stands for NaN, and gives infinity here, which the check for damaged weights finds.

    Returns:
        fp32, same shape.
    """
    with np.errstate(over="ignore"):
        return np.ldexp(np.float32(1), codes.astype(np.int32) - _EXPONENT_BIAS)


def pairs_table(codebook: Array, *, high_first: bool) -> Array:
    """For each byte of two codes, the two values side by side.

    Args:
        codebook: 16 values, by code.
        high_first: whether the upper four bits hold the code that comes first.

    Returns:
        complex64, shape (256,): a pair of fp32 values as one item, so that one look-up finds both.
    """
    codes = np.arange(256)
    low, high = codebook[codes & 15], codebook[codes >> 4]
    pairs = np.stack((high, low) if high_first else (low, high), axis=1).astype(np.float32)
    return np.ascontiguousarray(pairs).view(np.complex64).reshape(-1)


def unpacked(packed: Array, table: Array) -> Array:
    """The values of packed bytes.

    Args:
        packed: uint8, any shape, contiguous.
        table: of `pairs_table`.

    Returns:
        fp32; the last axis is twice as long.
    """
    return np.take(table, packed).view(np.float32)


def cell_variances(codebook: Array) -> Array:
    """The mean squared rounding error of each value of a table, if what was rounded to it was spread evenly over its cell.

    The cell of a value reaches half-way to its neighbours on both sides; that of the least and of the greatest ends at the
    value itself. With half-widths a and b the mean square is (a³ + b³)/(3·(a + b)). Ours.

    Args:
        codebook: fp32, by code; a value may occur twice, as 0 and −0 do.

    Returns:
        fp32, shape of `codebook`.
    """
    values = np.unique(codebook.astype(np.float64) + 0.0)  # −0 becomes 0
    halves = np.diff(values) / 2
    below, above = np.concatenate(([0.0], halves)), np.concatenate((halves, [0.0]))
    variances = (below**3 + above**3) / np.maximum(3 * (below + above), np.finfo(np.float64).tiny)
    found: Array = variances[np.searchsorted(values, codebook.astype(np.float64) + 0.0)].astype(np.float32)
    return found
