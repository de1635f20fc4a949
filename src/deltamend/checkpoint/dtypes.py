"""The dtypes a safetensors file can name, and the ones deltamend computes with or writes."""

from __future__ import annotations

import torch

# https://huggingface.co/docs/safetensors: the names of the format. Sub-byte types are left out: a file that has them is
# refused as quantised before anything else is asked of it.
TORCH_DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}

NAMES: dict[torch.dtype, str] = {dtype: name for name, dtype in TORCH_DTYPES.items()}

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
"""What `--out-dtype` accepts, as safetensors names."""

CONFIG_NAMES: dict[str, str] = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
"""How config.json writes them in its `dtype` field."""


def itemsize(dtype_name: str) -> int:
    """Bytes of one element of a safetensors dtype."""
    return TORCH_DTYPES[dtype_name].itemsize
