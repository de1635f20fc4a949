"""The folder where deltamend keeps the models and measurements that it made, so that later runs can use them."""

from __future__ import annotations

import os
from pathlib import Path

from deltamend.errors import OutputError


def default_cache_dir() -> Path:
    """The folder that DELTAMEND_CACHE names, or else `deltamend/` in the user's cache folder (XDG base directories).

    Raises:
        OutputError: it is said by a home folder that does not exist.
    """
    chosen = os.environ.get("DELTAMEND_CACHE")
    user_cache = os.environ.get("XDG_CACHE_HOME")
    try:
        if chosen:
            return Path(chosen).expanduser()
        return (Path(user_cache).expanduser() if user_cache else Path.home() / ".cache") / "deltamend"
    except RuntimeError as error:  # no such user, or a user without a home
        raise OutputError(f"the folder of the cache cannot be told ({error}); set DELTAMEND_CACHE to one") from error
