"""What the names of an adapter's tensors say: which module each belongs to, and what it is to that module."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

from deltamend.checkpoint.checkpoint_folder import StoredTensor
from deltamend.errors import CheckpointError

Role = Literal["A", "B", "embedding_A", "embedding_B", "bias", "magnitude", "diagonal"]

_PREFIX = "base_model.model."
_WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_FACTOR = re.compile(
    r"(?P<module>.+)\.lora_(?P<part>A|B|embedding_A|embedding_B|magnitude_vector|diag)"
    r"(\.(?!weight$|bias$)(?P<name>[^.]+))?(\.(?P<parameter>weight|bias))?"
)
_TOKENS = re.compile(r"(?P<module>.+)\.token_adapter\.trainable_tokens_delta(\.(?P<name>[^.]+))?")
_ROLES: Mapping[str, Role] = {"magnitude_vector": "magnitude", "diag": "diagonal"}
# What PEFT keeps for training or for unmerging; merging does not read it.
_UNUSED = re.compile(
    r"\.(original_module|lora_velora_embed|lora_monteclora_sampler|lora_dropout"
    r"|token_adapter\.(trainable_tokens_original|token_indices))(\.|$)"
)
_Key = TypeVar("_Key", str, Role)
_BASE_LAYER = re.compile(r"\.(token_adapter\.)?base_layer\.")


@dataclass
class AdapterTensors:
    """The tensors of an adapter, by what they do to the model. Names of modules are those of the model that was trained.

    Attributes:
        factors: of each module that was adapted, its factors and what belongs to them. A name that ends in `.base_layer`
            is one of several parameters of the module before it that were adapted; see `target_parameters` of PEFT.
        tokens: new rows of an embedding, by its module.
        whole: tensors that take the place of the model's own, by the name of the parameter.
    """

    factors: dict[str, dict[Role, StoredTensor]] = field(default_factory=dict)
    tokens: dict[str, StoredTensor] = field(default_factory=dict)
    whole: dict[str, StoredTensor] = field(default_factory=dict)


class _Named(NamedTuple):
    """A module, what a tensor is to it (None for new rows of tokens), and the adapter it belongs to where its name says so."""

    module: str
    role: Role | None
    adapter: str | None


def sort_tensors(tensors: Mapping[str, StoredTensor], folder: Path) -> AdapterTensors:
    """Sort the tensors of an adapter by what they do to the model.

    Names may hold the name of the adapter, as in the state dict of a model that PEFT wrapped, and the parts that
    torch.compile and FSDP put into names.

    Args:
        tensors: of the adapter's file, by name.
        folder: of the adapter, for errors.

    Raises:
        CheckpointError: two tensors say the same of one module, or the file holds more than one adapter.
    """
    paths = {name: _WRAPPERS.sub("", name).removeprefix("module.").removeprefix(_PREFIX) for name in tensors}
    read = {name: _understood(path) for name, path in paths.items() if not _UNUSED.search(f".{path}")}
    adapters = {named.adapter for named in read.values() if named is not None and named.adapter is not None}
    if len(adapters) > 1:
        raise CheckpointError(
            f"{folder}: one file holds the adapters {_listed(adapters)}; save one of them with PEFT's "
            f"save_pretrained(selected_adapters=[{min(adapters)!r}]) and give that"
        )
    found = AdapterTensors()
    for name, named in read.items():
        if named is None:
            _put(found.whole, _parameter(paths[name], adapters), tensors[name], folder)
        elif named.role is None:
            _put(found.tokens, named.module, tensors[name], folder)
        else:
            _put(found.factors.setdefault(named.module, {}), named.role, tensors[name], folder)
    return found


def _understood(path: str) -> _Named | None:
    if tokens := _TOKENS.fullmatch(path):
        return _Named(tokens["module"], None, tokens["name"])
    factor = _FACTOR.fullmatch(path)
    if factor is None:
        return None
    part, parameter = factor["part"], factor["parameter"]
    role: Role = "bias" if (part, parameter) == ("B", "bias") else _ROLES.get(part, part)  # type: ignore[arg-type]
    return _Named(factor["module"], role, factor["name"])


def _parameter(path: str, adapters: set[str]) -> str:
    """The parameter of the model that a whole tensor stands for."""
    names = "|".join(re.escape(name) for name in sorted(adapters | {"default"}))
    return _BASE_LAYER.sub(".", re.sub(rf"\.modules_to_save(\.({names}))?\.", ".", path))


def _put(table: dict[_Key, StoredTensor], key: _Key, tensor: StoredTensor, folder: Path) -> None:
    if key in table:
        raise CheckpointError(
            f"{folder}: tensors {table[key].name!r} and {tensor.name!r} are one and the same of the model; save the adapter "
            "with PEFT's save_pretrained"
        )
    table[key] = tensor


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in sorted(names))
