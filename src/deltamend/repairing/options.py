"""The options of a repair, declared once: the command line, YAML files and Python calls are all made from these models."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict, TypeVar

from pydantic import AliasChoices, Field, InstanceOf, ValidationError, field_validator

from deltamend.checkpoint.dtypes import OUT_DTYPES
from deltamend.checkpoint.manifest import Output
from deltamend.errors import UsageError, option
from deltamend.inputs.open_models import OpenPair, open_pair
from deltamend.methods.method import Method
from deltamend.records import Record, first_problem
from deltamend.repairing.rounding import Rounding
from deltamend.repairing.rules import Rule, Rules, Vectors

AUTO = "auto"
"""The name that asks for the recommended method in place of a method's own name."""

LEAVES_NONE = f"let {option('include')} match more names, or {option('exclude')} fewer"
"""What to do where the selection leaves no matrix."""

_Options = TypeVar("_Options", bound="PairOptions")


@dataclass(frozen=True)
class Flag:
    """How an option is written on the command line, where that does not follow from its name.

    Attributes:
        names: the flags, such as ("-i", "--include"); the last one is used in messages. None where there is no flag.
        metavar: what stands for the value in the help text.
        repeated: whether the flag may be given several times, with one KEY=VALUE each.
    """

    names: tuple[str, ...] | None
    metavar: str | None = None
    repeated: bool = False


class PairOptions(Record):
    """Which matrices of BASE and FINETUNED belong together, and which of them are meant."""

    include: Annotated[str | None, Flag(("-i", "--include"), "REGEX")] = Field(
        default=None, description="Regular expression; only matrices whose name it is found in are used."
    )
    exclude: Annotated[str | None, Flag(("-e", "--exclude"), "REGEX")] = Field(
        default=None, description="Regular expression; matrices whose name it is found in are left as fine-tuned."
    )
    rename: Annotated[str | None, Flag(("--rename",), "OLD=NEW")] = Field(
        default=None,
        description="Tensor names that begin with OLD in BASE begin with NEW in FINETUNED; found automatically by default.",
    )
    split_fused: bool = Field(
        default=False,
        description="Repair query, key and value, or gate and up, one by one where they are stored as one fused matrix.",
    )


class RepairOptions(PairOptions):
    """Everything that decides what a repair writes. How it is run (device, workers) is not part of it."""

    method: str | InstanceOf[Method] = Field(
        default="dg-hard",
        validation_alias=AliasChoices("method", "merge_method"),
        description="Name of a method (`deltamend methods` lists them), or auto for the recommended one.",
    )
    parameters: Annotated[dict[str, Any], Flag(("--set",), "KEY=VALUE", repeated=True)] = Field(
        default_factory=dict,
        description="Parameters of the method; a value may be a list of {filter, value}, of which the first match counts.",
    )
    rules: Annotated[Rules, Flag(None)] = Field(
        default=(), description="Another method, or other parameters, for some of the tensors."
    )
    vectors: Vectors = Field(
        default="finetuned",
        description="What norms and biases become: finetuned, base, or a number from 0 (base) to 1 (fine-tuned).",
    )
    out_dtype: str | None = Field(
        default=None,
        description="Data type to write: bf16, fp16 or fp32; by default each tensor keeps that of FINETUNED.",
    )
    output: Annotated[Output, Flag(("--as",))] = Field(
        default="checkpoint",
        validation_alias=AliasChoices("output", "as"),
        description="checkpoint, or adapter for a PEFT LoRA adapter to BASE, which needs a method with a low-rank result.",
    )
    rounding: Rounding = Field(
        default="nearest", description="How sums are rounded to bf16 or fp16: nearest, or stochastic with a fixed seed."
    )
    max_shard_size: int | str | None = Field(
        default=None, description="Largest weight file, such as 5GB; by default the files are divided as in FINETUNED."
    )

    @field_validator("out_dtype")
    @classmethod
    def _can_be_written(cls, text: str | None) -> str | None:
        if text is not None and text not in OUT_DTYPES:
            raise ValueError(f"there is no data type {text!r}; give one of {', '.join(OUT_DTYPES)}")
        return text

    @property
    def dtype_name(self) -> str | None:
        """The safetensors name of `out_dtype`."""
        return None if self.out_dtype is None else OUT_DTYPES[self.out_dtype]

    @property
    def method_name(self) -> str:
        """The name of the method, however it is given."""
        return self.method.name if isinstance(self.method, Method) else self.method


