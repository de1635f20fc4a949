from __future__ import annotations

from typing import Any, Literal

import pytest
from pydantic import ValidationError, field_validator, model_validator

from deltamend.records import FiniteRecord, Record, first_problem


class Inner(Record):
    kind: Literal["norm", "mlp"] = "norm"
    share: float = 0.0

    @field_validator("share")
    @classmethod
    def _is_a_share(cls, share: float) -> float:
        if share > 1:
            raise ValueError("give at most 1")
        return share


class Outer(Record):
    name: str
    parts: tuple[Inner, ...] = ()

    @model_validator(mode="after")
    def _has_another_name(self) -> Outer:
        if self.name == "bad":
            raise ValueError("no name is bad")
        return self


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({}, ("name", "is missing")),
        ({"name": "a", "colour": 1}, ("colour", "there is no such field")),
        ({"name": "a", "parts": [{}, {"kind": "nrom"}]}, ("parts.1.kind", "'nrom' is not valid; expected 'norm' or 'mlp'")),
        ({"name": "a", "parts": [{"share": 2}]}, ("parts.0.share", "give at most 1")),
        ({"name": "bad"}, ("", "no name is bad")),
        ({"colour": 1}, ("name", "is missing")),  # the first of two
    ],
)  # fmt: skip
def test_the_first_problem_names_the_field_and_what_is_wrong(content: dict[str, Any], problem: tuple[str, str]) -> None:
    with pytest.raises(ValidationError) as raised:
        Outer.model_validate(content)
    assert first_problem(raised.value) == problem


def test_a_record_does_not_change() -> None:
    record = Outer(name="a")
    with pytest.raises(ValidationError, match="frozen"):
        record.name = "b"


class Figure(FiniteRecord):
    value: float


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_finite_record_refuses_what_json_cannot_hold(value: float) -> None:
    with pytest.raises(ValidationError, match="finite number"):
        Figure(value=value)
    assert Figure(value=1.5).model_dump_json() == '{"value":1.5}'


def test_a_field_that_should_not_be_there_is_named_in_one_printable_line() -> None:
    class Empty(Record):
        pass

    for name in ("x\n", "\x1b[31m", "\u202e", "y" * 5000):
        with pytest.raises(ValidationError) as caught:
            Empty.model_validate({name: 1})
        field, problem = first_problem(caught.value)
        assert field.isprintable()
        assert 0 < len(field) <= 200
        assert problem == "there is no such field"
