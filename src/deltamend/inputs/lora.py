"""A model with a LoRA adapter: each adapted weight is computed as it is read, and no merged model is ever in memory."""

from __future__ import annotations

import math
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from deltamend.checkpoint.architecture import has_conv1d, is_conv1d, leaf_of, module_of, tied_head
from deltamend.checkpoint.checkpoint_folder import Array, Checkpoint, ComputedTensor, StoredTensor
from deltamend.checkpoint.dtypes import FLOAT_NAMES
from deltamend.checkpoint.file_names import ADAPTER_CONFIG_FILE, ADAPTER_FILE, TORCH_ADAPTER_FILE
from deltamend.checkpoint.json_file import read_json
from deltamend.checkpoint.safetensors_header import read_header
from deltamend.errors import CheckpointError
from deltamend.inputs.computed_tensors import EntrySpan
from deltamend.inputs.entry_ranges import cut_into_rectangles

_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(\.weight)?$")
_HELD_FACTORS = 8
_LONGEST_PATTERN, _MOST_REPEATS = 300, 2
_LARGEST_ALPHA = 1e6
_REPEAT, _NESTED = re.compile(r"(?<!\\)[*+{?]"), re.compile(r"\)[*+{?]")
_PLAIN_STARTS = (None, True, False, "gaussian", "eva")
"""`init_lora_weights` that leave the model as it is; PiSSA, OLoRA, CorDA and LoftQ take something out of it."""
_CHANGING = (
    "lora_bias", "alora_invocation_tokens", "layer_replication", "use_qalora", "target_parameters",
    "trainable_token_indices", "arrow_config",
)  # fmt: skip


def add_adapter(checkpoint: Checkpoint, folder: Path) -> None:
    """Show a model's tensors with a PEFT LoRA adapter added: W + scaling·B·A, in fp64 so that Δ is scaling·B·A itself.

    Ranks are those of the stored factors; scaling is α/r, or α/√r with rsLoRA, with the α of `alpha_pattern`. What
    `modules_to_save` stored takes the place of the model's own. The computed tensors are written in the model's dtype.

    Args:
        checkpoint: the model; its adapter is closed with it.
        folder: of the adapter: adapter_config.json and adapter_model.safetensors or .bin.

    Raises:
        CheckpointError: it is no LoRA adapter, is one whose update is not scaling·B·A (DoRA), or does not fit the model.
    """
    config = read_json(folder / ADAPTER_CONFIG_FILE)
    _refuse_other_kinds(config, folder)
    adapter = _open_adapter(folder, config)
    checkpoint.adapter = adapter
    tensors = dict(checkpoint.tensors)
    computed: dict[StoredTensor, ComputedTensor] = {}
    factors: dict[str, dict[str, StoredTensor]] = {}
    _untie(checkpoint, adapter, tensors)
    for name, tensor in adapter.tensors.items():
        if ".original_module." in name:  # what modules_to_save took the place of
            continue
        if not name.startswith(_PREFIX):
            raise CheckpointError(f"{folder}: tensor {name!r} is not under {_PREFIX!r}; save the adapter with PEFT")
        if found := _FACTOR.fullmatch(name.removeprefix(_PREFIX)):
            side = ("embedding " if found["embedding"] else "") + found["side"]
            factors.setdefault(found["module"], {})[side] = tensor
        else:
            weight = re.sub(r"\.(modules_to_save|base_layer)(\.default)?\.", ".", name.removeprefix(_PREFIX))
            original = tensors.get(weight)
            _replace(tensors, computed, weight, adapter, tensor, folder)
            _grow_vocabulary(checkpoint, original, tensor)
    cache = _Cache()
    for module, pair in factors.items():
        tensor, adapted = _adapted(checkpoint, tensors.get(f"{module}.weight"), module, pair, cache)
        tensors[tensor.name] = tensor
        computed[tensor] = adapted
        checkpoint.update_ranks[tensor.name] = adapted.rank
    ranks = sorted(set(checkpoint.update_ranks.values()))
    checkpoint.present(
        tensors,
        computed,
        [
            f"{folder.name}: a LoRA adapter on {len(factors)} matrices, of rank {', '.join(map(str, ranks))}; scaling·B·A is "
            "added to each as it is read"
        ]
        if factors
        else [],
    )


