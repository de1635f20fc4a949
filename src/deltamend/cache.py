"""Where models that deltamend made are kept, and how a folder gets there: whole, or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


def default_cache_dir() -> Path:
    """DELTAMEND_CACHE where it is set, else `deltamend/` in the user's cache folder (XDG base directories)."""
    chosen = os.environ.get("DELTAMEND_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    user_cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(user_cache).expanduser() if user_cache else Path.home() / ".cache") / "deltamend"


def fingerprint(settings: Mapping[str, object]) -> str:
    """Eight hex digits that change when any of the settings does; the same settings give the same folder name."""
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


@contextmanager
def publish(folder: Path) -> Iterator[Path]:
    """Yield an empty sibling of `folder` to write into; rename it to `folder` on success, delete it on any failure.

    A run that is cut off leaves at most a `.part` folder behind, and nothing ever reads one of those.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", suffix=".part", dir=folder.parent))
    try:
        yield part
        if folder.exists():
            shutil.rmtree(folder)
        part.chmod(0o755)  # mkdtemp makes a private folder; a cached model is as readable as any other
        part.rename(folder)
    finally:
        if part.exists():
            shutil.rmtree(part)
