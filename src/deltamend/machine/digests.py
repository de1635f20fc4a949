"""Hashes of settings and records, which tell whether two of them are equal."""

from __future__ import annotations

import hashlib
import json


def json_sha256(content: object) -> str:
    """SHA-256 of the content, written as JSON with sorted keys.

    Args:
        content: anything that JSON can hold. Other values, such as paths, are converted to text.

    Returns:
        64 hexadecimal digits.
    """
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def fingerprint(content: object) -> str:
    """The first eight hexadecimal digits of `json_sha256`, short enough for the name of a folder in the cache."""
    return json_sha256(content)[:8]
