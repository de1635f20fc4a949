"""The list of all methods that stand by themselves: built-in ones, and those that other packages offer as entry points.

Only `hybrid` is not among them, because it is made of these; `registry` is the list with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points

from deltamend.errors import MethodError
from deltamend.methods.breadcrumbs import Breadcrumbs
from deltamend.methods.dare import Dare
from deltamend.methods.della import Della
from deltamend.methods.dg_hard import DGHard
from deltamend.methods.energy_cut import EnergyCut
from deltamend.methods.equal_effect import EqualEffect
from deltamend.methods.fapm import Fapm
from deltamend.methods.fisher import Fisher
from deltamend.methods.graft import Graft
from deltamend.methods.interpolation import TaskArithmetic, WiseFT
from deltamend.methods.intruder import Intruder
from deltamend.methods.laser import Laser
from deltamend.methods.lines import LiNeS
from deltamend.methods.magnitude import Magnitude
from deltamend.methods.method import Method
from deltamend.methods.none_and_revert import NoRepair, Revert
from deltamend.methods.null_space import NullSpace
from deltamend.methods.rank import Rank
from deltamend.methods.shrink import Shrink
from deltamend.methods.ties import Ties
from deltamend.methods.two_sided import TwoSided

ENTRY_POINT_GROUP = "deltamend.methods"

METHODS: tuple[type[Method], ...] = (
    DGHard,
    Shrink,
    Rank,
    EnergyCut,
    Laser,
    Intruder,
    WiseFT,
    TaskArithmetic,
    LiNeS,
    Magnitude,
    Ties,
    Breadcrumbs,
    Dare,
    Della,
    Fapm,
    Graft,
    Fisher,
    NullSpace,
    EqualEffect,
    TwoSided,
)
REFERENCES: tuple[type[Method], ...] = (NoRepair, Revert)
"""What every method is compared with; last in every list."""


@cache
def offered_by_packages() -> tuple[type[Method], ...]:
    """The methods of other packages that are installed, by their entry points.

    Raises:
        MethodError: an entry point is no method.
    """
    found = []
    for point in entry_points(group=ENTRY_POINT_GROUP):
        offered = point.load()
        if not (isinstance(offered, type) and issubclass(offered, Method)):
            raise MethodError(f"entry point {point.name} = {point.value} is no deltamend method; uninstall its package")
        found.append(offered)
    return tuple(found)


def methods_by_name() -> Mapping[str, type[Method]]:
    """Every method that can be a step of `hybrid`, by its name.

    Raises:
        MethodError: an entry point is no method.
    """
    return {method.name: method for method in (*METHODS, *REFERENCES, *offered_by_packages())}
