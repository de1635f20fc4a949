"""A repair as a PEFT LoRA adapter: which module holds what, the factors of every Δ*, and the file they end up in.

Δ* of a spectral filter is exactly low-rank, so its factors lose nothing, where casting W_base + Δ* to bf16 can lose half
of it. Names, layouts and the matching of patterns are those of peft (`tuners/lora/layer.py`, `utils/save_and_load.py`,
`get_pattern_key` in `tuners/tuners_utils.py`; read at 0.21.2).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from deltamend.checkpoint.architecture import (
    TOKEN_EMBEDDINGS,
    has_head,
    is_conv1d,
    is_expert,
    leaf_of,
    module_of,
    tied_head,
)
from deltamend.checkpoint.checkpoint_folder import Checkpoint
from deltamend.checkpoint.dtypes import itemsize
from deltamend.checkpoint.manifest import TensorRecord
from deltamend.errors import OutputError, UsageError, option
from deltamend.inputs.pairing import Pairing, TensorPair
from deltamend.methods.method import Method
from deltamend.methods.registry import all_methods

Kind = Literal["linear", "conv1d", "embedding", "other"]
"""What a module is to peft. `other`: it is saved whole, which any module can be."""

PREFIX = "base_model.model."
_ADAPTER, _CHECKPOINT = option("output", "adapter"), option("output", "checkpoint")
_EMBEDDINGS = TOKEN_EMBEDDINGS | {"wpe"}
_BODIES = _EMBEDDINGS | {"h", "layers"}
"""First parts of names by which a body that was saved without its language-model head is known."""
_DUMMY_TARGET = "dummy-target-modules"  # peft's own name for "no module", which it refuses as an empty list


@dataclass(frozen=True)
class FactorPlace:
    """One stored factor of Δ* = L·R, L (m, rank) and R (rank, n): its key, which of the two, and if it is transposed."""

    key: str
    side: Literal["left", "right"]
    by_rank: bool
    """Whether the rank is the first axis of what is stored."""


@dataclass(frozen=True)
class AdapterPlan:
    """What is known of the adapter before a weight is read.

    Attributes:
        base_name: BASE as it was given, for `base_model_name_or_path`.
        task_type: peft's name of the task, or None.
        kinds: of the module of every matrix, by the name of the tensor.
        tied: the embedding whose matrix the head shares, and the head's module; None where no head is tied.
    """

    base_name: str
    task_type: str | None
    kinds: Mapping[str, Kind]
    tied: tuple[str, str] | None

    def factor_places(self, name: str) -> tuple[FactorPlace, ...]:
        """Where the factors of a matrix are stored; twice where its embedding and the head share it."""
        module = PREFIX + module_of(name)
        match self.kinds.get(name, "other"):
            case "linear":
                return _linear(module)
            case "conv1d":
                return (
                    FactorPlace(f"{module}.lora_A.weight", "left", by_rank=True),
                    FactorPlace(f"{module}.lora_B.weight", "right", by_rank=False),
                )
            case "embedding":
                own = (
                    FactorPlace(f"{module}.lora_embedding_A", "left", by_rank=True),
                    FactorPlace(f"{module}.lora_embedding_B", "right", by_rank=False),
                )
                return own + (_linear(PREFIX + self.tied[1]) if self.tied and self.tied[0] == name else ())
            case _:
                return ()


def _linear(module: str) -> tuple[FactorPlace, ...]:
    return (
        FactorPlace(f"{module}.lora_A.weight", "right", by_rank=True),
        FactorPlace(f"{module}.lora_B.weight", "left", by_rank=False),
    )


def plan_adapter(base: Checkpoint, base_name: str, pairing: Pairing, methods: Mapping[str, Method]) -> AdapterPlan:
    """Decide what each module is, and refuse what an adapter cannot hold.

    Raises:
        UsageError: a method whose Δ* has full rank, or a model whose modules are not those its tensors are named after.
    """
    for pair in pairing.pairs:
        _refuse(pair, methods.get(pair.name))
    if base.config.get("is_encoder_decoder"):
        raise UsageError(f"{_ADAPTER}: encoder-decoder models share their embedding; use {_CHECKPOINT}")
    if base.adapter is not None:
        raise UsageError(f"{_ADAPTER}: BASE has an adapter of its own, and peft loads one; use {_CHECKPOINT}")
    first = next(iter(base.tensors), "")
    if has_head(base.config) and first.partition(".")[0] in _BODIES:
        raise UsageError(
            f"{_ADAPTER}: BASE was saved without its head (it names {first!r}), so that an adapter would not find its "
            f"modules; save it again with save_pretrained, or use {_CHECKPOINT}"
        )
    matrices = [pair for pair in pairing.pairs if len(pair.finetuned.shape) == 2]
    kinds: dict[str, Kind] = {pair.name: _kind(pair.name, base.config) for pair in matrices}
    task = "CAUSAL_LM" if has_head(base.config) and "vision_config" not in base.config else None
    tied = tied_head(base.config, base.tensors)
    own = next((name for name in base.tensors if tied is not None and module_of(name) == tied[1]), None)
    if own is not None:
        raise UsageError(f"{_ADAPTER}: {own!r} belongs to a head that is tied otherwise; use {_CHECKPOINT}")
    return AdapterPlan(base_name, task, kinds, tied)


def _refuse(pair: TensorPair, method: Method | None) -> None:
    instead = f"use {_CHECKPOINT}"
    if method is not None and len(pair.finetuned.shape) == 2 and not method.low_rank:
        able = ", ".join(name for name, kind in all_methods().items() if kind.low_rank)
        raise UsageError(
            f"{_ADAPTER}: what {method.name} keeps of a matrix is not low-rank; use one of {able}, or {instead}"
        )
    if pair.base is None:
        raise UsageError(f"{_ADAPTER}: BASE has no tensor {pair.name!r} to add to; {instead}")
    if pair.base.shape != pair.finetuned.shape:
        raise UsageError(
            f"{_ADAPTER}: tensor {pair.name!r} has {pair.base.shape[0]} rows in BASE and {pair.finetuned.shape[0]} in "
            f"FINETUNED, and an adapter cannot resize it; {instead}"
        )
    if pair.submatrices:
        raise UsageError(f"{_ADAPTER}: tensor {pair.name!r} is repaired in parts, which share no factors; {instead}")
    if is_expert(pair.name) and pair.action == "filter":
        raise UsageError(expert_refusal(pair.name))


def expert_refusal(name: str) -> str:
    """Why the update of an expert cannot be in an adapter."""
    return (
        f"{_ADAPTER}: {name!r} belongs to an expert, which is loaded under another name than it is stored; "
        f"use {_CHECKPOINT}"
    )


def _kind(name: str, config: Mapping[str, Any]) -> Kind:
    leaf = leaf_of(module_of(name))
    if leaf_of(name) != "weight":
        return "other"
    if leaf in _EMBEDDINGS:
        return "embedding"
    if "emb" in leaf and leaf != "embed_out":  # an embedding by another name, or not
        return "other"
    return "conv1d" if is_conv1d(config, leaf) else "linear"


@dataclass(frozen=True)
class Placed:
    """One tensor of the adapter: what its record says, and from which byte of the part its bytes lie."""

    key: str
    shape: tuple[int, ...]
    dtype: str
    xxh3: str
    start: int


def arrange(records: Sequence[TensorRecord], plan: AdapterPlan) -> tuple[dict[str, tuple[Placed, ...]], dict[str, Any]]:
    """Which part is stored under which key, module by module, and the config that says so to peft."""
    modules: dict[str, list[TensorRecord]] = {}
    for record in records:
        modules.setdefault(module_of(record.name), []).append(record)
    chosen: dict[str, tuple[Placed, ...]] = {record.name: () for record in records}
    ranks: dict[str, int] = {}
    whole: list[str] = []
    biases: set[str] = set()
    for module, members in modules.items():
        changed = [record for record in members if record.outcome not in {"zero", "reverted"}]
        weight = next((record for record in members if plan.kinds.get(record.name, "other") != "other"), None)
        places = () if weight is None else plan.factor_places(weight.name)
        factored = weight is not None and len(weight.adapter or ()) > 1
        if factored and weight is not None:
            chosen[weight.name] = _as_stored(weight)
            for place in places:
                if place.key.endswith((".lora_A.weight", ".lora_embedding_A")):
                    ranks[place.key.removeprefix(PREFIX).rpartition(".lora_")[0]] = _rank(weight)
        if factored or (weight is not None and weight not in changed):
            for record in changed:
                if record is weight:
                    continue
                _refuse_parameter(record, {"bias"})
                inner = "base_layer.bias" if factored else "bias"
                chosen[record.name] = _as_stored(record, f"{PREFIX}{module}.{inner}")
                biases.add("lora_only" if factored else "all")
        elif changed:
            whole.append(module)
            for record in members:
                _refuse_parameter(record, {"weight", "bias"})
                chosen[record.name] = _as_stored(record)
            if weight is not None and plan.tied is not None and plan.tied[0] == weight.name:
                whole.append(plan.tied[1])
                chosen[weight.name] += _as_stored(weight, f"{PREFIX}{plan.tied[1]}.weight")
    return chosen, _config(plan, ranks, whole, biases)


def _as_stored(record: TensorRecord, key: str | None = None) -> tuple[Placed, ...]:
    """The tensors of a part in their order, the first under another key where one is given."""
    placed, start = [], 0
    for part in record.adapter or ():
        placed.append(Placed(key or part.key, part.shape, part.dtype, part.xxh3, start))
        start += math.prod(part.shape) * itemsize(part.dtype)
    return tuple(placed)


def _rank(record: TensorRecord) -> int:
    return min(min(part.shape) for part in record.adapter or ())


def _refuse_parameter(record: TensorRecord, able: set[str]) -> None:
    if leaf_of(record.name) not in able or record.adapter == ():
        raise OutputError(
            f"tensor {record.name!r} has changed and belongs to no module that an adapter can save; use {_CHECKPOINT}"
        )


def _config(plan: AdapterPlan, ranks: Mapping[str, int], whole: Sequence[str], biases: set[str]) -> dict[str, Any]:
    """adapter_config.json. α = r in every module, so that peft's scaling α/r is 1."""
    largest = max(ranks.values(), default=1)
    # peft reads keys as regular expressions that may begin anywhere: anchored and escaped they name one module.
    pattern = {f"^{re.escape(module)}": rank for module, rank in ranks.items() if rank != largest}
    kinds = {plan.kinds.get(f"{module}.weight") for module in ranks}
    return {
        "peft_type": "LORA",
        "task_type": plan.task_type,
        "base_model_name_or_path": plan.base_name,
        "r": largest,
        "lora_alpha": largest,
        "lora_dropout": 0.0,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "target_modules": list(ranks) or _DUMMY_TARGET,
        "modules_to_save": list(whole) or None,
        "bias": "all" if "all" in biases else "lora_only" if biases else "none",
        "fan_in_fan_out": "conv1d" in kinds,
        "inference_mode": True,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
    }


def encode_config(config: Mapping[str, Any]) -> bytes:
    """The text of adapter_config.json."""
    return (json.dumps(config, indent=2) + "\n").encode()
