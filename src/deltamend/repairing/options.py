"""The options of a repair. The flags of the command line, the keys of YAML files and the arguments in Python follow from them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypedDict, TypeVar

from pydantic import (
    AliasChoices,
    Field,
    InstanceOf,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
)

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
"""What an error recommends if the selection leaves no matrix."""

_Options = TypeVar("_Options", bound="PairOptions")


@dataclass(frozen=True)
class Flag:
    """The command-line flag of an option. An option without a `Flag` has the flag that follows from its name.

    Attributes:
        names: the spellings, such as ("-i", "--include"); messages use the last one. None if the option has no flag.
        metavar: the placeholder for the value in the help text.
        repeated: whether the flag may be given several times, with one value each time.
    """

    names: tuple[str, ...] | None
    metavar: str | None = None
    repeated: bool = False


class PairOptions(Record):
    """The options that pair the matrices of BASE with those of FINETUNED, and that select some of the pairs."""

    include: Annotated[str | None, Flag(("-i", "--include"), "REGEX")] = Field(
        default=None,
        description="Use only matrices whose name matches this regular expression anywhere; leave the others as fine-tuned.",
    )
    exclude: Annotated[str | None, Flag(("-e", "--exclude"), "REGEX")] = Field(
        default=None,
        description="Leave matrices whose name matches this regular expression anywhere as fine-tuned.",
    )
    rename: Annotated[tuple[str, ...], Flag(("--rename",), "OLD=NEW", repeated=True)] = Field(
        default=(),
        description="Pair tensors whose name begins with OLD in BASE and with NEW in FINETUNED. Names for which no rule is given are "
        "matched automatically.",
    )
    split_fused: bool = Field(
        default=False,
        description="Treat query, key and value, or gate and up, as separate matrices if they are stored as one fused matrix.",
    )
    allow_unpaired: bool = Field(
        default=False,
        description="Go on if many matrices of FINETUNED have no partner in BASE; they stay as fine-tuned.",
    )
    allow_unrelated: bool = Field(
        default=False,
        description="Go on if matrices of FINETUNED do not come from those of BASE.",
    )

    @field_validator("rename", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value


class RepairOptions(PairOptions):
    """The options that decide what a repair writes. How it is run (device, workers) is not among them."""

    method: Annotated[str | InstanceOf[Method], Flag(("--method",), "NAME")] = Field(
        default="dg-hard",
        validation_alias=AliasChoices("method", "merge_method"),
        description="Name of a method (`deltamend methods` lists them), or auto for the recommended one.",
    )
    parameters: Annotated[dict[str, Any], Flag(("--set",), "KEY=VALUE", repeated=True)] = Field(
        default_factory=dict,
        description="Set a parameter of the method. VALUE may be a list of {filter, value} entries; a tensor gets the value of "
        "the first entry whose filter is part of its name.",
    )
    keep: Annotated[Path | None, Flag(("--keep",), "FILE")] = Field(
        default=None,
        description="With the method auto: a JSONL file of examples of what FINETUNED is to keep, each line "
        '{"prompt": …, "response": …}; some 32 are enough.',
    )
    rules: Annotated[Rules, Flag(None)] = Field(
        default=(), description="Rules that give some of the tensors another method or other parameters."
    )
    vectors: Annotated[Vectors, Flag(("--vectors",), "SIDE")] = Field(
        default="finetuned",
        description="Take norms and biases from finetuned or from base, or mix them: a number from 0 (base) to 1 (fine-tuned).",
    )
    out_dtype: Annotated[str | None, Flag(("--out-dtype",), "TYPE")] = Field(
        default=None,
        description="Data type to write: bf16, fp16 or fp32. By default each tensor keeps its data type in FINETUNED.",
    )
    output: Annotated[Output, Flag(("--as",), "FORM")] = Field(
        default="checkpoint",
        validation_alias=AliasChoices("output", "as"),
        description="Write a whole checkpoint, or an adapter: a PEFT LoRA adapter to BASE, for methods with a low-rank result.",
    )
    rounding: Annotated[Rounding, Flag(("--rounding",), "MODE")] = Field(
        default="nearest",
        description="How repaired weights are rounded to bf16 or fp16: nearest; stochastic, with a fixed seed; or compensated, for "
        "methods that read activations: so that the errors of a row make up for each other on the base model's own texts.",
    )
    max_shard_size: Annotated[int | str | None, Flag(("--max-shard-size",), "SIZE")] = Field(
        default=None,
        description="Maximum size of a weight file, such as 5GB. By default the files are split as in FINETUNED.",
    )

    @field_validator("vectors", mode="wrap")
    @classmethod
    def _stays_an_integer(cls, value: object, validated: ValidatorFunctionWrapHandler) -> object:
        """An integer of a Python call is recorded as it was given; pydantic would make 1.0 of 1."""
        return value if cls is RepairOptions and type(value) is int else validated(value)

    @field_validator("out_dtype")
    @classmethod
    def _can_be_written(cls, text: str | None) -> str | None:
        if text is not None and text not in OUT_DTYPES:
            raise ValueError(f"{text!r} is not a data type that can be written; give one of {', '.join(OUT_DTYPES)}")
        return text

    @property
    def dtype_name(self) -> str | None:
        """The name of `out_dtype` in a safetensors file, such as "BF16"; None if it is not set."""
        return None if self.out_dtype is None else OUT_DTYPES[self.out_dtype]

    @property
    def method_name(self) -> str:
        """The name of the method, whether the option holds the name or the method itself."""
        return self.method.name if isinstance(self.method, Method) else self.method


class PairKeywords(TypedDict, total=False):
    """The fields of `PairOptions` as keyword arguments."""

    include: str | None
    exclude: str | None
    rename: str | Sequence[str] | None
    split_fused: bool
    allow_unpaired: bool
    allow_unrelated: bool


class RepairKeywords(PairKeywords, total=False):
    """The fields of `RepairOptions` as keyword arguments."""

    method: str | Method
    parameters: Mapping[str, object]
    keep: str | os.PathLike[str] | None
    rules: Sequence[Rule | Mapping[str, object]]
    vectors: Vectors
    out_dtype: str | None
    output: Output
    rounding: Rounding
    max_shard_size: int | str | None


@dataclass(frozen=True)
class Recommendation:
    """The method that `method="auto"` chooses, in the form in which the options of a repair take it.

    Attributes:
        method: the name of the method.
        parameters: its parameters.
        vectors: the option `vectors` that goes with it.
        reason: why it is recommended, in one sentence.
        fallback: whether it replaces the method that is normally recommended, because that one cannot be used here.
    """

    method: str
    parameters: dict[str, object]
    vectors: str | float
    reason: str
    fallback: bool = False


def make_options(kind: type[_Options], values: Mapping[str, object]) -> _Options:
    """Check the options of a call or a command.

    Args:
        kind: the model of options to make.
        values: the options by name; an option that is None counts as not given.

    Raises:
        UsageError: an option does not exist or has an invalid value, or two options exclude each other.
    """
    given = {name: value for name, value in values.items() if value is not None}
    for name in given:
        if name not in kind.model_fields:
            raise UsageError(f"{name}: this option does not exist; the options are {', '.join(kind.model_fields)}")
    try:
        made = kind.model_validate(given)
    except ValidationError as error:
        field, message = first_problem(error)
        name = field.partition(".")[0]
        # A message about a rule already says which rule it is about.
        where = "" if name == "rules" and message.startswith("rules") else f"{option(name)}: "
        raise UsageError(f"{where}{message}") from error
    if isinstance(made, RepairOptions):
        check_combination(made)
    return made


def check_combination(options: RepairOptions) -> None:
    """Refuse combinations of options that exclude each other.

    Raises:
        UsageError: two of the options exclude each other.
    """
    if options.keep is not None and options.method != AUTO:
        raise UsageError(
            f"{option('keep')}: only {option('method', AUTO)} takes examples of what is to be kept; add it, or leave this option out"
        )
    if options.output == "adapter" and options.max_shard_size is not None:
        raise UsageError(f"{option('max_shard_size')}: an adapter is a single file; leave this option out")
    if options.output == "adapter" and options.rounding != "nearest":
        raise UsageError(
            f"{option('rounding')}: an adapter holds factors of the update, not rounded weights; leave this option out"
        )


def with_recommendation(options: RepairOptions, advice: Recommendation) -> RepairOptions:
    """Put the recommended method in the place of `auto`. The recommended `vectors` are used unless the user gave some."""
    changes: dict[str, object] = {"method": advice.method, "parameters": advice.parameters}
    if "vectors" not in options.model_fields_set:
        changes["vectors"] = advice.vectors
    return options.model_copy(update=changes)


def pair_of(
    base: str | os.PathLike[str] | OpenPair, finetuned: str | os.PathLike[str] | None, options: PairOptions
) -> OpenPair:
    """Open both checkpoints, or return the open pair if one was given.

    Raises:
        CheckpointError: an input cannot be read, or is quantised in a way that cannot be undone.
        PairingError: the inputs do not belong together.
        UsageError: FINETUNED is missing; or an open pair was given, together with FINETUNED or options that select matrices.
    """
    if isinstance(base, OpenPair):
        if finetuned is not None or options.model_fields_set & PairOptions.model_fields.keys():
            raise UsageError(
                "an open pair already has its FINETUNED and its selection of matrices; leave these arguments out"
            )
        return base
    if finetuned is None:
        raise UsageError("FINETUNED is missing; give both checkpoints, or a pair opened by `open_pair`")
    return open_pair(
        base,
        finetuned,
        include=options.include,
        exclude=options.exclude,
        rename=options.rename,
        split_fused=options.split_fused,
        allow_unpaired=options.allow_unpaired,
        allow_unrelated=options.allow_unrelated,
    )


@contextmanager
def opened_pair(
    base: str | os.PathLike[str] | OpenPair, finetuned: str | os.PathLike[str] | None, options: PairOptions
) -> Iterator[OpenPair]:
    """Yield the pair of `pair_of`, and close it afterwards unless it was already open when it was given."""
    pair = pair_of(base, finetuned, options)
    try:
        yield pair
    finally:
        if pair is not base:
            pair.close()
