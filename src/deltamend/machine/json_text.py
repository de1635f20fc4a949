"""Read JSON that somebody else may have made: how deep it nests and how many values it holds are limited."""

from __future__ import annotations

import json
from typing import Any

MAX_DEPTH = 100
MAX_VALUES = 10_000_000
"""Values in one text: the largest tokenizers have two million. A value takes about 100 bytes of memory."""
MAX_OBJECTS = 1_000_000
"""Objects in a record: every item of an evaluation is one, and takes about a kilobyte of memory."""


class JsonError(ValueError):
    """A text is not JSON, or holds more than is read; the text of the error is the reason, in one line."""


def parse_json(text: str | bytes) -> Any:
    """The value that a JSON text holds.

    Raises:
        JsonError: it is not valid, nests deeper than `MAX_DEPTH`, or holds more than `MAX_VALUES` values.
    """
    check_size(text)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise JsonError(" ".join(str(error).split())[:200]) from error
    if not _is_shallow(value):
        raise JsonError(f"nests deeper than {MAX_DEPTH} levels")
    return value


def check_size(text: str | bytes, *, objects: int | None = None) -> None:
    """Refuse a text that would take far more memory, once it is parsed, than such a file needs.

    Commas and brackets are counted, those inside strings as well, which is quick.

    Args:
        text: the JSON text, valid or not.
        objects: how many objects it may hold; None for any number.

    Raises:
        JsonError: it holds more than `MAX_VALUES` values or `objects` objects.
    """
    content = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    opened = content.count(b"{")
    if opened + content.count(b"[") + content.count(b",") > MAX_VALUES:
        raise JsonError(f"holds more than {MAX_VALUES:,} values, far more than such a file needs")
    if objects is not None and opened > objects:
        raise JsonError(f"holds more than {objects:,} objects, far more than such a file needs")


def _is_shallow(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer if isinstance(outer, list) else ())
            if isinstance(inner, dict | list)
        ]
        if not level:
            return True
    return False
