"""Read a pickle of untrusted data without running any of its code: what it would construct becomes an inert record.

A pickle is a program that calls functions by their names. Here a name is looked up in a table of this project's own harmless
functions, or stands for an `Inert` record that only remembers what it was given; every other name is refused.

The unpickler is the one that Python's library writes in Python. The one in C takes memory for the largest number that a pickle
gives to one of its objects, and crashes on a key that is nested deeply; here keys are looked at before they are used.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

PersistentLoad = Callable[[Any], Any]

_TODAY = {"__builtin__": "builtins", "copy_reg": "copyreg"}
"""What the older protocols of pickle, one of which torch.save uses, call modules of Python 3."""
_DEEPEST = 100
"""Containers inside each other. Real checkpoints have fewer than ten; Python's own functions fail at about a thousand."""


class Inert:
    """An object of a pickle, with the arguments that its constructor was given, and its state."""

    arguments: tuple[object, ...] = ()
    state: object = None

    def __init__(self, *arguments: object, **_: object) -> None:
        self.arguments = arguments

    def __setstate__(self, state: object) -> None:
        self.state = state

    def __setitem__(self, key: object, value: object) -> None:
        """Forget an item of what would be a dictionary."""

    def append(self, value: object) -> None:
        """Forget an item of what would be a list."""

    def extend(self, values: object) -> None:
        """Forget items of what would be a list."""

    def field(self, name: str) -> Any:
        """A field of the state of a dataclass; None where it has none of this name."""
        return self.state.get(name) if isinstance(self.state, dict) else None


class ForbiddenNameError(pickle.UnpicklingError):
    """A pickle names a function or class that the format has no need of."""


def ordered_dict(pairs: Iterable[Any] = ()) -> OrderedDict[Any, Any]:
    """The dictionary that a pickle makes by calling `collections.OrderedDict`."""
    return OrderedDict((_checked_key(key), value) for key, value in pairs)


def plain_set(items: Iterable[Any] = ()) -> set[Any]:
    """The set that a pickle makes by calling `set`."""
    return {_checked_key(item) for item in items}


def _checked_key(key: Any) -> Any:
    """A key of a dictionary or an entry of a set, which is a single value or a tuple of such."""
    if isinstance(key, tuple) and any(isinstance(part, tuple) for part in key):
        raise pickle.UnpicklingError("a key that is nested")
    return key


class _Reader(pickle._Unpickler):
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)

    def __init__(
        self, data: bytes, functions: Mapping[str, object], inert: tuple[str, ...], persistent: PersistentLoad | None
    ) -> None:
        super().__init__(io.BytesIO(data))
        self._functions, self._inert, self._persistent = functions, inert, persistent

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name; never what the name means in Python."""
        full = f"{_TODAY.get(module, module)}.{name}"
        if full in self._functions:
            return self._functions[full]
        if any(full == known or (known.endswith(".") and full.startswith(known)) for known in self._inert):
            return type(name, (Inert,), {})
        raise ForbiddenNameError(full)

    def persistent_load(self, identity: Any) -> Any:
        """What stands for an object outside the pickle."""
        if self._persistent is None:
            raise pickle.UnpicklingError("a pickle with references to other data")
        return self._persistent(identity)


def _with_checked_keys(code: bytes, keys: Callable[[list[Any]], list[Any]]) -> None:
    """Check what an opcode is about to use as keys; `keys` finds them among the values that it takes from the stack."""
    original: Callable[[Any], None] = _Reader.dispatch[code[0]]

    def checked(reader: Any) -> None:
        for key in keys(reader.stack):
            _checked_key(key)
        original(reader)

    _Reader.dispatch[code[0]] = checked


_with_checked_keys(pickle.SETITEM, lambda stack: stack[-2:-1])
_with_checked_keys(pickle.SETITEMS, lambda stack: stack[::2])  # what lies above the mark is a stack of its own
_with_checked_keys(pickle.DICT, lambda stack: stack[::2])
_with_checked_keys(pickle.ADDITEMS, lambda stack: stack)
_with_checked_keys(pickle.FROZENSET, lambda stack: stack)


def read_inert(
    data: bytes,
    functions: Mapping[str, object],
    inert: tuple[str, ...] = (),
    persistent: PersistentLoad | None = None,
) -> Any:
    """Unpickle.

    Args:
        data: the pickle.
        functions: harmless stand-ins, by the full name that the pickle uses.
        inert: names that stand for `Inert` records, in full; or prefixes, which end in a dot.
        persistent: makes what stands for an object outside the pickle.

    Raises:
        ForbiddenNameError: the pickle uses another name.
        Exception: of any kind, where the data is damaged.
    """
    found = _Reader(data, functions, inert, persistent).load()
    _refuse_deep(found)
    return found


def _refuse_deep(found: object) -> None:
    """Raise UnpicklingError for containers that are nested so deeply that comparing or printing them would fail."""
    level, seen = [found], set[int]()
    for _ in range(_DEEPEST):
        inner: list[object] = []
        for value in level:
            if id(value) in seen:
                continue
            seen.add(id(value))
            if isinstance(value, dict):
                inner += (*value.keys(), *value.values())
            elif isinstance(value, list | tuple | set | frozenset):
                inner += value
            elif isinstance(value, Inert):
                inner += (value.arguments, value.state)
        level = [value for value in inner if isinstance(value, dict | list | tuple | set | frozenset | Inert)]
        if not level:
            return
    raise pickle.UnpicklingError(f"containers more than {_DEEPEST} deep in each other")
