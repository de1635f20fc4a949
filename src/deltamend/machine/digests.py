"""Hashes of settings and records, by which equal ones are told from changed ones."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping


def fingerprint(settings: Mapping[str, object]) -> str:
    """Eight hex digits that change when any of the settings does; the same settings give the same folder name."""
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
