"""The layout of a PEFT LoRA adapter: the key under which each factor of Δ* is stored, and the adapter's config.

The Δ* of a spectral filter has exactly low rank, so its factors hold all of it, whereas a cast of W_base + Δ* to bf16 can lose
half of it. Keys, layouts and the matching of patterns follow peft 0.21.2 (`tuners/lora/layer.py`, `utils/save_and_load.py`, and
`get_pattern_key` in `tuners/tuners_utils.py`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from deltamend.checkpoint.architecture import (
    OUTPUT_EMBEDDING,
    TOKEN_EMBEDDINGS,
    has_head,
    is_conv1d,
    is_expert,
    leaf_of,
    model_type_of,
    module_of,
    tied_head,
)
from deltamend.checkpoint.checkpoint_folder import Checkpoint, StoredTensor
from deltamend.checkpoint.dtypes import itemsize
from deltamend.checkpoint.manifest import TensorRecord
from deltamend.errors import OutputError, UsageError, option
from deltamend.inputs.model_layout import Parameter, layout_of
from deltamend.inputs.pairing import Pairing, TensorPair
from deltamend.methods.method import Method
from deltamend.methods.registry import all_methods
from deltamend.repairing.options import AUTO

Kind = Literal["linear", "conv1d", "embedding", "other"]
"""How peft treats a module. A module of the kind "other" is saved whole, which is possible with any module."""

PREFIX = "base_model.model."
_ADAPTER, _CHECKPOINT = option("output", "adapter"), option("output", "checkpoint")
_EMBEDDINGS = TOKEN_EMBEDDINGS | {"wpe"}
_BODIES = _EMBEDDINGS | {"h", "layers"}
"""If the names of tensors begin with one of these, the model was saved without its language-model head."""
_READ_PAST_THE_LAYER = frozenset({"falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"})
"""Models whose kernels read the weight of out_proj past its layer, so that peft refuses factors there."""
_DUMMY_TARGET = "dummy-target-modules"  # peft refuses an empty list of modules, and has this name for "no module"


@dataclass(frozen=True)
class FactorPlace:
    """The place of one stored factor of Δ* = L·R, where L has shape (m, rank) and R has shape (rank, n).

    Attributes:
        key: the key of the tensor in the adapter's file.
        side: which of the factors is stored: "left" for L, "right" for R.
        by_rank: whether the rank is the first axis of the stored tensor.
    """

    key: str
    side: Literal["left", "right"]
    by_rank: bool


@dataclass(frozen=True)
class AdapterPlan:
    """What is known of the adapter before any weight is read.

    Attributes:
        base_name: BASE in the form in which the user gave it, for `base_model_name_or_path`.
        task_type: peft's name for the task of the model, or None.
        kinds: how peft treats the module of each matrix, by the name of the tensor.
        tied: the name of the embedding matrix that the head shares, and the head's module; None if no head is tied.
        names: the name that each tensor has in the loaded BASE, by its name in FINETUNED's files.
        outside: the tensors that are no parameters of the loaded BASE, such as experts that are stacked on loading.
    """

    base_name: str
    task_type: str | None
    kinds: Mapping[str, Kind]
    tied: tuple[str, str] | None
    names: Mapping[str, str]
    outside: frozenset[str] = frozenset()

    def module(self, name: str) -> str:
        """The module that a tensor belongs to in the loaded BASE."""
        return module_of(self.names[name])

    def key(self, name: str) -> str:
        """The key of a tensor that is stored whole."""
        return PREFIX + self.names[name]

    def factor_places(self, name: str) -> tuple[FactorPlace, ...]:
        """The places of the factors of a matrix. An embedding that the head shares has two pairs of places."""
        module = PREFIX + self.module(name)
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
    """Decide how peft treats each module, and refuse a repair that an adapter cannot hold.

    Raises:
        UsageError: a method does not give a low-rank Δ*, or the modules of the model do not have the names of its tensors.
    """
    known = _in_memory(base, pairing)
    outside = frozenset(
        name for name, found in known.items() if found.converted or (not found.owner and is_expert(name))
    )
    for pair in pairing.pairs:
        _refuse(pair, methods.get(pair.name), outside)
    if base.config.get("is_encoder_decoder"):
        raise UsageError(f"{_ADAPTER}: encoder-decoder models share their embedding; use {_CHECKPOINT}")
    if base.adapter is not None:
        raise UsageError(f"{_ADAPTER}: BASE already has an adapter, and peft loads only one; use {_CHECKPOINT}")
    first = next(iter(base.tensors), "")
    if (
        has_head(base.config)
        and first.partition(".")[0] in _BODIES
        and not any(found.owner for found in known.values())
    ):
        raise UsageError(
            f"{_ADAPTER}: BASE was saved without its head (its first tensor is {first!r}), so that an adapter would not "
            f"find its modules; save the whole model with save_pretrained, or use {_CHECKPOINT}"
        )
    matrices = [pair.name for pair in pairing.pairs if len(pair.finetuned.shape) == 2]
    kinds: dict[str, Kind] = {name: _kind(known[name], base.config) for name in matrices}
    task = "CAUSAL_LM" if has_head(base.config) and "vision_config" not in base.config else None
    names = {name: found.module_name for name, found in known.items()}
    tied = _tied_head(base.config, known, kinds)
    own = next((name for name, shown in names.items() if tied is not None and module_of(shown) == tied[1]), None)
    if own is not None:
        raise UsageError(
            f"{_ADAPTER}: {own!r} belongs to a head whose weight is tied to the embedding; use {_CHECKPOINT}"
        )
    return AdapterPlan(base_name, task, kinds, tied, names, outside)


def _tied_head(
    config: Mapping[str, Any], known: Mapping[str, Parameter], kinds: Mapping[str, Kind]
) -> tuple[str, str] | None:
    """The embedding whose matrix the head shares, by its name in FINETUNED's files, and the head's module in the loaded BASE.

    Raises:
        UsageError: other modules share a weight.
    """
    if not any(found.owner for found in known.values()):  # transformers does not know the model
        tied = tied_head(config, [found.module_name for found in known.values()])
        return tied and (next(name for name, found in known.items() if found.module_name == tied[0]), tied[1])
    shared = {name: found for name, found in known.items() if found.aliases}
    embeddings = [name for name, found in shared.items() if kinds.get(name) == "embedding" and len(found.aliases) == 1]
    other = next((found for name, found in shared.items() if name not in embeddings[:1]), None)
    if other is not None:
        raise UsageError(
            f"{_ADAPTER}: several modules of the loaded model hold one weight, {other.module_name!r} and "
            f"{other.aliases[0]!r}, and an adapter is written only where the head and the embedding are the ones that do; "
            f"use {_CHECKPOINT}"
        )
    return next(((name, module_of(found.aliases[0])) for name, found in shared.items()), None)


def _in_memory(base: Checkpoint, pairing: Pairing) -> dict[str, Parameter]:
    """What the tensors are in the loaded BASE, by their names in FINETUNED's files; without those that BASE does not have."""
    pairs = {pair.name: pair.base for pair in pairing.pairs if pair.base is not None}
    own = {name: _name_in_base(name, tensor) for name, tensor in pairs.items()}
    layout = layout_of(base.config, {own[name]: tensor.shape for name, tensor in pairs.items()}, names_in_memory=True)
    return {name: layout[own[name]] for name in pairs}


