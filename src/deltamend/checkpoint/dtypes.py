"""The dtypes a safetensors file can name, and the ones deltamend computes with or writes."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

# https://huggingface.co/docs/safetensors: the names of the format. Sub-byte types are left out: a file that has them is
# refused as quantised before anything else is asked of it. numpy is used and not torch, whose import takes longer and
# more memory than most repairs.
NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "C64": np.dtype(np.complex64),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
}

FLOAT_NAMES = frozenset({"F16", "BF16", "F32", "F64"})
"""The dtypes a delta can be formed in."""

OUT_DTYPES: dict[str, str] = {
    "bf16": "BF16",
    "bfloat16": "BF16",
    "fp16": "F16",
    "float16": "F16",
    "fp32": "F32",
    "float32": "F32",
}
"""The values of the option `out_dtype`, and the safetensors name of each."""

CONFIG_NAMES: dict[str, str] = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
"""The same dtypes as the field `dtype` of config.json writes them."""

# All bits but the sign, by which floating-point numbers order like integers, and those bits of infinity, above which
# there is only NaN.
_MAGNITUDES: dict[np.dtype[Any], tuple[np.dtype[Any], int, int]] = {
    NUMPY_DTYPES["BF16"]: (np.dtype(np.uint16), 0x7FFF, 0x7F80),
    NUMPY_DTYPES["F16"]: (np.dtype(np.uint16), 0x7FFF, 0x7C00),
    NUMPY_DTYPES["F32"]: (np.dtype(np.uint32), 0x7FFF_FFFF, 0x7F80_0000),
    NUMPY_DTYPES["F64"]: (np.dtype(np.uint64), 0x7FFF_FFFF_FFFF_FFFF, 0x7FF0_0000_0000_0000),
}


def itemsize(dtype_name: str) -> int:
    """Bytes of one element of a safetensors dtype."""
    return NUMPY_DTYPES[dtype_name].itemsize


def all_finite(values: np.ndarray[Any, np.dtype[Any]]) -> bool:
    """Whether a contiguous array holds neither NaN nor Inf; what is not floating point always does."""
    if values.dtype not in _MAGNITUDES or values.size == 0:
        return True
    unsigned, magnitude, infinity = _MAGNITUDES[values.dtype]
    return int(np.bitwise_and(values.view(unsigned), unsigned.type(magnitude)).max()) < infinity


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether a dtype is one of FLOAT_NAMES."""
    return dtype in _MAGNITUDES