def _untie(checkpoint: Checkpoint, adapter: Checkpoint, tensors: dict[str, StoredTensor]) -> None:
    """Untie the head where the adapter changes it or the embedding, because PEFT changes only one of the two."""
    tied = tied_head(checkpoint.config, tensors)
    if tied is None:
        return
    embedding, head = tied
    changed = [f"{_PREFIX}{module}." for module in (module_of(embedding), head)]
    if any(name.startswith(tuple(changed)) for name in adapter.tensors):
        tensors[f"{head}.weight"] = replace(tensors[embedding], name=f"{head}.weight")
        checkpoint.alter_config({**checkpoint.config, "tie_word_embeddings": False})


def _refuse_other_kinds(config: dict[str, Any], folder: Path) -> None:
    kind = config.get("peft_type")
    reason = ""
    if kind != "LORA":
        reason = f"is a {kind} adapter, not LoRA"
    elif config.get("use_dora"):
        reason = "is DoRA, which rescales whole rows of the weight, so that the update is not scaling·B·A"
    elif (found := config.get("init_lora_weights")) not in _PLAIN_STARTS:
        reason = f"was initialised with init_lora_weights={found!r}, which changes the weights of the model itself"
    elif changing := [key for key in _CHANGING if config.get(key)]:
        reason = f"sets {changing[0]}, with which the update is not scaling·B·A on the weights of the model"
    if reason:
        raise CheckpointError(f"{folder}: {reason}; merge it into the model with PEFT's merge_and_unload and give that")


def _open_adapter(folder: Path, config: dict[str, Any]) -> Checkpoint:
    for name in (ADAPTER_FILE, TORCH_ADAPTER_FILE):
        path = folder / name
        if path.exists():
            if path.suffix == ".bin":
                from deltamend.checkpoint.torch_file import read_torch_header  # torch

                header = read_torch_header(path)
            else:
                header = read_header(path)
            return Checkpoint(folder, config, {name: header}, has_index=False)
    raise CheckpointError(f"{folder}: no {ADAPTER_FILE}; give the folder that PEFT's save_pretrained wrote")


def _replace(
    tensors: dict[str, StoredTensor],
    computed: dict[StoredTensor, ComputedTensor],
    name: str,
    adapter: Checkpoint,
    stored: StoredTensor,
    folder: Path,
) -> None:
    """Put a whole tensor of the adapter in the place of the model's."""
    original = tensors.get(name)
    if original is None or stored.dtype not in FLOAT_NAMES or stored.shape[1:] != original.shape[1:]:
        raise CheckpointError(
            f"{folder}: tensor {stored.name!r} does not fit the model; give the model it was trained on"
        )
    shown = StoredTensor(name, stored.dtype, stored.shape, original.file, stored.start, stored.stop, original.dtype)
    tensors[name] = shown
    computed[shown] = EntrySpan(adapter, stored)


def _grow_vocabulary(checkpoint: Checkpoint, original: StoredTensor | None, stored: StoredTensor) -> None:
    """Write the new size of the vocabulary to config.json where the adapter brings an embedding with more or fewer rows."""
    rows = () if original is None else original.shape[:1]
    if stored.shape[:1] != rows and checkpoint.config.get("vocab_size") in rows:
        checkpoint.alter_config({**checkpoint.config, "vocab_size": stored.shape[0]})