def _name_in_base(name: str, tensor: StoredTensor) -> str:
    """The name of a tensor in BASE; that of the head where the head is compared with the embedding that BASE ties it to."""
    tied = OUTPUT_EMBEDDING.search(name) and not OUTPUT_EMBEDDING.search(tensor.own_name)
    return name if tied else tensor.own_name


def _refuse(pair: TensorPair, method: Method | None, outside: frozenset[str]) -> None:
    instead = f"use {_CHECKPOINT}"
    if method is not None and len(pair.finetuned.shape) == 2 and not writes_factors(method, pair):
        able = ", ".join(name for name, kind in all_methods().items() if kind.low_rank)
        also = ", or give FINETUNED as BASE+ADAPTER" if method.keeps_rank else ""
        raise UsageError(
            f"{_ADAPTER}: the update that {method.name} keeps is not low-rank; use one of the methods {able}{also}, or {instead}"
        )
    if pair.base is None:
        raise UsageError(f"{_ADAPTER}: BASE has no tensor {pair.name!r} to add to; {instead}")
    if pair.base.shape != pair.finetuned.shape:
        raise UsageError(
            f"{_ADAPTER}: tensor {pair.name!r} has {pair.base.shape[0]} rows in BASE and {pair.finetuned.shape[0]} in "
            f"FINETUNED, and an adapter cannot resize it; {instead}"
        )
    if any(not part.label for part in pair.submatrices):
        raise UsageError(
            f"{_ADAPTER}: tensor {pair.name!r} has rows of tokens that BASE does not have, or has elsewhere, which an adapter "
            f"cannot hold; {instead}"
        )
    if pair.submatrices:
        raise UsageError(f"{_ADAPTER}: tensor {pair.name!r} is repaired in parts, whose factors differ; {instead}")
    if pair.name in outside and pair.action == "filter":
        raise UsageError(refusal_of_outside(pair.name))


