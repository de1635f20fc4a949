"""Read a JSON file of a checkpoint, which is untrusted: an index, a config, a tokenizer."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

from deltamend.errors import CheckpointError

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
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # opening a pipe would wait for its other end
            raise CheckpointError(f"{path}: not a regular file; give the folder that save_pretrained wrote")
        if found.st_size > MAX_JSON_BYTES:
            raise CheckpointError(
                f"{path}: larger than {MAX_JSON_BYTES} bytes, far more than such a file needs; check where it comes from"
            )
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: missing; give the folder that save_pretrained wrote") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON; download it again") from error
