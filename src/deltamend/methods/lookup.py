"""Find a method by its name or an alias, and make it of its parameters."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

from pydantic import ValidationError

from deltamend.errors import MethodError, option
from deltamend.methods.method import Method
from deltamend.records import first_problem


def find_method(name: str, methods: Mapping[str, type[Method]]) -> type[Method]:
    """The class of a method among `methods`, by its name or an alias; case does not matter, and "_" is read as "-".

    Args:
        name: such as "dg-hard".
        methods: classes by their names.

    Raises:
        MethodError: there is no method of that name.
    """
    known = by_any_name(methods.values())
    wanted = _normal(name)
    if wanted not in known:
        close = difflib.get_close_matches(wanted, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(sorted(methods))}"
        raise MethodError(f"no method {name!r}; {hint}")
    return known[wanted]


def make_method(chosen: type[Method], name: str, parameters: Mapping[str, object]) -> Method:
    """Make a method of its parameters.

    Args:
        chosen: the class of the method.
        name: what the caller calls it, for the error.
        parameters: values for the method's fields; text is converted where a number is asked for.

    Raises:
        MethodError: there is no such parameter, or a value is out of range.
    """
    try:
        return chosen.model_validate(dict(parameters))
    except ValidationError as error:
        field, message = first_problem(error)
        where = f"method {name!r}, parameter {field!r}" if field else f"method {name!r}"
        known = ", ".join(chosen.model_fields) or "none"
        advice = f"its parameters are: {known}"
        if field in chosen.model_fields and field not in parameters:
            info = chosen.model_fields[field]
            advice = f"it is: {info.description}"
            if info.examples:
                advice = f"give for example {option('parameters', f'{field}={info.examples[0]}')}; {advice}"
        elif field not in chosen.model_fields and (close := difflib.get_close_matches(field, chosen.model_fields, n=1)):
            advice = f"did you mean {close[0]!r}? ({advice})"
        raise MethodError(f"{where}: {message}; {advice}") from error


def by_any_name(methods: Iterable[type[Method]]) -> dict[str, type[Method]]:
    """The methods by their names and by their aliases, all written with "-".

    Raises:
        MethodError: two of them go by the same name or alias.
    """
    known: dict[str, type[Method]] = {}
    for method in methods:
        for name in (method.name, *method.aliases):
            other = known.setdefault(_normal(name), method)
            if other is not method:
                raise MethodError(
                    f"the method name {name!r} is taken by {_place(other)} and by {_place(method)}; uninstall one of them"
                )
    return known


def same_name(first: str, second: str) -> bool:
    """Whether two names are the same, where case does not matter and "_" is "-"."""
    return _normal(first) == _normal(second)


def _normal(name: str) -> str:
    return name.replace("_", "-").lower()


def _place(method: type[Method]) -> str:
    return f"{method.__module__}.{method.__qualname__}"
