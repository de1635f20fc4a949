"""The methods by name: built-in ones, and those that other packages offer as entry points."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points

from pydantic import ValidationError

from deltamend.errors import MethodError
from deltamend.methods.breadcrumbs import Breadcrumbs
from deltamend.methods.dare import Dare
from deltamend.methods.della import Della
from deltamend.methods.dg_hard import DGHard
from deltamend.methods.fapm import Fapm
from deltamend.methods.fisher import Fisher
from deltamend.methods.graft import Graft
from deltamend.methods.hybrid import Hybrid
from deltamend.methods.interpolation import TaskArithmetic, WiseFT
from deltamend.methods.intruder import Intruder
from deltamend.methods.laser import Laser
from deltamend.methods.magnitude import Magnitude
from deltamend.methods.method import Method
from deltamend.methods.none_and_revert import NoRepair, Revert
from deltamend.methods.null_space import NullSpace
from deltamend.methods.rank import Rank
from deltamend.methods.shrink import Shrink
from deltamend.methods.ties import Ties

ENTRY_POINT_GROUP = "deltamend.methods"

BUILT_IN: tuple[type[Method], ...] = (
    DGHard,
    Shrink,
    Rank,
    Laser,
    Intruder,
    WiseFT,
    TaskArithmetic,
    Magnitude,
    Ties,
    Breadcrumbs,
    Dare,
    Della,
    Fapm,
    Graft,
    Fisher,
    NullSpace,
    Hybrid,
    NoRepair,
    Revert,
)


@cache
def all_methods() -> Mapping[str, type[Method]]:
    """Every method by its name, the built-in ones first.

    Raises:
        MethodError: two of them go by the same name or alias, or an entry point is no method.
    """
    found = [*BUILT_IN, *_offered_by_packages()]
    _by_any_name(found)
    return {method.name: method for method in found}


def method_class(name: str) -> type[Method]:
    """The class of a method, by its name or an alias; "_" is read as "-".

    Raises:
        MethodError: there is no method of that name.
    """
    known = _by_any_name([*all_methods().values()])
    wanted = _normal(name)
    if wanted not in known:
        close = difflib.get_close_matches(wanted, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(sorted(all_methods()))}"
        raise MethodError(f"no method {name!r}; {hint}")
    return known[wanted]


def get_method(name: str, parameters: Mapping[str, object] | None = None) -> Method:
    """Make a method from its name and parameters.

    Args:
        name: such as "dg-hard"; `deltamend methods` lists them all.
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
        where = f"method {name!r}, parameter {field!r}" if field else f"method {name!r}"
        message = first["msg"].removeprefix("Value error, ")
        raise MethodError(f"{where}: {message}; its parameters are: {known}") from error


def _normal(name: str) -> str:
    return name.replace("_", "-")


def _by_any_name(methods: list[type[Method]]) -> dict[str, type[Method]]:
    known: dict[str, type[Method]] = {}
    for method in methods:
        for name in (method.name, *method.aliases):
            other = known.setdefault(_normal(name), method)
            if other is not method:
                raise MethodError(
                    f"the method name {name!r} is taken by {_place(other)} and by {_place(method)}; uninstall one of them"
                )
    return known


def _place(method: type[Method]) -> str:
    return f"{method.__module__}.{method.__qualname__}"


def _offered_by_packages() -> list[type[Method]]:
    found = []
    for point in entry_points(group=ENTRY_POINT_GROUP):
        offered = point.load()
        if not (isinstance(offered, type) and issubclass(offered, Method)):
            raise MethodError(f"entry point {point.name} = {point.value} is no deltamend method; uninstall its package")
        found.append(offered)
    return found
