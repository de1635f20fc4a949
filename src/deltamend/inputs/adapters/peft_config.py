"""What adapter_config.json says of a PEFT adapter: whether it can be added to the weights, and how its update is scaled."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from deltamend.checkpoint.file_names import ADAPTER_CONFIG_FILE
from deltamend.errors import CheckpointError

Removed = Literal["largest", "smallest", "first columns"]
"""What a start took out of a weight W: its largest or smallest singular triplets, or the first columns of its QR factors."""

_LONGEST_PATTERN, _MOST_REPEATS = 300, 2
_LARGEST_ALPHA = 1e6
_REPEAT, _NESTED = re.compile(r"(?<!\\)[*+{?]"), re.compile(r"\)[*+{?]")

_LORA = "LORA"
_NO_WEIGHTS = frozenset(
    {"PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING", "ADAPTION_PROMPT", "CPT", "CARTRIDGE"}
)
_MERGE = "merge it into the model with PEFT's merge_and_unload and give the result"
_KEEP_START = (
    "save it again with save_pretrained(..., path_initial_model_for_weight_conversion=...), which makes a plain LoRA "
    "adapter of it, or merge it in the session that trained it and give the result"
)

# `init_lora_weights`, as PEFT 0.21 reads it when an adapter is loaded: those that leave the model's weights alone, those
# whose change follows from the weights themselves, and those whose change needs what is not in the adapter.
_PLAIN_STARTS = frozenset({"gaussian", "eva", "orthogonal", "mica"})
_REMOVING_STARTS: Mapping[str, Removed] = {"pissa": "largest", "olora": "first columns"}
_LOST_STARTS: Mapping[str, str] = {
    "corda": f"which took a part out of the model's weights that only its training data tell; {_KEEP_START}",
    "lora_ga": f"which took a part out of the model's weights that only its first gradients tell; {_KEEP_START}",
    "loftq": "which put quantised weights in the place of the model's; merge it with PEFT into those and give the result",
}
# Options with which there is no merged model, in PEFT neither.
_UNMERGEABLE: Mapping[str, str] = {
    "alora_invocation_tokens": "so that it acts on some tokens of a text and not on others",
    "arrow_config": "so that it chooses among adapters token by token",
    "use_qalora": "so that it adds to means of inputs inside the quantised model",
}


def refuse_other_kinds(config: Mapping[str, Any], folder: Path) -> None:
    """Refuse an adapter whose update cannot be told from the model's weights and its own tensors.

    Args:
        config: its adapter_config.json.
        folder: where it lies, for the error.

    Raises:
        CheckpointError: it is another kind than LoRA, cannot be merged by PEFT either, or started from weights that neither
            the model nor the adapter holds. What to do depends on which.
    """
    kind = config.get("peft_type")
    if isinstance(kind, str) and kind in _NO_WEIGHTS:
        raise CheckpointError(
            f"{folder}: is a {kind} adapter, which changes no weights of the model, so that there is no update to repair"
        )
    if kind != _LORA:
        raise CheckpointError(f"{folder}: is a {str(kind)[:60]!a} adapter, not LoRA; {_MERGE}")
    for key, why in _UNMERGEABLE.items():
        if config.get(key):
            raise CheckpointError(
                f"{folder}: sets {key}, {why}, and no merged model exists; give an adapter that was trained without it"
            )
    start = config.get("init_lora_weights")
    name = start.lower() if isinstance(start, str) else ""
    if start is None or isinstance(start, bool) or name in _PLAIN_STARTS or name in _REMOVING_STARTS:
        return
    why = _LOST_STARTS.get(name, f"which deltamend does not know; {_MERGE}")
    if name.startswith("pissa"):
        why = f"which took a part out of the model's weights that a randomised method found; {_KEEP_START}"
    raise CheckpointError(f"{folder}: was initialised with init_lora_weights={str(start)[:60]!a}, {why}")


def removed_by_start(config: Mapping[str, Any]) -> Removed | None:
    """What the start of a linear layer took out of its weight before training; None where it left it alone."""
    start = config.get("init_lora_weights")
    if config.get("kasa_config"):
        return "smallest"
    return _REMOVING_STARTS.get(start.lower()) if isinstance(start, str) else None


def scaling_of(config: Mapping[str, Any], module: str, rank: int, fault: str) -> float:
    """The factor on B·A: α/r, or α/√r with rsLoRA, with the α of `alpha_pattern`.

    Args:
        config: adapter_config.json.
        module: the module's name in the model that was trained, with the name of the parameter where one is targeted.
        rank: of the stored factors.
        fault: how an error begins.

    Raises:
        CheckpointError: α is no number, or a pattern is none.
    """
    alpha = of_pattern(config, "alpha_pattern", module, config.get("lora_alpha"))
    if not isinstance(alpha, int | float) or not abs(alpha) < _LARGEST_ALPHA or rank < 1:
        raise CheckpointError(f"{fault} has lora_alpha {alpha!r} and rank {rank}; save the adapter again")
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def of_pattern(config: Mapping[str, Any], field_name: str, module: str, default: object) -> object:
    """The value of the first pattern that fits a module's name, as PEFT finds it.

    Raises:
        CheckpointError: there is no table of patterns, or one of them is no pattern or could run for hours.
    """
    patterns = config.get(field_name) or {}
    if not isinstance(patterns, dict):
        raise CheckpointError(f"{ADAPTER_CONFIG_FILE}: {field_name} is no table of patterns; save the adapter again")
    for pattern, value in patterns.items():
        # A pattern is text from a checkpoint: one that repeats repetitions can run for hours.
        if len(pattern) > _LONGEST_PATTERN or len(_REPEAT.findall(pattern)) > _MOST_REPEATS or _NESTED.search(pattern):
            raise CheckpointError(
                f"{ADAPTER_CONFIG_FILE}: {field_name} has {pattern[:60]!a}, which is too complicated; name the modules"
            )
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        except re.error as error:
            raise CheckpointError(
                f"{ADAPTER_CONFIG_FILE}: {field_name} has {pattern!r}, which is no pattern ({error})"
            ) from error
    return default
