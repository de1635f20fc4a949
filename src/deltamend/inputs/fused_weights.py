"""Which rows or columns of a fused weight are its query, key and value, or its gate and up projection, by config.json."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from deltamend.checkpoint.architecture import model_type_of

Span = tuple[int, int]

_QKV = re.compile(r"(^|\.)(qkv_proj|query_key_value|c_attn|Wqkv|W_pack)\.weight$")
_GATE_UP = re.compile(r"(^|\.)gate_up_proj(\.weight)?$")
# Families whose fused weights are the parts on top of each other.
_QKV_BY_ROW = frozenset({"phi3"})
_GATE_UP_BY_ROW = frozenset({"phi3", "glm", "glm4", "mixtral", "olmoe", "qwen2_moe", "qwen3_moe", "deepseek_v3"})
# Families whose query_key_value holds query, key and value of the first head, then of the second, and so on.
_BY_HEAD = frozenset({"gpt_neox", "bloom"})
# Families whose Conv1D stores weights as (inputs, outputs).
_BY_COLUMN = frozenset({"gpt2"})


class FusedMatrix(NamedTuple):
    """One of the matrices of a fused weight: its spans of rows, one after another, and its columns; None for all columns."""

    name: str
    rows: tuple[Span, ...]
    columns: Span | None


def matrices_of_fused(name: str, shape: tuple[int, int], config: Mapping[str, Any]) -> tuple[FusedMatrix, ...]:
    """The matrices that a fused weight consists of; empty where it is not fused, or config.json does not account for its shape.

    Args:
        name: of the tensor.
        shape: (rows, columns), of one expert where the tensor holds several.
        config: of the model.
    """
    text = config.get("text_config")
    config = {**config, **text} if isinstance(text, Mapping) else config
    family = model_type_of(config)
    if _GATE_UP.search(name):
        if family not in _GATE_UP_BY_ROW:
            return ()
        half, odd = divmod(shape[0], 2)
        known = [config.get("intermediate_size"), config.get("moe_intermediate_size")]
        if odd or half not in known:
            return ()
        return FusedMatrix("gate", ((0, half),), None), FusedMatrix("up", ((half, shape[0]),), None)
    if not _QKV.search(name):
        return ()
    sizes = _head_sizes(config)
    if sizes is None:
        return ()
    heads, shared, width = sizes
    if family in _BY_HEAD:
        return _by_head(shape, heads, width)
    ends = [heads * width, (heads + shared) * width, (heads + 2 * shared) * width]
    spans = list(zip([0, *ends[:2]], ends, strict=True))
    if family in _BY_COLUMN:
        everything = ((0, shape[0]),)
        fits = ends[-1] == shape[1]
        return (
            tuple(FusedMatrix(part, everything, span) for part, span in zip("qkv", spans, strict=True)) if fits else ()
        )
    if ends[-1] != shape[0] or family not in _QKV_BY_ROW:
        return ()
    return tuple(FusedMatrix(part, (span,), None) for part, span in zip("qkv", spans, strict=True))


def _by_head(shape: tuple[int, int], heads: int, width: int) -> tuple[FusedMatrix, ...]:
    if shape[0] != 3 * heads * width:
        return ()
    parts = []
    for number, part in enumerate("qkv"):
        starts = ((3 * head + number) * width for head in range(heads))
        parts.append(FusedMatrix(part, tuple((start, start + width) for start in starts), None))
    return tuple(parts)


def _head_sizes(config: Mapping[str, Any]) -> tuple[int, int, int] | None:
    """Number of query heads, number of key and value heads, and width of a head."""

    def number(*names: str) -> int | None:
        found = (config.get(name) for name in names)
        return next((value for value in found if isinstance(value, int) and value > 0), None)

    heads, hidden = number("num_attention_heads", "n_head"), number("hidden_size", "n_embd")
    if heads is None or hidden is None:
        return None
    return heads, number("num_key_value_heads") or heads, number("head_dim") or hidden // heads
