"""Make command-line flags from the models of options, and read KEY=VALUE texts."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any

import typer
from pydantic.fields import FieldInfo
from typer.models import ArgumentInfo

from deltamend.errors import UsageError, spelled_in_python
from deltamend.machine.yaml_text import YamlError, parse_yaml
from deltamend.records import Record
from deltamend.repairing.options import Flag, RepairOptions

_OTHER_FLAGS = {"metrics": "--metric", "target_files": "--target-file", "task_margins": "--margin"}
"""Arguments of Python that hold what a flag is given several times for, or that have another name there."""


def with_options(
    model: type[Record], only: Iterable[str] | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a command so that it has a flag for each field of a model; their values are passed as keyword arguments.

    An option that is not given on the command line is None, or False if it takes no value, whatever the default of the model. So
    the command can tell which options the user gave.

    Args:
        model: the model. The descriptions of its fields become the help texts.
        only: the names of the fields to use; None for all fields that have a flag.
    """
    names = [name for name in model.model_fields if only is None or name in set(only)]

    def add(command: Callable[..., None]) -> Callable[..., None]:
        own = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in inspect.signature(command, eval_str=True).parameters.values()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        made = [parameter for name in names if (parameter := _parameter(name, model.model_fields[name]))]
        arguments = [parameter for parameter in own if _is_argument(parameter)]
        others = [parameter for parameter in own if not _is_argument(parameter)]

        @functools.wraps(command)
        def wrapped(**given: Any) -> None:
            command(**given)

        del wrapped.__wrapped__  # typer reads what it finds there
        wrapped.__annotations__ = {}
        wrapped.__signature__ = inspect.Signature([*arguments, *made, *others])  # type: ignore[attr-defined]
        return wrapped

    return add


def given_options(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Select the options of `with_options` that were given on the command line."""
    return {name: value for name, value in chosen.items() if value not in (None, False, "", [])}


def spelled_on_command_line(name: str, value: str | None) -> str:
    """Write an option as it is typed in a shell, such as `--out-dtype fp32`."""
    field = RepairOptions.model_fields.get(name)
    flag = None if field is None else _flag_of(field)
    if flag is not None and flag.names is None:
        return spelled_in_python(name, value)
    written = (
        _OTHER_FLAGS.get(name, f"--{name.replace('_', '-')}") if flag is None or flag.names is None else flag.names[-1]
    )
    return written if value in (None, "True") else f"{written} {value}"


def parameters_of(settings: Iterable[str], option: str = "--set") -> dict[str, object]:
    """Read parameters from KEY=VALUE texts. A value that begins with [ or { is read as YAML.

    Args:
        settings: the texts.
        option: the flag that the texts belong to, for errors.

    Raises:
        UsageError: a text does not have this form.
    """
    parameters: dict[str, object] = {}
    for setting in settings:
        key, separator, value = setting.partition("=")
        if not separator:
            raise UsageError(f"{option}: {setting!r} is not KEY=VALUE; write it like alpha=0.5")
        try:
            parameters[key] = parse_yaml(value) if value[:1] in ("[", "{") else value
        except YamlError as error:
            raise UsageError(f"{option}: {value[:60]!r} is not YAML ({error}); correct it") from error
    return parameters


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter | None:
    """The flag of a field as a parameter of the command; None if the field has no flag."""
    flag = _flag_of(field) or Flag((f"--{name.replace('_', '-')}",))
    if flag.names is None:
        return None
    described = field.description or ""
    kind: Any = str | None
    if field.annotation is bool:
        kind = bool
    elif flag.repeated:
        kind = list[str] | None
        described += " May be given several times."
    elif isinstance(field.default, str):
        described += f" Default: {field.default}."
    info = typer.Option(*flag.names, help=described, metavar=flag.metavar)
    default = False if kind is bool else None
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info])


def _flag_of(field: FieldInfo) -> Flag | None:
    return next((item for item in field.metadata if isinstance(item, Flag)), None)


def _is_argument(parameter: inspect.Parameter) -> bool:
    return any(isinstance(item, ArgumentInfo) for item in getattr(parameter.annotation, "__metadata__", ()))
