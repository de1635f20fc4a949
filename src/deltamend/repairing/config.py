"""A repair as a YAML file, with the keys mergekit's users know."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, model_validator

from deltamend.checkpoint.manifest import Output
from deltamend.errors import UsageError
from deltamend.repairing.rounding import Rounding
from deltamend.repairing.rules import Rules, Vectors

_MEANINGLESS = ("normalize", "int8_mask")
_NORMALISED = ("ties", "della")
"""Methods of mergekit that divide by the weights of the models by default, so that the weight of one has no effect."""


class ModelEntry(BaseModel):
    """One entry of `models`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(description="Folder of a checkpoint.")
    parameters: dict[str, Any] = Field(default_factory=dict, description="Parameters of the method.")


class RepairConfig(BaseModel):
    """The keys of the file; all but the models are options of `deltamend repair` too."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_model: str | None = Field(None, description="Folder of the checkpoint fine-tuning started from.")
    finetuned_model: str | None = Field(None, description="Folder of its fine-tuned descendant; or use `models`.")
    models: tuple[ModelEntry, ...] = Field(
        (), description="The fine-tuned model and its parameters, as mergekit writes it; the base may be listed too."
    )
    out: str | None = Field(None, description="Folder to write.")
    method: str = Field(
        "dg-hard",
        validation_alias=AliasChoices("method", "merge_method"),
        description="See `deltamend methods`; may be written `merge_method`.",
    )
    parameters: dict[str, Any] = Field(
        default_factory=dict,
        description="Parameters of the method; a value may be a list of {filter, value}, the first that fits counts.",
    )
    rules: Rules = Field((), description="Another method or other parameters for some of the tensors.")
    vectors: Vectors = Field(
        "finetuned",
        description="What parameters that are no matrices follow: finetuned, base, or the share of the way between.",
    )
    include: str | None = Field(None, description="Regular expression: repair only matrices it finds.")
    exclude: str | None = Field(None, description="Regular expression: keep matrices it finds.")
    rename: str | None = Field(None, description="OLD=NEW: what names begin with in BASE and in FINETUNED.")
    split_fused: bool = Field(False, description="Repair q, k and v, or gate and up, stored as one, one by one.")
    dtype: str | None = Field(None, description="The dtype to write where `out_dtype` is not given; sums are fp32.")
    out_dtype: str | None = Field(None, description="bfloat16, float16 or float32; none keeps each tensor's own.")
    output: Output = Field(
        "checkpoint", validation_alias=AliasChoices("as", "output"), description="checkpoint, or adapter."
    )
    rounding: Rounding = Field("nearest", description="nearest, or stochastic.")
    max_shard_size: str | int | None = Field(None, description="Such as 5GB; none keeps the fine-tuned model's shards.")

    @model_validator(mode="after")
    def _one_fine_tuned_model(self) -> Self:
        if self.models and (self.finetuned_model is not None or len(self._others) != 1):
            raise ValueError(
                f"models lists {len(self._others)} beside the base model; deltamend repairs one fine-tuned model"
            )
        for key in _MEANINGLESS:
            if key in self.method_parameters:
                raise ValueError(f"{key} means nothing with one fine-tuned model; leave it out")
        if self.models and self.method in _NORMALISED and self.method_parameters.get("weight", 1) != 1:
            raise ValueError(
                f"mergekit divides the weight of one model out of {self.method}, and deltamend would not; write lambda or leave it out"
            )
        return self

    @property
    def _others(self) -> list[ModelEntry]:
        return [entry for entry in self.models if entry.model != self.base_model]

    @property
    def finetuned(self) -> str | None:
        """The fine-tuned model, wherever it is given."""
        return self._others[0].model if self.models else self.finetuned_model

    @property
    def method_parameters(self) -> dict[str, Any]:
        """The parameters of the method; those of the model's entry win."""
        return {**self.parameters, **(self._others[0].parameters if self.models else {})}


def read_config(path: str | os.PathLike[str]) -> RepairConfig:
    """Read a YAML file.

    Raises:
        UsageError: it cannot be read, is no mapping, or a key is unknown or has a value that means nothing.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())}); mend it") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path}: expected `key: value` lines; the keys are {', '.join(RepairConfig.model_fields)}")
    try:
        return RepairConfig.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        where = f"{path}: {field}" if field else f"{path}"
        message = first["msg"].removeprefix("Value error, ")
        raise UsageError(f"{where}: {message}; the keys are {', '.join(RepairConfig.model_fields)}") from error