def _adapted(
    checkpoint: Checkpoint, weight: StoredTensor | None, module: str, pair: dict[str, StoredTensor], cache: _Cache
) -> tuple[StoredTensor, _Adapted]:
    """The adapted weight of one module, from the weight as it is and its two factors."""
    adapter = checkpoint.adapter
    if adapter is None:
        raise AssertionError(f"{module} has factors but no adapter")
    config = adapter.config
    embedding = "embedding A" in pair
    sides = [pair.get(f"embedding {side}" if embedding else side) for side in "AB"]
    fault = f"{adapter.folder}: module {module!r}"
    if sides[0] is None or sides[1] is None or len(pair) != 2:
        raise CheckpointError(f"{fault} has one factor without the other; save the adapter again")
    a, b = sides[0], sides[1]
    leaf = leaf_of(module)
    transposed = embedding or (
        is_conv1d(checkpoint.config, leaf) if has_conv1d(checkpoint.config) else bool(config.get("fan_in_fan_out"))
    )
    if len(a.shape) != 2 or len(b.shape) != 2 or not {a.dtype, b.dtype} <= FLOAT_NAMES:
        raise CheckpointError(f"{fault} has factors that are no matrices; merge the adapter with PEFT and give that")
    shape = (a.shape[1], b.shape[0]) if transposed else (b.shape[0], a.shape[1])
    if weight is None or weight.shape != shape or a.shape[0] != b.shape[1] or weight.dtype not in FLOAT_NAMES:
        raise CheckpointError(f"{fault} does not fit the model; give the model it was trained on")
    rank = a.shape[0]
    alpha = _of_pattern(config, "alpha_pattern", module, config.get("lora_alpha"))
    if not isinstance(alpha, int | float) or not abs(alpha) < _LARGEST_ALPHA or rank < 1:
        raise CheckpointError(f"{fault} has lora_alpha {alpha!r} and rank {rank}; save the adapter again")
    scaling = float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)
    shown = StoredTensor(weight.name, "F64", weight.shape, weight.file, weight.start, weight.stop, weight.dtype)
    return shown, _Adapted(checkpoint, adapter, weight, a, b, scaling, transposed, cache)


def _of_pattern(config: Mapping[str, Any], field_name: str, module: str, default: object) -> object:
    """The value of the first pattern that fits a module's name, as PEFT finds it."""
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


@dataclass(eq=False)
class _Cache:
    """The factors that were used last; rows of one matrix are asked for many times in a row."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    held: OrderedDict[str, tuple[Array, Array]] = field(default_factory=OrderedDict)


@dataclass(frozen=True, eq=False)
class _Adapted:
    """W + scaling·B·A, as `ComputedTensor`, fp64."""

    checkpoint: Checkpoint
    adapter: Checkpoint
    weight: StoredTensor
    a: StoredTensor
    b: StoredTensor
    scaling: float
    transposed: bool
    cache: _Cache

    @property
    def rank(self) -> int:
        """Of the update."""
        return self.a.shape[0]

    def read_into(self, start: int, stop: int, out: Array) -> None:
        """See `ComputedTensor.read_into`."""
        out[:] = self.checkpoint.values(self.weight, start, stop)
        left, right = self._factors()
        done = 0
        for part in cut_into_rectangles(start, stop, self.weight.shape[1]):
            size = part.shape[0] * part.shape[1]
            product = left[part.first_row : part.last_row] @ right[:, part.first_column : part.last_column]
            out[done : done + size] += product.reshape(-1)
            done += size

    def _factors(self) -> tuple[Array, Array]:
        """(rows, r) and (r, columns) whose product is the update."""
        with self.cache.lock:
            found = self.cache.held.get(self.weight.name)
            if found is not None:
                self.cache.held.move_to_end(self.weight.name)
                return found
        a, b = (
            self.adapter.values(factor, 0, factor.elements).astype(np.float64).reshape(factor.shape)
            for factor in (self.a, self.b)
        )
        left, right = (a.T, b.T) if self.transposed else (b, a)
        made = np.ascontiguousarray(left) * self.scaling, np.ascontiguousarray(right)
        with self.cache.lock:
            self.cache.held[self.weight.name] = made
            while len(self.cache.held) > _HELD_FACTORS:
                self.cache.held.popitem(last=False)
        return made
