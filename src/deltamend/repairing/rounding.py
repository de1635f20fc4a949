"""Round W_base + Δ* to the dtype that is stored: to nearest, stochastically, which is correct on average, or compensated."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np

from deltamend.checkpoint.dtypes import NUMPY_DTYPES, all_finite, is_float
from deltamend.errors import FilterError, UsageError, option
from deltamend.matrices.buffers import Array, Buffers
from deltamend.methods.elementwise import Tile
from deltamend.methods.method import Method
from deltamend.methods.random_bits import RandomBits

Rounding = Literal["nearest", "stochastic", "compensated"]

_BF16, _F16, _F32, _F64 = (NUMPY_DTYPES[name] for name in ("BF16", "F16", "F32", "F64"))
ROUNDED = (_BF16, _F16)
"""The dtypes that sums are rounded to."""
_F16_DROPPED, _BF16_DROPPED = 13, 16
"""How many bits of an fp32 significand fp16 and bf16 drop."""
_F16_SMALLEST_NORMAL, _F16_SPACINGS = 2.0**-14, 2.0**24


def check_rounding(rounding: Rounding, methods: Iterable[Method]) -> None:
    """Refuse compensated rounding where no method of a repair says by what errors count.

    Raises:
        UsageError: no method has a metric.
    """
    used = {method.name: method for method in methods}
    if rounding == "compensated" and used and not any(method.weighs_rows for method in used.values()):
        raise UsageError(
            f"{option('rounding', rounding)}: no method of this repair ({', '.join(sorted(used))}) knows the inputs by which errors of rounding "
            "would count; take a method that reads activations, such as null-space or two-sided, or round to nearest"
        )


def rounding_bits(rounding: Rounding, name: str, shape: tuple[int, int]) -> RandomBits | None:
    """The random bits for the stochastic rounding of one tensor; None if values are rounded to nearest."""
    return RandomBits(0, f"{name}, rounding", shape) if rounding == "stochastic" else None


def round_for(
    values: Array, dtype: np.dtype[Any], bits: RandomBits | None = None, at: tuple[int, int] = (0, 0)
) -> Array:
    """Prepare values for a cast to `dtype`, which then gives the value that the chosen rounding asks for.

    Stochastic rounding moves a value that lies between two neighbouring values of `dtype` up or down at random, with
    probabilities that leave its mean unchanged (Croci et al. 2022, mode 1). The random bits depend on the name of the tensor
    and the position in it, so the result depends neither on the size of blocks nor on the number of workers. Rounding to
    nearest is left to the cast itself, except from fp64 to bf16, where the cast would round twice, by way of fp32.

    Args:
        values: shape (rows, columns); fp32 or fp64 for stochastic rounding, else any floating-point dtype.
        dtype: the dtype that the values will be cast to.
        bits: the random bits of the whole matrix; None for rounding to nearest. They have no effect unless `dtype` is bf16
            or fp16.
        at: the row and column of the first value in the matrix.

    Returns:
        `values` itself, or an fp32 array of its shape.
    """
    if bits is not None and dtype in ROUNDED:
        single = _to_odd(values) if values.dtype == _F64 else values
        drawn = bits.at(Tile(at[0], at[1], values))
        return _stochastic(single, drawn, _BF16_DROPPED if dtype == _BF16 else _F16_DROPPED, narrow=dtype == _F16)
    return _to_odd(values) if values.dtype == _F64 and dtype == _BF16 else values


def _stochastic(values: Array, drawn: Array, dropped: int, *, narrow: bool) -> Array:
    """Round fp32 values to values whose last `dropped` bits are zero.

    Below 2^-14, where the values of fp16 are evenly spaced (`narrow`), they are rounded to multiples of that spacing.
    """
    mask = np.uint32((1 << dropped) - 1)
    # A float is stored as sign and magnitude, so adding to its bits moves it away from zero, across exponents too.
    rounded = ((values.view(np.uint32) + (drawn & mask)) & ~mask).view(np.float32)
    if narrow:
        small = np.abs(values) < _F16_SMALLEST_NORMAL
        steps = np.floor(np.abs(values[small]).astype(np.float64) * _F16_SPACINGS + drawn[small] / 2.0**32)
        rounded[small] = np.copysign(steps / _F16_SPACINGS, values[small])
    return rounded


def _to_odd(values: Array) -> Array:
    """Round fp64 to fp32, inexact values to the neighbour whose last bit is odd, so that a second rounding does no harm."""
    with np.errstate(over="ignore"):
        single = values.astype(np.float32)
    whole = single.view(np.uint32)
    wide = single.astype(np.float64)
    with np.errstate(invalid="ignore"):
        whole -= (np.abs(wide) > np.abs(values)) & np.isfinite(values)
    whole |= (wide != values) & np.isfinite(values)
    return single


def cast_to(values: Array, dtype: np.dtype[Any], name: str, buffers: Buffers) -> Array:
    """Cast values to the output dtype, rounded to nearest; values that are not floating point are returned unchanged.

    What `round_for` has rounded in another way is not changed by the cast.

    Returns:
        A buffer, which the next call overwrites.

    Raises:
        FilterError: a value is too large for the dtype.
    """
    if not is_float(values.dtype):
        return values
    cast = buffers.get("cast", values.shape, dtype)
    with np.errstate(over="ignore"):  # the check below finds an overflow and names the tensor
        np.copyto(cast, round_for(values, dtype), casting="unsafe")
    if not all_finite(cast):
        raise FilterError(f"tensor {name!r} overflows in {dtype}; write it with {option('out_dtype', 'fp32')}")
    return cast
