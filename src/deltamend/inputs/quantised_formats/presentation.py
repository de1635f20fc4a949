"""Show a quantised checkpoint as the unquantised one: the table of formats, and what is done with the config."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from deltamend.checkpoint.checkpoint_folder import Checkpoint, ComputedTensor, StoredTensor
from deltamend.checkpoint.dtypes import FLOAT_NAMES
from deltamend.checkpoint.file_names import CONFIG_FILE
from deltamend.errors import CheckpointError
from deltamend.inputs.quantised_formats.awq import awq_weights
from deltamend.inputs.quantised_formats.bitsandbytes_4bit import bitsandbytes_4bit_weights
from deltamend.inputs.quantised_formats.bitsandbytes_8bit import bitsandbytes_8bit_weights
from deltamend.inputs.quantised_formats.fp4_blocks import fp4_block_weights
from deltamend.inputs.quantised_formats.gptq import gptq_weights
from deltamend.inputs.quantised_formats.packed_rows import packed_row_weights
from deltamend.inputs.quantised_formats.packed_weight import CONFIG_FIELDS, PackedWeight, quantisation_config
from deltamend.inputs.quantised_formats.rounding_floors import ROUNDING_FLOORS
from deltamend.inputs.quantised_formats.scaled_codes import scaled_code_weights

FORMATS: tuple[Callable[[Checkpoint], Iterator[PackedWeight]], ...] = (
    bitsandbytes_4bit_weights,
    bitsandbytes_8bit_weights,
    gptq_weights,
    awq_weights,
    packed_row_weights,
    fp4_block_weights,
    scaled_code_weights,
)
"""The formats that are read. Each finds its weights by the tensors that are stored, and takes from the config only what they do not say."""

_ACTIVATION_SCALES = re.compile(
    r"\.(input_scale|output_scale|activation_scale|[kqv]_scale|input_scale_ub|input_global_scale)$"
)
"""Scales of activations, which say nothing of the weights."""
_SPARSE = re.compile("sparse|marlin")
_WRITTEN = "BF16"


def present_dequantised(checkpoint: Checkpoint) -> None:
    """Show the weights of a quantised checkpoint dequantised, in fp32, to be written as bf16.

    Raises:
        CheckpointError: a quantised weight is damaged or incomplete, or quantised in a way that cannot be read.
    """
    _refuse_sparse(checkpoint)
    packed: dict[str, PackedWeight] = {}
    for find in FORMATS:
        for weight in find(checkpoint):
            packed.setdefault(weight.place.name, weight)
    said = quantisation_config(checkpoint.config)
    if not packed:
        if said is not None:
            _refuse_unknown(checkpoint, said)
        return
    parts = frozenset().union(*(weight.parts for weight in packed.values()))
    tensors: dict[str, StoredTensor] = {}
    computed: dict[StoredTensor, ComputedTensor] = {}
    for name, tensor in checkpoint.tensors.items():
        if (found := packed.get(name)) is not None:
            shown = StoredTensor(
                found.name, "F32", found.shape, tensor.file, tensor.start, tensor.stop, _WRITTEN, packing=found.packing
            )
            computed[shown] = found.values
            tensors[found.name] = shown
        elif name not in parts and not _ACTIVATION_SCALES.search(name):
            tensors[name] = tensor
    checkpoint.present(tensors, computed, _notes(checkpoint, Counter(weight.packing for weight in packed.values())))
    checkpoint.alter_config(_unquantised(checkpoint.config))


def _unquantised(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the model whose weights are shown: it says nothing of quantisation, and bf16 for its dtype."""
    kept = {key: value for key, value in config.items() if key not in CONFIG_FIELDS}
    for field in ("dtype", "torch_dtype"):
        if field in kept:
            kept[field] = "bfloat16"
    if isinstance(text := kept.get("text_config"), Mapping):
        kept["text_config"] = _unquantised(text)
    return kept


def _notes(checkpoint: Checkpoint, packings: Counter[str]) -> list[str]:
    return [
        f"{checkpoint.folder.name}: {count} weights are stored in {packing}; they are dequantised as they are read, and "
        f"are bf16 where they are written. Rounding to {packing} moves normally distributed weights by {ROUNDING_FLOORS[packing]:.2g} of "
        "their size (root mean square)"
        for packing, count in sorted(packings.items())
    ]


def _refuse_sparse(checkpoint: Checkpoint) -> None:
    """Refuse the formats of compressed-tensors that leave out zeros, whose tensors look like those of others."""
    said = quantisation_config(checkpoint.config)
    table = said if isinstance(said, Mapping) else {}
    sparsity = table.get("sparsity_config")
    layouts = [table.get("format"), sparsity.get("format") if isinstance(sparsity, Mapping) else None]
    sparse = next((layout for layout in layouts if isinstance(layout, str) and _SPARSE.search(layout)), None)
    if sparse is not None and any(tensor.dtype not in FLOAT_NAMES for tensor in checkpoint.tensors.values()):
        raise CheckpointError(
            f"{checkpoint.folder / CONFIG_FILE}: the weights are stored in the sparse format {sparse!r}, which deltamend cannot "
            "read; give the unquantised checkpoint"
        )


def _refuse_unknown(checkpoint: Checkpoint, said: Any) -> None:
    """Refuse a model of another format, by the name that its config gives; integers of more than one dimension are codes."""
    method = said.get("quant_method") if isinstance(said, dict) else None
    for tensor in checkpoint.tensors.values():
        if len(tensor.shape) >= 2 and tensor.dtype not in FLOAT_NAMES and tensor.dtype != "BOOL":
            raise CheckpointError(
                f"{checkpoint.folder / CONFIG_FILE}: the weights are quantised ({method!r}; tensor {tensor.name!r} has dtype "
                f"{tensor.dtype}) in a way that deltamend cannot read; give the unquantised checkpoint"
            )
