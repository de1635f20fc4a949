"""Which method with which parameters is applied to which tensor."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from deltamend.checkpoint.architecture import Kind, kind_of, layer_of
from deltamend.errors import UsageError, option
from deltamend.methods.interpolation import WiseFT
from deltamend.methods.method import Method
from deltamend.methods.none_and_revert import NoRepair, Revert
from deltamend.methods.registry import get_method, method_class
from deltamend.records import Record, first_problem

Vectors = str | float
"""What parameters that are no matrices follow: "finetuned", "base", or the share of the way from base to fine-tuned."""

_LAYERS = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")


class Rule(Record):
    """Another method, or other parameters, for the tensors that all of `filter`, `layers` and `kind` match.

    A rule is for matrices, unless its kind is "norm": then for the one-dimensional parameters of norms.
    """

    filter: str | None = Field(None, description="Regular expression that is searched for in the tensor's name.")
    layers: str | None = Field(None, description='Numbers of layers, such as "0-3,7".')
    kind: Kind | None = Field(None, description="Kind of module, by its name.")
    method: str | None = Field(None, description="Method; none takes the default one, with its parameters.")
    parameters: dict[str, Any] = Field(default_factory=dict, description="Parameters of the method.")

    @field_validator("filter")
    @classmethod
    def _is_a_pattern(cls, text: str | None) -> str | None:
        try:
            re.compile(text or "")
        except re.error as error:
            raise ValueError(f"{text!r} is not a regular expression ({error}); mend it") from error
        return text

    @field_validator("layers", mode="before")
    @classmethod
    def _are_numbers(cls, text: object) -> str | None:
        if text is not None and not _LAYERS.fullmatch(str(text)):
            raise ValueError(f'{text!r} is no list of layers; write it like "0-3,7"')
        return None if text is None else str(text)

    @model_validator(mode="after")
    def _norms_are_vectors(self) -> Self:
        if self.kind == "norm" and (self.method is None or not method_class(self.method).takes_vectors):
            raise ValueError(
                "norms are no matrices; kind=norm takes the methods none, revert, wise-ft, task-arithmetic"
            )
        return self

    def matches(self, name: str, *, matrix: bool) -> bool:
        """Whether it is for this tensor."""
        if matrix == (self.kind == "norm"):
            return False
        if self.filter is not None and not re.search(self.filter, name):
            return False
        if self.kind is not None and kind_of(name) != self.kind:
            return False
        return self.layers is None or layer_of(name) in _numbers(self.layers)


class MethodChoice:
    """The method of every tensor.

    Args:
        method: name of the default method, or one that is already made.
        parameters: those of the default method, if it is given by its name. A list of {filter, value} gives a parameter
            the value of the first entry whose `filter` is in the tensor's name, as in mergekit; an entry without
            `filter` fits every name.
        rules: the first that matches decides.
        vectors: what one-dimensional parameters follow where no rule says otherwise.

    Raises:
        MethodError: unknown method, or a parameter is wrong.
        UsageError: `vectors` is invalid.
    """

    def __init__(
        self,
        method: str | Method,
        parameters: Mapping[str, object] | None = None,
        rules: tuple[Rule, ...] = (),
        vectors: Vectors = "finetuned",
    ) -> None:
        self._rules = rules
        self._made = method if isinstance(method, Method) else None
        self._name = method.name if isinstance(method, Method) else method
        self._parameters = dict(parameters or {})
        self._vectors = _vector_method(vectors)
        self._cache: dict[str, Method] = {}
        self.default = self._of_rule(None, "")
        for rule in rules:
            self._of_rule(rule, "")

    def method_for(self, name: str, *, matrix: bool) -> Method | None:
        """The method for one tensor; None where it is kept as fine-tuned."""
        for rule in self._rules:
            if rule.matches(name, matrix=matrix):
                return self._of_rule(rule, name)
        return self._of_rule(None, name) if matrix else self._vectors

    def _of_rule(self, rule: Rule | None, name: str) -> Method:
        inherits = rule is None or rule.method is None
        if inherits and self._made is not None and not (rule and rule.parameters):
            return self._made
        own = {} if rule is None else rule.parameters
        inherited = dict(self._made) if self._made is not None else self._parameters
        parameters = {**inherited, **own} if inherits else own
        chosen = self._name if rule is None or rule.method is None else rule.method
        return self._get(chosen, {key: value for key, given in parameters.items() for value in _fitting(given, name)})

    def _get(self, name: str, parameters: dict[str, object]) -> Method:
        key = json.dumps([name, parameters], default=str)
        if key not in self._cache:
            self._cache[key] = get_method(name, parameters)
        return self._cache[key]


def read_rules(rules: object) -> tuple[Rule, ...]:
    """Rules from plain data.

    Raises:
        UsageError: a field is unknown or has an invalid value.
    """
    if not isinstance(rules, list | tuple):
        raise UsageError(f"rules: expected a list of rules; got {type(rules).__name__}")
    made = []
    for number, rule in enumerate(rules):
        try:
            made.append(rule if isinstance(rule, Rule) else Rule.model_validate(rule))
        except ValidationError as error:
            inner, message = first_problem(error)
            field = f"rules.{number}.{inner}".removesuffix(".")
            raise UsageError(f"{field}: {message}; a rule has {', '.join(Rule.model_fields)}") from error
    return tuple(made)


def _as_field(rules: object) -> tuple[Rule, ...]:
    try:
        return read_rules(rules)
    except UsageError as error:
        raise ValueError(str(error)) from error


Rules = Annotated[tuple[Rule, ...], BeforeValidator(_as_field)]
"""A field of a configuration that holds rules; what is wrong is said as `read_rules` says it."""


def _fitting(given: object, name: str) -> list[object]:
    """The value of a parameter for one tensor, if any: see `MethodChoice`."""
    if (
        not isinstance(given, list)
        or not given
        or not all(isinstance(entry, dict) and "value" in entry for entry in given)
    ):
        return [given]
    fitting = [entry["value"] for entry in given if entry.get("filter", "*") == "*" or str(entry["filter"]) in name]
    return fitting[:1]


@lru_cache
def _numbers(layers: str) -> frozenset[int]:
    spans = [part.split("-") for part in layers.split(",")]
    return frozenset(number for span in spans for number in range(int(span[0]), int(span[-1]) + 1))


def _vector_method(vectors: Vectors) -> Method | None:
    if vectors == "finetuned":
        return None
    if vectors == "base":
        return Revert()
    try:
        share = float(vectors)
    except ValueError:
        share = -1.0
    if not 0.0 <= share <= 1.0:
        raise UsageError(f"{option('vectors')}: {vectors!r} is neither finetuned, base, nor a number from 0 to 1")
    return NoRepair() if share == 1.0 else WiseFT(alpha=share)
