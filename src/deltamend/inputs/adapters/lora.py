"""A model with a LoRA adapter: each adapted weight is computed as it is read, and no merged model is ever in memory."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from deltamend.checkpoint.architecture import module_of, tied_head
from deltamend.checkpoint.checkpoint_folder import Checkpoint, ComputedTensor, StoredTensor
from deltamend.checkpoint.dtypes import FLOAT_NAMES
from deltamend.checkpoint.file_names import ADAPTER_CONFIG_FILE, ADAPTER_FILE, TORCH_ADAPTER_FILE, TORCH_SUFFIX
from deltamend.checkpoint.json_file import read_json
from deltamend.checkpoint.safetensors_header import read_header
from deltamend.checkpoint.torch_file import read_torch_header
from deltamend.errors import CheckpointError
from deltamend.inputs.adapters.adapted_parameters import AdaptedParameters, Target
from deltamend.inputs.adapters.adapted_weights import (
    AdaptedBias,
    AdaptedWeight,
    LowRankUpdate,
    RecentArrays,
    WithNewRows,
)
from deltamend.inputs.adapters.heads import config_with_head, is_new_head, is_other_head
from deltamend.inputs.adapters.layer_replication import layer_sources, replicate_layers
from deltamend.inputs.adapters.module_names import named_as_in
from deltamend.inputs.adapters.peft_config import refuse_other_kinds, removed_by_start, scaling_of
from deltamend.inputs.adapters.tensor_keys import AdapterTensors, Role, sort_tensors
from deltamend.inputs.computed_tensors import EntrySpan
from deltamend.inputs.model_layout import layout_of, role_by_name

_SIDES: tuple[Role, Role] = ("A", "B")
_EMBEDDING_SIDES: tuple[Role, Role] = ("embedding_A", "embedding_B")
# The option that each extra tensor beside the factors belongs to.
_ASKED_FOR_BY: Mapping[Role, str] = {"magnitude": "use_dora", "diagonal": "kasa_config", "bias": "lora_bias"}
_VOCABULARY = re.compile(r"(^|_)vocab_size(_|$)")
"""Where a config.json, or a part of it such as `text_config`, states how many rows the embedding has."""
_OTHER_PARTS = re.compile(r"vision|visual|image|audio|speech")
"""Parts of a config.json whose vocabulary, if they state one, is not that of the text."""
_DEEPEST_PART = 3


def add_adapter(checkpoint: Checkpoint, folder: Path) -> None:
    """Show a model's tensors with a PEFT LoRA adapter merged, equal to PEFT's `merge_and_unload` but for rounding.

    Ranks are those of the stored factors; scaling is α/r, or α/√r with rsLoRA, with the α of `alpha_pattern`. What
    `modules_to_save` stored takes the place of the model's own. The order of operations is `AdaptedWeight`'s, in float64;
    the computed tensors are written in the model's dtype.

    Args:
        checkpoint: the model; its adapter is closed with it.
        folder: of the adapter: adapter_config.json and adapter_model.safetensors or .bin.

    Raises:
        CheckpointError: it is no LoRA adapter, one that PEFT does not merge either, or does not fit the model.
    """
    config = read_json(folder / ADAPTER_CONFIG_FILE)
    refuse_other_kinds(config, folder)
    adapter = _open_adapter(folder, config)
    checkpoint.adapter = adapter
    if (sources := layer_sources(config.get("layer_replication"), folder)) is not None:
        replicate_layers(checkpoint, sources)
    brought = sort_tensors(adapter.tensors, folder)
    with named_as_in(brought, checkpoint, str(folder)):
        merged = _Merged(checkpoint, adapter)
        merged.untie(brought)
        for name, tensor in brought.whole.items():
            merged.put_whole(name, tensor)
        for module, tensor in brought.tokens.items():
            merged.put_tokens(module, tensor)
        parameters = AdaptedParameters(merged.tensors, checkpoint.config, config, str(folder))
        for module, parts in brought.factors.items():
            merged.add_factors(module, parts, parameters)
        merged.show(len(brought.factors))


def _open_adapter(folder: Path, config: dict[str, Any]) -> Checkpoint:
    for name in (ADAPTER_FILE, TORCH_ADAPTER_FILE):
        path = folder / name
        if path.exists():
            header = read_torch_header(path) if path.suffix == TORCH_SUFFIX else read_header(path)
            return Checkpoint(folder, config, {name: header}, has_index=False)
    raise CheckpointError(f"{folder}: no {ADAPTER_FILE}; give the folder that PEFT's save_pretrained wrote")


class _Merged:
    """The tensors of a model while an adapter is merged into them."""

    def __init__(self, checkpoint: Checkpoint, adapter: Checkpoint) -> None:
        self.checkpoint, self.adapter = checkpoint, adapter
        self.tensors = dict(checkpoint.tensors)
        self.computed: dict[StoredTensor, ComputedTensor] = {}
        self.cache = RecentArrays()
        self.shown_as: dict[str, set[type[ComputedTensor]]] = {}

    def untie(self, brought: AdapterTensors) -> None:
        """Untie the head where the adapter changes it or the embedding, because PEFT changes only one of the two.

        New rows for the embedding's tokens are the exception: PEFT gives them to both, unless the head has rows of its own.
        """
        changed = {*brought.factors, *map(module_of, brought.whole)}
        tied = self._tied_head(changed, {*brought.tokens})
        if tied is None:
            return
        embedding, head = tied
        if (changed | ({head} & {*brought.tokens})) & {module_of(embedding), head}:
            self.tensors[f"{head}.weight"] = replace(self.tensors[embedding], name=f"{head}.weight")
            self.checkpoint.untied[f"{head}.weight"] = embedding
            self.checkpoint.alter_config({**self.checkpoint.config, "tie_word_embeddings": False})

    def _tied_head(self, changed: set[str], with_new_rows: set[str]) -> tuple[str, str] | None:
        """An embedding and the module of the head that is tied to it; None where the adapter can change neither of them.

        transformers says which they are. Where it does not know the model, and for the name of a head in files that have
        other names than the loaded model, the names do.
        """
        named = tied_head(self.checkpoint.config, self.tensors)
        tables = [
            name
            for name, tensor in self.tensors.items()
            if module_of(name) in changed and role_by_name(name, tensor.shape) == "embedding"
        ]
        without_weight = [module for module in changed if f"{module}.weight" not in self.tensors]
        if not tables and not without_weight and (named is None or named[1] not in with_new_rows):
            return None
        shapes = {name: tensor.shape for name, tensor in self.tensors.items()}
        known = layout_of(self.checkpoint.config, shapes, names_in_memory=True)
        if not any(parameter.owner for parameter in known.values()):
            return named
        found = [(name, parameter.aliases) for name, parameter in known.items() if parameter.aliases]
        embedding, aliases = found[0] if len(found) == 1 else ("", ())
        if not aliases:
            return None
        if len(aliases) > 1 and embedding in tables:
            raise CheckpointError(
                f"{self.adapter.folder}: it changes {embedding!r}, which is {' and '.join(map(repr, aliases))} of the loaded model too, "
                "and PEFT changes each by itself, so that no merged model exists; give an adapter that leaves it alone"
            )
        return named if named is not None and named[0] == embedding else (embedding, module_of(aliases[0]))

    def put_whole(self, name: str, stored: StoredTensor) -> None:
        """Put a whole tensor of the adapter in the place of the model's."""
        original = self.tensors.get(name)
        if original is None and stored.dtype in FLOAT_NAMES and is_new_head(self.adapter.config, name):
            self._put_head(name, stored)
            return
        if original is None or stored.dtype not in FLOAT_NAMES or stored.shape[1:] != original.shape[1:]:
            raise CheckpointError(
                f"{self.adapter.folder}: tensor {stored.name!r} does not fit the model; give the model it was trained on"
            )
        place = (original.file, stored.start, stored.stop, original.output_dtype)
        self.tensors[name] = shown = StoredTensor(name, stored.dtype, stored.shape, *place)
        self.computed[shown] = EntrySpan(self.adapter, stored)
        if stored.shape[:1] != original.shape[:1]:
            self._grow_vocabulary(original.shape[0], stored.shape[0])

    def _put_head(self, name: str, stored: StoredTensor) -> None:
        """Show a head that only the adapter has, in the place of the one that predicts tokens."""
        file = next(iter(self.checkpoint.headers))
        self.tensors = {other: tensor for other, tensor in self.tensors.items() if not is_other_head(other)}
        self.tensors[name] = shown = StoredTensor(name, stored.dtype, stored.shape, file, stored.start, stored.stop)
        self.computed[shown] = EntrySpan(self.adapter, stored)
        self.checkpoint.alter_config(
            config_with_head(self.checkpoint.config, self.adapter.config, stored.shape[0] if stored.shape else 1)
        )

    def put_tokens(self, module: str, new: StoredTensor) -> None:
        """Put the rows of some tokens in the place of the embedding's."""
        fault = f"{self.adapter.folder}: tensor {new.name!r}"
        given = self.adapter.config.get("trainable_token_indices")
        if isinstance(given, dict):
            given = next((rows for key, rows in given.items() if f".{module}".endswith(f".{key}")), None)
        embedding = self.tensors.get(f"{module}.weight")
        fits = embedding is not None and len(embedding.shape) == 2 and embedding.dtype in FLOAT_NAMES
        if embedding is None or not fits or new.dtype not in FLOAT_NAMES or new.shape[1:] != embedding.shape[1:]:
            raise CheckpointError(f"{fault} does not fit the model; give the model it was trained on")
        if not isinstance(given, list) or len(given) != new.shape[0] or not all(type(row) is int for row in given):
            raise CheckpointError(f"{fault}: trainable_token_indices does not say which rows these are; save it again")
        rows = tuple(row + embedding.shape[0] if row < 0 else row for row in given)
        if not all(0 <= row < embedding.shape[0] for row in rows):
            raise CheckpointError(
                f"{fault}: trainable_token_indices names a row that the model's {embedding.shape[0]} do not have; give the "
                "model it was trained on, with the tokens that were added to it"
            )
        self._show(embedding, WithNewRows(self.checkpoint, embedding, self.adapter, new, rows))

    def add_factors(self, module: str, parts: Mapping[Role, StoredTensor], parameters: AdaptedParameters) -> None:
        """Add the update that a pair of factors makes, and the bias that may come with it."""
        config, fault = self.adapter.config, f"{self.adapter.folder}: module {module!r}"
        embedding = "embedding_A" in parts or "embedding_B" in parts
        a, b = (parts.get(role) for role in (_EMBEDDING_SIDES if embedding else _SIDES))
        if a is None or b is None or (embedding and ("A" in parts or "B" in parts)):
            raise CheckpointError(f"{fault} has one factor without the other; save the adapter again")
        for role, key in _ASKED_FOR_BY.items():
            if (role in parts) != bool(config.get(key)) and (role != "bias" or role in parts):
                raise CheckpointError(
                    f"{fault}: {ADAPTER_CONFIG_FILE} and the tensors say different things of {key}; save the adapter again"
                )
        for target in parameters.targets(module, a, b, embedding=embedding):
            scaling = target.times * scaling_of(config, target.named, a.shape[0] // target.experts, fault)
            update = LowRankUpdate(
                self.adapter, a, b, scaling, target.swapped, target.experts, target.expert, target.outputs,
                parts.get("diagonal"), target.blocks,
            )  # fmt: skip
            removed = None if embedding else removed_by_start(config)
            _check_fit(target, update, parts, removed, fault)
            weight = target.weight
            adapted = AdaptedWeight(
                self.checkpoint, weight, target.shape, update, self.cache, removed, parts.get("magnitude")
            )
            self._show(weight, adapted)
            if adapted.rank is not None:
                self.checkpoint.update_ranks[weight.name] = adapted.rank
            if (added := parts.get("bias")) is not None:
                self._add_bias(module_of(weight.name), added, scaling, fault)

    def _add_bias(self, module: str, added: StoredTensor, scaling: float, fault: str) -> None:
        bias = self.tensors.get(f"{module}.bias")
        if bias is None or bias.shape != added.shape or not {bias.dtype, added.dtype} <= FLOAT_NAMES:
            raise CheckpointError(
                f"{fault} has a bias that the model's layer lacks, so that it cannot be merged; give the model it was trained on"
            )
        self._show(bias, AdaptedBias(self.checkpoint, bias, self.adapter, added, scaling))

    def _show(self, tensor: StoredTensor, computed: ComputedTensor) -> None:
        """Show a tensor as what is computed from it, in float64 and written as before."""
        shown = replace(tensor, dtype="F64", written_dtype=tensor.output_dtype)
        if type(computed) in self.shown_as.setdefault(tensor.name, set()):
            raise CheckpointError(
                f"{self.adapter.folder}: several of its tensors belong to {tensor.name!r} alike; save the adapter again"
            )
        self.shown_as[tensor.name].add(type(computed))
        if shown == tensor:  # it was shown so already; the two must differ
            shown = replace(shown, origin=tensor.own_name)
        self.tensors[tensor.name] = shown
        self.computed[shown] = computed

    def _grow_vocabulary(self, before: int, now: int) -> None:
        """Write the new size of the vocabulary wherever config.json states it."""
        grown = _with_vocabulary(self.checkpoint.config, before, now)
        if grown != self.checkpoint.config:
            self.checkpoint.alter_config(grown)

    def show(self, modules: int) -> None:
        """Show the model with all that was merged."""
        ranks = sorted(set(self.checkpoint.update_ranks.values()))
        of_rank = f", of rank {', '.join(map(str, ranks))}" if ranks else ""
        note = f"{self.adapter.folder.name}: a LoRA adapter on {modules} matrices{of_rank}; scaling·B·A is added to each as it is read"
        self.checkpoint.present(self.tensors, self.computed, [note] if modules else [])


def _check_fit(
    target: Target, update: LowRankUpdate, parts: Mapping[Role, StoredTensor], removed: object, fault: str
) -> None:
    """Refuse extras that do not fit their factors, or that no adapter of PEFT has beside them."""
    _, rows, columns = target.shape
    for role, entries in (("magnitude", columns if target.swapped else rows), ("diagonal", update.rank)):
        extra = parts.get(role)  # type: ignore[call-overload]
        if extra is not None and (extra.elements != entries or extra.dtype not in FLOAT_NAMES or not target.is_plain):
            raise CheckpointError(f"{fault}: tensor {extra.name!r} does not fit its factors; save the adapter again")
    if removed is not None and (not target.is_plain or update.rank >= min(rows, columns)):
        raise CheckpointError(
            f"{fault} cannot have started from a part of its weight; merge the adapter with PEFT's merge_and_unload and give the result"
        )


def _with_vocabulary(config: Mapping[str, Any], before: int, now: int, depth: int = _DEEPEST_PART) -> dict[str, Any]:
    """A config with another size of the vocabulary, in itself and in its parts of text, wherever it states the old one."""
    grown = dict(config)
    for key, value in config.items():
        if _VOCABULARY.search(key) and value == before:
            grown[key] = now
        elif isinstance(value, Mapping) and depth and not _OTHER_PARTS.search(key):
            grown[key] = _with_vocabulary(value, before, now, depth - 1)
    return grown
