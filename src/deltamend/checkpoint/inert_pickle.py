"""Read a pickle of untrusted data without running any of its code: what it would construct becomes an inert record.

A pickle is a program that calls functions by their names. Here a name is looked up in a table of this project's own harmless
functions, or stands for an `Inert` record that only remembers what it was given; every other name is refused.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping
from typing import Any

PersistentLoad = Callable[[Any], Any]

_TODAY = {"__builtin__": "builtins", "copy_reg": "copyreg"}
"""What the older protocols of pickle, one of which torch.save uses, call modules of Python 3."""


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


class _Reader(pickle.Unpickler):
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
    return _Reader(data, functions, inert, persistent).load()
