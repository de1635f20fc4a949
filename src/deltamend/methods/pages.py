"""The documentation page of a method, from its docstring and fields: `python -m deltamend.methods.pages docs/methods`."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel

from deltamend.methods.method import Method
from deltamend.methods.registry import BUILT_IN

_BOUNDS = {"minimum": "from {}", "exclusiveMinimum": "above {}", "maximum": "to {}"}


class ParameterRow(NamedTuple):
    """One line of the table of parameters, as text."""

    name: str
    default: str
    range: str
    meaning: str


def parameter_rows(method: type[Method]) -> list[ParameterRow]:
    """The parameters of a method."""
    return rows_of(method)


def rows_of(model: type[BaseModel]) -> list[ParameterRow]:
    """The fields of a model, each as a line of a table."""
    schema = model.model_json_schema()
    return [
        ParameterRow(
            name,
            "required" if info.is_required() else _written(info.get_default()),
            _range(schema["properties"][name]),
            info.description or "",
        )
        for name, info in model.model_fields.items()
    ]


def page(method: type[Method]) -> str:
    """The page, in Markdown."""
    rows = parameter_rows(method)
    lines = [f"# {method.name}", "", method.summary, "", inspect.getdoc(method) or "", "", f"Source: {method.source}."]
    if method.aliases:
        lines[-1] += f" Also called {', '.join(method.aliases)}."
    if rows:
        lines += ["", "| parameter | default | range | meaning |", "|---|---|---|---|"]
        lines += [f"| {' | '.join([f'`{row.name}`', *(_cell(text) for text in row[1:])])} |" for row in rows]
    else:
        lines += ["", "It has no parameters."]
    required = {name: info.examples for name, info in method.model_fields.items() if info.is_required()}
    given = [f" --set {name}={examples[0] if examples else 'FILE'}" for name, examples in required.items()]
    command = f"deltamend repair BASE FINETUNED OUT --method {method.name}{''.join(given)}"
    # Indented commands of the docs are run by a test, which has no file to give.
    return "\n".join([*lines, "", f"    {command}" if all(required.values()) else f"`{command}`", ""])


def index() -> str:
    """The list of all pages, in Markdown."""
    lines = ["# Methods", "", "Δ = W_ft − W_base, and Δ* is what a method keeps of it: W* = W_base + Δ*.", ""]
    lines += ["| method | what it does | source |", "|---|---|---|"]
    lines += [f"| [{method.name}]({method.name}.md) | {method.summary} | {method.source} |" for method in BUILT_IN]
    lines += [
        "",
        "[Adding a method](adding-a-method.md) · [Rules and configs](rules.md) · [Parity with mergekit](parity.md)",
    ]
    return "\n".join([*lines, ""])


def all_pages() -> dict[str, str]:
    """Every generated file of docs/methods by its name."""
    return {"README.md": index()} | {f"{method.name}.md": page(method) for method in BUILT_IN}


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _written(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(_written(item) for item in value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_written(item)}" for key, item in value.items()) + "}"
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def _range(schema: dict[str, Any]) -> str:
    """What values a field takes, from its JSON schema."""
    options = [option for option in schema.get("anyOf", [schema]) if option.get("type") != "null"]
    texts = []
    for option in options:
        if "enum" in option or "const" in option:
            texts += [str(value) for value in option.get("enum", [option.get("const")])]
            continue
        bounds = [words.format(f"{option[key]:g}") for key, words in _BOUNDS.items() if key in option]
        texts.append(" ".join([option.get("format") or option.get("type", ""), *bounds]))
    return ", ".join(texts)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for file, text in all_pages().items():
        (folder / file).write_text(text, encoding="utf-8")
