"""Hashes of settings and records, by which equal ones are told from changed ones."""

from __future__ import annotations

import hashlib
import json


def json_sha256(content: object) -> str:
    """SHA-256 of the content as JSON with sorted keys, in 64 hex digits.

    Args:
        content: anything JSON can hold; other values, such as paths, count as their text.
    """
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def fingerprint(content: object) -> str:
    """The first eight hex digits of `json_sha256`: enough for the name of a folder in the cache."""
    return json_sha256(content)[:8]
