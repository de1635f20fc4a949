"""A model with a LoRA adapter: each adapted weight is computed as it is read, never a merged model in memory."""

from __future__ import annotations

import math
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from deltamend.checkpoint.dtypes import FLOAT_NAMES
from deltamend.checkpoint.open import Array, Checkpoint, ComputedTensor, StoredTensor, read_json
from deltamend.checkpoint.safetensors_header import read_header
from deltamend.errors import CheckpointError
from deltamend.inputs.rectangles import rectangles

ADAPTER_CONFIG_FILE = "adapter_config.json"
ADAPTER_FILE = "adapter_model.safetensors"
_TORCH_ADAPTER_FILE = "adapter_model.bin"

_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(\.weight)?$")
_HELD_FACTORS = 8
_LONGEST_PATTERN = 300


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
    for name, tensor in adapter.tensors.items():
        if not name.startswith(_PREFIX):
            raise CheckpointError(f"{folder}: tensor {name!r} is not under {_PREFIX!r}; save the adapter with PEFT")
        if found := _FACTOR.fullmatch(name.removeprefix(_PREFIX)):
            side = ("embedding " if found["embedding"] else "") + found["side"]
            factors.setdefault(found["module"], {})[side] = tensor
        else:
            weight = re.sub(
                r"\.(modules_to_save|base_layer|original_module)(\.default)?\.", ".", name.removeprefix(_PREFIX)
            )
            _replace(tensors, computed, weight, adapter, tensor, folder)
            _grow_vocabulary(checkpoint, checkpoint.tensors[weight], tensor)
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


def _refuse_other_kinds(config: dict[str, Any], folder: Path) -> None:
    kind = config.get("peft_type")
    reason = ""
    if kind != "LORA":
        reason = f"is a {kind} adapter, not LoRA"
    elif config.get("use_dora"):
        reason = "is DoRA, which rescales whole rows of the weight, so that its update is not scaling·B·A"
    elif config.get("lora_bias"):
        reason = "has biases of its own factors (lora_bias)"
    if reason:
        raise CheckpointError(f"{folder}: {reason}; merge it into the model with PEFT's merge_and_unload and give that")


def _open_adapter(folder: Path, config: dict[str, Any]) -> Checkpoint:
    for name in (ADAPTER_FILE, _TORCH_ADAPTER_FILE):
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
    computed[shown] = _Elsewhere(adapter, stored)


def _grow_vocabulary(checkpoint: Checkpoint, original: StoredTensor, stored: StoredTensor) -> None:
    """An adapter that was trained with more tokens brings the whole embedding; config.json then has to say their number."""
    rows = original.shape[:1]
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
    transposed = embedding or bool(config.get("fan_in_fan_out"))
    if len(a.shape) != 2 or len(b.shape) != 2 or not {a.dtype, b.dtype} <= FLOAT_NAMES:
        raise CheckpointError(f"{fault} has factors that are no matrices; merge the adapter with PEFT and give that")
    shape = (a.shape[1], b.shape[0]) if transposed else (b.shape[0], a.shape[1])
    if weight is None or weight.shape != shape or a.shape[0] != b.shape[1] or weight.dtype not in FLOAT_NAMES:
        raise CheckpointError(f"{fault} does not fit the model; give the model it was trained on")
    rank = a.shape[0]
    alpha = _of_pattern(config, "alpha_pattern", module, config.get("lora_alpha"))
    if not isinstance(alpha, int | float) or not math.isfinite(alpha) or rank < 1:
        raise CheckpointError(f"{fault} has lora_alpha {alpha!r} and rank {rank}; save the adapter again")
    scaling = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    shown = StoredTensor(weight.name, "F64", weight.shape, weight.file, weight.start, weight.stop, weight.dtype)
    return shown, _Adapted(checkpoint, adapter, weight, a, b, scaling, transposed, cache)


def _of_pattern(config: Mapping[str, Any], field_name: str, module: str, default: object) -> object:
    """The value of the first pattern that fits a module's name, as PEFT finds it."""
    patterns = config.get(field_name) or {}
    if not isinstance(patterns, dict):
        raise CheckpointError(f"{ADAPTER_CONFIG_FILE}: {field_name} is no table of patterns; save the adapter again")
    for pattern, value in patterns.items():
        try:
            if len(pattern) <= _LONGEST_PATTERN and re.match(rf"(.*\.)?({pattern})$", module):
                return value
        except re.error as error:
            raise CheckpointError(
                f"{ADAPTER_CONFIG_FILE}: {field_name} has {pattern!r}, which is no pattern ({error})"
            ) from error
    return default


@dataclass(frozen=True, eq=False)
class _Elsewhere:
    """A tensor of another checkpoint, as `ComputedTensor`."""

    checkpoint: Checkpoint
    tensor: StoredTensor

    def read_into(self, start: int, stop: int, out: Array) -> None:
        """See `ComputedTensor.read_into`."""
        out[:] = self.checkpoint.values(self.tensor, start, stop)


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
        for part in rectangles(start, stop, self.weight.shape[1]):
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
