"""Read a JSON file of a checkpoint, which is untrusted: an index, a config, a tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deltamend.errors import CheckpointError
from deltamend.machine.bounded_files import UnreadableError, read_text
from deltamend.machine.json_text import JsonError, parse_json

MAX_JSON_BYTES = 200_000_000


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that holds a JSON object.

    Raises:
        CheckpointError: it is missing, no regular file, too large, unreadable, or no JSON object; the file is named.
    """
    value = _read(path)
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: not a JSON object; download it again")
    return value


def read_json_list(path: Path) -> list[Any]:
    """Read a file that holds a JSON list; see `read_json` for what is raised."""
    value = _read(path)
    if not isinstance(value, list):
        raise CheckpointError(f"{path}: not a JSON list; download it again")
    return value


def _read(path: Path) -> Any:
    try:
        text = read_text(path, MAX_JSON_BYTES)
    except UnreadableError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise CheckpointError(f"{path}: missing; give the folder that save_pretrained wrote") from error
        if isinstance(error.__cause__, OSError):
            raise CheckpointError(f"{path}: cannot be read ({error}); check its permissions") from error
        raise CheckpointError(f"{path}: {error}; give the folder that save_pretrained wrote") from error
    try:
        return parse_json(text)
    except JsonError as error:
        raise CheckpointError(f"{path}: not valid JSON ({error}); download it again") from error