class PairKeywords(TypedDict, total=False):
    """The fields of `PairOptions` as keyword arguments."""

    include: str | None
    exclude: str | None
    rename: str | None
    split_fused: bool


class RepairKeywords(PairKeywords, total=False):
    """The fields of `RepairOptions` as keyword arguments."""

    method: str | Method
    parameters: Mapping[str, object]
    rules: Sequence[Rule | Mapping[str, object]]
    vectors: Vectors
    out_dtype: str | None
    output: Output
    rounding: Rounding
    max_shard_size: int | str | None


@dataclass(frozen=True)
class Recommendation:
    """The method that `auto` stands for, as the options of a repair take it.

    Attributes:
        method: its name.
        parameters: its parameters.
        vectors: what norms and biases become.
        reason: one sentence for a person.
        fallback: whether it takes the place of the recommended method, which cannot be used here.
    """

    method: str
    parameters: dict[str, object]
    vectors: str | float
    reason: str
    fallback: bool = False


def make_options(kind: type[_Options], values: Mapping[str, object]) -> _Options:
    """The options of a call or a command.

    Args:
        kind: the model to make.
        values: options by name; None counts as not given.

    Raises:
        UsageError: there is no option of that name, or its value is invalid; also where two options exclude each other.
    """
    given = {name: value for name, value in values.items() if value is not None}
    for name in given:
        if name not in kind.model_fields:
            raise UsageError(f"{name}: there is no such option; the options are {', '.join(kind.model_fields)}")
    try:
        made = kind.model_validate(given)
    except ValidationError as error:
        field, message = first_problem(error)
        name = field.partition(".")[0]
        # A rule's fault names the rule itself.
        where = "" if name == "rules" and message.startswith("rules") else f"{option(name)}: "
        raise UsageError(f"{where}{message}") from error
    if isinstance(made, RepairOptions):
        check_combination(made)
    return made


def check_combination(options: RepairOptions) -> None:
    """Refuse options that exclude each other.

    Raises:
        UsageError: they do.
    """
    if options.output == "adapter" and options.max_shard_size is not None:
        raise UsageError(f"{option('max_shard_size')}: an adapter is a single file; leave this option out")
    if options.output == "adapter" and options.rounding != "nearest":
        raise UsageError(
            f"{option('rounding')}: an adapter holds the factors of the update and no rounded weights; leave this option out"
        )


def with_recommendation(options: RepairOptions, advice: Recommendation) -> RepairOptions:
    """The options with the recommended method in place of `auto`; `vectors` stays where it was given."""
    changes: dict[str, object] = {"method": advice.method, "parameters": advice.parameters}
    if "vectors" not in options.model_fields_set:
        changes["vectors"] = advice.vectors
    return options.model_copy(update=changes)


def pair_of(
    base: str | os.PathLike[str] | OpenPair, finetuned: str | os.PathLike[str] | None, options: PairOptions
) -> OpenPair:
    """Both checkpoints, opened here; or the pair itself where one is given.

    Raises:
        CheckpointError: an input cannot be read, or is quantised in a way that cannot be undone.
        PairingError: the inputs do not belong together.
        UsageError: FINETUNED or a selection is given together with an open pair, or FINETUNED is missing.
    """
    if isinstance(base, OpenPair):
        if finetuned is not None or options.model_fields_set & PairOptions.model_fields.keys():
            raise UsageError("an open pair brings its own FINETUNED and its own selection; leave these arguments out")
        return base
    if finetuned is None:
        raise UsageError("FINETUNED is missing; give both checkpoints, or a pair that `open_pair` opened")
    return open_pair(
        base,
        finetuned,
        include=options.include,
        exclude=options.exclude,
        rename=options.rename,
        split_fused=options.split_fused,
    )


@contextmanager
def opened_pair(
    base: str | os.PathLike[str] | OpenPair, finetuned: str | os.PathLike[str] | None, options: PairOptions
) -> Iterator[OpenPair]:
    """The pair of `pair_of`, closed at the end unless it was open before."""
    pair = pair_of(base, finetuned, options)
    try:
        yield pair
    finally:
        if pair is not base:
            pair.close()