def writes_factors(method: Method, pair: TensorPair) -> bool:
    """Whether what a method keeps of a matrix is low-rank: by itself, or as the update is an adapter's of known rank."""
    return method.low_rank or (method.keeps_rank and has_known_rank(pair))


def has_known_rank(pair: TensorPair) -> bool:
    """Whether an adapter is all of the update of a matrix, or the adapter leaves the matrix alone."""
    return pair.update_rank is not None or (pair.same_source and pair.base == pair.finetuned)


def adapter_of_auto(why: str) -> str:
    """The text of the error where an adapter cannot be written with `method="auto"`."""
    able = ", ".join(name for name, kind in all_methods().items() if kind.low_rank)
    return (
        f"{_ADAPTER}: the methods that {option('method', AUTO)} chooses from keep a low-rank update only where FINETUNED is "
        f"given as BASE+ADAPTER, and {why}; use one of the methods {able}, or {_CHECKPOINT}"
    )


def refusal_of_outside(name: str) -> str:
    """The text of the error for a tensor that is no parameter of the loaded model, so that an adapter cannot hold its update."""
    what = "belongs to an expert, which" if is_expert(name) else "is stacked or cut on loading, and"
    return f"{_ADAPTER}: {name!r} {what} has another name in the loaded model than in the file; use {_CHECKPOINT}"


def _kind(parameter: Parameter, config: Mapping[str, Any]) -> Kind:
    """How peft treats a module: by its class, or by its name where transformers does not know the model."""
    if parameter.owner:
        past_the_layer = model_type_of(config) in _READ_PAST_THE_LAYER
        alone = past_the_layer and leaf_of(module_of(parameter.module_name)) == "out_proj"
        return "other" if alone else parameter.layer or "other"
    name = parameter.module_name
    leaf = leaf_of(module_of(name))
    if leaf_of(name) != "weight":
        return "other"
    if leaf in _EMBEDDINGS:
        return "embedding"
    if "emb" in leaf and leaf != "embed_out":  # this may be an embedding that has another name
        return "other"
    return "conv1d" if is_conv1d(config, leaf) else "linear"


@dataclass(frozen=True)
class Placed:
    """One tensor of the adapter, and the position of its first byte in the file of its part."""

    key: str
    shape: tuple[int, ...]
    dtype: str
    xxh3: str
    start: int


def arrange(records: Sequence[TensorRecord], plan: AdapterPlan) -> tuple[dict[str, tuple[Placed, ...]], dict[str, Any]]:
    """Decide, module by module, under which keys the parts are stored, and write the config that tells peft.

    Returns:
        The tensors of the adapter, by the name of the model's tensor; and the content of adapter_config.json.

    Raises:
        OutputError: a parameter has changed that belongs to no module that peft can save.
    """
    modules: dict[str, list[TensorRecord]] = {}
    for record in records:
        modules.setdefault(plan.module(record.name), []).append(record)
    chosen: dict[str, tuple[Placed, ...]] = {record.name: () for record in records}
    ranks: dict[str, int] = {}
    whole = _saved_with_all_inside(modules)
    for record in _taken_out(modules, whole):
        _refuse_unless_whole(record, plan)
        chosen[record.name] = _as_stored(record)
    biases: set[str] = set()
    for module, members in modules.items():
        changed = _changed(members)
        weight = next((record for record in members if plan.kinds.get(record.name, "other") != "other"), None)
        places = () if weight is None else plan.factor_places(weight.name)
        factored = weight is not None and len(weight.adapter or ()) > 1
        if factored and weight is not None:
            chosen[weight.name] = _as_stored(weight)
            ranks |= dict.fromkeys(_modules_of(places), _rank(weight))
        if factored or (weight is not None and weight not in changed):
            for record in changed:
                if record is weight:
                    continue
                _refuse_parameter(record, plan, {"bias"})
                inner = "base_layer.bias" if factored else "bias"
                chosen[record.name] = _as_stored(record, f"{PREFIX}{module}.{inner}")
                biases.add("lora_only" if factored else "all")
        elif changed:
            whole.append(module)
            for record in members:
                _refuse_parameter(record, plan, {"weight", "bias"})
                chosen[record.name] = _as_stored(record)
            if weight is not None and plan.tied is not None and plan.tied[0] == weight.name:
                whole.append(plan.tied[1])
                chosen[weight.name] += _as_stored(weight, f"{PREFIX}{plan.tied[1]}.weight")
    return chosen, _config(plan, ranks, whole, biases)


