"""The base of every record that deltamend writes or reads, and one line for what pydantic finds wrong with one."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, ValidationError


class Record(BaseModel):
    """Data that does not change once it is made, and that has no field beside those it declares."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FiniteRecord(Record):
    """A record whose numbers are all finite: neither infinite nor NaN, which JSON cannot hold."""

    model_config = ConfigDict(allow_inf_nan=False)


def first_problem(error: ValidationError) -> tuple[str, str]:
    """The first thing that pydantic found wrong.

    Returns:
        The field, such as "rules.0.kind", or "" where the fault lies in the whole; and what is wrong with it.
    """
    first = error.errors(include_url=False)[0]
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "literal_error":
        message = f"{first['input']!r} is not valid; expected {first['ctx']['expected']}"
    return ".".join(str(part) for part in first["loc"]), message
