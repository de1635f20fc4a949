"""The folder where deltamend keeps the models and measurements that it made, so that later runs can use them."""

from __future__ import annotations

import os
from pathlib import Path


def default_cache_dir() -> Path:
    """The folder that DELTAMEND_CACHE names, or else `deltamend/` in the user's cache folder (XDG base directories)."""
    chosen = os.environ.get("DELTAMEND_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    user_cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(user_cache).expanduser() if user_cache else Path.home() / ".cache") / "deltamend"
