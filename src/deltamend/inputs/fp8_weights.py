"""Weights that are stored in 8-bit floating point with scales (fp8), dequantised as they are read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from deltamend.checkpoint.checkpoint_folder import Array, Checkpoint, StoredTensor
from deltamend.checkpoint.dtypes import FLOAT_NAMES
from deltamend.checkpoint.file_names import CONFIG_FILE
from deltamend.errors import CheckpointError
from deltamend.inputs.entry_ranges import cut_into_rectangles

_WEIGHT = ".weight"
_CODES = frozenset({"F8_E4M3", "F8_E5M2"})
# What a method calls the scales of `X.weight`: the weight is code × scale in all of them, whatever the name says.
_SCALES = {"fp8": ".weight_scale_inv", "fbgemm_fp8": ".weight_scale", "compressed-tensors": ".weight_scale"}
_OTHER_SCALES = re.compile(
    r"\.(input_scale|output_scale|activation_scale|[kqv]_scale|input_scale_ub|weight_zero_point)$"
)


def present_dequantised(checkpoint: Checkpoint) -> None:
    """Show 8-bit floating-point weights as fp32, where config.json says how their scales are to be read.

    The schemes: `fp8` (a scale for each block of DeepSeek and Qwen checkpoints, or one a tensor), `fbgemm_fp8` (one a row),
    and `compressed-tensors` with 8-bit float weights (one a tensor, row or block).

    Raises:
        CheckpointError: the weights are quantised in another way, or scales are missing or do not fit.
    """
    found = checkpoint.config.get("quantization_config")
    if found is None:
        return
    suffix = _scale_suffix(found, checkpoint)
    held = checkpoint.tensors
    tensors: dict[str, StoredTensor] = {}
    computed: dict[StoredTensor, _Scaled] = {}
    for name, tensor in held.items():
        if name.endswith(suffix) or _OTHER_SCALES.search(name):
            continue
        if tensor.dtype not in _CODES:
            tensors[name] = tensor
            continue
        scale = held.get(name.removesuffix(_WEIGHT) + suffix)
        shown = StoredTensor(name, "F32", tensor.shape, tensor.file, tensor.start, tensor.stop, written_dtype="BF16")
        computed[shown] = _Scaled(checkpoint, tensor, scale, _block(checkpoint, tensor, scale))
        tensors[name] = shown
    note = f"{checkpoint.folder.name}: {len(computed)} 8-bit tensors are read with their scales and written as bf16"
    checkpoint.present(tensors, computed, [note] if computed else [])
    checkpoint.alter_config({key: value for key, value in checkpoint.config.items() if key != "quantization_config"})


def _scale_suffix(found: Any, checkpoint: Checkpoint) -> str:
    """The suffix of the names of the scales; every scheme but those of `present_dequantised` is refused."""
    method = found.get("quant_method") if isinstance(found, dict) else None
    if method == "compressed-tensors":
        groups = found.get("config_groups")
        weights = [group.get("weights") for group in _tables(groups)]
        floats = [
            isinstance(scheme, dict) and scheme.get("type") == "float" and scheme.get("num_bits") == 8
            for scheme in weights
        ]
        if not floats or not all(floats):
            method = "compressed-tensors with other than 8-bit float weights"
    if not isinstance(method, str) or method not in _SCALES:
        raise CheckpointError(
            f"{checkpoint.folder / CONFIG_FILE}: the weights are quantised ({method!r}); the difference of packed values is "
            "not an update of the weights, so give the unquantised checkpoint"
        )
    return _SCALES[method]


def _block(checkpoint: Checkpoint, tensor: StoredTensor, scale: StoredTensor | None) -> tuple[int, int]:
    """Height and width of the block of entries that share a scale."""
    fault = f"{checkpoint.folder}: tensor {tensor.name!r}"
    if scale is None:
        raise CheckpointError(f"{fault} ({tensor.dtype}) has no scales beside it; give the unquantised checkpoint")
    if scale.dtype not in FLOAT_NAMES or len(tensor.shape) != 2 or not tensor.elements:
        raise CheckpointError(f"{fault} has scales that cannot be read; give the unquantised checkpoint")
    rows, columns = tensor.shape
    if scale.elements == 1:
        return rows, columns
    if scale.shape in {(rows, 1), (rows,)}:
        return 1, columns
    if len(scale.shape) == 2:
        config = checkpoint.config["quantization_config"]
        block = config.get("weight_block_size") or _group_block(config)
        sizes = (
            isinstance(block, list) and len(block) == 2 and all(isinstance(size, int) and size > 0 for size in block)
        )
        if sizes and scale.shape == (-(-rows // block[0]), -(-columns // block[1])):
            return block[0], block[1]
    raise CheckpointError(
        f"{fault} has scales of shape {list(scale.shape)}, which config.json does not account for; give the unquantised checkpoint"
    )


def _group_block(config: Mapping[str, Any]) -> Any:
    """The block of compressed-tensors' `block` strategy."""
    schemes = _tables([group.get("weights") for group in _tables(config.get("config_groups"))])
    return next((scheme["block_structure"] for scheme in schemes if "block_structure" in scheme), None)


def _tables(values: object) -> list[Mapping[str, Any]]:
    """The JSON objects among the values of an object or list."""
    found = list(values.values()) if isinstance(values, dict) else values
    return [value for value in found if isinstance(value, dict)] if isinstance(found, list) else []


@dataclass(frozen=True, eq=False)
class _Scaled:
    """Codes times scales, as `ComputedTensor`, fp32."""

    checkpoint: Checkpoint
    codes: StoredTensor
    scale: StoredTensor | None
    block: tuple[int, int]

    def read_into(self, start: int, stop: int, out: Array) -> None:
        """See `ComputedTensor.read_into`."""
        if self.scale is None:
            raise AssertionError(f"{self.codes.name} has no scales")
        values = out[: stop - start]
        values[:] = self.checkpoint.values(self.codes, start, stop)
        height, width = self.block
        columns = self.codes.shape[1]
        across = -(-columns // width)
        done = 0
        for part in cut_into_rectangles(start, stop, columns):
            first, last = part.first_row // height, (part.last_row - 1) // height + 1
            scales = (
                self.checkpoint.values(self.scale, first * across, last * across).astype(np.float32).reshape(-1, across)
            )
            rows = np.arange(part.first_row, part.last_row) // height - first
            columns_of = np.arange(part.first_column, part.last_column) // width
            size = part.shape[0] * part.shape[1]
            values[done : done + size].reshape(part.shape)[:] *= scales[np.ix_(rows, columns_of)]
            done += size