def _modules_of(places: Sequence[FactorPlace]) -> list[str]:
    """The modules that factors are added to."""
    firsts = [place.key for place in places if place.key.endswith((".lora_A.weight", ".lora_embedding_A"))]
    return [key.removeprefix(PREFIX).rpartition(".lora_")[0] for key in firsts]


def _changed(members: Sequence[TensorRecord]) -> list[TensorRecord]:
    return [record for record in members if record.outcome not in {"zero", "reverted"}]


def _saved_with_all_inside(modules: Mapping[str, list[TensorRecord]]) -> list[str]:
    """The modules with changed parameters of their own, such as a projection that is no layer; peft saves such a module whole."""
    own = [
        module
        for module, members in modules.items()
        if any(leaf_of(record.name) not in {"weight", "bias"} for record in _changed(members))
    ]
    return [module for module in own if not any(module.startswith(f"{other}.") for other in own)]


def _taken_out(modules: dict[str, list[TensorRecord]], whole: Sequence[str]) -> list[TensorRecord]:
    """Take the modules that are saved whole, and all modules inside them, out of `modules`, and list their tensors."""
    inside = [name for name in modules if any(f"{name}.".startswith(f"{module}.") for module in whole)]
    return [record for name in inside for record in modules.pop(name)]


def _refuse_unless_whole(record: TensorRecord, plan: AdapterPlan) -> None:
    """Refuse a tensor of a module that is saved whole, of which only the factors were written, or nothing."""
    if [part.key for part in record.adapter or ()] != [plan.key(record.name)] or not plan.module(record.name):
        raise OutputError(
            f"tensor {record.name!r} belongs to a module in which another parameter changed that an adapter can only save "
            f"with the whole module; use {_CHECKPOINT}"
        )


def _as_stored(record: TensorRecord, key: str | None = None) -> tuple[Placed, ...]:
    """The tensors of a part, in the order in which they are stored; they get another key if one is given."""
    placed, start = [], 0
    for part in record.adapter or ():
        placed.append(Placed(key or part.key, part.shape, part.dtype, part.xxh3, start))
        start += math.prod(part.shape) * itemsize(part.dtype)
    return tuple(placed)


def _rank(record: TensorRecord) -> int:
    return min(min(part.shape) for part in record.adapter or ())


def _refuse_parameter(record: TensorRecord, plan: AdapterPlan, able: set[str]) -> None:
    if leaf_of(plan.names[record.name]) not in able or record.adapter == ():
        raise OutputError(
            f"tensor {record.name!r} changed, and it belongs to no module that an adapter can save; use {_CHECKPOINT}"
        )


def _config(plan: AdapterPlan, ranks: Mapping[str, int], whole: Sequence[str], biases: set[str]) -> dict[str, Any]:
    """The content of adapter_config.json. In every module α = r, so that peft's scaling α/r is 1."""
    largest = max(ranks.values(), default=1)
    # peft reads these keys as regular expressions that may begin anywhere; anchored and escaped, they match one module.
    pattern = {f"^{re.escape(module)}": rank for module, rank in ranks.items() if rank != largest}
    kinds = {kind for name, kind in plan.kinds.items() if plan.module(name) in ranks}
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
