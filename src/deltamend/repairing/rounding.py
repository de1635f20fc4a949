"""How a sum is rounded to the dtype it is stored in: to nearest, or up or down at random so that it is right on average."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from deltamend.checkpoint.dtypes import NUMPY_DTYPES
from deltamend.matrices.buffers import Array
from deltamend.methods.elementwise import Tile
from deltamend.methods.random_bits import RandomBits

Rounding = Literal["nearest", "stochastic"]

_BF16, _F16, _F32, _F64 = (NUMPY_DTYPES[name] for name in ("BF16", "F16", "F32", "F64"))
_F16_DROPPED, _BF16_DROPPED = 13, 16
"""Bits of an fp32 significand that the narrower formats do not have."""
_F16_SMALLEST_NORMAL, _F16_SPACINGS = 2.0**-14, 2.0**24


def rounding_bits(rounding: Rounding, name: str, shape: tuple[int, int]) -> RandomBits | None:
    """The random bits of one tensor; None where values are rounded to nearest."""
    return RandomBits(0, f"{name}, rounding", shape) if rounding == "stochastic" else None


def round_for(
    values: Array, dtype: np.dtype[Any], bits: RandomBits | None = None, at: tuple[int, int] = (0, 0)
) -> Array:
    """Values that a cast to `dtype` takes over without a second rounding.

    Stochastic: a value between two neighbours of `dtype` goes to the upper one with the probability that its mean is kept
    (Croci et al. 2022, mode 1). The bits depend on seed, tensor name and position, so that neither blocks nor workers
    matter. To nearest: what the cast itself does, except from fp64 to bf16, which it rounds by way of fp32.

    Args:
        values: fp32 or fp64 for stochastic rounding, else any floating-point dtype; shape (rows, columns).
        dtype: what they are going to be cast to.
        bits: of the whole matrix; None for rounding to nearest. Without effect where `dtype` is neither bf16 nor fp16.
        at: row and column of `values` in the matrix.

    Returns:
        `values` itself, or an fp32 array of its shape.
    """
    if bits is not None and dtype in (_BF16, _F16):
        single = _to_odd(values) if values.dtype == _F64 else values
        drawn = bits.at(Tile(at[0], at[1], values))
        return _stochastic(single, drawn, _BF16_DROPPED if dtype == _BF16 else _F16_DROPPED, narrow=dtype == _F16)
    return _to_odd(values) if values.dtype == _F64 and dtype == _BF16 else values


def _stochastic(values: Array, drawn: Array, dropped: int, *, narrow: bool) -> Array:
    """fp32 values whose last `dropped` bits are zero: below 2^-14, where fp16 has a fixed spacing, multiples of it."""
    mask = np.uint32((1 << dropped) - 1)
    # Sign and magnitude: adding to the bits moves away from zero, over exponents too.
    rounded = ((values.view(np.uint32) + (drawn & mask)) & ~mask).view(np.float32)
    if narrow:
        small = np.abs(values) < _F16_SMALLEST_NORMAL
        steps = np.floor(np.abs(values[small]).astype(np.float64) * _F16_SPACINGS + drawn[small] / 2.0**32)
        rounded[small] = np.copysign(steps / _F16_SPACINGS, values[small])
    return rounded


def _to_odd(values: Array) -> Array:
    """fp64 as fp32, inexact ones to the neighbour with an odd last bit: rounding that once more is as rounding once."""
    with np.errstate(over="ignore"):
        single = values.astype(np.float32)
    whole = single.view(np.uint32)
    wide = single.astype(np.float64)
    with np.errstate(invalid="ignore"):
        whole -= (np.abs(wide) > np.abs(values)) & np.isfinite(values)
    whole |= (wide != values) & np.isfinite(values)
    return single
