"""The methods by name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from pydantic import ValidationError

from deltamend.errors import MethodError
from deltamend.methods.dg_hard import DGHard
from deltamend.methods.interpolation import WiseFT
from deltamend.methods.method import Method

METHODS: Mapping[str, type[Method]] = {method.name: method for method in (DGHard, WiseFT)}


def method_class(name: str) -> type[Method]:
    """The class of a method.

    Raises:
        MethodError: there is no method of that name.
    """
    if name not in METHODS:
        close = difflib.get_close_matches(name, METHODS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(sorted(METHODS))}"
        raise MethodError(f"no method {name!r}; {hint}")
    return METHODS[name]


def get_method(name: str, parameters: Mapping[str, object] | None = None) -> Method:
    """Make a method from its name and parameters.

    Args:
        name: such as "dg-hard"; `METHODS` holds them all.
        parameters: values for the method's fields; text is converted where a number is asked for.

    Raises:
        MethodError: no such method, no such parameter, or a value out of range.
    """
    chosen = method_class(name)
    try:
        return chosen.model_validate(dict(parameters or {}))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        known = ", ".join(chosen.model_fields) or "none"
        raise MethodError(
            f"method {name!r}, parameter {field!r}: {first['msg']}; its parameters are: {known}"
        ) from error
