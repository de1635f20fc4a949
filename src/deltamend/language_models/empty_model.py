"""The model that a config.json describes, built by transformers without weights, and the names that files give its parameters."""

from __future__ import annotations

import importlib
import json
import re
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from deltamend.checkpoint.architecture import architecture_of
from deltamend.checkpoint.file_names import CONFIG_FILE
from deltamend.errors import CheckpointError
from deltamend.language_models.loading import auto_class, quiet_transformers, transformers_module, without_kernels
from deltamend.language_models.model_limits import refuse_huge

if TYPE_CHECKING:
    import torch


class NameInMemory(NamedTuple):
    """What transformers calls a stored tensor once it is loaded.

    Attributes:
        name: of the parameter; of the first of several where a tensor is cut up on loading.
        converted: whether the tensor is stacked, cut or permuted on loading, so that it and the parameter are not the same
            numbers in the same shape.
    """

    name: str
    converted: bool


def build_empty(config: Mapping[str, Any]) -> torch.nn.Module:
    """Build the model of a config.json on torch's meta device: modules, names and shapes, but no weights. Not thread-safe.

    The class is the first of `architectures` if transformers has it, and otherwise what its Auto classes choose. Python that
    comes with a checkpoint is never run.

    Raises:
        CheckpointError: transformers does not know the model, or cannot build it from this config.
        DeltamendError: transformers is not installed.
    """
    import torch

    refuse_huge(config)
    try:
        with quiet_transformers(), torch.device("meta"), _no_initial_values():
            made = _read_config(config)
            model = _class_of(config, made)._from_config(made, attn_implementation="eager")
            model.tie_weights()  # what is left out with the initial values
    except Exception as error:  # a config may make transformers raise anything
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"config.json: transformers cannot build this model ({type(error).__name__}: {reason}); check its model_type"
        ) from error
    empty: torch.nn.Module = model
    return empty


def names_in_memory(model: Any, stored: Collection[str]) -> dict[str, NameInMemory]:
    """What transformers calls the tensors of a checkpoint once they are loaded into `model`.

    Args:
        model: a transformers model; one on the meta device will do.
        stored: the names of the tensors in the files.

    Returns:
        By the stored name; without those that belong to no parameter or buffer of the model.

    Source: `transformers.core_model_loading` and `transformers.conversion_mapping`; before transformers 5, the models'
    `_checkpoint_conversion_mapping`.
    """
    known = dict(model.state_dict())
    rename = _renaming(model, known)
    found = {name: rename(name) for name in stored}
    return {name: shown for name, shown in found.items() if shown.name in known}


def _renaming(model: Any, known: Mapping[str, Any]) -> Any:
    """The function from a stored name to its `NameInMemory`, which may be a name that the model does not have."""
    prefix = getattr(model, "base_model_prefix", "")
    try:
        core = importlib.import_module("transformers.core_model_loading")
        mapping = importlib.import_module("transformers.conversion_mapping")
        rules = mapping.get_model_conversion_mapping(model) if hasattr(model, "config") else []
        core.rename_source_key("", [], [], prefix, known)
    except (ImportError, AttributeError, TypeError):  # transformers 4, or one in which these are called otherwise
        return lambda name: _renamed_by_patterns(
            name, getattr(model, "_checkpoint_conversion_mapping", {}), prefix, known
        )
    renamings = [rule for rule in rules if isinstance(rule, core.WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, core.WeightConverter)]

    def rename(name: str) -> NameInMemory:
        shown, pattern = core.rename_source_key(name, renamings, converters, prefix, known)
        if shown not in known and name in known:  # what transformers itself does then
            shown, pattern = name, None
        return NameInMemory(shown, pattern is not None)

    return rename


def _renamed_by_patterns(name: str, patterns: Mapping[str, str], prefix: str, known: Collection[str]) -> NameInMemory:
    shown = name
    for old, new in patterns.items():
        shown, count = re.subn(old, new, name)
        if count:
            break
    candidates = (shown, f"{prefix}.{shown}", shown.removeprefix(f"{prefix}."), name)
    return NameInMemory(next((candidate for candidate in candidates if candidate in known), shown), converted=False)


def _read_config(config: Mapping[str, Any]) -> Any:
    """The config as transformers reads it from a file; what names Python of the checkpoint's own is left out."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, CONFIG_FILE).write_text(json.dumps({key: config[key] for key in config if key != "auto_map"}))
        where = {"local_files_only": True, "trust_remote_code": False}
        return without_kernels(transformers_module().AutoConfig.from_pretrained(folder, **where))


def _class_of(config: Mapping[str, Any], made: Any) -> Any:
    transformers = transformers_module()
    named = getattr(transformers, architecture_of(config) or "-", None)
    if isinstance(named, type) and issubclass(named, transformers.PreTrainedModel):
        return named
    others = (transformers.AutoModelForSeq2SeqLM, transformers.AutoModel)
    chosen = next((auto for auto in (auto_class(made), *others) if type(made) in auto._model_mapping), others[-1])
    found = chosen._model_mapping[type(made)]
    return found[0] if isinstance(found, tuple | list) else found


@contextmanager
def _no_initial_values() -> Iterator[None]:
    """Leave out the initial values, which a model without weights does not need."""
    for place in ("transformers.initialization", "transformers.modeling_utils"):
        try:
            skip = getattr(importlib.import_module(place), "no_init_weights", None)
        except ImportError:
            continue
        if skip is not None:
            with skip():
                yield
            return
    yield
