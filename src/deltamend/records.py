"""The base classes of every record that deltamend reads or writes, and pydantic's complaint about one in a single line."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, ValidationError


class Record(BaseModel):
    """Immutable data with exactly the declared fields; an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FiniteRecord(Record):
    """A record whose numbers must be finite, because JSON has no NaN and no infinity."""

    model_config = ConfigDict(allow_inf_nan=False)


_PLAINLY = {"extra_forbidden": "there is no such field", "missing": "is missing"}
"""Our words for problems that pydantic names in terms of Python, by its type of the problem."""


def first_problem(error: ValidationError) -> tuple[str, str]:
    """The first problem that pydantic found.

    Returns:
        The field, such as "rules.0.kind", or "" where the problem concerns the record as a whole; and what is wrong with it.
    """
    first = error.errors(include_url=False)[0]
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] in _PLAINLY:
        message = _PLAINLY[first["type"]]
    if first["type"] == "literal_error":
        message = f"{first['input']!r} is not valid; expected {first['ctx']['expected']}"
    return ".".join(str(part) for part in first["loc"]), message
