"""Adapters name modules as the loaded model does; some models' files have other names, under which their tensors are shown."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from deltamend.checkpoint.architecture import module_of, tied_head
from deltamend.checkpoint.checkpoint_folder import Checkpoint, ComputedTensor, StoredTensor
from deltamend.errors import CheckpointError
from deltamend.inputs.adapters.heads import is_new_head
from deltamend.inputs.adapters.tensor_keys import AdapterTensors
from deltamend.inputs.computed_tensors import EntrySpan
from deltamend.inputs.model_layout import layout_of

_BASE_LAYER = re.compile(r"(\.base_layer)+(?=\.|$)")
_ONE_EXPERT = re.compile(r"\.(\d+\.[^.]+\.weight)$")


@contextmanager
def named_as_in(brought: AdapterTensors, checkpoint: Checkpoint, fault: str) -> Iterator[None]:
    """Show a model's tensors under the names that an adapter has for them, for as long as the adapter is merged into them.

    The names are those of the files where the adapter's modules are found under them, and otherwise those that transformers
    gives the tensors on loading.

    Args:
        brought: the tensors of the adapter.
        checkpoint: the model.
        fault: the beginning of the error: the folder of the adapter.

    Raises:
        CheckpointError: a module of the adapter is found under neither.
    """
    config = checkpoint.config
    adapter = {} if checkpoint.adapter is None else checkpoint.adapter.config
    whole = [module_of(name) for name in brought.whole if not is_new_head(adapter, name)]
    asked = [_BASE_LAYER.sub("", name) for name in (*brought.factors, *brought.tokens, *whole)]
    own: dict[str, str] = {}
    if _missing(asked, checkpoint.tensors, config):
        own, aliases = _names_in_memory(checkpoint)
        if missing := _missing(asked, [*own, *aliases], config):
            raise CheckpointError(f"{fault}: {_unknown(missing[0], checkpoint.tensors)}")
        _rename(checkpoint, {stored: shown for shown, stored in own.items()})
    yield
    if own:
        _rename(checkpoint, own)


def _missing(modules: Iterable[str], names: Collection[str], config: Mapping[str, Any]) -> list[str]:
    """The modules under which there is no tensor. A head that is tied to the embedding needs none."""
    inner = {name[:end] for name in names for end in range(len(name)) if name[end] == "."}
    if (tied := tied_head(config, names)) is not None:
        inner.add(tied[1])
    return [module for module in modules if module not in inner]


def _unknown(module: str, names: Iterable[str]) -> str:
    """What to say of a module that the model does not have."""
    modules = sorted({module_of(name) for name in names})
    alike = difflib.get_close_matches(module, modules, n=1, cutoff=0.0)
    nearest = f", where the name nearest to it is {alike[0]!r}" if alike else ""
    return (
        f"module {module!r} does not fit the model: neither its files nor the loaded model have one of this name{nearest}; "
        "give the model it was trained on"
    )


def _names_in_memory(checkpoint: Checkpoint) -> tuple[dict[str, str], list[str]]:
    """The stored name of each tensor, by its name in memory; and further names in memory, such as that of a tied head.

    Experts that are stacked on loading keep their numbers.
    """
    shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    found: dict[str, str] = {}
    aliases: list[str] = []
    for stored, parameter in layout_of(checkpoint.config, shapes, names_in_memory=True).items():
        shown = parameter.module_name
        aliases += parameter.aliases
        if parameter.converted:
            expert = _ONE_EXPERT.search(stored)
            shown = f"{module_of(shown)}.{expert[1]}" if expert else stored
        found[stored if shown in found else shown] = stored
    return found, aliases


def _rename(checkpoint: Checkpoint, names: Mapping[str, str]) -> None:
    """Show every tensor under another name, where `names` has one for it."""
    tensors: dict[str, StoredTensor] = {}
    computed: dict[StoredTensor, ComputedTensor] = {}
    for name, tensor in checkpoint.tensors.items():
        new = names.get(name, name)
        shown = tensor if new == name else replace(tensor, name=new, origin=None if tensor.origin is None else new)
        tensors[new] = shown
        if shown != tensor and checkpoint.is_computed(tensor):
            computed[shown] = EntrySpan(checkpoint, tensor)
    checkpoint.present(tensors, computed)
    checkpoint.untied = {
        names.get(head, head): names.get(embedding, embedding) for head, embedding in checkpoint.untied.items()
    }
    for name in [name for name in checkpoint.update_ranks if names.get(name, name) != name]:
        checkpoint.update_ranks[names[name]] = checkpoint.update_ranks.pop(name)
