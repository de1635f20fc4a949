"""The names and shapes that the files of a checkpoint have for the weights of a loaded model."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from deltamend.errors import CheckpointError
from deltamend.inputs.open_models import open_checkpoint
from deltamend.language_models.empty_model import names_in_memory

if TYPE_CHECKING:
    import torch


def stored_names(model: torch.nn.Module, names: Iterable[str], folder: Path) -> dict[str, str]:
    """The names in the files of a checkpoint, by the names of the loaded model's parameters.

    Args:
        model: the model that transformers loaded from the checkpoint.
        names: those of its parameters that are asked for.
        folder: of the checkpoint.

    Returns:
        By the name in memory; without parameters that are stacked or cut on loading, such as the experts of a mixture, which
        are no tensors of the files.

    Raises:
        CheckpointError: the checkpoint has no tensor for a parameter.
    """
    with open_checkpoint(folder) as checkpoint:
        stored = list(checkpoint.tensors)
    shown = names_in_memory(model, stored)
    found = {name.name: tensor for tensor, name in shown.items() if not name.converted}
    made = {name.name for name in shown.values() if name.converted}
    # Some conversions make several parameters of one tensor, and name only the first of them.
    made |= {name.rpartition(".")[0] for name in made}
    asked = list(names)
    for name in asked:
        if name not in found and name not in made and not _beside(name, made):
            raise CheckpointError(
                f"{folder}: transformers holds a matrix {name!r} that the checkpoint does not; save it again with "
                "save_pretrained of the transformers that is installed"
            )
    return {name: found[name] for name in asked if name in found}


def as_stored(model: torch.nn.Module, values: Mapping[str, torch.Tensor], folder: Path) -> dict[str, torch.Tensor]:
    """Numbers for the entries of a loaded model's parameters, by the names and in the shapes of the checkpoint's tensors.

    What is stacked or cut on loading is taken apart again by transformers, as it does when it saves a model.

    Args:
        model: the model that transformers loaded from the checkpoint.
        values: a tensor of the shape of each parameter that is asked for, by its name.
        folder: of the checkpoint.

    Raises:
        CheckpointError: the checkpoint has no tensor for a parameter.
    """
    names = stored_names(model, values, folder)
    found = {stored: values[name] for name, stored in names.items()}
    stacked = {name: value for name, value in values.items() if name not in names}
    if stacked:
        core = importlib.import_module("transformers.core_model_loading")
        with open_checkpoint(folder) as checkpoint:
            shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
        for name, value in core.revert_weight_conversion(model, stacked).items():
            if shapes.get(name) == tuple(value.shape):
                found[name] = value.contiguous()
    return found


def _beside(name: str, made: set[str]) -> bool:
    """Whether a parameter belongs to a module beside one that a conversion makes, such as the key beside a query."""
    module = name.rpartition(".")[0].rpartition(".")[0]
    return any(other.startswith(f"{module}.") for other in made)
