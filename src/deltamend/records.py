"""The base classes of every record that deltamend reads or writes, and pydantic's complaint about one in a single line."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import PydanticSerializationError


class Record(BaseModel):
    """Immutable data with exactly the declared fields; an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def model_dump_json(self, *, indent: int | None = None, **options: Any) -> str:
        """The record as JSON. Half a surrogate pair, as in the name of a folder that is not UTF-8, is written as text."""
        try:
            return super().model_dump_json(indent=indent, **options)
        except PydanticSerializationError:
            shown = _without_surrogates(self.model_dump(mode="json", **options))
            return json.dumps(
                shown, ensure_ascii=False, indent=indent, separators=(",", ":") if indent is None else None
            )


class FiniteRecord(Record):
    """A record whose numbers must be finite, because JSON has no NaN and no infinity."""

    model_config = ConfigDict(allow_inf_nan=False)


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, dict):
        return {_without_surrogates(key): _without_surrogates(inner) for key, inner in value.items()}
    return [_without_surrogates(inner) for inner in value] if isinstance(value, list) else value


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
    # The name of a field that should not be there is anybody's text.
    field = ".".join(str(part) if str(part).isprintable() else ascii(part)[1:-1] for part in first["loc"])
    return field[:200], message
