"""Rules, which decide the method of each tensor and its parameters."""

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
"""Where norms and biases come from: "finetuned", "base", or the share of the way from the base to the fine-tuned value."""

_LAYERS = re.compile(r"\d{1,9}(-\d{1,9})?(,\d{1,9}(-\d{1,9})?)*", re.ASCII)


class Rule(Record):
    """Gives another method, or other parameters, to the tensors that match all of `filter`, `layers` and `kind`.

    A rule applies to matrices. Only a rule of the kind "norm" applies to the one-dimensional parameters of norms.
    """

    filter: str | None = Field(
        default=None, description="Regular expression that must match the tensor's name anywhere."
    )
    layers: str | None = Field(default=None, description='Numbers of layers, such as "0-3,7".')
    kind: Kind | None = Field(default=None, description="Kind of module that the tensor's name belongs to.")
    method: str | None = Field(
        default=None, description="Name of the method; without it the default method is used, with its parameters."
    )
    parameters: dict[str, Any] = Field(default_factory=dict, description="Parameters of the method.")

    @field_validator("filter")
    @classmethod
    def _is_a_pattern(cls, text: str | None) -> str | None:
        try:
            re.compile(text or "")
        except re.error as error:
            raise ValueError(f"{text!r} is not a regular expression ({error}); correct it") from error
        return text

    @field_validator("layers", mode="before")
    @classmethod
    def _are_numbers(cls, text: object) -> str | None:
        if text is not None and not _LAYERS.fullmatch(str(text)):
            raise ValueError(f'{text!r} is not a list of layers; write it like "0-3,7"')
        return None if text is None else str(text)

    @model_validator(mode="after")
    def _norms_are_vectors(self) -> Self:
        if self.kind == "norm" and (self.method is None or not method_class(self.method).takes_vectors):
            raise ValueError(
                "norms are not matrices; with kind=norm use one of the methods none, revert, wise-ft, task-arithmetic"
            )
        return self

    def matches(self, name: str, *, matrix: bool) -> bool:
        """Whether the rule applies to the tensor of this name."""
        if matrix == (self.kind == "norm"):
            return False
        if self.filter is not None and not re.search(self.filter, name):
            return False
        if self.kind is not None and kind_of(name) != self.kind:
            return False
        if self.layers is None:
            return True
        layer = layer_of(name)
        return layer is not None and any(first <= layer <= last for first, last in _spans(self.layers))


class MethodChoice:
    """Decides the method of each tensor.

    Args:
        method: the default method, or its name.
        parameters: the parameters of the default method, if it is given by its name. The value of a parameter may be a list
            of {filter, value} entries, as in mergekit. A tensor gets the value of the first entry whose `filter` is part of
            its name; an entry without `filter`, or with "*", fits every name.
        rules: exceptions; the first rule that matches a tensor decides.
        vectors: where one-dimensional parameters come from if no rule applies to them.

    Raises:
        MethodError: a method is unknown, or a parameter is invalid.
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
        """The method for one tensor; None if the tensor is kept as fine-tuned."""
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
    """Make rules from plain data, such as the content of a YAML file.

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
"""The type of a field that holds rules. Its errors are worded as those of `read_rules`."""


def _fitting(given: object, name: str) -> list[object]:
    """The value of a parameter for one tensor, as a list that is empty if the tensor gets none; see `MethodChoice`."""
    if (
        not isinstance(given, list)
        or not given
        or not all(isinstance(entry, dict) and "value" in entry for entry in given)
    ):
        return [given]
    fitting = [entry["value"] for entry in given if entry.get("filter", "*") == "*" or str(entry["filter"]) in name]
    return fitting[:1]


@lru_cache
def _spans(layers: str) -> tuple[tuple[int, int], ...]:
    spans = [part.split("-") for part in layers.split(",")]
    return tuple((int(span[0]), int(span[-1])) for span in spans)


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
        raise UsageError(f"{option('vectors')}: {vectors!r} is invalid; give finetuned, base, or a number from 0 to 1")
    return NoRepair() if share == 1.0 else WiseFT(alpha=share)
