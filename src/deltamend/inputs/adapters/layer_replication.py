"""Layers that an adapter repeats, so that one layer of a model stands in several places, each with factors of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from deltamend.checkpoint.checkpoint_folder import Checkpoint, ComputedTensor, StoredTensor
from deltamend.errors import CheckpointError
from deltamend.inputs.computed_tensors import EntrySpan

# The lists of layers that PEFT repeats: Llama's and its like, BERT's, and Falcon's.
_LAYER = re.compile(r"((?:[\w.]*\.)?(?:layers|encoder\.layer|h)\.)(\d{1,9})(\..+)")
_MOST_LAYERS = 10_000


def layer_sources(replication: object, folder: Path) -> tuple[int, ...] | None:
    """Which layer of the model each layer of the larger one is, from `layer_replication` of adapter_config.json.

    Args:
        replication: a list of [start, end), ranges of layers one after another; None or empty where nothing is repeated.
        folder: of the adapter, for the error.

    Raises:
        CheckpointError: it is no such list.
    """
    if not replication:
        return None
    whole = isinstance(replication, list) and all(
        isinstance(span, list) and len(span) == 2 and all(type(end) is int for end in span) for span in replication
    )
    sources: list[int] = []
    for start, stop in replication if whole and isinstance(replication, list) else []:
        if 0 <= start < stop and stop - start + len(sources) <= _MOST_LAYERS:
            sources += range(start, stop)
        else:
            whole = False
    if not whole or not sources:
        raise CheckpointError(f"{folder}: layer_replication is no list of ranges of layers; save the adapter again")
    return tuple(sources)


def replicate_layers(checkpoint: Checkpoint, sources: Sequence[int]) -> None:
    """Show a model with the layers `sources`, one after another, as PEFT builds it.

    The tensors of a layer that stands in several places are read from the same bytes. config.json gets the new number of
    layers, and where it lists something of every layer, the list of the new ones.

    Raises:
        CheckpointError: the model has no such layers.
    """
    lists: dict[str, dict[int, dict[str, StoredTensor]]] = {}
    others: dict[str, StoredTensor] = {}
    for name, tensor in checkpoint.tensors.items():
        found = _LAYER.fullmatch(name)
        if found is None:
            others[name] = tensor
        else:
            lists.setdefault(found[1], {}).setdefault(int(found[2]), {})[found[3]] = tensor
    if len(lists) != 1 or max(sources) not in next(iter(lists.values())):
        raise CheckpointError(
            f"{checkpoint.folder}: has no layer {max(sources)}, which the adapter's layer_replication repeats, or several "
            "lists of layers; give the model it was trained on"
        )
    (prefix, layers), *_ = lists.items()
    tensors, computed = dict(others), {}
    for number, source in enumerate(sources):
        for rest, tensor in layers[source].items():
            name = f"{prefix}{number}{rest}"
            shown = tensor if name == tensor.name else replace(tensor, name=name, origin=tensor.own_name)
            if shown is not tensor and checkpoint.is_computed(tensor):
                computed[shown] = EntrySpan(checkpoint, tensor)
            tensors[name] = shown
    _present(checkpoint, tensors, computed, sources, len(layers))


def _present(
    checkpoint: Checkpoint,
    tensors: Mapping[str, StoredTensor],
    computed: Mapping[StoredTensor, ComputedTensor],
    sources: Sequence[int],
    before: int,
) -> None:
    note = f"{checkpoint.folder.name}: shown with {len(sources)} layers in place of {before}; the adapter repeats some of them"
    checkpoint.present(tensors, computed, [note])
    checkpoint.layer_sources = tuple(sources)
    config: dict[str, Any] = dict(checkpoint.config)
    for key, value in config.items():
        if key in ("num_hidden_layers", "n_layer") and value == before:
            config[key] = len(sources)
        elif "layer" in key and isinstance(value, list) and len(value) == before:
            config[key] = [value[source] for source in sources]
    checkpoint.alter_config(config)
