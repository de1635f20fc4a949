"""What decides the figures of a study's models, as hashes: by these a run and a report know what is done."""

from __future__ import annotations

import hashlib
import json

from deltamend.study.config import Cell, Study


def hash_of(content: object) -> str:
    """SHA-256 of what JSON makes of it, in hex digits."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def model_keys(study: Study, cell: Cell, key: str, exam: str) -> dict[str, str]:
    """Of the fine-tuned model and each repair of a cell: a hash of all that decides its figures.

    Args:
        study: its configuration.
        cell: of its grid.
        key: of the cell, as its record has it: a hash of all that decides the fine-tuned model.
        exam: hash of all questions and of how they are asked.
    """
    keys = {"finetuned": hash_of([key, exam])}
    for one in study.repairs_of(cell):
        written = [study.own_texts.model_dump()] if one.needs_activations else []
        keys[one.name] = hash_of([key, exam, one.what_decides(), *written])
    return keys
