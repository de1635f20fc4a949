"""Read the options of a repair from a YAML file, which may use the keys of mergekit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from deltamend.errors import UsageError
from deltamend.machine.yaml_text import YamlError, read_yaml
from deltamend.records import Record, first_problem
from deltamend.repairing.options import RepairOptions

_WITHOUT_EFFECT = ("normalize", "int8_mask")
_NORMALISED = ("ties", "della")
"""Methods whose result mergekit divides by the sum of the models' weights, so that the weight of a single model cancels."""


class ModelEntry(Record):
    """One entry of the key `models`."""

    model: str = Field(description="Folder of a checkpoint.")
    parameters: dict[str, Any] = Field(default_factory=dict, description="Parameters of the method.")


class RepairConfig(RepairOptions):
    """The keys of the file: all options of a repair, the two models and the folder to write."""

    base_model: str | None = Field(default=None, description="Folder of the checkpoint that fine-tuning started from.")
    finetuned_model: str | None = Field(
        default=None, description="Folder of the fine-tuned checkpoint; or use `models`."
    )
    models: tuple[ModelEntry, ...] = Field(
        default=(),
        description="The fine-tuned model and its parameters in the form of mergekit; the base may be listed too.",
    )
    out: str | None = Field(default=None, description="Folder to write.")
    dtype: str | None = Field(
        default=None,
        description="The data type to write if `out_dtype` is not given. Unlike in mergekit, sums are formed in fp32 anyway.",
    )

    @model_validator(mode="after")
    def _one_fine_tuned_model(self) -> Self:
        if self.models and (self.finetuned_model is not None or len(self._others) != 1):
            raise ValueError(
                f"models lists {len(self._others)} models beside the base model, and deltamend repairs a single one; list one"
                if self.finetuned_model is None
                else "models and finetuned_model both name the fine-tuned model; leave one of them out"
            )
        for key in _WITHOUT_EFFECT:
            if key in self.method_parameters:
                raise ValueError(f"{key} has no effect with a single fine-tuned model; leave it out")
        if self.models and self.method_name in _NORMALISED and self.method_parameters.get("weight", 1) != 1:
            raise ValueError(
                f"in {self.method} mergekit ignores the weight of a single model, and deltamend would use it; give lambda in "
                "place of weight, or leave weight out"
            )
        return self

    @property
    def _others(self) -> list[ModelEntry]:
        return [entry for entry in self.models if entry.model != self.base_model]

    @property
    def finetuned(self) -> str | None:
        """The fine-tuned model, whether `models` or `finetuned_model` names it."""
        return self._others[0].model if self.models else self.finetuned_model

    @property
    def method_parameters(self) -> dict[str, Any]:
        """The parameters of the method. Those in the model's own entry take precedence."""
        return {**self.parameters, **(self._others[0].parameters if self.models else {})}


def read_config(path: str | os.PathLike[str]) -> RepairConfig:
    """Read a YAML file.

    Raises:
        UsageError: the file cannot be read or is not a mapping, or a key is unknown or has an invalid value.
    """
    try:
        content = read_yaml(Path(path))
    except YamlError as error:
        raise UsageError(f"{path}: cannot be read as YAML ({error}); correct the file") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path}: expected lines of the form `key: value`; the keys are {_keys()}")
    try:
        return RepairConfig.model_validate(content)
    except ValidationError as error:
        field, message = first_problem(error)
        where = f"{path}: {field}" if field else f"{path}"
        raise UsageError(f"{where}: {message}; the keys are {_keys()}") from error


def options_of(config: RepairConfig) -> dict[str, Any]:
    """The options that the file sets, by name, in the form in which `make_options` takes them."""
    given = {name: getattr(config, name) for name in RepairOptions.model_fields if name in config.model_fields_set}
    if config.method_parameters:
        given["parameters"] = config.method_parameters
    if config.dtype is not None and given.get("out_dtype") is None:
        given["out_dtype"] = config.dtype
    return given


def _keys() -> str:
    own = [name for name in RepairConfig.model_fields if name not in RepairOptions.model_fields]
    return ", ".join([*own, *RepairOptions.model_fields])
