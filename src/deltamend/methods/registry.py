"""All methods by name: `single_methods`, and `hybrid`, which is made of them."""

from __future__ import annotations

from collections.abc import Mapping

from deltamend.methods.hybrid import Hybrid
from deltamend.methods.lookup import by_any_name, find_method, make_method
from deltamend.methods.method import Method
from deltamend.methods.single_methods import METHODS, REFERENCES, offered_by_packages

BUILT_IN: tuple[type[Method], ...] = (*METHODS, Hybrid, *REFERENCES)


def all_methods() -> Mapping[str, type[Method]]:
    """Every method by its name, the built-in ones first.

    Raises:
        MethodError: two of them go by the same name or alias, or an entry point is no method.
    """
    found = (*BUILT_IN, *offered_by_packages())
    by_any_name(found)
    return {method.name: method for method in found}


def method_class(name: str) -> type[Method]:
    """The class of a method, by its name or an alias; "_" is read as "-".

    Raises:
        MethodError: there is no method of that name.
    """
    return find_method(name, all_methods())


def get_method(name: str, parameters: Mapping[str, object] | None = None) -> Method:
    """Make a method from its name and parameters.

    Args:
        name: such as "dg-hard"; `deltamend methods` lists them all.
        parameters: values for the method's fields; text is converted where a number is asked for.

    Returns:
        The method, frozen, as `repair` and `compare` take it.

    Raises:
        MethodError: no such method, no such parameter, or a value out of range.

    Source: `Method.source` names the paper of each.
    """
    return make_method(method_class(name), name, parameters or {})
