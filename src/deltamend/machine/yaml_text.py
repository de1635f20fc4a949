"""Read YAML, which anybody may have made: plain data only, without what lets a short text unfold into gigabytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from deltamend.machine.bounded_files import UnreadableError, read_text

MAX_CHARACTERS = 500_000
"""Of one text; the longest study has 20,000. Reading as many takes some ten seconds."""
MAX_DEPTH = 50
_MAX_SCALAR = 100
"""Characters of a number or a date; PyYAML computes those of base 60 in quadratic time."""
_COMPUTED = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "timestamp"))
_MERGE = "tag:yaml.org,2002:merge"


class YamlError(ValueError):
    """A text is not YAML, or uses what is not read; the text of the error is the reason, in one line."""


class _PlainLoader(yaml.SafeLoader):
    """PyYAML's safe loader without aliases, without merge keys, and with limits on depth and on the length of numbers."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise _marked(f"the alias *{event.anchor}; write its value out", event.start_mark)
        self._depth += 1
        if self._depth > MAX_DEPTH:
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise _marked(f"more than {MAX_DEPTH} levels", event.start_mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(node, yaml.ScalarNode):
            if node.tag == _MERGE:
                raise _marked("the merge key <<; write the values out", node.start_mark)
            if node.tag in _COMPUTED and len(node.value) > _MAX_SCALAR:
                raise _marked("a number or date of more than 100 characters; quote it", node.start_mark)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (
            ArithmeticError,
            AttributeError,
            LookupError,
            TypeError,
            ValueError,
        ) as error:  # by `!!bool x`, 2024-02-31
            shown = repr(node.value[:40]) if isinstance(node, yaml.ScalarNode) else "a value"
            raise _marked(f"{shown}, which is no {node.tag.rpartition(':')[2]}", node.start_mark) from error


def parse_yaml(text: str) -> Any:
    """The value that a YAML text holds: dictionaries, lists, strings, numbers, dates and None.

    Raises:
        YamlError: it is not valid, is longer than `MAX_CHARACTERS`, nests deeper than `MAX_DEPTH`, has an alias or a merge
            key, or a value that is none of its kind.
    """
    if len(text) > MAX_CHARACTERS:
        raise YamlError(f"more than {MAX_CHARACTERS:,} characters")
    try:
        return yaml.load(text, _PlainLoader)  # noqa: S506 - a safe loader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise YamlError(" ".join(str(error).split())[:300]) from error


def read_yaml(path: Path) -> Any:
    """The value that a YAML file holds.

    Raises:
        YamlError: see `parse_yaml`; or it is missing, no regular file, not UTF-8, or cannot be read.
    """
    try:
        text = read_text(path, 4 * MAX_CHARACTERS)
    except UnreadableError as error:
        raise YamlError(str(error)) from error
    return parse_yaml(text)


def _marked(problem: str, mark: yaml.Mark) -> yaml.YAMLError:
    return yaml.MarkedYAMLError(problem=f"it has {problem}", problem_mark=mark)
